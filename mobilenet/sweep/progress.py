"""What a sweep shows while it works: a live table on a terminal, a line per event elsewhere."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mobilenet import rundir
from mobilenet.streams import Lasting
from mobilenet.sweep.points import Point
from mobilenet.terminal import printable

SECONDS = 1.0  # between two looks at the run directories
ROWS = 12  # of the live table, so that it fits a terminal of 24 lines


class Progress:
    """Watches the run directories of points from a thread while it is entered.

    Args:
      points: of the sweep.
      workdir: of the sweep.
      show: whether anything is shown.
      stream: where; None is stderr.
    """

    def __init__(
        self,
        points: Sequence[Point],
        workdir: Path,
        *,
        show: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self._points = {point.key: point for point in points}
        self._workdir = workdir
        self._show = show
        # The sweep continues when the terminal is closed.
        self._stream: Any = Lasting(stream or sys.stderr, always=True)
        self._summaries: dict[str, dict[str, Any]] = {}  # of points that have ended
        self._statuses: dict[str, str] = {}
        self._done_before: set[str] = set()
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if not self._show:
            return self
        self._look()
        self._done_before = set(self._summaries)
        if self._stream.isatty():
            self._live = Live(self.table(), console=Console(file=self._stream), auto_refresh=False)
            self._live.__enter__()
        else:
            self._line(self.headline())
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._update()
        if self._live is not None:
            self._live.__exit__(None, None, None)
        else:
            self._line(self.headline())

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS):
            self._update()

    def _update(self) -> None:
        before = dict(self._statuses)
        self._look()
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
            return
        for key, status in self._statuses.items():
            if status != before.get(key) and status not in ("pending", "running"):
                self._line(f"{self._points[key].label}: {self.describe(key)}; {self.headline()}")

    def _look(self) -> None:
        for key, point in self._points.items():
            if self._statuses.get(key) in rundir.FINAL:
                continue
            directory = point.directory(self._workdir)
            self._statuses[key] = status = rundir.status(directory)
            if status in rundir.FINAL:
                with contextlib.suppress(ValueError):
                    self._summaries[key] = rundir.read_json(directory / "summary.json", dict)

    def _line(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)

    def headline(self) -> str:
        """Counts, the time that is left, and the best run so far, in one line."""
        counts = {
            status: sum(s == status for s in self._statuses.values()) for status in rundir.STATUSES
        }
        parts = [f"{counts['done']}/{len(self._points)} done"]
        parts += [f"{n} {status}" for status, n in counts.items() if n and status != "done"]
        left = self._seconds_left()
        if left is not None:
            parts.append(f"{_duration(left)} left")
        best = self._best()
        if best is not None:
            parts.append(f"best {self.describe(best)} ({self._points[best].label})")
        return ", ".join(parts)

    def _seconds_left(self) -> float | None:
        ended = len(self._summaries.keys() - self._done_before)
        remaining = len(self._points) - len(self._summaries)
        if not ended or not remaining:
            return None
        return (time.monotonic() - self._began) / ended * remaining

    def _best(self) -> str | None:
        scores = {
            key: _top1(summary)
            for key, summary in self._summaries.items()
            if self._statuses[key] == "done"
        }
        known = {key: score for key, score in scores.items() if score is not None}
        return max(known, key=known.__getitem__) if known else None

    def describe(self, key: str) -> str:
        """The state of one run in a few words."""
        status = self._statuses[key]
        directory = self._points[key].directory(self._workdir)
        if status == "running":
            return _last_step(directory) or "starting"
        if status == "failed":
            return f"failed: {failure(directory)}"
        score = _top1(self._summaries.get(key, {}))
        if status == "done" and score is not None:
            return f"validation top-1 {100 * score:.2f} %"
        return status

    def table(self) -> Group:
        """The live table: running points first, then failed ones, then the best."""
        order = {"running": 0, "failed": 1, "diverged": 1}
        keys = sorted(
            (key for key, status in self._statuses.items() if status != "pending"),
            key=lambda key: (
                order.get(self._statuses[key], 2),
                -(_top1(self._summaries.get(key, {})) or 0.0),
            ),
        )
        table = Table(box=None, padding=(0, 1), show_edge=False)
        for column in ("status", "run", "progress"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for key in keys[:ROWS]:
            label, state = self._points[key].label, self.describe(key)
            table.add_row(self._statuses[key], Text(printable(label)), Text(printable(state)))
        hidden = len(keys) - ROWS
        more = [Text(f"and {hidden} more")] if hidden > 0 else []
        return Group(Text(printable(self.headline())), table, *more)


def failure(directory: Path) -> str:
    """Why a point failed, diverged, or counts as damaged."""
    errors = []
    for name in ("point.json", "summary.json"):
        try:
            errors.append((rundir.read_json(directory / name, dict) or {}).get("error"))
        except rundir.FileError as error:
            return f"{name} {error.what}"
    return str(errors[0] or errors[1])


def _top1(summary: dict[str, Any]) -> float | None:
    """Validation top-1 of a summary, a fraction; None without one."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return float(summary["validation"]["top1"])
    return None


def _last_step(directory: Path) -> str | None:
    """How far a run is, from the end of its metrics and its summary."""
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError, TypeError):
        with open(directory / "metrics.jsonl", "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            row = json.loads(file.read().decode().splitlines()[-1])
        total = (rundir.read_json(directory / "summary.json", dict) or {})["total_steps"]
        return f"step {row['step']}/{total}, {row['split']} loss {row['loss']:.3f}"
    return None


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m"
