"""Checkpoints: written during training, the newest and best kept, verified when restored.

A checkpoint is a directory of items (`params`, `batch_stats`, `ema`, `opt_state`, `quant`, `meta`;
empty ones are left out). Each is a nested dictionary of NumPy arrays, so a notebook can read the
items that it needs without devices, and a run on two devices can continue on one.
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np

from mobilenet import rundir, runtime
from mobilenet.train import checkpoint_files, records
from mobilenet.train.checkpoint_files import ITEMS, DamageError
from mobilenet.train.checkpoint_files import CheckpointError as CheckpointError
from mobilenet.train.state import TrainState, evaluated, to_host

DAMAGED = ".damaged"  # at the end of the name of a damaged checkpoint after its renaming

log = logging.getLogger("mobilenet")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read into NumPy: its step, its items, and `meta` (metrics, versions)."""

    step: int
    items: dict[str, Any]
    meta: dict[str, Any]

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables to evaluate: the averaged ones if the run has averages."""
        items = self.items
        return evaluated(items["params"], items["batch_stats"], items["ema"], items["quant"])


class Checkpoints:
    """The checkpoints of one run directory.

    In a run of several processes only the first one writes; all of them read. Use it as a context
    manager, which waits at its end for the write in progress.

    Args:
      directory: created if absent.
      keep_newest: number of newest checkpoints to keep, at least 1.
      keep_best: number of best checkpoints to keep in addition, by `score`.
      read_only: never write or clean up; for notebooks and `evaluate` while a job is running.

    Raises:
      RunDirectoryError: the directory cannot be made.
      BackendError: JAX does not start.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_newest: int = 2,
        keep_best: int = 1,
        read_only: bool = False,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._keep_newest, self._keep_best = keep_newest, keep_best
        self._damaged: set[int] = set()
        self._pending: concurrent.futures.Future[None] | None = None
        self._writer: concurrent.futures.ThreadPoolExecutor | None = None
        if read_only:  # listing the steps needs no backend
            return
        runtime.require_backend()
        if jax.process_index() != 0:
            return
        rundir.require_usable(self.directory.parent)
        with rundir.writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            checkpoint_files.remove_leftovers(self.directory)
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the write in progress and releases the directory."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.shutdown()
            self.wait()

    def steps(self) -> list[int]:
        """Steps of finished checkpoints, in increasing order."""
        return _finished_steps(self.directory)

    def best_step(self) -> int | None:
        """The finished checkpoint with the best validation; the later one if several are equal.

        Raises:
          CheckpointError: a checkpoint cannot be read, and might be the best.
        """
        scores: dict[int, float | None] = {}
        for step in self.steps():
            try:
                scores[step] = self._read_score(step)
            except DamageError as error:
                if step in self.steps():  # otherwise a running job has just deleted it
                    log.warning("%s It is not considered for the best.", error)
        best = _by_score(scores)
        return best[-1] if best else None

    def _read_score(self, step: int) -> float | None:
        """The score of a checkpoint's validation; None if it was not validated."""
        metrics = checkpoint_files.read_meta(self.directory / str(step))["metrics"]
        return _score(metrics) if metrics.keys() & {"score", "top1"} else None

    def save(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing a checkpoint; returns when the state may be changed.

        Args:
          state: on devices or the host.
          metrics: of the validation at this step; the checkpoint is ranked by `score`, or else by
            `top1`. None if it was not validated.

        Raises:
          CheckpointError: the previous write failed.
        """
        if self._writer is None:
            return
        self.wait()
        step = int(state.step)
        items = flax.serialization.to_state_dict(
            {name: to_host(getattr(state, name)) for name in ITEMS}
        )
        self._pending = self._writer.submit(self._write, step, items, dict(metrics or {}))

    def _write(self, step: int, items: dict[str, Any], metrics: dict[str, float]) -> None:
        """Writes a checkpoint, then deletes those that are no longer kept."""
        checkpoint_files.write(self.directory, step, items, metrics)
        scores: dict[int, float | None] = {}
        for each in self.steps():
            with contextlib.suppress(CheckpointError):  # reading it will raise the same error
                scores[each] = self._read_score(each)
        kept = set(list(scores)[-self._keep_newest :])
        if self._keep_best:
            kept.update(_by_score(scores)[-self._keep_best :])
        # Checkpoints that cannot be read are never deleted.
        for other in scores.keys() - kept:
            checkpoint_files.remove(self.directory / str(other))

    def wait(self) -> None:
        """Waits until all checkpoints are on disk; raises CheckpointError if a write failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def read(self, step: int) -> Restored:
        """Reads one checkpoint into NumPy and verifies its digests.

        Raises:
          DamageError: bytes are missing or do not match their digest.
          CheckpointError: it is missing, cannot be read, or was written by an incompatible version.
        """
        path = self.directory / str(step)
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"{self.directory} has no checkpoint of step {step}; it has {known}."
            )
        meta = checkpoint_files.read_meta(path)
        return Restored(step, checkpoint_files.read_items(path, meta["digests"]), meta)

    def read_newest(self) -> Restored | None:
        """The newest undamaged checkpoint; damaged ones are skipped with a warning.

        Raises:
          CheckpointError: all existing checkpoints are damaged, or one cannot be read for another
            reason.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.read(step)
            except CheckpointError as error:
                if (
                    step not in self.steps()
                ):  # a running job has just deleted it, and has newer ones
                    return self.read_newest()
                if not isinstance(error, DamageError):
                    raise
                self._damaged.add(step)
                log.warning("%s Trying the one before it.", error)
        if steps:
            raise CheckpointError(
                f"All {len(steps)} checkpoints in {self.directory} are damaged; move the directory "
                "away to start again."
            )
        return None

    def discard_after(self, step: int) -> None:
        """Removes checkpoints after `step`, because the run will repeat these steps.

        Those that `read_newest` found damaged are renamed, not deleted.
        """
        if self._writer is None:
            return
        self.wait()
        for later in [s for s in self.steps() if s > step]:
            path = self.directory / str(later)
            if later in self._damaged:
                aside = path.with_name(path.name + DAMAGED)
                with rundir.writing(aside):
                    shutil.rmtree(aside, ignore_errors=True)
                    path.rename(aside)
                log.warning("%s is renamed to %s.", path, aside.name)
            else:
                checkpoint_files.remove(path)


def _finished_steps(directory: Path) -> list[int]:
    # A directory under its final name is complete: Orbax writes next to it and renames.
    try:
        return sorted(
            int(path.name) for path in directory.iterdir() if _is_step(path.name) and path.is_dir()
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(rundir.cannot_read(directory, error.errno)) from error


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def require_begun(workdir: Path, checkpoints: Checkpoints) -> None:
    """Refuses to restart a run whose checkpoints are missing.

    Raises:
      CheckpointError: the summary says that steps were saved, but there is no checkpoint.
    """
    summary = records.read_summary(workdir)
    step = summary.get("step")
    saved = summary.get("status") in ("running", "interrupted", "done") and step
    if saved and not checkpoints.steps():
        raise CheckpointError(
            f"{workdir} was trained to step {step} according to its summary.json, but "
            f"{checkpoints.directory} holds no checkpoint. Put it back, or delete summary.json to "
            "start again at step 0."
        )


def read_checkpoint(workdir: Path, which: str = "newest") -> Restored:
    """A checkpoint of a run as NumPy arrays; works while a job is still training.

    Args:
      workdir: the run directory.
      which: "newest", "best" (of the validated ones), "result" (the checkpoint of the run's test
        result: the best for a run with `train.patience`, otherwise the newest), or a step.

    Raises:
      CheckpointError: it does not exist, or is damaged.
    """
    if which == "result":
        summary = rundir.read_json(workdir / "summary.json", dict) or {}
        which = str(summary.get("result_step", "newest"))
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    if which == "newest":
        restored = checkpoints.read_newest()
        if restored is None:
            raise CheckpointError(
                f"{workdir} has no checkpoint yet; train it with `mobilenet train "
                f"--workdir={workdir}`."
            )
        return restored
    step = checkpoints.best_step() if which == "best" else int(which) if _is_step(which) else None
    if step is None:
        known = ", ".join(map(str, checkpoints.steps())) or "none"
        raise CheckpointError(
            f"The checkpoint {which!r} does not exist in {workdir}; allowed are result, newest, "
            f"best (of validated ones), or one of the steps: {known}."
        )
    return checkpoints.read(step)


def read_digests(workdir: Path) -> dict[str, str] | None:
    """Digests of the items of a run's result, read from `meta` alone: item -> hash of its bytes.

    JAX's backend is not started: the parent of a sweep's workers must not take their memory.

    Args:
      workdir: the run directory.

    Returns:
      The digests, or None if there is no undamaged checkpoint.

    Raises:
      CheckpointError, RunDirectoryError: a file exists but cannot be read.
    """
    summary = rundir.read_json(workdir / "summary.json", dict) or {}
    steps = _finished_steps(workdir / "checkpoints")
    result = summary.get("result_step")
    for step in [result] if result in steps else reversed(steps):
        with contextlib.suppress(DamageError):
            return checkpoint_files.read_meta(workdir / "checkpoints" / str(step))["digests"]
    return None


def _by_score(scores: Mapping[int, float | None]) -> list[int]:
    """Steps of the validated checkpoints, the best one last; of equal ones the later one last."""
    return [step for _, step in sorted((s, step) for step, s in scores.items() if s is not None)]


def _score(metrics: Mapping[str, float]) -> float:
    return float(metrics["score"] if "score" in metrics else metrics["top1"])


def restore_state(restored: Restored, like: TrainState) -> TrainState:
    """Puts a checkpoint's arrays into a state of the same structure.

    Args:
      restored: from `Checkpoints.read`.
      like: a state (arrays or `jax.ShapeDtypeStruct`) that the configuration builds.

    Raises:
      CheckpointError: a tensor is missing, unexpected or of another shape; the message names the
        first ones.
    """
    target = flax.serialization.to_state_dict({name: getattr(like, name) for name in ITEMS})
    found, wanted = _shapes(restored.items), _shapes(target)
    if found != wanted:
        missing = [f"{path} is missing" for path in wanted.keys() - found.keys()]
        extra = [f"{path} is unexpected" for path in found.keys() - wanted.keys()]
        wrong = [
            f"{path} is {found[path]} instead of {wanted[path]}"
            for path in wanted.keys() & found.keys()
            if found[path] != wanted[path]
        ]
        problems = sorted(missing) + sorted(extra) + sorted(wrong)
        raise CheckpointError(
            f"The checkpoint of step {restored.step} does not fit this configuration: "
            f"{'; '.join(problems[:5])}"
            + (f"; and {len(problems) - 5} more." if problems[5:] else ".")
        )
    fields = {
        name: flax.serialization.from_state_dict(getattr(like, name), restored.items[name])
        for name in ITEMS
        if target[name]
    }
    for name in ITEMS:
        fields.setdefault(name, getattr(like, name))
    return TrainState(step=np.asarray(restored.step, np.int32), **fields)  # pyright: ignore[reportArgumentType]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
