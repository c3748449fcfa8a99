"""Output whose reader is gone: programs go on and keep their exit codes."""

import contextlib
import io
import os
import pty
from pathlib import Path
from typing import TextIO

import pytest
from support import TINY_SWEEP, without_a_reader

from mobilenet import experiment, streams
from mobilenet.sweep import points
from mobilenet.sweep.progress import Progress as SweepProgress
from mobilenet.train.progress import Progress


def broken_pipe() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def hung_up_terminal() -> TextIO:
    controller, terminal = pty.openpty()
    stream = open(terminal, "w")
    os.close(controller)
    return stream


def closed_file() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


GONE = [broken_pipe, hung_up_terminal, closed_file, lambda: None]


@pytest.mark.parametrize("gone", GONE)
def test_what_nobody_reads_is_dropped(gone):
    raw = gone()
    stream = streams.Lasting(raw)
    for _ in range(3):
        print("a line", file=stream, flush=True)
    assert not stream.isatty()
    if isinstance(raw, io.TextIOWrapper):
        raw.close()  # flushes what is left, into nothing


def test_what_is_read_arrives_and_other_errors_are_raised():
    inner = io.StringIO()
    stream = streams.Lasting(inner)
    assert print("a line", file=stream) is None and inner.getvalue() == "a line\n"
    full = open("/dev/full", "w")
    with pytest.raises(OSError, match="No space left"):
        print("a line", file=streams.Lasting(full), flush=True)
    with pytest.raises(OSError, match="No space left"):
        full.close()


@pytest.mark.parametrize("gone", [*GONE, lambda: open("/dev/full", "w", buffering=1)])
def test_training_goes_on_without_a_terminal(gone):
    raw = gone()
    progress = Progress(8, 0, steps_per_epoch=4.0, stream=raw)
    row = {"loss": 1.0, "accuracy": 0.5, "images_per_second": 10.0, "data_wait": 0.0}
    for step in range(1, 9):
        progress.advance(step)
        progress.numbers(row)
        progress.line("a line")
    progress.close()
    if isinstance(raw, io.TextIOWrapper):
        with contextlib.suppress(OSError):  # of the full disk
            raw.close()


@pytest.mark.parametrize("gone", GONE)
def test_a_sweep_goes_on_without_a_terminal(gone, tmp_path: Path):
    raw, module = gone(), experiment.load_module(str(TINY_SWEEP))
    planned = points.points_of(module.get_config(), module.sweep())
    with SweepProgress(planned, tmp_path, stream=raw) as progress:
        progress._update()
    if isinstance(raw, io.TextIOWrapper):
        raw.close()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["cost", "--config=experiments/baselines/digits.py"], 0),
        (["cost", "--config=no/such/file.py"], 2),
        (["no_such_verb"], 2),
        ([], 2),
        (["cost", "--help"], 0),
    ],
)
def test_exit_codes_are_true_without_a_reader(arguments: list[str], code: int):
    assert without_a_reader(*arguments) == code
