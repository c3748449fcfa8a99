"""How far a training is, for whoever watches: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import jax
from tqdm import tqdm

from mobilenet.streams import Lasting
from mobilenet.terminal import printable

# Without tqdm's drawn bar, so that the numbers fit a terminal of 80 columns.
BAR = "{percentage:3.0f}% {n}/{total} {desc}{elapsed}<{remaining}{postfix}"


class Progress:
    """A progress bar on a terminal, plain lines elsewhere; silent unless this is the main process.

    Args:
      total, start: steps of the run, and those already done.
      steps_per_epoch: of the run.
      stream: where it is shown; None is stderr.
    """

    def __init__(
        self, total: int, start: int, *, steps_per_epoch: float, stream: TextIO | None = None
    ) -> None:
        # Nobody has to watch: the training goes on when the terminal is closed.
        self._stream: Any = Lasting(stream or sys.stderr, always=True)
        self._quiet = jax.process_index() != 0
        self._total, self._per_epoch = total, steps_per_epoch
        self._done = self._start = start
        self._began = time.monotonic()
        self._bar = None
        # Without steps, as in post-training quantisation, there is nothing to show a bar of.
        if self._stream.isatty() and not self._quiet and total > start:
            self._bar = tqdm(
                total=total,
                initial=start,
                desc=f"{self._epoch()} ",
                dynamic_ncols=True,
                file=self._stream,
                bar_format=BAR,
            )

    def compiled(self, step: int) -> None:
        """Starts the clock: the first step, which compiles, says nothing of the time left."""
        self._began, self._start = time.monotonic(), step
        if self._bar is not None:
            self._bar.unpause()

    def advance(self, step: int) -> None:
        """Moves the bar to `step` updates done."""
        count, self._done = step - self._done, step
        if self._bar is not None:
            self._bar.set_description_str(f"{self._epoch()} ", refresh=False)
            self._bar.update(count)

    def numbers(self, row: Mapping[str, Any]) -> None:
        """Shows a training row: on the bar as far as it fits, or as a line with the time left."""
        parts = [
            f"loss {row['loss']:.4f}",
            f"top-1 {100 * row['accuracy']:.1f} %",
            f"{row['images_per_second']:.0f} images/s",
            f"data wait {100 * row['data_wait']:.0f} %",
        ]
        if self._bar is not None:
            parts[0] = f"loss {row['loss']:.3f}"
            self._bar.set_postfix_str(_fitting(self._bar, parts))
            return
        spent = time.monotonic() - self._began
        left = spent / max(1, self._done - self._start) * (self._total - self._done)
        self.line(
            f"step {self._done}/{self._total}, {self._epoch()}, {', '.join(parts)}, "
            f"{_duration(left)} left"
        )

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._quiet:
            return
        text = printable(text)
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()

    def _epoch(self) -> str:
        """The epoch as in "epoch 3.2/10"."""
        done, total = self._done / self._per_epoch, self._total / self._per_epoch
        return f"epoch {done:.1f}/{round(total, 1):g}"


def _fitting(bar: Any, parts: list[str]) -> str:
    """As many of the parts, from the first, as fit next to the bar."""
    found = bar.format_dict
    columns = found["ncols"] or sys.maxsize
    taken = len(bar.format_meter(**{**found, "ncols": None, "postfix": ""})) + len(", ")
    shown = parts[0]
    for part in parts[1:]:
        if taken + len(shown) + len(", ") + len(part) > columns:
            break
        shown = f"{shown}, {part}"
    return shown


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
