"""Experiment files of users: their mistakes in one sentence, and modules that lie next to them."""

import json
import sys
import textwrap
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest

from mobilenet import config as config_lib
from mobilenet import experiment
from mobilenet.cli.main import main
from mobilenet.config import ConfigError

BASE = "from mobilenet.config import get_config as base\n"


def write(folder: Path, **files: str) -> Path:
    """Writes modules; the path of the last one."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder / f"{list(files)[-1]}.py"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # ruff: noqa: E501 (one mistake a line)
        ("import no_such_module", ", line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("from math import nothing", ", line 1: ImportError: cannot import name 'nothing' from 'math'"),
        ("import math\nmath.tau2", ", line 2: AttributeError: module 'math' has no attribute 'tau2'"),
        ("def get_config(arg=''):\n  return 1 / 0", ", line 2: ZeroDivisionError: division by zero"),
        ("def get_config(arg=''):\n  return {}['a']", ", line 2: KeyError: 'a'"),
        ("def get_config(arg=''):\n  return len(3)", ", line 2: TypeError: object of type 'int' has no len()"),
        ("def get_config(arg=''):\n  raise ValueError('first\\nsecond')", ", line 2: ValueError: first second"),
        ("def get_config(arg=''):\n  assert arg == 'a'", ", line 2: AssertionError"),
        ("import sys\nsys.exit('no')", ", line 2: SystemExit: no"),
        (f"{BASE}def get_config(arg=''):\n  c = base()\n  c.model.widht_multiplier = 3\n  return c", ", line 4: model.widht_multiplier is not a configuration key; did you mean model.width_multiplier?"),
        (f"{BASE}def get_config(arg=''):\n  c = base()\n  c.modle.name = 'x'\n  return c", ", line 4: modle is not a configuration key; did you mean model?"),
        (f"{BASE}def get_config(arg=''):\n  c = base()\n  c['model']['widht_multiplier'] = 3\n  return c", ", line 4: model.widht_multiplier is not a configuration key"),
        (f"{BASE}def get_config(arg=''):\n  c = base()\n  c.augment.random_erasing = True\n  return c", ", line 4: augment.random_erasing is True; it must be a number."),
        (f"{BASE}def get_config(arg=''):\n  c = base()\n  c.model.num_classes = 'ten'\n  return c", ", line 4: model.num_classes is 'ten'; it must be a whole number or None."),
        ("def get_config(arg=''):\n  return (", " is not Python: '(' was never closed, line 2."),
        ("x = 1", " has no get_config; it needs get_config(arg='')."),
        ("get_config = 3", ": get_config is a int; it must be a function that returns the configuration"),
        (f"{BASE}def get_config(arg=''):\n  base()", ": get_config() returned nothing; it must return the configuration that"),
        ("def get_config(arg=''):\n  return {'seed': 1}", ": get_config() returned a dict; it must return the configuration that"),
        (f"{BASE}def get_config():\n  return base()", ":smoke', but get_config() of "),
        (f"{BASE}def get_config(arg=''):\n  return base('tiny')", "The configuration argument is 'tiny'; allowed are none and 'smoke'."),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_with_file_and_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = write(tmp_path, mine=text)
    assert main(["cost", f"--config={file}:smoke", "--config.model.num_classes=3"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and len(error) < 400
    if message.startswith(", line"):
        assert f"{file}{message}" in error


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("", "has no sweep(); it must return a list of overrides"),
        ("sweep = [{'seed': 0}]", "sweep is a list; it must be a function"),
        (
            "def sweep(arg=''):\n  pass",
            "sweep() returned nothing; it must return a list of overrides",
        ),
        ("def sweep():\n  return {'seed': 0}", "sweep() returned a dict; it must return a list"),
        ("def sweep():\n  return ['seed']", "sweep() returned a list with 'seed' in it"),
        ("def sweep():\n  return [{1: 2}]", "sweep() returned a list with {1: 2} in it"),
        ("def sweep():\n  yield {'seed': 1 / 0}", ", line 5: ZeroDivisionError: division by zero"),
        (
            "def sweep():\n  return [{'sede': 1}]",
            "sede is not a configuration key; did you mean seed?",
        ),
    ],
)
def test_mistakes_of_a_sweep_are_named(
    sweep: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = write(tmp_path, mine=f"{BASE}def get_config(arg=''):\n  return base()\n{sweep}\n")
    argv = ["sweep", f"--config={file}", f"--workdir={tmp_path / 'runs'}", "--dry_run"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_else_a_file_is_asked_for_is_checked_too(tmp_path: Path):
    text = "def get_config(arg=''): ...\ndef variants(arg=''): ...\ndef cases(): return {}\n"
    module: Any = experiment.load_module(str(write(tmp_path, mine=text)))
    with pytest.raises(
        ConfigError, match=r"variants\(\) returned nothing; it must return a dictionary"
    ):
        module.variants("cpu")
    with pytest.raises(ConfigError, match=r"cases\(\) returned a dict; it must return a list"):
        module.cases()


def test_a_file_that_is_not_there_is_answered_with_one_that_is(tmp_path: Path):
    path = write(tmp_path, digits="def get_config(arg=''): ...")
    with pytest.raises(ConfigError, match=f"did you mean {path}?"):
        experiment.load_module(str(path.with_name("digit.py")))
    with pytest.raises(ConfigError, match="experiments/ has examples"):
        experiment.load_module(str(tmp_path / "nowhere" / "digit.py"))


def test_a_sweep_may_yield_and_use_numpy(tmp_path: Path):
    text = """
        import numpy as np
        def get_config(arg=""): ...
        def sweep(arg=""):
            for rate in np.linspace(0.5, 1, 2):
                yield {"optimizer.learning_rate": rate, "seed": np.int64(3)}
    """
    points = experiment.load_sweep(str(write(tmp_path, mine=text)))
    assert json.loads(json.dumps(points)) == points
    assert [point["optimizer.learning_rate"] for point in points] == [0.5, 1.0]


def test_lists_in_a_file_are_tuples(tmp_path: Path):
    text = f"""{BASE}
def get_config(arg=""):
    c = base()
    c.model.blocks = [[1, 16, 1, 1.0]]
    c.augment.crop_ratio = [0.5, 2.0]
    return c
"""
    config = experiment.load_config(str(write(tmp_path, lists=text)), {"model.num_classes": "3"})
    config_lib.validate(config)
    assert config.model.blocks == ((1, 16, 1, 1),) and config.augment.crop_ratio == (0.5, 2.0)


NEIGHBOUR = f"""{BASE}
def get_config(arg=""):
    c = base()
    c.seed = SEED
    return c
"""
CHILD = """
from common import get_config
def sweep(arg=""):
    from later import seeds  # while the function runs
    return [{"seed": seed} for seed in seeds]
"""


def test_neighbours_are_imported_and_never_mixed_up(tmp_path: Path):
    files = [
        write(
            tmp_path / str(seed),
            common=NEIGHBOUR.replace("SEED", str(seed)),
            later=f"seeds = [{seed}]",
            child=CHILD,
        )
        for seed in (1, 2)
    ]
    before = set(sys.modules), list(sys.path), list(sys.meta_path)
    own = sys.modules["common"] = types.ModuleType("common")  # of a notebook, say
    own.__file__ = str(tmp_path / "common.py")
    try:
        modules: list[Any] = [experiment.load_module(str(file)) for file in files]
        assert [module.get_config().seed for module in modules] == [1, 2]
        assert [module.sweep()[0]["seed"] for module in modules[::-1]] == [2, 1]
        assert [experiment.load_config(str(file), {}).seed for file in files] == [1, 2]
        assert sys.modules["common"] is own
    finally:
        del sys.modules["common"]
    assert (set(sys.modules), list(sys.path), list(sys.meta_path)) == before


def test_neighbours_hide_neither_the_standard_library_nor_packages(tmp_path: Path):
    (tmp_path / "absl").mkdir()  # of data, say
    text = "import statistics, absl.flags, mobilenet\ndef get_config(arg=''): ...\n"
    hidden = "raise RuntimeError('imported')"
    file = write(tmp_path, statistics=hidden, mobilenet=hidden, mine=text)
    module: Any = experiment.load_module(str(file))
    assert module.mobilenet is sys.modules["mobilenet"] and module.statistics.mean([1, 3]) == 2


def test_a_mistake_in_a_neighbour_is_shown_there(tmp_path: Path):
    broken = {"a": "1 / 0", "b": "def f(:", "c": "def get_config(arg=''):\n  return None.x"}
    for name, message in (
        ("a", "a.py, line 1: ZeroDivisionError"),
        ("b", "b.py is not Python: .*, line 1"),
        ("c", "c.py, line 2: AttributeError: 'NoneType' object has no attribute 'x'"),
    ):
        file = write(tmp_path, **broken, mine=f"from {name} import get_config")
        with pytest.raises(ConfigError, match=f"{tmp_path}/{message}"):
            experiment.load_config(str(file), {})


def test_dataclasses_find_their_module(tmp_path: Path):
    text = """
        from __future__ import annotations
        import dataclasses
        from typing import ClassVar
        @dataclasses.dataclass
        class Recipe:
            rates: ClassVar[int] = 3
            name: str = "a"
        def get_config(arg=""): ...
    """
    module: Any = experiment.load_module(str(write(tmp_path, mine=text)))
    assert module.Recipe().name == "a"


def test_the_projects_own_experiments_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    name = "experiments/baselines/digits.py"
    own = experiment.load_config(f"{name}:smoke", {})
    assert own.data.name == "digits" and own.train.num_epochs == 0.5
    with pytest.raises(ConfigError, match=r"experiments/baselines/absent.py', which is not a file"):
        experiment.load_module("experiments/baselines/absent.py")
    write(tmp_path / "experiments", baselines="")
    folder = tmp_path / "experiments" / "baselines"
    folder.mkdir()
    (folder / "digits.py").write_text(BASE + "def get_config():\n  return base()\n")
    assert experiment.load_config(name, {}).train.num_epochs == 10  # the user's own comes first


def test_a_wheel_installs_the_experiments_of_every_folder():
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    folders = {path.parent.relative_to(root) for path in root.glob("experiments/*/*.py")}
    assert project["tool"]["setuptools"]["data-files"] == {
        f"share/mobilenet/{folder}": [f"{folder}/*.py"] for folder in folders
    }


VARIANTS = """
SEEDS = 2
def get_config(arg=""):
    c = base()
    c.seed = 4 if arg == "four" else 0
    return c
def variants():
    return {"a": {}, "b": {"model.se_ratio": 0.25}, "as it is": {"train.num_epochs": 0.0}}
def baselines():
    return {"b": "a"}
"""


def test_a_file_with_variants_needs_no_sweep(tmp_path: Path):
    path = str(write(tmp_path, mine=f"{BASE}{VARIANTS}"))
    assert experiment.load_sweep(path) == [
        {"train.num_epochs": 0.0, "seed": 0},  # nothing is trained: one seed
        {"seed": 0},
        {"seed": 1},
        {"model.se_ratio": 0.25, "seed": 0},
        {"model.se_ratio": 0.25, "seed": 1},
    ]
    # Functions without a parameter return the same for every argument.
    assert experiment.load_sweep(f"{path}:four") == experiment.load_sweep(path)
    assert list(experiment.load_variants(f"{path}:four")) == ["a", "b", "as it is"]
    assert experiment.load_baselines(path) == {"b": "a"}
    module: Any = experiment.load_module(path)
    assert module.variants("four") == module.variants() and len(module.sweep("four")) == 5
    three = write(tmp_path, three=f"{BASE}{VARIANTS}".replace("SEEDS = 2", ""))
    assert len(experiment.load_sweep(str(three))) == 7
    assert len(experiment.load_sweep(f"{three}:smoke")) == 5
    own = write(tmp_path, own=f"{BASE}{VARIANTS}\ndef sweep():\n  return [{{}}]\n")
    assert experiment.load_sweep(str(own)) == [{}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEEDS = 0", "SEEDS is 0; it must be a whole number, 1 or more"),
        ("SEEDS = 2.5", "SEEDS is 2.5; it must be a whole number"),
        ("def variants():\n  return {'a': 3}", "variants() has 3 for 'a'; it must be overrides"),
        ("def baselines():\n  return {'b': 'c'}", "baselines() names 'c', which is no variant"),
    ],
)
def test_mistakes_of_variants_are_named(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = write(tmp_path, mine=f"{BASE}{VARIANTS}\n{text}\n")
    argv = ["sweep", f"--config={file}", f"--workdir={tmp_path / 'runs'}", "--dry_run"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_notes_of_a_docstring_are_read(tmp_path: Path):
    text = '"""Question.\n\nCost:   9 runs\n        of an hour\nResult: none\n"""\n'
    path = str(write(tmp_path, mine=f"{text}{BASE}{VARIANTS}"))
    assert experiment.read_note(f"{path}:smoke", "Cost") == "9 runs of an hour"
    assert experiment.read_note(path, "Result") == "none"
    assert experiment.read_note(path, "Claims") == ""
