"""Access to a run directory without JAX: its lock, its configuration, its status.

    config.json     the configuration, complete
    summary.json    final metrics, counts, versions, device, commit, wall time, status
    point.json      of a sweep's point: its overrides, and the error that ended it

`mobilenet.train.records` writes the files of a run; launchers and notebooks read them here.
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

# The values of `status`. Done, diverged and pruned runs are final; failed runs ended with an error;
# all others continue when the same command is given again.
FINAL = ("done", "diverged", "pruned")
MACHINE_FILE = "machine.json"  # of a sweep: `mobilenet.sweep.machine`
STATUSES = (*FINAL, "failed", "running", "interrupted", "killed", "pending", "damaged")


class RunDirectoryError(RuntimeError):
    """A run directory cannot be used; the message says why and what to do."""


class InUseError(RunDirectoryError):
    """Another process holds the run directory."""


class FileError(RunDirectoryError, ValueError):
    """A file of a run directory has invalid content.

    Attributes:
      what: the fault, as a phrase that follows the file's name.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        advice: str = "restore it from a copy, or move the run directory away",
    ) -> None:
        super().__init__(f"{path} {what}; {advice}.")
        self.what = what


# Longer paths leave no space for the names of a run directory's files: Linux allows 4,095 bytes.
LONGEST_PATH = 3800


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's content; readers, also after a crash, get the complete old or new content.

    The content is on the disk before it gets the name, so a loss of power leaves no empty file.

    Raises:
      RunDirectoryError: the file cannot be written.
    """
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """`write_atomically` of bytes."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}"[:200])
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Waits until the names of a directory's files are on the disk, if the system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by a value as sorted JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError while `path` is written into a RunDirectoryError that says what to do."""
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(cannot_write(path, error.errno)) from error


def cannot_write(path: Path, number: int | None) -> str:
    """The message for a file or directory that could not be written because of a system error."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full: {path} could not be written. Free some space and start the same "
            "command again; it resumes from the newest complete checkpoint."
        )
    reason = os.strerror(number) if number else "unknown error"
    return f"{path} could not be written: {reason}."


def cannot_read(path: Path, number: int | None) -> str:
    """The message for a file or directory that could not be read because of a system error."""
    reason = os.strerror(number) if number else "unknown error"
    return f"{path} could not be read: {reason}. Nothing was changed."


def require_usable(workdir: Path) -> None:
    """Refuses, before anything is computed, a path that is too long for the names of its files.

    Raises:
      RunDirectoryError: the path is too long.
    """
    length = len(os.fsencode(workdir.absolute()))
    if length > LONGEST_PATH:
        raise RunDirectoryError(
            f"The path of the run directory has {length} bytes, but {LONGEST_PATH} are allowed; "
            f"give a shorter one than {str(workdir)[:40]}..."
        )


def require_new(workdir: Path) -> None:
    """Refuses, before anything is computed, a path at which no new run can be made.

    Raises:
      RunDirectoryError: it is not empty, its path is too long, or its location is read-only.
    """
    require_usable(workdir)
    try:
        taken = workdir.is_symlink() or workdir.exists()
        if taken and (not workdir.is_dir() or any(workdir.iterdir())):
            raise RunDirectoryError(
                f"{workdir} already holds a run or other files; give --to a new directory."
            )
    except OSError as error:
        raise RunDirectoryError(cannot_read(workdir, error.errno)) from error
    above = workdir.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise RunDirectoryError(
            f"{workdir} cannot be created: {above} is not a writable directory. Give --to another "
            "path."
        )


@contextlib.contextmanager
def locked(workdir: Path, *, wait: bool = False) -> Iterator[None]:
    """Locks the run directory for one process; the system unlocks it when the process ends.

    Args:
      workdir: the run directory; created if absent.
      wait: wait until another process unlocks it, instead of raising.

    Raises:
      InUseError: another process is training in it.
      RunDirectoryError: it cannot be written.
    """
    require_usable(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = open(workdir / ".lock", "a")  # noqa: SIM115
    except OSError as error:
        raise RunDirectoryError(
            f"The run directory {workdir} cannot be used: {error.strerror}. Give --workdir a "
            "writable directory."
        ) from error
    with handle:
        # More than once, because `is_locked` of another process holds the lock for a moment.
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
    """Whether a process is training in the directory; does not lock it."""
    with contextlib.suppress(OSError), open(workdir / ".lock") as handle:
        try:
            # Shared: two processes that ask at the same time do not consider each other a run.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def status(workdir: Path, *, held: bool = False) -> str:
    """The status of a run.

    Args:
      workdir: the run directory.
      held: the caller has locked it, and asks for the status before that.

    Returns:
      One of STATUSES: "done"; "diverged"; "pruned" (by a search); "failed" (by an error, which is
      in `summary.json` or `point.json`); "running"; "interrupted" (by a signal, after saving);
      "killed" (neither finished nor running); "pending" (nothing trained yet); "damaged" (a file
      is not JSON).
    """
    if not held and is_locked(workdir):
        return "running"
    try:
        summary = read_json(workdir / "summary.json", dict)
        point = read_json(workdir / "point.json", dict)
    except FileError:
        return "damaged"
    found = (summary or {}).get("status")
    if found in FINAL:
        return found
    if (point or {}).get("error") or found == "failed":
        return "failed"
    if found is None:
        return "pending"
    return "interrupted" if found == "interrupted" else "killed"


def read_json(path: Path, kind: type | None = None) -> Any:
    """The content of a JSON file of a run directory, or None if it does not exist.

    Args:
      path: of the file.
      kind: type of the content: dict or list; None allows any.

    Raises:
      FileError: the file is empty, is not JSON, or holds another type.
      RunDirectoryError: it cannot be read.
    """
    content = read_bytes(path)
    if content is None:
        return None
    if not content.strip():
        raise FileError(path, "is empty")
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"is not JSON: {error}") from error
    if kind is not None and not isinstance(value, kind):
        wanted = {dict: "an object", list: "a list"}[kind]
        raise FileError(path, f"holds a {type(value).__name__} instead of {wanted}")
    return value


def read_bytes(path: Path) -> bytes | None:
    """The content of a file, or None if it does not exist; RunDirectoryError if unreadable."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunDirectoryError(cannot_read(path, error.errno)) from error


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object in a file that must exist, with these keys; a.b is the key b in object a.

    Raises:
      FileError: the file does not exist, is not an object, or lacks some of the keys.
      RunDirectoryError: it cannot be read.
    """
    value = read_json(path, dict)
    if value is None:
        raise FileError(path, "does not exist")
    missing = [key for key in keys if not _has(value, key.split("."))]
    if missing:
        raise FileError(path, f"has no {', '.join(missing)}")
    return value


def _has(value: Any, names: list[str]) -> bool:
    for name in names:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def threads(directory: Path) -> int | None:
    """Number of threads of the run or sweep in a directory; None if it is not stored.

    Errors are ignored: reading the other files of the directory reports them.
    """
    for name in ("summary.json", MACHINE_FILE):
        with contextlib.suppress(RunDirectoryError, OSError, ValueError):
            count = (read_json(directory / name, dict) or {}).get("threads")
            if type(count) is int and count > 0:
                return count
    return None


def read_config(workdir: Path) -> Config:
    """The configuration of a run directory.

    Raises:
      ConfigError: not a run directory, or one from a version with other keys.
      FileError: the file is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(
            f"{str(workdir)!r} has no config.json; give the directory of a run that `mobilenet "
            "train` made."
        )
    value = read_object(path)
    written = dict(config_lib.flatten(value))
    # Keys that every version writes: a missing one must not get today's default.
    left_out = (*config_lib.LATER_KEYS, *config_lib.RUNTIME_KEYS)
    lost = [
        key
        for key, _ in config_lib.flatten(config_lib.get_config())
        if key not in written and not key.startswith(left_out)
    ]
    if lost:
        raise FileError(path, f"has no {', '.join(lost[:3])}, which every version writes")
    try:
        return config_lib.from_json(json.dumps(value))
    except ConfigError as error:
        raise ConfigError(f"{path} was written by another version: {error}") from error


def inherit(config: Config, workdir: Path | None = None) -> None:
    """Copies settings that belong to the weights of `config.pretrained` into the configuration.

    Args:
      config: of the run that starts from the weights; changed in place.
      workdir: the run directory. A run that has begun has stored these settings, so its weights may
        be missing.

    Raises:
      ConfigError: the weights are not in a run directory, or a key contradicts the weights.
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
        f"pretrained is {config.pretrained!r}, which has no config.json; give a run directory "
        "from `mobilenet convert` or `mobilenet train`."
    )
