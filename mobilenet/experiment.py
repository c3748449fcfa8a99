"""Experiment files: a Python file that says what is run.

    get_config(arg="")    the configuration; every experiment has it
    sweep(arg="")         overrides of the points, for `mobilenet sweep`
    arms, contrasts       what the papers' claims compare (`mobilenet.reproduction`)
    cases()               what `mobilenet benchmark` measures

A path is `file.py` or `file.py:arg`. Overrides are dotted keys with values as text, as a command
line has them.
"""

import ast
import importlib.util
import inspect
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilenet import config as config_lib
from mobilenet.config import Config, ConfigError


def load_module(path: str) -> types.ModuleType:
    """Executes `file.py` or `file.py:arg`, an experiment.

    Raises:
      ConfigError: no such file, or not one that defines an experiment.
    """
    file = path.partition(":")[0]
    if not Path(file).is_file():
        raise ConfigError(f"--config is {file!r}, which is not a file; experiments/ has examples.")
    spec = importlib.util.spec_from_file_location("experiment_config", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={file} is not Python: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        _ = module.get_config
    except AttributeError as error:
        raise ConfigError(f"--config={file}: {error}; it needs get_config(arg='').") from error
    except SyntaxError as error:
        raise ConfigError(f"--config={file} is not Python: {error}.") from error
    return module


def load_config(path: str, overrides: Mapping[str, str]) -> Config:
    """The configuration of `file.py` or `file.py:arg`, with overrides.

    It is not validated: what it must fit, such as the number of devices, the caller knows.

    Raises:
      ConfigError: as `load_module`, or what the file or an override sets cannot be.
    """
    module = load_module(path)
    file, _, arg = path.partition(":")
    try:
        config = module.get_config(arg)
    except (AttributeError, KeyError, TypeError) as error:
        # A locked ConfigDict reports a misspelt key this way, with the nearest one in its text.
        text = " ".join(str(error).strip("'\"").split())
        raise ConfigError(f"{file}: {text}") from error
    override(config, overrides)
    return config


def load_sweep(path: str) -> list[dict[str, Any]]:
    """The overrides that the `sweep()` of `file.py` or `file.py:arg` returns.

    Raises:
      ConfigError: as `load_module`, or a file without `sweep()`.
    """
    file, _, arg = path.partition(":")
    sweep = getattr(load_module(path), "sweep", None)
    if sweep is None:
        raise ConfigError(
            f"--config={file} has no sweep(); it must return a list of overrides, as "
            "experiments/ablations/expansion.py does."
        )
    return list(sweep(arg) if inspect.signature(sweep).parameters else sweep())


def override(config: Config, overrides: Mapping[str, str]) -> None:
    """Applies overrides in place; ConfigError as `convert`."""
    config_lib.update(config, {k: convert(config, k, v) for k, v in overrides.items()})


def convert(config: Config, key: str, text: str) -> Any:
    """An override's text as a value of the key's type.

    Raises:
      ConfigError: an unknown key, or text that is no value of its type.
    """
    known = dict(config_lib.flatten(config))
    if key not in known:
        raise ConfigError(config_lib.unknown_key(config, key))
    current = known[key]
    if isinstance(current, bool):
        lowered = text.lower()
        if lowered not in ("true", "false", "1", "0"):
            raise ConfigError(f"{key} is {text!r}; it must be true or false.")
        return lowered in ("true", "1")
    if isinstance(current, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(current, tuple) and not isinstance(value, tuple | list):
        raise ConfigError(f"{key} is {text!r}; it must be a tuple, such as (1, 2).")
    return list(value) if isinstance(value, tuple | list) else value
