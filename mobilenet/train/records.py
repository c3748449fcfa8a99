"""The records of a run besides its checkpoints: configuration, metrics, events, summary.

config.json     the configuration, complete
metrics.jsonl   one JSON object per line: training means, validations
summary.json    final metrics, counts, versions, device, threads, commit, wall time, status
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax

from mobilenet import rundir, runtime
from mobilenet.rundir import writing
from mobilenet.train import writers

log = logging.getLogger("mobilenet")

VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "mobilenet")


# Conditions, besides the configuration, that decide the order of sums -> their names in messages.
NUMERICS = {
    "threads": "threads",
    "vector_bits": "bits of a vector",
    "processor": "processor",
    "device": "devices",
    "jax": "jax",
    "jaxlib": "jaxlib",
}


def environment() -> dict[str, Any]:
    """Versions, device and commit, as in every result row.

    `threads` is the number that XLA uses on the CPU (None on other devices), `vector_bits` the
    width for which it compiles, `cores` the number that this process may use, and `processor` the
    name of the processor.
    """
    device = jax.devices()[0]
    return {
        "versions": versions(),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processor": processor(),
        "threads": runtime.threads() if device.platform == "cpu" else None,
        "vector_bits": runtime.vector_bits() if device.platform == "cpu" else None,
        "cores": runtime.usable_cores(),
        "processes": jax.process_count(),
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages on which results depend."""
    found = {name: importlib.metadata.version(name) for name in VERSIONS}
    return found | {"python": platform.python_version()}


def numerics(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The values of NUMERICS in an `environment()` or a summary; None is unknown."""
    found = {name: environment.get(name) for name in NUMERICS}
    versions = environment.get("versions") or {}
    found |= {name: versions.get(name) for name in ("jax", "jaxlib")}
    # The machine's number of cores changes nothing if the threads are known.
    found["processor"] = str(environment.get("processor") or "").rpartition(", ")[0] or None
    return found


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Known values of NUMERICS that differ: "2 threads before and 1 now"; "" if none differ."""
    return "; ".join(
        f"{name} {before[key]} before and {now[key]} now"
        for key, name in NUMERICS.items()
        if None not in (before.get(key), now.get(key)) and before[key] != now[key]
    )


def computed(workdir: Path, step: int, now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How the parts of a run were computed, if not all under the same conditions.

    Logs a warning if the conditions of this part differ from those of the last.

    Args:
      workdir: of a run that continues, with the summary of its last part.
      step: at which it continues.
      now: from `environment()`.

    Returns:
      One entry per part, with this part last: `from_step`, and the values of NUMERICS. Empty if all
      parts were computed under the same conditions.
    """
    before: dict[str, Any] = {}
    with contextlib.suppress(rundir.FileError):  # the first reader of the summary reports it
        before = rundir.read_json(workdir / "summary.json", dict) or {}
    parts = before.get("computed")
    if not isinstance(parts, list):
        parts = [{"from_step": 0, **numerics(before)}]
    kept = [part for part in parts if part["from_step"] < step]
    if not kept:
        return []
    changed = differing(kept[-1], numerics(now))
    if changed:
        log.warning(
            "%s was computed under other conditions until step %d (%s): its remaining steps differ "
            "from those of an uninterrupted run by rounding, and summary.json lists both.",
            workdir, step, changed,
        )  # fmt: skip
        kept.append({"from_step": step, **numerics(now)})
    return kept if len(kept) > 1 else []


def processor() -> str:
    """The processor's name and the number of cores of the machine."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def commit() -> str:
    """The commit of the checkout that holds the package, with "-dirty" for uncommitted changes."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read_summary(workdir: Path) -> dict[str, Any]:
    """The summary of a run, or {} if there is none; for a damaged one a warning is logged.

    A run that continues writes it again.
    """
    try:
        return rundir.read_json(workdir / "summary.json", dict) or {}
    except rundir.FileError as error:
        log.warning("%s The run continues without it.", error)
        return {}


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows of a metrics file, and the number of lines that are not rows.

    An incomplete last line is the result of a kill and does not count.
    """
    *lines, last = (rundir.read_bytes(path) or b"").split(b"\n")
    found = [_read_row(line) for line in lines]
    rows = [row for row in (*found, _read_row(last)) if row is not None]
    return rows, found.count(None)


def _read_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
        needed = ["step", *(("top1", "loss") if row["split"] == "validation" else ())]
        return row if all(isinstance(row[key], int | float) for key in needed) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def drop_after(path: Path, step: int) -> None:
    """Removes rows after `step`, and lines that are not rows, from a metrics file.

    Raises:
      RunDirectoryError: the file cannot be read or written.
    """
    if not path.exists():
        return
    rows, damaged = _read_rows(path)
    if damaged:
        aside = path.with_name(f"{path.name}.damaged")
        log.warning("%d lines of %s are not metrics; %s keeps them.", damaged, path, aside.name)
        rundir.write_bytes_atomically(aside, path.read_bytes())
    rundir.write_atomically(path, "".join(_line(row) for row in rows if row["step"] <= step))


def read_validations(workdir: Path, step: int) -> dict[int, dict[str, Any]]:
    """Validation metrics of a run up to `step`: step -> metrics."""
    rows, _ = _read_rows(workdir / "metrics.jsonl")
    return {
        row["step"]: {k: v for k, v in row.items() if k not in ("step", "epoch", "split")}
        for row in rows
        if row["split"] == "validation" and row["step"] <= step
    }


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row)) + "\n"


class MetricsWriter:
    """Appends metric rows to `metrics.jsonl` and hands them to other writers.

    Args:
      workdir: the run directory.
      resume_step: rows after this step are removed first: the run repeats them.
      names: of the other writers (`writers.OPEN`).

    Raises:
      RunDirectoryError: a file cannot be written, or a service refuses the run.
    """

    def __init__(self, workdir: Path, *, resume_step: int, names: Sequence[str] = ()) -> None:
        self._path = workdir / "metrics.jsonl"
        drop_after(self._path, resume_step)
        self._writers: list[writers.Writer] = []
        with writing(self._path):
            self._file: TextIO = open(self._path, "a")  # noqa: SIM115
        try:
            for name in names:
                opened = writers.open_writer(name, workdir, resume_step, self._rows)
                self._writers.append(opened)
        except BaseException:
            self.close()
            raise

    def _rows(self) -> list[dict[str, Any]]:
        return _read_rows(self._path)[0]

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes one row: `step`, `epoch`, `split`, and metrics, which are numbers."""
        with writing(self._path):
            self._file.write(_line(row))
            self._file.flush()
            if row["split"] != "train":  # a checkpoint follows, and its run reads this row
                os.fsync(self._file.fileno())
        for writer in self._writers:
            writer.write(row)

    def conclude(self, status: str, summary: Mapping[str, Any]) -> None:
        """Tells the writers how the run ended, and its test result."""
        for writer in self._writers:
            writer.conclude(status, summary)

    def close(self) -> None:
        """Closes all files; every row is on its way to the disk already."""
        # After a failed write the buffers still hold it, and closing would fail a second time.
        for each in (self._file, *self._writers):
            with contextlib.suppress(OSError):
                each.close()
