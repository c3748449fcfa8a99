"""Experiment files: a Python file that says what is run.

    get_config(arg="")    the configuration; every experiment has it
    variants(arg="")      name of a variant -> what it overrides
    sweep(arg="")         overrides of the runs, for `mobilenet sweep`; without it, every variant
                          with the seeds 0 to SEEDS - 1 (3, unless the file sets SEEDS)
    baselines(arg="")     variant -> the variant that it is compared with
    comparisons(arg="")   claim of a paper -> the two variants that decide it
    cases()               what `mobilenet benchmark` measures

A path is `file.py` or `file.py:arg`; the project's own files, `experiments/...`, are found from any
folder. A function that takes no `arg` returns the same for each; only get_config must take one.
Overrides are dotted keys with values as text, as a command
line has them. A file may import modules that lie next to it (`mobilenet.neighbours`).
"""

import contextlib
import difflib
import functools
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from mobilenet import config as config_lib
from mobilenet.config import Config, ConfigError, ExperimentError
from mobilenet.neighbours import Neighbours
from mobilenet.settings import SettingError
from mobilenet.sweep import space

# Functions of an experiment -> what they return, and how a message says it.
RETURNS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "get_config": (
        ml_collections.ConfigDict,
        "the configuration that mobilenet.config.get_config() makes, with its changes",
    ),
    "sweep": ((list, tuple), "a list of overrides, such as [{'seed': 0}, {'seed': 1}]"),
    "variants": (Mapping, "a dictionary of names and overrides"),
    "baselines": (Mapping, "a dictionary of names and names"),
    "comparisons": (Mapping, "a dictionary of claims and pairs of names"),
    "cases": ((list, tuple), "a list of dictionaries, as experiments/benchmarks/steps.py does"),
}
SEEDS = 3  # of each variant: the fewest that give a useful interval
SMOKE_SEEDS = 2


def load_module(path: str) -> types.ModuleType:
    """Executes `file.py` or `file.py:arg`, an experiment.

    The functions of RETURNS are checked whenever they are called: what they raise, and what they
    return, is a ConfigError that names the file.

    Raises:
      ConfigError: no such file, or not one that defines an experiment.
    """
    file = _locate(path.partition(":")[0])
    if not Path(file).is_file():
        near = difflib.get_close_matches(
            Path(file).name, [each.name for each in Path(file).parent.glob("*.py")], n=1
        )
        hint = f"did you mean {Path(file).parent / near[0]}?" if near else ""
        raise ConfigError(
            f"--config is {file!r}, which is not a file; {hint or 'experiments/ has examples.'}"
        )
    spec = importlib.util.spec_from_file_location("experiment_config", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={file} is not Python: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    neighbours = Neighbours(module)
    _run(file, neighbours, functools.partial(spec.loader.exec_module, module))
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={file} has no get_config; it needs get_config(arg='').")
    for name in RETURNS:
        function = getattr(module, name, None)
        if callable(function):
            setattr(module, name, _checked(file, neighbours, name, function))
        elif function is not None:
            raise ConfigError(
                f"--config={file}: {name} is a {type(function).__name__}; it must be a function "
                f"that returns {RETURNS[name][1]}."
            )
    if hasattr(module, "variants") and not hasattr(module, "sweep"):
        module.sweep = functools.partial(_sweep_variants, file, module)  # pyright: ignore[reportAttributeAccessIssue]
    return module


def _sweep_variants(file: str, module: Any, arg: str = "") -> list[dict[str, Any]]:
    """The `sweep()` of a file that has none: each variant with some seeds."""
    seeds = getattr(module, "SEEDS", SEEDS)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise ConfigError(
            f"--config={file}: SEEDS is {seeds!r}; it must be a whole number, 1 or more."
        )
    seeds = min(seeds, SMOKE_SEEDS) if arg == "smoke" else seeds
    return space.replicates(_named_overrides(file, module.variants(arg)).values(), seeds)


def _locate(name: str) -> str:
    """The file that a name means: as it stands, else the project's own file of this name.

    The project's own are those of the checkout that the package is imported from, or those that its
    wheel has installed.
    """
    file = os.path.expanduser(name)
    if os.path.exists(file) or Path(file).parts[:1] != ("experiments",):
        return file
    in_checkout = Path(__file__).parents[1] / file
    if in_checkout.is_file():
        return str(in_checkout)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for installed in importlib.metadata.files("mobilenet") or ():
            if installed.as_posix().endswith(f"share/mobilenet/{Path(file).as_posix()}"):
                return str(Path(str(installed.locate())).resolve())
    return file


def load_config(path: str, overrides: Mapping[str, str] | None = None) -> Config:
    """The configuration of `file.py` or `file.py:arg`, with overrides, as text.

    An experiment file may start from another one with it:
    `load_config(f"experiments/baselines/digits.py:{arg}")`.

    Overrides win over what the smoke form makes small. One that says where data is
    (`data.data_dir`), or repeats the name of the experiment's data, keeps the smoke form from
    taking the embedded digits instead.

    It is not validated: what it must fit, such as the number of devices, the caller knows.

    Raises:
      ConfigError: as `load_module`, or what the file or an override sets cannot be.
    """
    overrides = overrides or {}
    config = _call(path, "get_config")
    file, _, arg = path.partition(":")
    if arg == "smoke" and overrides.keys() & {"data.name", "data.data_dir"}:
        full = _call(file, "get_config")
        if overrides.get("data.name", full.data.name) == full.data.name:
            config_lib.keep_data(config, full)
    override(config, overrides)
    if arg == "smoke" and config.data.name != config_lib.SMOKE_DATA:
        _fit_examples(config, overrides)
    return config


def _fit_examples(config: Config, overrides: Mapping[str, str]) -> None:
    """Fits a smoke form, in place, to a small data set of a user's own; overrides stay."""
    from mobilenet.data import datasets

    keys = ("train_split", "test_split", "validation_split", "validation_fraction", "test_fraction")
    # Faults of the data are reported when it is opened for use.
    with contextlib.suppress(datasets.DatasetError), _silent(datasets.log):
        opened = datasets.open_dataset(
            config.data.name,
            data_dir=config.data.data_dir,
            **{key: config.data[key] for key in keys},
        )
        examples = len(opened.splits["train"])
        most = {"data.train_examples": examples, "train.global_batch_size": max(1, examples)}
        if not len(opened.splits["validation"]):
            most["train.patience"] = 0
        values = dict(config_lib.flatten(config))
        config_lib.update(
            config,
            {key: min(values[key], end) for key, end in most.items() if key not in overrides},
        )


@contextlib.contextmanager
def _silent(log: logging.Logger) -> Iterator[None]:
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def load_sweep(path: str) -> list[dict[str, Any]]:
    """The overrides that the `sweep()` of `file.py` or `file.py:arg` returns.

    Raises:
      ConfigError: as `load_module`, or a file without `sweep()`.
    """
    points = _call(path, "sweep")
    for point in points:
        if not (isinstance(point, Mapping) and all(isinstance(key, str) for key in point)):
            raise ConfigError(
                f"{path}: sweep() returned a list with {point!r} in it; it must return "
                f"{RETURNS['sweep'][1]}."
            )
    return [{key: _plain(value) for key, value in point.items()} for point in points]


def load_variants(path: str) -> dict[str, dict[str, Any]]:
    """Name -> overrides of the `variants()` of `file.py` or `file.py:arg`; empty without one.

    Raises:
      ConfigError: as `load_module`, or variants that are no overrides.
    """
    file, _, arg = path.partition(":")
    function = getattr(load_module(path), "variants", None)
    return _named_overrides(file, function(arg)) if function else {}


def load_baselines(path: str) -> dict[str, str]:
    """Variant -> its baseline, of the `baselines()` of a file; empty without one; as above."""
    function = getattr(load_module(path), "baselines", None)
    return dict(function(path.partition(":")[2])) if function else {}


def read_note(path: str, word: str) -> str:
    """What the docstring of `file.py` or `file.py:arg` says after "word:"; "" if nothing.

    A note ends at an empty line or at the next word with a colon.
    """
    lines = iter((load_module(path).__doc__ or "").splitlines())
    first = next((line for line in lines if line.startswith(f"{word}:")), "")
    found = [first.partition(":")[2]]
    for line in lines:
        if not line.startswith(" ") or not first:
            break
        found.append(line)
    return " ".join(" ".join(found).split())


def _named_overrides(file: str, variants: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    for name, changes in variants.items():
        if not (isinstance(changes, Mapping) and all(isinstance(key, str) for key in changes)):
            raise ConfigError(
                f"{file}: variants() has {changes!r} for {name!r}; it must be overrides, such as "
                "{'model.se_ratio': 0.25}."
            )
    return {
        str(name): {key: _plain(value) for key, value in changes.items()}
        for name, changes in variants.items()
    }


def override(config: Config, overrides: Mapping[str, str]) -> None:
    """Applies overrides in place; ConfigError as `convert`."""
    config_lib.update(config, {k: convert(config, k, v) for k, v in overrides.items()})


def convert(config: Config, key: str, text: str) -> Any:
    """An override's text as a value of the key's kind.

    Raises:
      ConfigError: an unknown key, or text that is no value of its kind.
    """
    return config_lib.parse(config, key, text)


def _call(path: str, name: str) -> Any:
    """What a function of an experiment returns; `_checked` lets it leave its parameter out."""
    function = getattr(load_module(path), name, None)
    file, _, arg = path.partition(":")
    if function is None:
        raise ConfigError(
            f"--config={file} has no {name}(); it must return {RETURNS[name][1]}. Or let "
            "variants() return a dictionary of names and overrides; experiments/README.md has an "
            "example."
        )
    if arg and name == "get_config" and not inspect.signature(function).parameters:
        raise ConfigError(
            f"--config is {path!r}, but {name}() of {file} takes no argument; leave out ':{arg}'."
        )
    return function(arg)


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's, which JSON knows."""
    return value.tolist() if hasattr(value, "tolist") else value


def _checked(
    file: str, neighbours: Neighbours, name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    """A function of an experiment, with its errors and its result as ConfigErrors."""
    expected, words = RETURNS[name]
    takes_arg = bool(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            found = function(*args, **kwargs) if takes_arg else function()
            return list(found) if inspect.isgenerator(found) else found

        found = _run(file, neighbours, run)
        if not isinstance(found, expected):
            what = "nothing" if found is None else f"a {type(found).__name__}"
            raise ConfigError(f"{file}: {name}() returned {what}; it must return {words}.")
        return found

    return call


def _run(file: str, neighbours: Neighbours, run: Callable[[], Any]) -> Any:
    """Runs code of an experiment next to its neighbours; what it raises becomes a ConfigError.

    A ConfigError that the code raises itself, about its argument, is the message already.
    """
    try:
        with neighbours:
            return run()
    except SettingError as error:
        raise ExperimentError(f"{_place(file, neighbours, error)}: {error}") from error
    except ConfigError:
        raise
    except SyntaxError as error:
        name = file if not error.filename else _shown(file, error.filename)
        raise ConfigError(
            f"--config={name} is not Python: {error.msg}, line {error.lineno}."
        ) from error
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        described = f"{type(error).__name__}{f': {text}' if text else ''}"
        raise ExperimentError(f"{_place(file, neighbours, error)}: {described}") from error


def _place(file: str, neighbours: Neighbours, error: BaseException) -> str:
    """The last line of the experiment, or of its neighbours, on the way to an error."""
    places = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    own = [(n, line) for n, line in places if _is_same(file, n) or neighbours.include(n)]
    return f"{_shown(file, own[-1][0])}, line {own[-1][1]}" if own else file


def _is_same(file: str, name: str) -> bool:
    return os.path.realpath(file) == os.path.realpath(name)


def _shown(file: str, name: str) -> str:
    """A file's name as the user would write it: the experiment's as it was given."""
    if _is_same(file, name):
        return file
    folder = os.path.dirname(file)
    return os.path.join(folder, os.path.relpath(name, os.path.abspath(folder)))
