"""Run directories as pandas frames: one row for each run, and every metric that was recorded.

Runs are read in any state: finished, running, failed, half written. A run's row says what could
not be read; no run is left out.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mobilenet import config as config_lib
from mobilenet import identity, rundir
from mobilenet.analysis.stats import Column, Frame
from mobilenet.sweep import space

# A directory that holds one of these is a run; a sweep's point has the last from its beginning.
MARKS = ("config.json", "summary.json", "point.json")
METRIC_COLUMNS = ("run", "step", "epoch", "split", "metric", "value")

# Column -> (split, name in metrics.jsonl and summary.json).
FINAL_METRICS = {
    "train_loss": ("train", "loss"),
    "train_accuracy": ("train", "accuracy"),
    "validation_top1": ("validation", "top1"),
    "validation_top5": ("validation", "top5"),
    "validation_loss": ("validation", "loss"),
    "test_top1": ("test", "top1"),
    "test_top5": ("test", "top5"),
    "test_loss": ("test", "loss"),
    "test_examples": ("test", "examples"),
}
NUMBERS = ("params", "macs", "wall_seconds", "first_step_seconds")
TEXTS = ("device", "processor", "commit")
BYTES_PER_PARAMETER = 4  # float32, which parameters are kept in whatever the computation's dtype


class NoRunsError(ValueError):
    """A directory without a run; the message names it and the command that makes one."""


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs that `load_runs` read.

    Attributes:
      frame: one row for each run; see `load_runs`.
      metrics: one row for each recorded number: run, step, epoch, split, metric, value.
    """

    frame: Frame
    metrics: Frame

    @property
    def done(self) -> Frame:
        """The rows of the runs that reached their end, in the columns of `frame`."""
        return self.frame[self.frame["status"] == "done"]

    def describe(self) -> str:
        """One line: "12 runs: 10 done, 1 failed, 1 diverged", and damaged metric lines if any."""
        found = self.frame["status"].tolist()
        # First usable runs, then failed ones, then those under way.
        asked = ("done", "failed", "diverged", "damaged")
        order = (*asked, *(name for name in rundir.STATUSES if name not in asked))
        shown = ", ".join(f"{found.count(name)} {name}" for name in order if name in found)
        damaged = int(self.frame["damaged_lines"].sum())
        note = f"; {_count(damaged, 'damaged line')} of metrics.jsonl skipped" if damaged else ""
        return f"{_count(len(found), 'run')}: {shown}{note}"


def processor(summary: Mapping[str, Any]) -> str:
    """The processor as rows state it, with the threads of a run where they are not its cores.

    Results of other threads differ by rounding: "AMD EPYC, 2 cores, 1 thread".
    """
    text = str(summary["processor"])
    parts = summary.get("computed") or [summary]
    counts = [str(part["threads"]) for part in parts if part.get("threads")]
    if all(text.endswith(f", {count} cores") for count in counts):
        return text
    return f"{text}, {' then '.join(counts)} thread{'' if counts[-1] == '1' else 's'}"


def load_runs(directory: str | Path) -> Runs:
    """Reads every run at or below a directory: of single trainings, sweeps, and committed logs.

    Runs are not searched for further runs, nor are directories whose name starts with a dot.
    Symbolic links are followed; a run that is reached twice counts once.

    Args:
      directory: a run directory, or one that holds some at any depth.

    Returns:
      The frames. `frame` is indexed by the run's path relative to `directory` and has the columns

        status            of `rundir.status`; also "damaged" when config.json is not a JSON object
        error             what ended the run or could not be read, or None
        seed              of the run
        group             `identity.fingerprint` without the seed: equal for replicates
        model.width_multiplier ...   the configuration's keys that vary among the runs
        step, total_steps            updates done and asked
        train_loss, train_accuracy   means of the last logged window
        validation_top1, validation_top5, validation_loss   the last measured
        test_top1, test_top5, test_loss, test_examples      of the final weights
        params, macs, bytes          of the model; bytes are of float32 parameters
        wall_seconds, first_step_seconds, device, processor, commit
        damaged_lines     of metrics.jsonl that are no metric row, a half-written last line included
        ...               the configuration's other keys

      Accuracies are fractions. Lists are tuples. What is missing is NaN in columns of numbers and
      None in others; a configuration key that is None in some run makes its column one of objects.
      A sweep's point that failed before it wrote its configuration has the values it overrides.

    Raises:
      NoRunsError: there is no run.
    """
    directory = Path(directory)
    rows: list[dict[str, Any]] = []
    configs: list[dict[str, Any]] = []
    metrics: list[tuple[Any, ...]] = []
    names: list[str] = []
    for path in sorted(_find(directory)):
        name = path.relative_to(directory).as_posix()
        row, config, recorded = _read_run(path)
        names.append(name)
        rows.append(row)
        configs.append(config)
        metrics += [(name, *number) for number in recorded]
    if not rows:
        raise NoRunsError(
            f"{directory} holds no runs: neither it nor a directory below has one of "
            f"{', '.join(MARKS)}. `mobilenet train --config=FILE --workdir={directory / 'NAME'}` "
            "makes one."
        )
    return Runs(_frame(names, rows, configs), _metrics(metrics))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _find(directory: Path) -> Iterator[Path]:
    seen = set()

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for folder, folders, files in os.walk(directory, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or any(mark in files for mark in MARKS):
            if real not in seen:
                yield Path(folder)
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen.add(real)


def _read_object(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The JSON object in a file, None if there is none, and what is wrong with it."""
    try:
        return rundir.read_json(path, dict), ""
    except rundir.FileError as error:
        return None, f"{path.name} {error.what}"
    except rundir.RunDirectoryError as error:
        return None, str(error)


def _read_identity(path: Path) -> tuple[dict[str, str], str]:
    """What the run began with (`identity.read`), and what is wrong with its record."""
    found, error = _read_object(path / identity.IDENTITY_FILE)
    return ({}, error) if found is None else (identity.read(path), error)


def _read_run(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[tuple[Any, ...]]]:
    """A run's row, its configuration as dotted keys, and its metrics without the run's name."""
    found, errors = {}, []
    for mark in MARKS:
        found[mark], error = _read_object(path / mark)
        errors += [error] if error else []
    status = "damaged" if errors else rundir.status(path)
    written, summary, point = (found[mark] for mark in MARKS)
    summary, point = summary or {}, point or {}

    overrides = point.get("overrides")
    overrides = overrides if isinstance(overrides, dict) else {}
    if written is not None:
        try:
            config: Any = rundir.read_config(path)
        except (config_lib.ConfigError, rundir.FileError) as error:
            # Still a run, with keys of its own.
            config = written
            errors.append(str(error))
        # Replicates have the texts that name their seed in common.
        named = space.naming_seed(overrides)
        known, error = _read_identity(path)
        errors += [error] if error else []
        group = identity.fingerprint(config, known, without=("seed",), instead=named)
        values = {**dict(config_lib.flatten(config)), **named}
    else:
        group = point.get("group")
        values = dict(overrides)
        if not point and not errors:
            errors.append("config.json is missing")
    values = {key: _hashable(value) for key, value in values.items()}
    errors += [str(text) for text in (point.get("error"), summary.get("error")) if text]

    recorded, last, damaged = _read_metrics(path / "metrics.jsonl")
    for split in ("validation", "test"):
        if isinstance(summary.get(split), dict):
            last[split] = summary[split]
    # A killed run's summary still says where it began.
    reached = [_number(summary.get("step")), *(number[0] for number in recorded[-1:])]
    params = _number(summary.get("params"))
    row = {
        "status": status,
        "error": "; ".join(dict.fromkeys(errors)) or None,
        "seed": values.pop("seed", summary.get("seed")),
        "group": group,
        "step": max((step for step in reached if step is not None), default=None),
        "total_steps": _number(summary.get("total_steps")),
        **{
            column: _number(last.get(split, {}).get(name))
            for column, (split, name) in FINAL_METRICS.items()
        },
        **{name: _number(summary.get(name)) for name in NUMBERS},
        "bytes": None if params is None else BYTES_PER_PARAMETER * params,
        **{name: summary.get(name) for name in TEXTS},
        "processor": processor(summary) if "processor" in summary else None,
        "damaged_lines": damaged,
    }
    return row, values, recorded


def _read_metrics(
    path: Path,
) -> tuple[list[tuple[Any, ...]], dict[str, dict[str, Any]], int]:
    """Rows (step, epoch, split, metric, value), the last line of each split, damaged lines."""
    recorded: list[tuple[Any, ...]] = []
    last: dict[str, dict[str, Any]] = {}
    damaged = 0
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line.decode())
            step, split, epoch = row["step"], row["split"], row.get("epoch")
            values = {k: v for k, v in row.items() if k not in ("step", "split", "epoch")}
            if not isinstance(split, str) or None in map(_number, (step, *values.values())):
                raise ValueError("no metric row")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            damaged += 1
            continue
        recorded += [(step, _number(epoch), split, name, v) for name, v in values.items()]
        last[split] = values
    return recorded, last, damaged


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value


def _frame(names: list[str], rows: list[dict[str, Any]], configs: list[dict[str, Any]]) -> Frame:
    keys = list(dict.fromkeys(key for config in configs for key in config))
    varying = [k for k in keys if len({config[k] for config in configs if k in config}) > 1]
    columns: dict[str, Column] = {}

    def put(name: str, values: list[Any], kind: Any) -> None:
        columns[name] = pd.Series(values, index=names, dtype=kind)

    def put_row(name: str) -> None:
        values = [row[name] for row in rows]
        if name in ("status", "error", "group", *TEXTS):
            put(name, values, object)
        elif name == "seed":
            put(name, values, object if None in values else None)
        else:
            put(name, values, float if None in values else None)

    def put_key(name: str) -> None:
        values = [config.get(name) for config in configs]
        # As objects, None stays None and integers stay integers.
        put(name, values, object if None in values else None)

    head = ("status", "error", "seed", "group")
    tail = (
        *("step", "total_steps", *FINAL_METRICS, "params", "macs", "bytes"),
        *("wall_seconds", "first_step_seconds", *TEXTS, "damaged_lines"),
    )
    for name in head:
        put_row(name)
    for name in varying:
        put_key(name)
    for name in tail:
        put_row(name)
    for name in keys:
        if name not in varying:
            put_key(name)
    return pd.DataFrame(columns, index=pd.Index(names, name="run"))


def _metrics(rows: list[tuple[Any, ...]]) -> Frame:
    frame = pd.DataFrame(rows, columns=pd.Index(METRIC_COLUMNS))
    kinds = {"run": str, "step": int, "epoch": float, "split": str, "metric": str, "value": float}
    return frame.astype(kinds)
