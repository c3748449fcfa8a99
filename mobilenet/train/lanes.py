"""Runs that are trained together as lanes of one program: their directories and their steps.

A run that trains alone is one lane, whose arrays have no lane axis.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mobilenet import rundir
from mobilenet.train import records
from mobilenet.train.checkpoints import (
    CheckpointError,
    Checkpoints,
    Restored,
    require_begun,
    restore_state,
)
from mobilenet.train.state import TrainState


def score(validation: Mapping[str, Any], best_by: str) -> float:
    """The score of a validation, higher is better, by "top1" or "loss"."""
    return float(validation["top1"] if best_by == "top1" else -validation["loss"])


class LanesApart(RuntimeError):
    """Runs cannot be trained together, because they are at different steps.

    Attributes:
      groups: indices of the runs that can train together, for each group. A run whose checkpoints
        cannot be read has its own group; training it raises its error.
    """

    def __init__(self, groups: Sequence[Sequence[int]], message: str) -> None:
        super().__init__(message)
        self.groups = groups


class Stopped(RuntimeError):
    """A run that ended before its last step, at `step`, for good."""

    status = "stopped"

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class Diverged(Stopped):
    """The loss or the gradient stopped being a number at `step`."""

    status = "diverged"


class Pruned(Stopped):
    """A search ended the run at `step`."""

    status = "pruned"


class Lane:
    """One of the runs that are trained together, with its directory and the files in it.

    Attributes:
      index: along the lane axis; None if the arrays have no lane axis.
      saved: the step of its newest undamaged checkpoint at the start; 0 without one.
      stopped: the reason if the run ended before its last step.
    """

    def __init__(
        self,
        index: int | None,
        workdirs: Sequence[Path],
        stack: contextlib.ExitStack,
        *,
        keep_newest: int,
        keep_best: int,
        summary: Mapping[str, Any],
        began: float,
    ) -> None:
        self.index = index
        self.workdir = workdir = workdirs[index or 0]
        # At least two: a kill leaves lanes one save apart, and they resume from a common one.
        keep_newest = keep_newest if index is None else max(2, keep_newest)
        self.checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", keep_newest=keep_newest, keep_best=keep_best)
        )
        self.saved = 0
        self.stopped: Stopped | None = None
        self.validations: dict[int, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {
            "status": "running",
            **summary,
            **records.environment(),
        }
        if index is not None:
            self.summary["trained_together"] = [path.name for path in workdirs]
        self._began = began
        self._seconds_before = 0.0
        self._main = jax.process_index() == 0
        self._writer: records.MetricsWriter | None = None

    def begin(self, start: int, stack: contextlib.ExitStack, *, writers: Sequence[str]) -> None:
        """Opens the files of a run that continues at `start`."""
        # Only damaged ones are removed: checkpoints that are ahead of other lanes stay.
        self.checkpoints.discard_after(self.saved)
        self.validations = records.read_validations(self.workdir, start)
        self._seconds_before = _seconds_before(self.workdir, start)
        parts = records.computed(self.workdir, start, self.summary)
        if parts:
            self.summary["computed"] = parts
        if self._main:
            self._writer = records.MetricsWriter(self.workdir, resume_step=start, names=writers)
            stack.callback(self._writer.close)
        self.conclude("running", start)

    def of(self, tree: Any) -> Any:
        """This lane's part of the arrays of all lanes."""
        if self.index is None:
            return tree
        return jax.tree.map(lambda leaf: leaf[self.index], tree)

    def save(self, state: TrainState, step: int, scores: Mapping[str, float] | None) -> None:
        """Starts writing a checkpoint, unless the run has one of this or a later step."""
        if step > self.saved:
            self.checkpoints.save(self.of(state), scores)

    def write(self, row: Mapping[str, Any]) -> None:
        """Records a row of metrics."""
        if self._writer is not None:
            self._writer.write(row)

    def conclude(self, status: str, step: int, **more: Any) -> dict[str, Any]:
        """Writes the summary with this status; returns it."""
        seconds = self._seconds_before + time.time() - self._began
        self.summary.update(status=status, step=step, wall_seconds=round(seconds, 3), **more)
        if self._main:
            rundir.write_json(self.workdir / "summary.json", self.summary)
        if self._writer is not None and status != "running":
            self._writer.conclude(status, self.summary)
        return self.summary

    def is_stale(self, patience: int, best_by: str) -> bool:
        """Whether none of the last `patience` validations was better than all before them."""
        scores = [score(self.validations[step], best_by) for step in sorted(self.validations)]
        if not patience or len(scores) <= patience:
            return False
        return max(scores[-patience:]) <= max(scores[:-patience])

    def read_best(self) -> tuple[int, Any]:
        """The step and the evaluated variables of the best checkpoint."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("best checkpoint")  # the first process wrote it
        best = self.checkpoints.best_step()
        if best is None:
            raise CheckpointError(
                f"{self.workdir} has no validated checkpoint, but with train.patience the best one "
                "is the result; train again in a new run directory."
            )
        return best, self.checkpoints.read(best).eval_variables

    def stop(self, reason: Stopped) -> None:
        """Ends only this run."""
        self.stopped = reason
        self.checkpoints.wait()
        self.conclude(reason.status, reason.step, error=str(reason))


def names(workdirs: Sequence[Path]) -> str:
    """A short text with the run directories."""
    more = f" and {len(workdirs) - 1} more" if len(workdirs) > 1 else ""
    return f"{workdirs[0]}{more}"


def restore(
    lanes: Sequence[Lane], init: Callable[[], TrainState], structure: Callable[[], Any]
) -> tuple[TrainState, int]:
    """The state from which all lanes continue, and its step; without checkpoints the initial one.

    Args:
      lanes: of one program.
      init: () -> state at step 0.
      structure: () -> shapes and dtypes of the state of one run.

    Raises:
      LanesApart: the lanes are at different steps.
      CheckpointError: a run that trains alone has lost its checkpoints, or no checkpoint is
        undamaged, or the checkpoint does not fit.
    """
    restored = _read_together(lanes)
    if restored is None:
        return init(), 0
    states = [restore_state(r, structure()) for r in restored]
    step = restored[0].step
    if lanes[0].index is None:
        return states[0], step
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states), step


def _read_together(lanes: Sequence[Lane]) -> list[Restored] | None:
    """The newest undamaged checkpoints of one common step; None if that is step 0."""
    groups: dict[Any, list[int]] = {}
    newest: list[Restored | None] = []
    for index, lane in enumerate(lanes):
        try:
            require_begun(lane.workdir, lane.checkpoints)
            found = lane.checkpoints.read_newest()
        except CheckpointError:
            if len(lanes) == 1:
                raise
            groups[lane.workdir] = [index]
            continue
        groups.setdefault(found.step if found else None, []).append(index)
        newest.append(found)
        lane.saved = found.step if found else 0
    whole = [restored for restored in newest if restored is not None]
    if len(groups) == 1:
        return whole or None
    if len(newest) == len(lanes) and _were_together(lanes):
        if len(whole) < len(lanes):
            # Killed when some lanes had not saved yet, and the others had saved only once.
            begun = [lane for lane in lanes if lane.checkpoints.steps()]
            if all(len(lane.checkpoints.steps()) == 1 for lane in begun):
                return None
        elif (common := _go_back(lanes, whole)) is not None:
            return common
    raise LanesApart(
        list(groups.values()),
        f"{names([lane.workdir for lane in lanes])} are at different steps, so they cannot be "
        "lanes of one program; train each of them, or those at the same step, separately.",
    )


def _were_together(lanes: Sequence[Lane]) -> bool:
    """Whether the runs were lanes of one program; a kill leaves these at most one save apart.

    They repeat the same steps in the same program, and lanes that are ahead keep their checkpoints.
    """
    before = {trained_together(lane.workdir) for lane in lanes}
    return len(before) == 1 and before != {()}


def _go_back(lanes: Sequence[Lane], newest: Sequence[Restored]) -> list[Restored] | None:
    """Undamaged checkpoints of the last step that all lanes have saved, or None."""
    common = min(restored.step for restored in newest)
    try:
        return [
            restored if restored.step == common else lane.checkpoints.read(common)
            for lane, restored in zip(lanes, newest, strict=True)
        ]
    except CheckpointError:
        return None


def trained_together(workdir: Path) -> tuple[str, ...]:
    """Names of the run directories that were lanes of one program with this one, or ()."""
    with contextlib.suppress(rundir.FileError):
        names = (rundir.read_json(workdir / "summary.json", dict) or {}).get("trained_together")
        return tuple(map(str, names)) if isinstance(names, list) else ()
    return ()


def ask(watch: Callable[[int, Mapping[str, Any]], None], lane: Lane, step: int) -> None:
    """Passes a lane's validation to `watch`, and stops the lane if `watch` prunes it."""
    try:
        watch(step, lane.summary["validation"])
    except Pruned as pruned:
        lane.stop(pruned)


def finished(workdir: Path, step: int) -> dict[str, Any] | None:
    """The summary of a run that ended at `step`, if it did."""
    summary = records.read_summary(workdir)
    if summary.get("status") == "done" and summary.get("step") == step:
        return summary
    return None


def _seconds_before(workdir: Path, start: int) -> float:
    """Wall seconds that earlier, interrupted parts of this run recorded."""
    seconds = records.read_summary(workdir).get("wall_seconds", 0.0) if start else 0.0
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def diverged(
    fetched: list[tuple[int, Any]], checkpoints: Checkpoints, workdir: Path
) -> Diverged | None:
    """The reason why a run diverged, from the metrics of its steps; None if it did not."""
    for step, values in fetched:
        for name, (total, _) in values.items():
            if not math.isfinite(float(total)):
                good = [s for s in checkpoints.steps() if s < step]
                where = (
                    f"the last good checkpoint is step {good[-1]} in {workdir / 'checkpoints'}"
                    if good
                    else "there is no checkpoint before it"
                )
                return Diverged(
                    step,
                    f"The {name.replace('_', ' ')} became {float(total)} at step {step}; {where}. "
                    "Lower optimizer.learning_rate, lengthen schedule.warmup_epochs or set "
                    "optimizer.clip_norm, in a new run directory.",
                )
    return None
