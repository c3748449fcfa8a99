"""Experiment files: a Python file that says what is run.

    get_config(arg="")    the configuration; every experiment has it
    sweep(arg="")         overrides of the points, for `mobilenet sweep`
    variants(arg="")      name of a variant -> what it overrides
    baselines(arg="")     variant -> the variant that it is compared with
    comparisons(arg="")   claim of a paper -> the two variants that decide it
    cases()               what `mobilenet benchmark` measures

A path is `file.py` or `file.py:arg`; the project's own files, `experiments/...`, are found from any
folder. Overrides are dotted keys with values as text, as a command
line has them. A file may import modules that lie next to it (`mobilenet.neighbours`).
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import os
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from mobilenet import config as config_lib
from mobilenet.config import Config, ConfigError
from mobilenet.neighbours import Neighbours
from mobilenet.settings import SettingError

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


def load_module(path: str) -> types.ModuleType:
    """Executes `file.py` or `file.py:arg`, an experiment.

    The functions of RETURNS are checked whenever they are called: what they raise, and what they
    return, is a ConfigError that names the file.

    Raises:
      ConfigError: no such file, or not one that defines an experiment.
    """
    file = _locate(path.partition(":")[0])
    if not Path(file).is_file():
        raise ConfigError(f"--config is {file!r}, which is not a file; experiments/ has examples.")
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
    return module


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


def load_config(path: str, overrides: Mapping[str, str]) -> Config:
    """The configuration of `file.py` or `file.py:arg`, with overrides.

    It is not validated: what it must fit, such as the number of devices, the caller knows.

    Raises:
      ConfigError: as `load_module`, or what the file or an override sets cannot be.
    """
    config = _call(path, "get_config")
    override(config, overrides)
    return config


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
    """What a function of an experiment returns; it may leave its parameter `arg` out."""
    function = getattr(load_module(path), name, None)
    file, _, arg = path.partition(":")
    if function is None:
        raise ConfigError(
            f"--config={file} has no {name}(); it must return {RETURNS[name][1]}; "
            "experiments/ablations/expansion.py has one."
        )
    if inspect.signature(function).parameters:
        return function(arg)
    if arg:
        raise ConfigError(
            f"--config is {path!r}, but {name}() of {file} takes no argument; leave out ':{arg}'."
        )
    return function()


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's, which JSON knows."""
    return value.tolist() if hasattr(value, "tolist") else value


def _checked(
    file: str, neighbours: Neighbours, name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    """A function of an experiment, with its errors and its result as ConfigErrors."""
    expected, words = RETURNS[name]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            found = function(*args, **kwargs)
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
        raise ConfigError(f"{_place(file, neighbours, error)}: {error}") from error
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
        raise ConfigError(f"{_place(file, neighbours, error)}: {described}") from error


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
