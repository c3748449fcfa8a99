"""The only train loop: it receives all its parts and does not depend on what they are.

Pruning, distillation, quantisation-aware training and fine-tuning use other parts, not another
loop. Several runs of the same shape can share it as lanes: their states, batches and scalars then
have a leading lane axis, while each run keeps its own directory. Read `train_lanes` from top to
bottom.
"""

import contextlib
import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from mobilenet.terminal import counted
from mobilenet.train import compiling, metrics, steps
from mobilenet.train import lanes as lanes_lib
from mobilenet.train.lanes import Lane, Stopped, score
from mobilenet.train.metrics import Evaluation
from mobilenet.train.progress import Progress
from mobilenet.train.signals import Interrupted, Signals
from mobilenet.train.state import TrainState, to_host

log = logging.getLogger("mobilenet")


class Batches(Protocol):
    """An iterator of host batches that can be closed and lists the examples it could not read."""

    @property
    def unreadable(self) -> Mapping[int, str]: ...

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Parts:
    """Everything that a run needs; `mobilenet.build` makes it from a configuration.

    Attributes:
      init: () -> state at step 0; with lanes every leaf has a leading lane axis. It is only called
        if there is no checkpoint.
      structure: () -> shapes and dtypes of the state of one run.
      train_step, eval_step: mapped over devices (`mobilenet.train.steps`).
      train_batches: (start_step, num_steps) -> this process's share of each global batch, arrays
        [b, ...], or [lanes, b, ...].
      eval_batches: split -> this process's share, every example once, padded and masked.
      hyper: step -> the scalars of `steps.make_train_step`; with lanes each is [lanes].
      batch_size: images per global batch of one lane.
      total_steps, steps_per_epoch: of the run.
      eval_every_steps: validate at multiples of it, and at the end; 0 is only at the end.
      checkpoint_every_steps, keep_newest, keep_best: of checkpoints.
      log_every_steps: of metrics.
      writers: of metrics, besides metrics.jsonl (`writers.OPEN`).
      num_classes: of the data.
      splits: those of "train", "validation", "test" that have examples.
      facts: entries for the summary of each lane: parameters, MACs, sizes of splits.
      lanes: number of runs that are trained together; None for one run without a lane axis.
      best_by: metric that decides on the best validation: "top1" or "loss".
      patience: the run ends after this many validations without a better one, with the best
        checkpoint as its result; 0 never ends it. Not with lanes.
      findings: evaluated variables of one run at its end -> further entries of the summary.
      program: a key of the compiled train step: equal keys, equal programs; "" is unknown.
      watch: called with (step, validation metrics) after each validation; may raise Pruned.
    """

    init: Callable[[], TrainState]
    structure: Callable[[], Any]
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
    writers: Sequence[str]
    num_classes: int
    splits: tuple[str, ...]
    facts: Sequence[Mapping[str, Any]]
    lanes: int | None = None
    best_by: str = "top1"
    patience: int = 0
    findings: Callable[[Any], Mapping[str, Any]] | None = None
    program: str = ""
    watch: Callable[[int, Mapping[str, Any]], None] | None = None


class EmptySplitError(ValueError):
    """A split without examples; the message lists those that have some."""


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
      One row per example, with its logits; the same for any batch size and number of devices and
      processes.
    """
    rows, unreadable = _evaluation_rows(
        eval_step, eval_batches, variables, split, splits, logits=True
    )
    return metrics.gather(rows, num_classes, unreadable)


def require_examples(split: str, splits: Sequence[str]) -> None:
    """Raises EmptySplitError unless the split is one of those that have examples."""
    if split not in splits:
        raise EmptySplitError(
            f"The split {split!r} has no examples; this data has {', '.join(splits)}."
        )


def _evaluation_rows(
    eval_step: Callable[..., Any],
    eval_batches: Callable[[str], Batches],
    variables: Any,
    split: str,
    splits: Sequence[str],
    *,
    logits: bool = False,
) -> tuple[list[Any], dict[int, str]]:
    require_examples(split, splits)

    def measured(batch: Mapping[str, np.ndarray]) -> Any:
        rows = eval_step(variables, steps.shard(batch))
        # Validations in training leave the logits on the device: nothing reads them.
        return jax.device_get({k: v for k, v in rows.items() if logits or k != "logits"})

    with contextlib.closing(eval_batches(split)) as batches:
        rows = [measured(batch) for batch in batches]
        unreadable = dict(batches.unreadable)
    if not any(np.any(row["mask"] > 0) for row in rows):
        first = f"; the first is {next(iter(unreadable.values()))}" if unreadable else "."
        raise EmptySplitError(f"No image of the split {split!r} can be read{first}")
    return rows, unreadable


def train(
    parts: Parts, workdir: Path, *, began: float | None = None, stream: TextIO | None = None
) -> dict[str, Any]:
    """Trains one run to the end, from the newest undamaged checkpoint in `workdir` if there is one.

    Args:
      parts: of the run.
      workdir: the run directory; the caller has written `config.json` and holds its lock.
      began: `time.time()` at the program's start, for the wall time; None is now.
      stream: where progress is printed; None is stderr.

    Returns:
      The summary, as written to `summary.json`; its `status` is "done".

    Raises:
      Diverged: a loss or gradient was not finite; the message names the step and the last good
        checkpoint.
      Pruned: by `parts.watch`.
      Interrupted: by a signal, after saving. The same command continues.
      CheckpointError, RunDirectoryError: a file could not be read or written.
    """
    (summary,) = train_lanes(parts, [workdir], began=began, stream=stream)
    return summary


def train_lanes(
    parts: Parts,
    workdirs: Sequence[Path],
    *,
    began: float | None = None,
    stream: TextIO | None = None,
    signals: Signals | None = None,
) -> list[dict[str, Any]]:
    """Trains runs of the same shape together; each has its own directory, as with `train`.

    If a lane diverges or is pruned, only this lane ends. Lanes continue from a step that all of
    them have saved; checkpoints that a lane has saved after it are kept.

    Args:
      parts: of the runs, with `lanes` = len(workdirs), or None for one run without a lane axis.
      workdirs: the run directories, locked by the caller.
      began, stream: as for `train`.
      signals: entered by the caller, who checks afterwards whether a signal came too late to end
        the training; None uses the loop's own.

    Returns:
      The summaries, in order; `status` is "done", "diverged" or "pruned".

    Raises:
      Diverged, Pruned: every lane ended in this way; the error of the first lane is raised.
      LanesApart: the runs are at different steps; nothing was written.
      Others as `train`.
    """
    began = began or time.time()
    with contextlib.ExitStack() as stack:
        lanes = [
            Lane(
                index if parts.lanes else None,
                workdirs,
                stack,
                keep_newest=parts.keep_newest,
                keep_best=parts.keep_best,
                summary={**facts, "total_steps": parts.total_steps},
                began=began,
            )
            for index, (_, facts) in enumerate(zip(workdirs, parts.facts, strict=True))
        ]
        state, start = lanes_lib.restore(lanes, parts.init, parts.structure)
        state = steps.place(state)
        finished = [lanes_lib.finished(lane.workdir, start) for lane in lanes]
        if all(finished):
            for lane in lanes:
                log.info("%s is complete: %d steps are done.", lane.workdir, start)
            return [summary for summary in finished if summary]
        for lane in lanes:
            lane.begin(start, stack, writers=parts.writers)
        unreadable: dict[int, str] = {}
        progress = Progress(
            parts.total_steps, start, steps_per_epoch=parts.steps_per_epoch, stream=stream
        )
        stack.callback(progress.close)
        if start:
            names = lanes_lib.names(workdirs)
            progress.line(f"Resuming {names} at step {start} of {parts.total_steps}.")

        signals = signals or stack.enter_context(Signals())
        batches = stack.enter_context(
            contextlib.closing(parts.train_batches(start, parts.total_steps - start))
        )
        batch_stream = iter(batches)
        pending: list[tuple[int, Any]] = []
        window_began, waited = time.monotonic(), 0.0
        compiled_at: float | None = None
        arrays = len(jax.tree.leaves(state.params))
        program = compiling.Program(parts.program and f"{parts.program} {parts.lanes}", arrays)

        def alive() -> list[Lane]:
            """Lanes that still train; raises if the last one has stopped."""
            left = [lane for lane in lanes if lane.stopped is None]
            if not left:
                raise next(lane.stopped for lane in lanes if lane.stopped is not None)
            return left

        def measure(split: str, step: int, variables: Any) -> list[tuple[Lane, dict[str, Any]]]:
            rows, skipped = _evaluation_rows(
                parts.eval_step, parts.eval_batches, variables, split, parts.splits
            )
            found = []
            for lane in alive():
                evaluation = metrics.gather(map(lane.of, rows), parts.num_classes, skipped)
                progress.line(_describe(split, step, evaluation, lane.index))
                found.append((lane, evaluation.summary()))
            return found

        def flush(step: int) -> None:
            """Fetches the metrics of the steps since the last flush, checks and records them."""
            nonlocal window_began, waited
            if not pending:
                return
            fetched = [(at, jax.device_get(values)) for at, values in pending]
            pending.clear()
            seconds = max(time.monotonic() - window_began, 1e-9)
            hyper = parts.hyper(step - 1)
            shown = None
            for lane in alive():
                own = [(at, lane.of(values)) for at, values in fetched]
                diverged = lanes_lib.diverged(own, lane.checkpoints, lane.workdir)
                if diverged is not None:
                    lane.stop(diverged)
                    continue
                row = {
                    "step": step,
                    "epoch": step / parts.steps_per_epoch,
                    "split": "train",
                    **metrics.mean(values for _, values in own),
                    "learning_rate": float(lane.of(hyper)["learning_rate"]),
                    "images_per_second": len(own) * parts.batch_size / seconds,
                    "data_wait": min(1.0, waited / seconds),
                }
                lane.write(row)
                shown = shown or row
            alive()
            if shown is not None:
                progress.numbers(shown)
            window_began, waited = time.monotonic(), 0.0

        end = start  # a run may already be out of patience when it resumes
        try:
            for step in range(start + 1, parts.total_steps + 1):
                if lanes[0].is_stale(parts.patience, parts.best_by):
                    waiting = counted(parts.patience, "validation")
                    progress.line(
                        f"No better validation {parts.best_by} in {waiting}: "
                        f"ending at step {end} of {parts.total_steps}."
                    )
                    break
                end = step
                asked = time.monotonic()
                batch = next(batch_stream)
                waited += time.monotonic() - asked
                sharded = steps.shard(batch, lanes=parts.lanes is not None)
                if compiled_at is None:
                    program.begin(progress.line)
                state, values = parts.train_step(state, sharded, parts.hyper(step - 1))
                pending.append((step, values))
                if compiled_at is None:
                    jax.block_until_ready(values)
                    compiled_at = time.time()
                    program.end()
                    progress.compiled(step)
                    for lane in lanes:
                        lane.summary["first_step_seconds"] = round(compiled_at - began, 3)
                    # The first step's compilation does not count for the pipeline's speed.
                    window_began, waited = time.monotonic(), 0.0
                progress.advance(step)
                if len(batches.unreadable) > len(unreadable):
                    unreadable.update(batches.unreadable)
                    for lane in lanes:
                        lane.summary["unreadable"] = {
                            str(k): v for k, v in sorted(unreadable.items())
                        }

                last = step == parts.total_steps
                every = parts.eval_every_steps
                validate = "validation" in parts.splits and (
                    last or (every > 0 and step % every == 0)
                )
                stop = _agree_to_stop(signals, step % parts.log_every_steps == 0 or last)
                save = validate or last or stop or step % parts.checkpoint_every_steps == 0
                if save or step % parts.log_every_steps == 0:
                    flush(step)
                scores: dict[int | None, dict[str, Any]] = {}
                if validate:
                    for lane, validation in measure("validation", step, state.eval_variables):
                        row = {"step": step, "epoch": step / parts.steps_per_epoch}
                        lane.write(row | {"split": "validation", **validation})
                        lane.summary["validation"] = lane.validations[step] = validation
                        scores[lane.index] = {
                            "top1": validation["top1"],
                            "score": score(validation, parts.best_by),
                        }
                if save:
                    host = to_host(state) if parts.lanes else state
                    # No lane writes before all lanes have their last checkpoint: one step apart.
                    for lane in alive():
                        lane.checkpoints.wait()
                    for lane in alive():
                        lane.save(host, step, scores.get(lane.index))
                if validate:
                    if parts.watch is not None and not last:
                        for lane in alive():
                            lanes_lib.ask(parts.watch, lane, step)
                        alive()
                    window_began, waited = time.monotonic(), 0.0
                if stop and not last:
                    for lane in alive():
                        lane.checkpoints.wait()
                        lane.conclude("interrupted", step)
                    number = signals.received or signal.SIGTERM
                    raise Interrupted(
                        number,
                        f"Interrupted by {signal.Signals(number).name}; step {step} of "
                        f"{parts.total_steps} is saved. The same command continues from there.",
                    )
            if not parts.total_steps:  # the initial state is the result
                host = to_host(state) if parts.lanes else state
                for lane in alive():
                    if not lane.checkpoints.steps():  # otherwise it was killed after saving
                        lane.checkpoints.save(lane.of(host))
            for lane in alive():
                lane.checkpoints.wait()
        except (Interrupted, Stopped):
            raise
        except Exception as error:
            for lane in (lane for lane in lanes if lane.stopped is None):
                with contextlib.suppress(Exception):
                    lane.checkpoints.wait()
                with contextlib.suppress(Exception):
                    at = int(np.min(jax.device_get(state.step)))
                    lane.conclude("failed", at, error=str(error))
            raise
        result, variables = end, state.eval_variables
        if parts.patience:
            result, best_variables = lanes[0].read_best()
            variables = steps.place(best_variables)
            lanes[0].summary["validation"] = lanes[0].validations[result]
            lanes[0].summary["result_step"] = result
        if "validation" in parts.splits and any("validation" not in x.summary for x in alive()):
            # Killed between the last checkpoint and the summary: nothing was left to train.
            for lane, validation in measure("validation", result, variables):
                lane.summary["validation"] = validation
        if "test" in parts.splits:
            # Measured once, on the final weights: nothing is selected by it.
            for lane, test in measure("test", result, variables):
                lane.summary["test"] = test
        final = to_host(variables) if parts.findings else None
        for lane in alive():
            best = lane.checkpoints.best_step()
            if best is not None:
                lane.summary["best_checkpoint"] = best
            if parts.findings:
                lane.summary.update(parts.findings(lane.of(final)))
            lane.conclude("done", end)
        return [lane.summary for lane in lanes]


def _describe(split: str, step: int, evaluation: Evaluation, lane: int | None) -> str:
    skipped = f", {len(evaluation.skipped)} unreadable" if evaluation.skipped else ""
    which = "" if lane is None else f" of lane {lane}"
    top5 = f", top-5 {100 * evaluation.top5:.2f} %" if evaluation.shows_top5 else ""
    return (
        f"{split}{which} at step {step}: top-1 {100 * evaluation.top1:.2f} %{top5}, "
        f"loss {evaluation.mean_loss:.4f}, {counted(len(evaluation.label), 'image')}{skipped}"
    )


def _agree_to_stop(signals: Signals, at_boundary: bool) -> bool:
    """Whether to stop here; several processes must stop at the same step, so they agree on it."""
    if jax.process_count() == 1:
        return signals.received is not None
    if not at_boundary:
        return False
    flags = multihost_utils.process_allgather(np.array(signals.received is not None))
    return bool(np.any(flags))
