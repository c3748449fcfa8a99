"""Where metrics go besides metrics.jsonl: a CSV file, TensorBoard, Weights & Biases, MLflow.

metrics.jsonl is the source of truth. When a run continues, the rows after its last checkpoint are
removed from that file, and each writer brings its own rows in line with it.

metrics.csv       the rows of metrics.jsonl as a table
events/           of TensorBoard
wandb/            of Weights & Biases; wandb_run.jsonl keeps the run's id and which rows it has
mlruns/           of MLflow, where MLFLOW_TRACKING_URI names no other place; mlflow_run.json keeps
                  the run's id
"""

# Weights & Biases and MLflow are extras; types are not checked against them.
# pyright: reportMissingImports=false

import contextlib
import csv
import importlib.util
import io
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from mobilenet import rundir
from mobilenet.rundir import writing

log = logging.getLogger("mobilenet")

Row = Mapping[str, Any]
Rows = Callable[[], Sequence[Row]]

# Names of a row that say where it belongs; the others are metrics.
PLACE = ("step", "epoch", "split")
# Writers whose packages are extras -> what installs them.
EXTRAS = {"wandb": "`pip install -e '.[wandb]'`", "mlflow": "`pip install -e '.[mlflow]'`"}
PROJECT = "mobilenet"  # of Weights & Biases, and MLflow's experiment, where nothing else is asked


class Writer(Protocol):
    """A place that metrics are written to."""

    def write(self, row: Row) -> None:
        """Writes one row (`step`, `epoch`, `split` and metrics) that metrics.jsonl already has."""
        ...

    def conclude(self, status: str, summary: Row) -> None:
        """Records how the run ended: "done", "interrupted", "failed", "diverged" or "pruned"."""
        ...

    def close(self) -> None: ...


def missing_package(names: Sequence[str]) -> str | None:
    """The first of the writers whose package is not installed."""
    packages = (name for name in names if name in EXTRAS)
    return next((name for name in packages if importlib.util.find_spec(name) is None), None)


def open_writer(name: str, workdir: Path, resume_step: int, rows: Rows) -> Writer:
    """Opens one of the writers of OPEN.

    Args:
      name: of the writer.
      workdir: the run directory, with its config.json.
      resume_step: the run continues after this step.
      rows: reads metrics.jsonl as it is when it is called.

    Raises:
      RunDirectoryError: its files cannot be written, or its service refuses the run.
    """
    return OPEN[name](workdir, resume_step, rows)


class _Csv:
    """metrics.csv: a column for every name in the rows, empty where a row lacks it."""

    def __init__(self, path: Path, rows: Rows) -> None:
        self._path, self._rows = path, rows
        self._write_all()

    def _write_all(self) -> None:
        rows = self._rows()
        self._columns = list(dict.fromkeys([*PLACE, *(name for row in rows for name in row)]))
        text = io.StringIO()
        self._table(text).writeheader()
        self._table(text).writerows(rows)
        rundir.write_atomically(self._path, text.getvalue())
        with writing(self._path):
            self._file: TextIO = open(self._path, "a", newline="")  # noqa: SIM115

    def _table(self, file: Any) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self._columns, lineterminator="\n")

    def write(self, row: Row) -> None:
        if not set(row) <= set(self._columns):  # the first validation has metrics of its own
            self._file.close()
            self._write_all()
            return
        with writing(self._path):
            self._table(self._file).writerow(row)
            self._file.flush()

    def conclude(self, status: str, summary: Row) -> None:
        del status, summary

    def close(self) -> None:
        self._file.close()


class _Events:
    """TensorBoard's event file, written row by row in the calling thread.

    tensorboardX's SummaryWriter writes in a thread of its own, where a full disk goes unseen; its
    EventsWriter below that does not.
    """

    def __init__(self, directory: Path, resume_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._proto: Any = event_pb2  # generated code, opaque to type checkers
        self._directory = directory
        with writing(directory):
            directory.mkdir(exist_ok=True)
            self._writer = EventsWriter(str(directory / "events"))
        # Hides the events that a killed run wrote after its last checkpoint.
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._put(resume_step + 1, session_log=start)

    def write(self, row: Row) -> None:
        from tensorboardX import summary

        for name, value in _metrics(row).items():
            self._put(row["step"], summary=summary.scalar(name, value))
        with writing(self._directory):
            self._writer.flush()

    def _put(self, step: int, **content: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), step=step, **content)
        with writing(self._directory):
            self._writer.write_event(event)

    def conclude(self, status: str, summary: Row) -> None:
        del status, summary

    def close(self) -> None:
        self._writer.close()


def _metrics(row: Row) -> dict[str, Any]:
    """A row's metrics, by names such as "train/loss"."""
    return {f"{row['split']}/{name}": value for name, value in row.items() if name not in PLACE}


def _final(summary: Row) -> dict[str, float]:
    """The test result of a summary, which is no row: it is measured once, at the end."""
    test = summary.get("test") or {}
    numbers = {name: value for name, value in test.items() if isinstance(value, int | float)}
    return {f"test/{name}": float(value) for name, value in numbers.items()}


class _Service:
    """What Weights & Biases and MLflow share.

    Every row is logged once. When a service is opened, it gets the rows of metrics.jsonl that it
    lacks; rows that the run repeats after a kill are left out. A service that fails later does not
    end the training: the rows stay in metrics.jsonl, and are logged when the run continues.
    """

    label = ""
    _gave_up = False

    def write(self, row: Row) -> None:
        self._try(lambda: self._log(row))

    def conclude(self, status: str, summary: Row) -> None:
        self._try(lambda: self._end(status, summary))

    def close(self) -> None:
        self._try(self._close)

    def _log(self, row: Row) -> None:
        raise NotImplementedError

    def _end(self, status: str, summary: Row) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _try(self, action: Callable[[], None]) -> None:
        if self._gave_up:
            return
        try:
            action()
        except Exception as error:
            self._gave_up = True
            log.warning(
                "%s failed (%s); the training goes on without it. metrics.jsonl has all metrics.",
                self.label, error,
            )  # fmt: skip


class _Wandb(_Service):
    """A run of Weights & Biases; offline unless WANDB_MODE says otherwise.

    W&B writes and sends rows in a process of its own. A kill loses the rows of the last seconds, or
    all of them. Offline, a part of a run that was not closed is put aside, and the next part logs
    its rows again. Online, the service knows the last step that it has.
    """

    label = "Weights & Biases"

    def __init__(self, workdir: Path, rows: Rows) -> None:
        import wandb

        self._path = workdir / "wandb_run.jsonl"
        id, self._logged = self._read()
        with writing(self._path):
            self._file: TextIO = open(self._path, "a")  # noqa: SIM115
        if not id:
            id = uuid.uuid4().hex[:12]
            self._remember({"id": id})
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        try:
            self._run = wandb.init(
                id=id,
                resume="allow",
                # Lanes of one program are several runs of one process.
                reinit="create_new",
                mode=mode,
                dir=str(workdir),
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=os.environ.get("WANDB_NAME", workdir.absolute().name),
                config=_configuration(workdir),
                # The console belongs to the progress of the training.
                settings=wandb.Settings(console="off", silent=True),
            )
        except Exception as error:
            self._file.close()
            raise rundir.RunDirectoryError(
                f"Weights & Biases cannot log this run: {error} Set WANDB_MODE=offline, or leave "
                "wandb out of --config.log.writers."
            ) from error
        self._remember({"part": Path(self._run.dir).parent.name})
        # When a run continues online, the service refuses earlier steps.
        self._first = self._run.step
        if mode == "offline":
            log.info("Weights & Biases: `wandb sync %s/wandb/offline-run-*` uploads.", workdir)
        for row in rows():
            self.write(row)

    def _read(self) -> tuple[str, set[tuple[int, str]]]:
        """The run's id, "" before there is one, and the rows of its parts that were closed."""
        id, logged = "", set()
        part, rows = "", set()
        for line in (rundir.read_bytes(self._path) or b"").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a kill cuts the last line
                known = json.loads(line)
                if "id" in known:
                    id = str(known["id"])
                elif "part" in known:
                    part, rows = str(known["part"]), set()
                elif "closed" in known:
                    logged |= rows
                    part = ""
                else:
                    rows.add((known["step"], known["split"]))
        if part.startswith("offline-"):  # so `wandb sync wandb/offline-run-*` passes it over
            with contextlib.suppress(OSError):
                directory = self._path.parent / "wandb"
                (directory / part).rename(directory / f"killed-{part}")
        return id, logged

    def _remember(self, known: Row) -> None:
        with writing(self._path):
            self._file.write(json.dumps(dict(known)) + "\n")
            self._file.flush()

    def _log(self, row: Row) -> None:
        place = (row["step"], row["split"])
        if place in self._logged or row["step"] < self._first:
            return
        # A training row waits for the validation of its step, if there is one.
        self._run.log(
            {**_metrics(row), "epoch": row["epoch"]},
            step=row["step"],
            commit=row["split"] != "train",
        )
        self._remember({"step": row["step"], "split": row["split"]})
        self._logged.add(place)

    def _end(self, status: str, summary: Row) -> None:
        self._run.summary.update({**_final(summary), "status": status})

    def _close(self) -> None:
        self._run.finish()
        self._remember({"closed": True})
        self._file.close()


class _Mlflow(_Service):
    """A run of MLflow, in the store of MLFLOW_TRACKING_URI or in files of the run directory."""

    label = "MLflow"

    def __init__(self, workdir: Path, rows: Rows) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # MLflow prefers a data base, which a run directory need not have.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (workdir.absolute() / "mlruns").as_uri()
        import mlflow

        self._steps: dict[str, set[int]] = {}  # of each metric that the run has
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            self._id = self._continue_or_create(workdir)
        except rundir.RunDirectoryError:
            raise
        except Exception as error:  # its file store raises plain ones
            raise rundir.RunDirectoryError(
                f"MLflow cannot log this run: {error} Set MLFLOW_TRACKING_URI to the store that "
                "has it, or leave mlflow out of --config.log.writers."
            ) from error
        for row in rows():
            self.write(row)

    def _continue_or_create(self, workdir: Path) -> str:
        from mlflow.entities import Param

        path = workdir / "mlflow_run.json"
        known = (rundir.read_json(path, dict) or {}).get("run_id")
        if known:
            self._client.update_run(known, status="RUNNING")
            return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        created = self._client.create_run(
            self._experiment(name), run_name=workdir.absolute().name
        ).info.run_id
        params = [Param(key, str(value)) for key, value in _configuration(workdir).items()]
        for start in range(0, len(params), 100):  # the most that MLflow takes at a time
            self._client.log_batch(created, params=params[start : start + 100])
        rundir.write_json(path, {"run_id": created})
        return created

    def _experiment(self, name: str) -> str:
        from mlflow import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            with contextlib.suppress(MlflowException):  # another run was first to make it
                return self._client.create_experiment(name)
            found = self._client.get_experiment_by_name(name)
        if found is None:
            raise MlflowException(f"the experiment {name!r} cannot be made.")
        return found.experiment_id

    def _put(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        new = [
            Metric(name, float(value), now, step)
            for name, value in metrics.items()
            if step not in self._steps_of(name)
        ]
        if new:
            self._client.log_batch(self._id, metrics=new)
        for metric in new:
            self._steps[metric.key].add(step)

    def _steps_of(self, name: str) -> set[int]:
        if name not in self._steps:
            history = self._client.get_metric_history(self._id, name)
            self._steps[name] = {metric.step for metric in history}
        return self._steps[name]

    def _log(self, row: Row) -> None:
        self._put({**_metrics(row), "epoch": row["epoch"]}, row["step"])

    def _end(self, status: str, summary: Row) -> None:
        self._put(_final(summary), summary["step"])
        ended = {"done": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED")
        self._client.set_terminated(self._id, ended)

    def _close(self) -> None:
        pass


def _configuration(workdir: Path) -> dict[str, Any]:
    """The values of config.json by dotted keys."""

    def flatten(part: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in part.items():
            if isinstance(value, dict):
                yield from flatten(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(flatten(rundir.read_json(workdir / "config.json", dict) or {}, ""))


# Name in `log.writers` -> (run directory, step that it continues after, rows of metrics.jsonl).
OPEN: Mapping[str, Callable[[Path, int, Rows], Writer]] = {
    "csv": lambda workdir, step, rows: _Csv(workdir / "metrics.csv", rows),
    "tensorboard": lambda workdir, step, rows: _Events(workdir / "events", step),
    "wandb": lambda workdir, step, rows: _Wandb(workdir, rows),
    "mlflow": lambda workdir, step, rows: _Mlflow(workdir, rows),
}
