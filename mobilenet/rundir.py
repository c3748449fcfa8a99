"""A run directory from outside: its lock, its configuration, its status. Needs no JAX.

    config.json     the configuration, complete
    summary.json    final metrics, counts, versions, device, commit, wall time, status
    point.json      of a sweep's point: what it overrides, and the error that ended it

`mobilenet.train.records` writes what a run leaves behind; launchers and notebooks read it here.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilenet import config as config_lib
from mobilenet.config import Config, ConfigError

# What `status` answers. Done, diverged and pruned runs have said all they can; failed ones ended
# by an error; the others continue when the same command is given again.
FINAL = ("done", "diverged", "pruned")
STATUSES = (*FINAL, "failed", "running", "interrupted", "killed", "pending", "damaged")


class RunDirectoryError(RuntimeError):
    """A run directory that cannot be used; the message says why and what to do."""


class InUseError(RunDirectoryError):
    """Another process holds the run directory."""


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's content so that a reader, or a crash, sees the old or the new one whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with full_disk_is_clear(path):
        temporary.write_text(text)
        os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by a value as sorted JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def full_disk_is_clear(path: Path) -> Iterator[None]:
    """Turns ENOSPC while writing `path` into a RunDirectoryError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunDirectoryError(
            f"The disk is full: {path} could not be written. Free some space and start the same "
            "command again; it resumes from the newest complete checkpoint."
        ) from error


@contextlib.contextmanager
def locked(workdir: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the run directory for one process; the system frees it when the process ends.

    Args:
      workdir: the run directory; made if absent.
      wait: until another process lets go of it, rather than raise.

    Raises:
      InUseError: another process is training in it.
      RunDirectoryError: it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = open(workdir / ".lock", "a")  # noqa: SIM115
    except OSError as error:
        raise RunDirectoryError(
            f"The run directory {workdir} cannot be used: {error.strerror}. Give --workdir a "
            "directory that can be written."
        ) from error
    with handle:
        # More than once: `is_locked` of another process holds the lock for a moment.
        for last in (False, False, True):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if last:
                    raise InUseError(
                        f"Another process is training in {workdir}; wait for it, or give another "
                        "--workdir."
                    ) from None
                time.sleep(0.02)
        yield


def is_locked(workdir: Path) -> bool:
    """Whether a process is training in the directory; it is not taken."""
    with contextlib.suppress(OSError), open(workdir / ".lock") as handle:
        try:
            # Shared: two that ask at once do not take each other for a run.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def status(workdir: Path, *, held: bool = False) -> str:
    """How far a run has come.

    Args:
      workdir: the run directory.
      held: the caller has its lock, and asks what was there before.

    Returns:
      One of STATUSES: "done"; "diverged"; "pruned" (a search gave it up); "failed" (by an error,
      which `summary.json` or `point.json` tells); "running"; "interrupted" (by a signal, after
      saving); "killed" (neither finished nor alive); "pending" (nothing trained yet); "damaged" (a
      file that is not JSON).
    """
    if not held and is_locked(workdir):
        return "running"
    try:
        summary = read_json(workdir / "summary.json")
        point = read_json(workdir / "point.json")
    except ValueError:
        return "damaged"
    if not all(isinstance(value, dict | None) for value in (summary, point)):
        return "damaged"
    found = (summary or {}).get("status")
    if found in FINAL:
        return found
    if (point or {}).get("error") or found == "failed":
        return "failed"
    if found is None:
        return "pending"
    return "interrupted" if found == "interrupted" else "killed"


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if it does not exist; ValueError if it is no JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def read_config(workdir: Path) -> Config:
    """The configuration that a run directory was made with.

    Raises:
      ConfigError: not a run directory, or one written by a version with other keys.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"{str(workdir)!r} has no config.json; give the directory of a run that `mobilenet "
            "train` made."
        )
    try:
        return config_lib.from_json(path.read_text())
    except ConfigError as error:
        raise ConfigError(f"{path} was written by another version: {error}") from error


def inherit(config: Config, workdir: Path | None = None) -> None:
    """Takes over, in place, what comes with the weights that `config.pretrained` names.

    Args:
      config: of the run that starts from the weights.
      workdir: the run directory. A run that has begun knows what came with its weights, which need
        not be at hand any more.

    Raises:
      ConfigError: it is no run directory, or a key is set to something that the weights are not.
    """
    if not config.pretrained:
        return
    path = Path(config.pretrained)
    if (path / "config.json").is_file():
        config_lib.inherit(config, read_config(path))
        return
    if workdir is not None and (workdir / "config.json").is_file():
        own = read_config(workdir)
        if own.pretrained == config.pretrained:
            config_lib.inherit_again(config, own)
            return
    raise ConfigError(
        f"pretrained is {config.pretrained!r}, which has no config.json; give a run directory, "
        "of `mobilenet convert` or `mobilenet train`."
    )
