"""One checkpoint on disk: how Orbax writes and reads it, and what counts as damage.

A checkpoint is a directory of items. Each item is a nested dictionary of NumPy arrays; `meta` is a
JSON object with the step, the metrics and the digests of all items. A checkpoint is damaged if
bytes are missing or do not match their digest. Other errors (of the disk, of permissions, too many
open files, no memory, a backend that does not start) do not mean damage, and are raised unchanged.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mobilenet import rundir, runtime

ITEMS = ("params", "batch_stats", "ema", "opt_state", "quant")
SCHEMA = 1  # of the items above; increased when their meaning changes
META = "meta"
SPARE_FILES = 64  # files that one read or write may have open at once
UNFINISHED = ".orbax-checkpoint-tmp"  # in names of directories that Orbax has not finished
UNWANTED = ".deleted"  # at the end of the names of directories that are being deleted


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or does not fit; the message says which and what to do."""


class DamageError(CheckpointError):
    """A checkpoint whose bytes are missing or do not match their digest."""


def digest(tree: Any) -> str:
    """Hash over paths, types, shapes and bytes of a nested dictionary of arrays."""
    found = hashlib.blake2b(digest_size=16)
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ):
        found.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def _digest_of_meta(meta: Mapping[str, Any]) -> str:
    text = json.dumps({key: meta[key] for key in ("schema", "step", "metrics")}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write(directory: Path, step: int, items: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Writes the checkpoint `directory`/`step`, which appears complete or not at all.

    Args:
      directory: of the checkpoints; it exists.
      step: of the state; it has no checkpoint yet.
      items: of ITEMS, nested dictionaries of NumPy arrays; empty ones are left out.
      metrics: of the validation at this step.

    Raises:
      CheckpointError: it could not be written.
    """
    meta: dict[str, Any] = {"schema": SCHEMA, "step": step, "metrics": dict(metrics)}
    digests = {name: digest(items[name]) for name in ITEMS}
    meta["digests"] = {**digests, META: _digest_of_meta(meta)}
    saved: dict[str, Any] = {
        name: ocp.args.StandardSave(items[name]) for name in ITEMS if items[name]
    }
    saved[META] = ocp.args.JsonSave(meta)
    try:
        with _explained(directory, step), plain_path(directory) as plain:
            _require_spare_files()
            # Not Orbax's asynchronous writer: after a failure its threads wait for each other for
            # minutes, and the program does not end.
            with contextlib.closing(_make_writer()) as writer:
                writer.save(plain / str(step), args=ocp.args.Composite(**saved))
            _sync(directory / str(step))
    except CheckpointError:
        _silence_late_writes()
        _remove_unfinished(directory, step)
        raise


def _remove_unfinished(directory: Path, step: int) -> None:
    """Deletes a checkpoint whose writing failed: it takes the space that the next attempt needs.

    A late write (`_is_late`) may put files back, so it is deleted until none is left, for at most
    2 seconds.
    """
    for _ in range(20):
        for path in directory.glob(f"{step}{UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.1)
        if not any(directory.glob(f"{step}{UNFINISHED}*")):
            return


def _make_writer() -> ocp.Checkpointer:
    """Writes in this thread; in a run of several processes only the first process takes part."""
    options = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        options = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="mobilenet"
        )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(
            multiprocessing_options=options,
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
    )
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _require_spare_files() -> None:
    """Raises OSError if the process can open only a few more files; Orbax would not recover."""
    opened: list[int] = []
    try:
        for _ in range(SPARE_FILES):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for handle in opened:
            os.close(handle)


def _is_late(error: BaseException | None) -> bool:
    """Whether a write of a failed checkpoint ended after Orbax had closed its event loop."""
    return isinstance(error, RuntimeError) and "Event loop is closed" in str(error)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record says more than the exception that Orbax's threads return."""
    error = record.exc_info[1] if record.exc_info else None
    return "orbax" not in record.pathname and not _is_late(error)


for _name in ("absl", "asyncio", "concurrent.futures"):
    logging.getLogger(_name).addFilter(_is_news)


def _silence_late_writes() -> None:
    """Keeps Python from printing a traceback for each late write (`_is_late`) of this process.

    TensorStore's threads cannot report to the closed event loop, and the tracebacks would follow
    the error that the user has to read.
    """
    report = sys.unraisablehook
    if getattr(report, "silences_late_writes", False):
        return

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if not _is_late(unraisable.exc_value):
            report(unraisable)

    hook.silences_late_writes = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def _sync(path: Path) -> None:
    """Waits until a directory is on the disk, because older checkpoints may then be deleted."""
    for folder, _, files in os.walk(path):
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        rundir.sync_directory(Path(folder))
    rundir.sync_directory(path.parent)


def remove(path: Path) -> None:
    """Deletes a checkpoint; if the process is killed, no part of it stays under its name."""
    unwanted = path.with_name(path.name + UNWANTED)
    with rundir.writing(path):
        shutil.rmtree(unwanted, ignore_errors=True)
        path.rename(unwanted)
    shutil.rmtree(unwanted, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Deletes the remains of checkpoints whose writing or deletion was killed."""
    for path in directory.iterdir():
        if UNFINISHED in path.name or path.name.endswith(UNWANTED):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def plain_path(directory: Path) -> Iterator[Path]:
    """A path to a directory that Orbax can use, whatever characters and length its own path has.

    Orbax searches paths with patterns, in which `[0.1]` or a backslash has a meaning, and considers
    `gs:` a location in the cloud. In addition, files in a checkpoint have long names.
    """
    text = str(directory)
    if re.fullmatch(r"[\w/.+=,@ -]*", text, re.ASCII) and len(text) < 2000:
        yield directory
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        link = Path(f"/proc/self/fd/{handle}")
        if not link.exists():
            raise CheckpointError(
                f"{directory} cannot hold checkpoints on this system; use a shorter path of "
                "letters, digits, dots, dashes and underscores."
            )
        yield link
    finally:
        os.close(handle)


def read_meta(path: Path) -> dict[str, Any]:
    """The `meta` of a checkpoint: schema, step, metrics, digests.

    Raises:
      DamageError: it is missing or invalid.
      CheckpointError: it cannot be read, has an incompatible version, or belongs to another step
        than the name of the directory says.
    """
    try:
        meta = rundir.read_object(path / META / "metadata", "schema", "step", "digests")
    except rundir.FileError as error:
        raise DamageError(f"The checkpoint {path} is damaged: {error}") from error
    except rundir.RunDirectoryError as error:
        raise CheckpointError(str(error)) from error
    if meta["schema"] != SCHEMA:
        raise CheckpointError(
            f"The checkpoint {path} has schema {meta['schema']}, this version reads {SCHEMA}."
        )
    meta.setdefault("metrics", {})
    kinds = {"digests": dict, "metrics": dict, "step": int}
    wrong = [key for key, kind in kinds.items() if not isinstance(meta[key], kind)]
    if not wrong and not all(isinstance(v, int | float) for v in meta["metrics"].values()):
        wrong = ["metrics"]
    wanted = None if wrong else meta["digests"].get(META)  # absent in older checkpoints
    if wrong or (wanted is not None and wanted != _digest_of_meta(meta)):
        what = f"{wrong[0]} is {meta[wrong[0]]!r}" if wrong else "it does not match its digest"
        raise DamageError(f"The checkpoint {path} is damaged: in its meta, {what}.")
    if str(meta["step"]) != path.name:
        raise CheckpointError(
            f"The checkpoint {path} is a checkpoint of step {meta['step']} under another name; "
            f"rename it to {meta['step']}, or move it away."
        )
    return meta


def read_items(path: Path, digests: Mapping[str, str]) -> dict[str, Any]:
    """The items of a checkpoint as NumPy arrays, each compared with its digest.

    Raises:
      DamageError: bytes are missing, or do not match their digest.
      CheckpointError: they cannot be read.
      BackendError: JAX does not start.
    """
    runtime.require_backend()  # a backend that does not start is not damage
    items: dict[str, Any] = {}
    for name in ITEMS:
        items[name] = {}
        try:
            _require_spare_files()
            if (path / name).is_dir():
                reader = ocp.Checkpointer(ocp.StandardCheckpointHandler())
                with plain_path(path) as plain, contextlib.closing(reader):
                    args = ocp.args.StandardRestore(strict=False)
                    restored = reader.restore(plain / name, args=args)
                items[name] = jax.tree.map(np.asarray, restored)
        except Exception as error:
            _raise_unless_damage(path, error)
            raise DamageError(f"The checkpoint {path} is damaged: {_reason(error)}.") from error
        # Checkpoints from before quantisation have no digest of `quant`.
        if digest(items[name]) != digests.get(name, digest({})):
            raise DamageError(
                f"The checkpoint {path} is damaged: the bytes of its {name} do not match their "
                "digest."
            )
    return items


# System errors that mean that a file is missing; all others say nothing about the bytes.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def _raise_unless_damage(path: Path, error: Exception) -> None:
    """Raises the error that prevented reading a checkpoint, unless its bytes are damaged."""
    if any(isinstance(each, MemoryError) for each in _chain(error)):
        raise error
    number = _system_error(error)
    if number is not None and number not in _MISSING:
        raise CheckpointError(rundir.cannot_read(path, number)) from error
    try:
        for folder, _, files in os.walk(path, onerror=_raise):
            for name in files:
                with open(os.path.join(folder, name), "rb") as file:
                    while file.read(1 << 20):
                        pass
    except FileNotFoundError:
        return
    except OSError as unreadable:
        raise CheckpointError(rundir.cannot_read(path, unreadable.errno)) from unreadable


def _raise(error: OSError) -> None:
    raise error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _system_error(error: BaseException) -> int | None:
    """The number of the system error inside the errors of Orbax and TensorStore, or None."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno:
            return each.errno
        found = re.search(r"os_error_code='(\d+)'|\[OS error (\d+)", str(each))
        if found:
            return int(found.group(1) or found.group(2))
    text = " ".join(map(str, _chain(error)))
    return errno.ENOSPC if "No space left" in text or "RESOURCE_EXHAUSTED" in text else None


def _reason(error: BaseException) -> str:
    """An error of Orbax in one line, without the pages of specifications that TensorStore adds."""
    text = str(error).split(" [tensorstore_spec")[0].split(" [source locations")[0].strip()
    text = " ".join(text.split()).rstrip(".")
    return f"{text[:300]}..." if len(text) > 300 else text or type(error).__name__


@contextlib.contextmanager
def _explained(directory: Path, step: int) -> Iterator[None]:
    """Turns a failed write into one sentence; Orbax wraps the system error several times."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        number = _system_error(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"The disk is full: a checkpoint could not be written to {directory}. Free some "
                "space and start the same command again; it resumes from the newest complete "
                "checkpoint."
            ) from error
        reason = os.strerror(number) if number else _reason(error)
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {directory}: {reason}."
        ) from error
