"""The one train loop: it is handed its parts and knows none of them.

Pruning, distillation, quantisation-aware training and fine-tuning are other parts, never another
loop. Read `train` from top to bottom.
"""

import contextlib
import dataclasses
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from mobilenet.train import metrics, records, steps
from mobilenet.train.checkpoints import Checkpoints, restore_state
from mobilenet.train.metrics import Evaluation
from mobilenet.train.state import TrainState

log = logging.getLogger("mobilenet")


class Batches(Protocol):
    """An iterator of host batches that can be closed and knows what it could not read."""

    @property
    def unreadable(self) -> Mapping[int, str]: ...

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run consists of; `mobilenet.build` makes them from a configuration.

    Attributes:
      init: () -> state at step 0.
      train_step, eval_step: mapped over devices (`mobilenet.train.steps`).
      train_batches: (start_step, num_steps) -> this process's share of each global batch.
      eval_batches: split -> this process's share, every example once, padded and masked.
      hyper: step -> the scalars of `steps.make_train_step`.
      batch_size: pictures of a global batch.
      total_steps, steps_per_epoch: of the run.
      eval_every_steps: validate after multiples of it, and at the end; 0 is only at the end.
      checkpoint_every_steps, keep_newest, keep_best: of checkpoints.
      log_every_steps, tensorboard: of metrics.
      num_classes: of the data.
      splits: that have examples, of "train", "validation", "test".
      facts: for the summary: parameters, MACs, sizes of splits.
    """

    init: Callable[[], TrainState]
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]
    train_batches: Callable[[int, int], Batches]
    eval_batches: Callable[[str], Batches]
    hyper: Callable[[int], dict[str, np.generic]]
    batch_size: int
    total_steps: int
    steps_per_epoch: float
    eval_every_steps: int
    checkpoint_every_steps: int
    keep_newest: int
    keep_best: int
    log_every_steps: int
    tensorboard: bool
    num_classes: int
    splits: tuple[str, ...]
    facts: dict[str, Any]


class EmptySplitError(ValueError):
    """A split without examples; the message lists those that have some."""


class Diverged(RuntimeError):
    """The loss or the gradient stopped being a number at `step`."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class Interrupted(RuntimeError):
    """SIGINT or SIGTERM arrived; `signum` says which. The state was saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class _Signals:
    """Notes the first SIGINT or SIGTERM; a second SIGINT raises KeyboardInterrupt as usual."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "_Signals":
        self._before: dict[int, Any] = {}
        # Handlers belong to the main thread; a loop in a notebook's worker thread goes without.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        del frame
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def evaluate(
    eval_step: Callable[..., Any],
    eval_batches: Callable[[str], Batches],
    variables: Any,
    split: str,
    num_classes: int,
    splits: Sequence[str],
) -> Evaluation:
    """Evaluates every example of a split once.

    Args:
      eval_step: mapped over devices (`steps.map_eval_step`).
      eval_batches: split -> this process's share, every example once, padded and masked.
      variables: `params` and `batch_stats`.
      split: one of `splits`.
      num_classes: of the classifier.
      splits: those that have examples.

    Returns:
      One row an example, the same for any batch size and number of devices and processes.
    """
    if split not in splits:
        raise EmptySplitError(
            f"The split {split!r} has no examples; this data has {', '.join(splits)}."
        )
    with contextlib.closing(eval_batches(split)) as batches:
        rows = [jax.device_get(eval_step(variables, steps.shard(batch))) for batch in batches]
        return metrics.gather(rows, num_classes, dict(batches.unreadable))


def train(parts: Parts, workdir: Path, *, began: float | None = None) -> dict[str, Any]:
    """Trains to the end, from the newest whole checkpoint in `workdir` if there is one.

    Args:
      parts: of the run.
      workdir: the run directory; the caller has written `config.json` and holds its lock.
      began: `time.time()` at the program's start, for the wall time; None is now.

    Returns:
      The summary, as written to `summary.json`; its `status` is "done".

    Raises:
      Diverged: a loss or gradient was not finite; names the step and the last good checkpoint.
      Interrupted: by a signal, after saving. The same command continues.
      CheckpointError, RunDirectoryError: something could not be read or written.
    """
    began = began or time.time()
    main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir / "checkpoints", keep_newest=parts.keep_newest, keep_best=parts.keep_best
            )
        )
        state = parts.init()
        restored = checkpoints.read_newest()
        if restored is not None:
            state = restore_state(restored, state)
            checkpoints.discard_after(restored.step)
        start = int(state.step)
        state = steps.place(state)
        if start == parts.total_steps:
            finished = _finished(workdir)
            if finished is not None:
                log.info("%s is complete: all %d steps are done.", workdir, start)
                return finished
        seconds_before = _seconds_before(workdir, start)

        writer = None
        if main:
            writer = records.MetricsWriter(
                workdir, resume_step=start, tensorboard=parts.tensorboard
            )
            stack.callback(writer.close)
        summary: dict[str, Any] = {
            "status": "running",
            **parts.facts,
            **records.environment(),
            "total_steps": parts.total_steps,
        }
        unreadable: dict[int, str] = {}

        def conclude(status: str, step: int, **more: Any) -> dict[str, Any]:
            seconds = seconds_before + time.time() - began
            summary.update(status=status, step=step, wall_seconds=round(seconds, 3), **more)
            if unreadable:
                summary["unreadable"] = {str(k): v for k, v in sorted(unreadable.items())}
            if main:
                records.write_atomically(workdir / "summary.json", _json(summary))
            return summary

        conclude("running", start)
        progress = records.Progress(parts.total_steps, start)
        stack.callback(progress.close)
        if start:
            progress.line(f"Resuming {workdir} at step {start} of {parts.total_steps}.")

        signals = stack.enter_context(_Signals())
        batches = stack.enter_context(
            contextlib.closing(parts.train_batches(start, parts.total_steps - start))
        )
        stream = iter(batches)
        pending: list[tuple[int, Any]] = []
        window_began, waited = time.monotonic(), 0.0
        compiled_at: float | None = None

        def measure(split: str) -> Evaluation:
            return evaluate(
                parts.eval_step,
                parts.eval_batches,
                state.eval_variables,
                split,
                parts.num_classes,
                parts.splits,
            )

        def flush(step: int) -> None:
            """Fetches what the steps since the last flush returned, checks it and records it."""
            nonlocal window_began, waited
            if not pending:
                return
            fetched = [(at, jax.device_get(values)) for at, values in pending]
            pending.clear()
            _check_finite(fetched, checkpoints, workdir)
            seconds = max(time.monotonic() - window_began, 1e-9)
            row = {
                "step": step,
                "epoch": step / parts.steps_per_epoch,
                "split": "train",
                **metrics.mean(values for _, values in fetched),
                "learning_rate": float(parts.hyper(step - 1)["learning_rate"]),
                "images_per_second": len(fetched) * parts.batch_size / seconds,
                "data_wait": min(1.0, waited / seconds),
            }
            if writer is not None:
                writer.write(row)
            progress.numbers(row)
            window_began, waited = time.monotonic(), 0.0

        try:
            for step in range(start + 1, parts.total_steps + 1):
                asked = time.monotonic()
                batch = next(stream)
                waited += time.monotonic() - asked
                state, values = parts.train_step(state, steps.shard(batch), parts.hyper(step - 1))
                pending.append((step, values))
                if compiled_at is None:
                    jax.block_until_ready(values)
                    compiled_at = time.time()
                    summary["first_step_seconds"] = round(compiled_at - began, 3)
                    # The first step's compilation is not the pipeline's speed.
                    window_began, waited = time.monotonic(), 0.0
                progress.advance(step)
                unreadable.update(batches.unreadable)

                last = step == parts.total_steps
                every = parts.eval_every_steps
                validate = "validation" in parts.splits and (
                    last or (every > 0 and step % every == 0)
                )
                stop = _agree_to_stop(signals, step % parts.log_every_steps == 0 or last)
                save = validate or last or stop or step % parts.checkpoint_every_steps == 0
                if save or step % parts.log_every_steps == 0:
                    flush(step)
                validation = None
                if validate:
                    evaluation = measure("validation")
                    validation = evaluation.summary()
                    row = {"step": step, "epoch": step / parts.steps_per_epoch}
                    row |= {"split": "validation", **validation}
                    if writer is not None:
                        writer.write(row)
                    progress.line(_describe("validation", step, evaluation))
                if save:
                    scores = None if validation is None else {"top1": validation["top1"]}
                    checkpoints.save(state, scores)
                if validation is not None:
                    summary["validation"] = validation
                    window_began, waited = time.monotonic(), 0.0
                if stop and not last:
                    checkpoints.wait()
                    conclude("interrupted", step)
                    number = signals.received or signal.SIGTERM
                    raise Interrupted(
                        number,
                        f"Interrupted by {signal.Signals(number).name}; step {step} of "
                        f"{parts.total_steps} is saved. The same command continues from there.",
                    )
            checkpoints.wait()
        except Interrupted:
            raise
        except Exception as error:
            with contextlib.suppress(Exception):
                checkpoints.wait()
            with contextlib.suppress(Exception):
                done = error.step if isinstance(error, Diverged) else int(state.step)
                status = "diverged" if isinstance(error, Diverged) else "failed"
                conclude(status, done, error=str(error))
            raise
        best = checkpoints.best_step()
        if best is not None:
            summary["best_checkpoint"] = best
        if "validation" in parts.splits and "validation" not in summary:
            # Killed between the last checkpoint and the summary: nothing was left to train.
            summary["validation"] = measure("validation").summary()
        if "test" in parts.splits:
            # Measured once, on the final weights: nothing selects on it.
            test = measure("test")
            progress.line(_describe("test", parts.total_steps, test))
            summary["test"] = test.summary()
        return conclude("done", parts.total_steps)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _finished(workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that ended, if it did."""
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((workdir / "summary.json").read_text())
        return summary if summary.get("status") == "done" else None
    return None


def _seconds_before(workdir: Path, start: int) -> float:
    """Wall seconds that earlier, interrupted parts of this run have recorded."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        if start:
            return float(json.loads((workdir / "summary.json").read_text())["wall_seconds"])
    return 0.0


def _describe(split: str, step: int, evaluation: Evaluation) -> str:
    skipped = f", {len(evaluation.skipped)} unreadable" if evaluation.skipped else ""
    return (
        f"{split} at step {step}: top-1 {100 * evaluation.top1:.2f} %, top-5 "
        f"{100 * evaluation.top5:.2f} %, loss {evaluation.mean_loss:.4f}, "
        f"{len(evaluation.label)} images{skipped}"
    )


def _check_finite(fetched: list[tuple[int, Any]], checkpoints: Checkpoints, workdir: Path) -> None:
    for step, values in fetched:
        for name, (total, _) in values.items():
            if not math.isfinite(float(total)):
                good = [s for s in checkpoints.steps() if s < step]
                where = (
                    f"the last good checkpoint is step {good[-1]} in {workdir / 'checkpoints'}"
                    if good
                    else "there is no checkpoint before it"
                )
                raise Diverged(
                    step,
                    f"The {name.replace('_', ' ')} became {float(total)} at step {step}; {where}. "
                    "Lower optimizer.learning_rate, lengthen schedule.warmup_epochs or set "
                    "optimizer.clip_norm, in a new run directory.",
                )


def _agree_to_stop(signals: _Signals, at_boundary: bool) -> bool:
    """Whether to stop here; several processes must stop at one step, so they ask each other."""
    if jax.process_count() == 1:
        return signals.received is not None
    if not at_boundary:
        return False
    flags = multihost_utils.process_allgather(np.array(signals.received is not None))
    return bool(np.any(flags))
