"""Search over ranges: the same draws after a kill, hopeless trials pruned, bad spaces refused."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from support import ROOT, TINY_SWEEP

from mobilenet import experiment, rundir
from mobilenet.config import ConfigError
from mobilenet.data.datasets import DatasetError
from mobilenet.sweep import points, runner, search, space

RATE = "optimizer.learning_rate"


def tiny() -> Any:
    return experiment.load_module(str(TINY_SWEEP)).get_config()


def run(workdir: Path, trials: int, overrides: Any = None, **settings: Any) -> list[search.Trial]:
    overrides = overrides or [{RATE: space.log_uniform(1e-2, 1.0)}]
    settings = {"method": "random", "say": lambda text: None} | settings
    return search.run(tiny(), overrides, workdir, trials=trials, **settings)


def draws(trials: list[search.Trial]) -> set[float]:
    return {trial.values[RATE] for trial in trials}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_a_search_continues_with_the_draws_of_an_undisturbed_one(method: str, tmp_path: Path):
    whole = run(tmp_path / "whole", 4, method=method)
    first = run(tmp_path / "parts", 2, method=method)
    # A third trial that a killed command has left in the journal.
    study = optuna.load_study(
        study_name="search",
        storage=optuna.storages.JournalStorage(
            JournalFileBackend(str(tmp_path / "parts/search.journal"))
        ),
    )
    wanted = sorted(whole, key=lambda trial: trial.number)[2].values[RATE]
    study.enqueue_trial({RATE: wanted})
    study.ask({RATE: optuna.distributions.FloatDistribution(1e-2, 1.0, log=True)})
    rest = run(tmp_path / "parts", 4, method=method)
    assert len(first) == 2 and len(rest) == 4
    assert draws(rest) == draws(whole)
    assert {t.score for t in rest} == {t.score for t in whole}
    assert rest[0].score == max(t.score or 0 for t in rest)
    assert len(list((tmp_path / "parts/points").iterdir())) == 4


def test_a_journal_that_a_kill_cut_is_continued(tmp_path: Path):
    path = tmp_path / "search.journal"

    def study() -> optuna.Study:
        storage = search.read_journal(path)
        return optuna.create_study(storage=storage, study_name="s", load_if_exists=True)

    study().ask()
    with open(path, "ab") as file:
        file.write(b'{"op_code": 4, "work')
    study().ask()
    assert [trial.number for trial in study().trials] == [0, 1]


@pytest.mark.parametrize("content", [b"{\n{}\n", b"[]\n", b"5\n", b"{}\n", b"\x80\n\x81\n"])
def test_a_damaged_journal_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "search.journal"
    path.write_bytes(content)
    with pytest.raises(rundir.FileError, match="search.journal is not the journal of a search"):
        search.read_journal(path)
    assert path.read_bytes() == content


def test_a_trial_is_the_mean_over_the_sweeps_seeds(tmp_path: Path):
    overrides = space.product([{RATE: space.uniform(0.1, 0.2)}], space.seeds(2))
    (trial,) = run(tmp_path, 1, overrides)
    directories = list((tmp_path / "points").iterdir())
    scores = [rundir.read_json(d / "summary.json")["validation"]["top1"] for d in directories]
    assert len(scores) == 2 and trial.score == pytest.approx(sum(scores) / 2)


def test_trials_below_the_median_are_pruned(tmp_path: Path):
    overrides = [{RATE: space.uniform(0.1, 0.2)}]
    study = search._open(tmp_path, tiny(), overrides, method="random", seed=0, prune=True)
    for _ in range(search.STARTUP_TRIALS):
        study.add_trial(
            optuna.create_trial(
                params={RATE: 0.1},
                distributions={RATE: optuna.distributions.FloatDistribution(0.1, 0.2)},
                intermediate_values={8: 0.99},
                value=0.99,
            )
        )
    trials = run(tmp_path, search.STARTUP_TRIALS + 1, overrides)
    assert [t.status for t in trials].count("pruned") == 1
    (directory,) = (tmp_path / "points").iterdir()
    assert rundir.status(directory) == "pruned"
    assert "below the median at step 8" in rundir.read_json(directory / "summary.json")["error"]


def test_trials_that_diverge_have_a_score(tmp_path: Path):
    (diverged,) = run(tmp_path, 1, [{RATE: space.choice(1e30)}])
    assert (diverged.status, diverged.score) == ("complete", search.DIVERGED_SCORE)


def test_values_that_do_not_go_together_fail_and_the_search_goes_on(tmp_path: Path):
    said: list[str] = []
    together = {"train.patience": space.choice(0, 2), "eval.every_epochs": space.choice(0.0, 1.0)}
    trials = run(tmp_path, 2, [together], seed=4, say=said.append)
    assert [(trial.number, trial.status) for trial in trials] == [(1, "complete"), (0, "fail")]
    assert trials[1].score is None and "it counts validations" in said[0]


def test_data_that_cannot_be_opened_are_refused_before_anything_is_drawn(tmp_path: Path):
    lost = {RATE: space.choice(0.1), "data.name": "folder", "data.data_dir": "no/folder"}
    with pytest.raises(DatasetError, match="no/folder"):
        run(tmp_path / "none", 1, [lost])
    assert not (tmp_path / "none").exists()


def test_choices_may_be_tuples(tmp_path: Path):
    key = "schedule.boundary_epochs"
    (trial,) = run(tmp_path, 1, [{key: space.choice((0.5, 1.0))}])
    assert trial.values == {key: (0.5, 1.0)}


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        ([{"seed": 1}], {}, "no ranges"),
        ([{RATE: space.uniform(0, 1)}], {}, "learning_rate=0.*must be finite and above 0"),
        (
            [{RATE: space.uniform(0.1, 1)}, {RATE: space.uniform(0.2, 1), "seed": 1}],
            {},
            "two ranges",
        ),
        ([{RATE: space.uniform(0.1, 1)}], {"method": "grid"}, "allowed are random, tpe"),
    ],
)
def test_searches_that_cannot_run_are_refused(
    tmp_path: Path, overrides: Any, settings: Any, message: str
):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "none", 1, overrides, **settings)
    assert not (tmp_path / "none" / "points").exists()


def test_another_search_in_the_same_directory_is_refused(tmp_path: Path):
    run(tmp_path, 1)
    with pytest.raises(ConfigError, match="another seed"):
        run(tmp_path, 1, seed=1)


def test_a_sweep_with_ranges_needs_a_search():
    with pytest.raises(ConfigError, match="--search"):
        points.points_of(tiny(), [{RATE: space.uniform(0.1, 1)}])


@pytest.mark.slow
def test_searches_find_a_learning_rate_like_the_grids_best(tmp_path: Path):
    config = experiment.load_config(str(ROOT / "experiments/baselines/digits.py"), {})
    config.train.num_epochs = 6.0
    config.eval.every_epochs = 2.0
    rates = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
    grid = points.points_of(config, space.grid({RATE: rates}))
    outcome = runner.run(grid, tmp_path / "grid", progress=False)
    best = max(
        rundir.read_json(tmp_path / "grid/points" / key / "summary.json")["validation"]["top1"]
        for key in outcome.done
    )
    for method in search.METHODS:
        trials = search.run(
            config, [{RATE: space.log_uniform(1e-3, 1.0)}], tmp_path / method,
            # TPE draws its first ten at random.
            method=method, trials=14 if method == "tpe" else 10, say=print,
        )  # fmt: skip
        assert len(trials) >= 10
        assert (trials[0].score or 0) >= 0.9 * best, (method, trials[0], best)
