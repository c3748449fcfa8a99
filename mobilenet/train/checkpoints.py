"""Checkpoints with Orbax: asynchronous, newest and best kept, every byte verified on restore.

A checkpoint is a directory of items (`params`, `batch_stats`, `ema`, `opt_state`, `quant`, `meta`;
empty ones are left out), each a nested dictionary of NumPy arrays, so that a notebook reads what it
needs without devices, and a run on two devices continues on one.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from mobilenet import rundir
from mobilenet.train.state import TrainState, evaluated, to_host

ITEMS = ("params", "batch_stats", "ema", "opt_state", "quant")
SCHEMA = 1  # of the items above; raised when they change meaning

log = logging.getLogger("mobilenet")


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or does not fit; says which and what to do."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read into NumPy: its step, its items, and `meta` (metrics, versions)."""

    step: int
    items: dict[str, Any]
    meta: dict[str, Any]

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables to evaluate: the averaged ones when the run kept an average."""
        items = self.items
        return evaluated(items["params"], items["batch_stats"], items["ema"], items["quant"])


def _digest(tree: Any) -> str:
    """Hash over paths, types, shapes and bytes of a nested dictionary of arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ):
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _explain(directory: Path, step: int | None) -> Iterator[None]:
    """Turns a failure to write into one sentence; Orbax wraps the system's error several times."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(e) for e in _chain(error))
        if "No space left" in text or "RESOURCE_EXHAUSTED" in text or "Errno 28" in text:
            raise CheckpointError(
                f"The disk is full: a checkpoint could not be written to {directory}. Free some "
                "space and start the same command again; it resumes from the newest complete "
                "checkpoint."
            ) from error
        at = "" if step is None else f" of step {step}"
        raise CheckpointError(f"The checkpoint{at} in {directory} failed: {error}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class Checkpoints:
    """The checkpoints of one run directory.

    In a run of several processes only the first writes; all of them read. Use as a context manager:
    leaving it waits for the write in progress.

    Args:
      directory: created if absent.
      keep_newest: number of newest checkpoints to keep, at least 1.
      keep_best: number of best ones to keep besides, by `score`.
      read_only: never write or clean up; what notebooks and `evaluate` use beside a running job.
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
        self._writes = not read_only and jax.process_index() == 0
        self._manager: ocp.CheckpointManager | None = None
        if not self._writes:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        newest: list[policies.PreservationPolicy] = [policies.LatestN(keep_newest)]
        if keep_best:
            newest.append(
                policies.BestN(
                    get_metric_fn=_score, n=keep_best, keep_checkpoints_without_metrics=False
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(newest),
            create=False,  # made above; Orbax cannot when one of several processes writes
            best_fn=_score,  # makes Orbax store the metrics that BestN needs after a restart
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="mobilenet"
            )
            if jax.process_count() > 1
            else ocp.options.MultiprocessingOptions(),
        )
        # Orbax warns at every save without metrics; only validated steps have any.
        logging.getLogger("absl").addFilter(_not_about_metrics)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the write in progress and releases the directory."""
        if self._manager is not None:
            manager, self._manager = self._manager, None
            with _explain(self.directory, None):
                manager.wait_until_finished()
                manager.close()

    def steps(self) -> list[int]:
        """Steps of finished checkpoints, rising."""
        if not self.directory.is_dir():
            return []
        # A directory under its final name is complete: Orbax writes beside it and renames.
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def best_step(self) -> int | None:
        """The finished checkpoint with the best validation; the later one of equals."""
        scored = []
        for step in self.steps():
            path = self.directory / str(step) / "metrics" / "metrics"
            with contextlib.suppress(OSError, ValueError):
                scored.append((_score(json.loads(path.read_text())), step))
        return max(scored)[1] if scored else None

    def save(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Starts writing a checkpoint; returns when the state may be changed.

        Args:
          state: on devices or the host.
          metrics: of the validation at this step; `score` says how good it is, or else `top1`. None
            if it was not validated.

        Raises:
          CheckpointError: this write could not start, or the one before it failed.
        """
        if self._manager is None:
            return
        step = int(state.step)
        saved = flax.serialization.to_state_dict(
            {name: to_host(getattr(state, name)) for name in ITEMS}
        )
        meta = {
            "schema": SCHEMA,
            "step": step,
            "digests": {name: _digest(saved[name]) for name in ITEMS},
            "metrics": dict(metrics or {}),
        }
        items = {name: ocp.args.StandardSave(saved[name]) for name in ITEMS if saved[name]}
        with _explain(self.directory, step):
            self._manager.wait_until_finished()
            self._manager.save(
                step,
                args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items),
                metrics=dict(metrics) if metrics else None,
                force=True,
            )

    def wait(self) -> None:
        """Waits until every checkpoint is on disk; raises CheckpointError if one failed."""
        if self._manager is not None:
            with _explain(self.directory, None):
                self._manager.wait_until_finished()

    def read(self, step: int) -> Restored:
        """Reads one checkpoint into NumPy and verifies its digests.

        Raises:
          CheckpointError: missing, damaged, or written by an incompatible version.
        """
        path = self.directory / str(step)
        if not path.is_dir():
            known = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"{self.directory} has no checkpoint of step {step}; it has {known}."
            )
        try:
            handler = ocp.StandardCheckpointHandler()
            meta = json.loads((path / "meta" / "metadata").read_text())
            items: dict[str, Any] = {}
            for name in ITEMS:
                items[name] = {}
                if (path / name).is_dir():
                    with contextlib.closing(ocp.Checkpointer(handler)) as checkpointer:
                        items[name] = checkpointer.restore(
                            path / name, args=ocp.args.StandardRestore(strict=False)
                        )
        except Exception as error:
            reason = str(error).split(" [tensorstore_spec")[0]
            raise CheckpointError(f"The checkpoint {path} is damaged: {reason}.") from error
        if meta.get("schema") != SCHEMA:
            raise CheckpointError(
                f"The checkpoint {path} has schema {meta.get('schema')}, this version reads "
                f"{SCHEMA}."
            )
        items = jax.tree.map(np.asarray, items)
        for name in ITEMS:
            # Checkpoints from before quantisation have no digest of that.
            if _digest(items[name]) != meta["digests"].get(name, _digest({})):
                raise CheckpointError(
                    f"The checkpoint {path} is damaged: the bytes of its {name} do not match their "
                    "digest."
                )
        return Restored(step, items, meta)

    def read_newest(self) -> Restored | None:
        """The newest checkpoint that is whole; damaged ones are skipped with a warning.

        Raises:
          CheckpointError: there are checkpoints, and every one is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.read(step)
            except CheckpointError as error:
                log.warning("%s Trying the one before it.", error)
        if steps:
            raise CheckpointError(
                f"All {len(steps)} checkpoints in {self.directory} are damaged; move the directory "
                "away to start again."
            )
        return None

    def discard_after(self, step: int) -> None:
        """Deletes checkpoints behind `step`: damaged ones would block their step's new save."""
        if self._manager is None:
            return
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)


def read_checkpoint(workdir: Path, which: str = "newest") -> Restored:
    """A checkpoint of a run as NumPy arrays; also beside a job that is still training.

    Args:
      workdir: the run directory.
      which: "newest", "best" (of the validated ones), "result" (what the run's test result is
        of: the newest, or of a run with `train.patience` the best), or a step.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    if which == "result":
        which = str((rundir.read_json(workdir / "summary.json") or {}).get("result_step", "newest"))
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    if which == "newest":
        restored = checkpoints.read_newest()
        if restored is None:
            raise CheckpointError(
                f"{workdir} has no checkpoint yet; train it with `mobilenet train "
                f"--workdir={workdir}`."
            )
        return restored
    step = checkpoints.best_step() if which == "best" else int(which) if which.isdigit() else None
    if step is None:
        known = ", ".join(map(str, checkpoints.steps())) or "none"
        raise CheckpointError(
            f"The checkpoint {which!r} does not exist in {workdir}; allowed are result, newest, "
            f"best (of validated ones), or one of the steps: {known}."
        )
    return checkpoints.read(step)


def read_digests(workdir: Path) -> dict[str, str]:
    """Digests of the items of a run's result, from its record alone: item -> hash of its bytes.

    Args:
      workdir: the run directory.

    Raises:
      CheckpointError: there is no checkpoint whose record can be read.
    """
    summary = rundir.read_json(workdir / "summary.json") or {}
    steps = Checkpoints(workdir / "checkpoints", read_only=True).steps()
    for step in [summary["result_step"]] if "result_step" in summary else reversed(steps):
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = workdir / "checkpoints" / str(step) / "meta" / "metadata"
            return dict(json.loads(record.read_text())["digests"])
    raise CheckpointError(f"{workdir} has no checkpoint whose record can be read.")


def _score(metrics: Mapping[str, float]) -> float:
    return float(metrics.get("score", metrics["top1"]))


def _not_about_metrics(record: logging.LogRecord) -> bool:
    return "did not provide metrics" not in record.getMessage()


def restore_state(restored: Restored, like: TrainState) -> TrainState:
    """Puts a checkpoint's arrays into a state of the same structure.

    Args:
      restored: from `Checkpoints.read`.
      like: a state (arrays or `jax.ShapeDtypeStruct`) that the configuration builds.

    Raises:
      CheckpointError: a tensor is missing, unexpected or of another shape; names the first ones.
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
