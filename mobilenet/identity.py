"""Identifies runs: by what a configuration computes, and by the content of its paths.

    identity.json   in a run directory: the identity of each path's content when the run began

A configuration gives the weights that a run starts from, its teacher and a folder of calibration
images by path. The content of a path may change, and a network may move. So these paths count by
their content: the digests of the weights, and the preparation of images.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mobilenet import config as config_lib
from mobilenet import rundir
from mobilenet.config import Config, ConfigError

IDENTITY_FILE = "identity.json"
# Keys whose values are paths of run directories, and of folders of images.
TEACHER = "compress.distillation.teacher"
RUNS = ("pretrained", TEACHER)
FOLDERS = ("quantize.calibration_dir",)
PATHS = (*RUNS, *FOLDERS)
# Items of a checkpoint that are evaluated; the optimiser's state does not affect other runs.
_WEIGHTS = ("params", "batch_stats", "ema", "quant")


def of_run(directory: Path) -> str | None:
    """The identity of a run's result, for runs that start from it or learn from it.

    It does not depend on the location of the directory. It changes with weights, normalisation,
    class names and network.

    Args:
      directory: a run directory, of `mobilenet train`, `convert` or `shrink`.

    Returns:
      16 hexadecimal digits, or None if there is no complete run.

    Raises:
      ConfigError, CheckpointError, RunDirectoryError: the run exists but cannot be read.
    """
    from mobilenet.train.checkpoints import read_digests  # imports JAX; other functions need none

    if not (directory / "config.json").is_file():
        return None
    digests, stored = read_digests(directory), rundir.read_json(directory / "data.json", dict)
    if digests is None or stored is None:
        return None
    config = rundir.read_config(directory)
    others = [k for k, _ in config_lib.flatten(config) if not k.startswith(("model.", "quantize."))]
    return _digest(
        {
            "weights": {name: digests.get(name) for name in _WEIGHTS},
            "shown": {name: stored.get(name) for name in ("mean", "std", "class_names")},
            "network": config_lib.fingerprint(config, without=(*others, *FOLDERS)),
        }
    )


def of_folder(folder: Path) -> str | None:
    """The identity of a folder: the names of the files below it, or None if there is no folder.

    Hidden files do not count, because file managers create them.
    """
    if not folder.is_dir():
        return None
    names = [
        os.path.relpath(os.path.join(parent, file), folder)
        for parent, _, files in os.walk(folder, followlinks=True)
        for file in files
        if not file.startswith(".")
    ]
    return _digest([os.fsencode(name).hex() for name in sorted(names)])


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def paths(config: Config) -> dict[str, str]:
    """The keys of PATHS that a configuration sets, and their paths."""
    values = dict(config_lib.flatten(config))
    return {key: values[key] for key in PATHS if values[key]}


def identify(config: Config) -> dict[str, str]:
    """Key of PATHS -> identity of the content at its path, for paths that exist."""
    found = {
        key: of_run(Path(path)) if key in RUNS else of_folder(Path(path))
        for key, path in paths(config).items()
    }
    return {key: identity for key, identity in found.items() if identity is not None}


def read(workdir: Path) -> dict[str, str]:
    """Key of PATHS -> identity of the content when the run in a directory began; {} if unknown."""
    found = rundir.read_json(workdir / IDENTITY_FILE, dict) or {}
    return {key: str(identity) for key, identity in found.items() if key in PATHS}


def computed(workdir: Path) -> dict[str, Any]:
    """What the run in a directory computes: dotted key -> value, or the identity for a path.

    The key "examples" holds the identity of the images, if the run stores it.

    Raises:
      ConfigError: as `rundir.read_config`.
    """
    values = dict(config_lib.flatten(rundir.read_config(workdir))) | read(workdir)
    stored = rundir.read_json(workdir / "data.json", dict) or {}
    values["examples"] = stored.get("examples")
    return {k: v for k, v in values.items() if not k.startswith(config_lib.RUNTIME_KEYS)}


def fingerprint(
    config: Config,
    known: Mapping[str, str],
    *,
    without: Iterable[str] = (),
    instead: Mapping[str, Any] | None = None,
) -> str:
    """`config.fingerprint`, in which paths count by their content.

    Args:
      config: complete configuration.
      known: from `identify` or `read`; other paths count by their text.
      without, instead: as in `config.fingerprint`; `instead` has priority over `known`.
    """
    return config_lib.fingerprint(config, without=without, instead={**known, **(instead or {})})


def begin(workdir: Path, config: Config, *, write: bool = True) -> None:
    """Makes a directory that of a run, or checks that the run in it computes the same.

    The content of a path in the configuration (PATHS) must be the same as when the run began; the
    path may have changed, and the content may be missing.

    Args:
      workdir: the run directory; the caller holds its lock.
      config: complete configuration of the run.
      write: whether this process writes config.json and identity.json.

    Raises:
      ConfigError: the directory holds a run with other values, which the message names.
    """
    path, known = workdir / "config.json", identify(config)
    begun = path.exists()
    if begun:
        old, recorded = rundir.read_config(workdir), read(workdir)
        differing = config_lib.differences(old, config)
        for key in recorded.keys() & known.keys() & paths(old).keys():
            if known[key] != recorded[key]:
                raise ConfigError(
                    f"{key} is {paths(config)[key]!r}, whose content has changed since the run in "
                    f"{workdir} began. Restore it, or give another --workdir."
                )
            differing.pop(key, None)
        if differing:
            shown = "; ".join(
                f"{key} is {was!r} there and {now!r} now" for key, (was, now) in differing.items()
            )
            raise ConfigError(
                f"{workdir} holds a run with another configuration: {shown}. Give another "
                "--workdir, or the values of the run."
            )
    if not write:
        return
    text = config_lib.to_json(config)
    if not (begun and rundir.read_bytes(path) == text.encode()):
        rundir.write_atomically(path, text)
    if not begun:
        rundir.write_json(workdir / IDENTITY_FILE, known)
