"""Random and TPE search over the ranges of a sweep, on Optuna; hopeless trials end early.

    WORKDIR/search.journal    every trial; Optuna's journal file, which needs no server
    WORKDIR/points/KEY/       the run directories, as in any sweep

A trial draws a value for each range and trains all overrides of the sweep with it, such as three
seeds; its score is the mean of their validation top-1. The same command continues a killed search,
and several of them at once work on one.
"""

import contextlib
import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState

from mobilenet import build, rundir
from mobilenet.config import Config, ConfigError
from mobilenet.rundir import InUseError
from mobilenet.sweep import machine, naming, runner
from mobilenet.sweep import points as points_lib
from mobilenet.sweep.points import Point
from mobilenet.sweep.space import Overrides, Range
from mobilenet.train.lanes import Pruned

METHODS = ("random", "tpe")
STARTUP_TRIALS = 5  # before any is pruned; Optuna's MedianPruner has the same
# What a trial that diverges scores, so that TPE learns to stay away from it.
DIVERGED_SCORE = 0.0


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial that has ended.

    Attributes:
      number: in Optuna's journal.
      values: drawn from the ranges, by dotted key.
      status: "complete", "pruned" or "fail".
      score: mean validation top-1, a fraction; None for a failed trial.
    """

    number: int
    values: Mapping[str, Any]
    status: str
    score: float | None


class _Enough(Exception):
    """No further trial is wanted."""


def ranges_of(overrides: Sequence[Overrides]) -> dict[str, Range]:
    """The ranges of a sweep by their key.

    Raises:
      ConfigError: none, or a key with two different ones.
    """
    found: dict[str, Range] = {}
    for changes in overrides:
        for key, value in changes.items():
            if isinstance(value, Range) and found.setdefault(key, value) != value:
                raise ConfigError(
                    f"{key} has two ranges, {found[key]} and {value}; a search draws one value a "
                    "trial, so it needs one."
                )
    if not found:
        raise ConfigError(
            "The sweep has no ranges to search; give a key a range of mobilenet.sweep.space, such "
            "as log_uniform(1e-3, 1.0)."
        )
    return found


def run(
    base: Config,
    overrides: Sequence[Overrides],
    workdir: Path,
    *,
    method: str,
    trials: int,
    seed: int = 0,
    prune: bool = True,
    say: Callable[[str], None] = print,
) -> list[Trial]:
    """Searches until `trials` trials have ended, those of earlier commands included.

    Args:
      base: the experiment's configuration.
      overrides: of its `sweep()`, with ranges.
      workdir: of the search.
      method: "random", or "tpe" (tree-structured Parzen estimator, Bergstra et al. 2011).
      trials: of the search, at least 1.
      seed: of the draws; trial n draws the same after any interruption.
      prune: stop runs whose validation top-1 is below the median of earlier trials at that step
        (Optuna's MedianPruner), from the sixth trial on.
      say: called with a line for each trial.

    Returns:
      All ended trials, best first; failed ones last.

    Raises:
      ConfigError: an unknown method, no ranges, values that cannot run, or a directory that holds
        another search.
      DatasetError, RunDirectoryError: the data cannot be opened, or the directory not written.
      Interrupted: by a signal, after the run in progress was saved.
    """
    if method not in METHODS:
        raise ConfigError(f"--search is {method!r}; allowed are {', '.join(METHODS)}.")
    ranges = ranges_of(overrides)
    shared = build.Shared()
    _check_ends(base, overrides, ranges, workdir, shared)
    study = _open(workdir, base, overrides, method=method, seed=seed, prune=prune)
    machine.join(workdir)
    with contextlib.suppress(_Enough):
        while True:
            with _next(study, ranges, workdir, method=method, seed=seed, trials=trials) as trial:
                values = _values(trial.params, ranges)
                try:
                    planned = _planned(base, overrides, values)
                    _train(study, trial, planned, workdir, shared, prune=prune)
                except ConfigError as error:
                    # The ends of the ranges can run, these values do not go together.
                    study.tell(trial, state=TrialState.FAIL)
                    say(str(error))
            ended = study.trials[trial.number]
            say(_describe(ended, values, _ended(study, ranges), trials))
    return _ended(study, ranges)


def _planned(
    base: Config, overrides: Sequence[Overrides], values: Mapping[str, Any]
) -> list[Point]:
    """The points of a trial, named by the values that it has drawn."""
    drawn = naming.describe(values)
    return [
        dataclasses.replace(
            point,
            variant=drawn if point.variant == naming.DEFAULT else f"{point.variant}, {drawn}",
        )
        for point in points_lib.points_of(base, _drawn(overrides, values))
    ]


def _drawn(overrides: Sequence[Overrides], values: Mapping[str, Any]) -> list[Overrides]:
    return [
        {k: values[k] if isinstance(v, Range) else v for k, v in changes.items()}
        for changes in overrides
    ]


def _check_ends(
    base: Config,
    overrides: Sequence[Overrides],
    ranges: Mapping[str, Range],
    workdir: Path,
    shared: build.Shared,
) -> None:
    """Validates the ends of every range, and opens their data, before anything is trained."""
    ends = {key: r.choices or (r.low, r.high) for key, r in ranges.items()}
    for index in range(max(map(len, ends.values()))):
        values = {key: _number(ranges[key], e[min(index, len(e) - 1)]) for key, e in ends.items()}
        planned = points_lib.points_of(base, _drawn(overrides, values))
        runner.check(planned, workdir, shared)


def _number(drawn_from: Range, value: Any) -> Any:
    return int(value) if drawn_from.integer else value


def _distributions(ranges: Mapping[str, Range]) -> dict[str, BaseDistribution]:
    made: dict[str, BaseDistribution] = {}
    for key, r in ranges.items():
        if r.choices:
            # By their place: Optuna stores numbers and text alone, not tuples.
            made[key] = CategoricalDistribution(tuple(range(len(r.choices))))
        elif r.integer:
            made[key] = IntDistribution(int(r.low), int(r.high), log=r.log)
        else:
            made[key] = FloatDistribution(r.low, r.high, log=r.log)
    return made


def _values(params: Mapping[str, Any], ranges: Mapping[str, Range]) -> dict[str, Any]:
    return {
        key: ranges[key].choices[value] if ranges[key].choices else value
        for key, value in params.items()
    }


def _open(
    workdir: Path,
    base: Config,
    overrides: Sequence[Overrides],
    *,
    method: str,
    seed: int,
    prune: bool,
) -> optuna.Study:
    """The study in the journal; one with other settings is refused."""
    optuna.logging.set_verbosity(logging.WARNING)
    with _alone(workdir):
        study = optuna.create_study(
            storage=read_journal(workdir / "search.journal"),
            study_name="search",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
            load_if_exists=True,
        )
        settings = {
            "method": method,
            "seed": seed,
            "prune": prune,
            "configuration": points_lib.make_point(base, {}).key,
            "overrides": json.dumps(overrides, default=str, sort_keys=True),
        }
        before = study.user_attrs.get("settings")
        if before is None:
            study.set_user_attr("settings", settings)
        elif before != settings:
            differing = ", ".join(key for key in settings if before.get(key) != settings[key])
            raise ConfigError(
                f"{workdir} holds a search with another {differing}; give another --workdir, or "
                "the same settings."
            )
    return study


def read_journal(path: Path) -> JournalStorage:
    """The journal of trials; a last line that a kill left unfinished is cut off.

    Raises:
      FileError: the file is damaged.
    """
    lock = JournalFileSymlinkLock(str(path))
    backend = JournalFileBackend(str(path), lock_obj=lock)
    lock.acquire()
    try:
        content = rundir.read_bytes(path) or b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
    finally:
        lock.release()
    try:
        return JournalStorage(backend)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        advice = "move it away to search anew, in which points that are done are not trained again"
        raise rundir.FileError(path, "is not the journal of a search", advice) from error


@contextlib.contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Waits until no other command asks for a trial."""
    with rundir.locked(workdir / "search", wait=True):
        yield


@contextlib.contextmanager
def _next(
    study: optuna.Study,
    ranges: Mapping[str, Range],
    workdir: Path,
    *,
    method: str,
    seed: int,
    trials: int,
) -> Iterator[optuna.Trial]:
    """A new trial, locked until it has ended; one that a killed command left is drawn again.

    Raises:
      _Enough: enough trials have ended or are run by other commands.
    """
    with contextlib.ExitStack() as stack:
        with _alone(workdir):
            for left in study.get_trials(states=(TrialState.RUNNING,)):
                with (
                    contextlib.suppress(InUseError),
                    rundir.locked(_hold(workdir, left.number)),
                ):
                    # No command trains it any more. The same values have the same run directories,
                    # which continue.
                    study.tell(left.number, state=TrialState.FAIL)
                    study.enqueue_trial(left.params, user_attrs={"repeats": left.number})
            every = study.get_trials(deepcopy=False)
            repeated = {t.user_attrs.get("repeats") for t in every}
            drawn = sum(t.number not in repeated for t in every)
            waiting = any(t.state == TrialState.WAITING for t in every)
            if drawn >= trials and not waiting:
                raise _Enough
            # A seed for each trial: the draws do not depend on interruptions.
            own = int(np.random.SeedSequence((seed, drawn)).generate_state(1)[0])
            study.sampler = _sampler(method, own)
            trial = study.ask(_distributions(ranges))
            stack.enter_context(rundir.locked(_hold(workdir, trial.number)))
        yield trial


def _hold(workdir: Path, number: int) -> Path:
    return workdir / "search" / f"trial{number}"


def _sampler(method: str, seed: int) -> optuna.samplers.BaseSampler:
    if method == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # Joint densities over all ranges; Optuna marks the option as experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)


def _train(
    study: optuna.Study,
    trial: optuna.Trial,
    planned: Sequence[Point],
    workdir: Path,
    shared: build.Shared,
    *,
    prune: bool,
) -> None:
    """Trains a trial's points and tells the study how it ended."""
    runner.register(planned, workdir)
    scores: list[float] = []

    def watch(step: int, validation: Mapping[str, Any]) -> None:
        # The first seed decides: the others repeat the same experiment.
        if scores or not prune:
            return
        trial.report(validation["top1"], step)
        if trial.should_prune():
            raise Pruned(step, f"Trial {trial.number} was below the median at step {step}.")

    for point in planned:
        directory = point.directory(workdir)
        if rundir.status(directory) not in rundir.FINAL:
            with rundir.locked(directory):
                runner.train([point], workdir, shared, watch=watch)
        status = rundir.status(directory)
        summary = rundir.read_json(directory / "summary.json", dict) or {}
        if status == "failed":
            study.tell(trial, state=TrialState.FAIL)
            return
        if status == "pruned":
            study.tell(trial, state=TrialState.PRUNED)
            return
        score = summary["validation"]["top1"] if status == "done" else DIVERGED_SCORE
        scores.append(score)
    study.tell(trial, float(np.mean(scores)))


def _ended(study: optuna.Study, ranges: Mapping[str, Range]) -> list[Trial]:
    every = study.get_trials(deepcopy=False)
    repeated = {t.user_attrs.get("repeats") for t in every}
    ended = [
        Trial(
            t.number,
            _values(t.params, ranges),
            t.state.name.lower(),
            t.value if t.state == TrialState.COMPLETE else _last_report(t),
        )
        for t in every
        if t.state.is_finished() and t.number not in repeated
    ]
    order = {"complete": 0, "pruned": 1, "fail": 2}
    return sorted(ended, key=lambda t: (order[t.status], -(t.score or 0.0), t.number))


def _last_report(trial: optuna.trial.FrozenTrial) -> float | None:
    if not trial.intermediate_values:
        return None
    return trial.intermediate_values[max(trial.intermediate_values)]


def _describe(
    ended: optuna.trial.FrozenTrial,
    values: Mapping[str, Any],
    trials: Sequence[Trial],
    wanted: int,
) -> str:
    score = ended.value if ended.state == TrialState.COMPLETE else _last_report(ended)
    shown = "" if score is None else f" at validation top-1 {100 * score:.2f} %"
    best = trials[0]
    shown_best = (
        f"; best {100 * (best.score or 0.0):.2f} % ({naming.describe(best.values)})"
        if best.status == "complete"
        else ""
    )
    return (
        f"{len(trials)}/{wanted} trials: {naming.describe(values)}: "
        f"{ended.state.name.lower()}{shown}{shown_best}"
    )
