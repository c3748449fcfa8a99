"""What a training shows: a bar that fits the terminal, or lines; and how long it compiles."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import termios
from pathlib import Path

import jax
import pytest

from mobilenet.train import compiling
from mobilenet.train.progress import Progress

ROW = {"loss": 1.23456, "accuracy": 0.5, "images_per_second": 1234.5, "data_wait": 0.25}


def test_lines_name_the_epoch():
    stream = io.StringIO()
    progress = Progress(400, 0, steps_per_epoch=100.0, stream=stream)
    progress.advance(50)
    progress.numbers(ROW)
    assert stream.getvalue().startswith(
        "step 50/400, epoch 0.5/4, loss 1.2346, top-1 50.0 %, 1234 images/s, data wait 25 %, 0m"
    )


@pytest.mark.parametrize(
    ("total", "epochs", "columns", "shown"),
    [
        (640, 10, 80, ", loss 1.235, top-1 50.0 %, 1234 images/s"),
        (93_800, 200, 80, ", loss 1.235, top-1 50.0 %"),
        (93_800, 200, 120, ", loss 1.235, top-1 50.0 %, 1234 images/s, data wait 25 %"),
        (93_800, 200, 40, None),
    ],
)
def test_the_bar_fits_the_terminal(total: int, epochs: int, columns: int, shown: str | None):
    # A terminal of this size, as a shell has it.
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with os.fdopen(slave, "w") as terminal, os.fdopen(master, "rb") as screen:
        progress = Progress(total, 0, steps_per_epoch=total / epochs, stream=terminal)
        progress.advance(total // 2)
        progress.numbers(ROW)
        progress.line("a line above")
        progress.close()
        terminal.flush()
        screenshot = b""
        while b"a line above" not in screenshot:
            screenshot += os.read(screen.fileno(), 1 << 16)
    frames = [re.sub(r"\x1b\[\w", "", frame) for frame in re.split(r"[\r\n]+", screenshot.decode())]
    assert max(map(len, frames)) <= columns
    bars = [frame.rstrip() for frame in frames if frame.startswith(" 50%")]
    assert f"{total // 2}/{total} epoch {epochs / 2:.1f}/{epochs}" in bars[-1]
    if shown is not None:
        assert bars[-1].endswith(shown)
    assert any(frame.strip() == "a line above" for frame in frames)


def test_without_steps_there_is_no_bar():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for start, total in ((0, 0), (8, 8)):
        terminal = Terminal()
        progress = Progress(total, start, steps_per_epoch=4.0, stream=terminal)
        progress.line("test at step 0")
        progress.close()
        assert terminal.getvalue() == "test at step 0\n"


def test_the_time_left_does_not_count_the_compilation(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("mobilenet.train.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(11, 0, steps_per_epoch=11.0, stream=stream)
    now[0] = 60.0
    progress.advance(1)
    progress.compiled(1)
    now[0] = 62.0
    progress.advance(3)
    progress.numbers(ROW)
    assert stream.getvalue().endswith("0m08s left\n")  # 8 steps of 1 s


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    monkeypatch.setattr(compiling, "_known", set())
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_program_is_announced_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    text = compiling.announcement("a", 158)
    assert text is not None and re.fullmatch(
        r"compiling, about \d+ (s|min) \(cached afterwards\)", text
    )
    compiling.remember("a", 100, 50.0)
    assert compiling.announcement("a", 100) is None
    # Another process of this machine finds it too, and goes by what was measured.
    monkeypatch.setattr(compiling, "_known", set())
    assert compiling.announcement("a", 100) is None
    assert compiling.announcement("b", 60) == "compiling, about 30 s (cached afterwards)"
    compiling.remember("a", 100, 1.0)  # loaded: says nothing of a compilation
    assert json.loads((cache / compiling.FILE).read_text())["a"]["seconds"] == 50.0


def test_a_first_step_is_announced_and_timed(cache: Path):
    said: list[str] = []
    for key in ("a", "a", "b", ""):
        program = compiling.Program(key, 10)
        program.begin(said.append)
        program.end()
    assert len(said) == 2 and len(json.loads((cache / compiling.FILE).read_text())) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 3}', '{"a": {"seconds": "x"}}'])
def test_a_damaged_record_is_no_obstacle(cache: Path, text: str):
    (cache / compiling.FILE).write_text(text)
    assert compiling.announcement("a", 4) is not None
    compiling.remember("a", 4, 2.0)
    assert compiling.announcement("a", 4) is None


def test_without_a_cache_nothing_is_promised(cache: Path):
    jax.config.update("jax_compilation_cache_dir", None)
    assert re.fullmatch(r"compiling, about \d+ s", compiling.announcement("a", 40) or "")
    compiling.remember("a", 40, 2.0)
    assert compiling.announcement("a", 40) is None and not list(cache.iterdir())


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "1 s"), (7.4, "7 s"), (43.0, "45 s"), (119.0, "120 s"), (200.0, "3 min")],
)
def test_times_are_round(seconds: float, shown: str):
    assert compiling._rounded(seconds) == shown
