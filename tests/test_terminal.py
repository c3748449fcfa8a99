"""Names of strangers on a terminal: they are shown, not obeyed, in every encoding."""

import io
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image
from support import ROOT, TINY, tiny

from mobilenet import terminal
from mobilenet.cli import common, evaluate
from mobilenet.data.datasets import DatasetError
from mobilenet.sweep import listing, points
from mobilenet.train.metrics import Evaluation
from mobilenet.train.progress import Progress

RED, LINES, BELL = "\x1b[31mred\x1b[0m", "two\nlines\r", "\x07bell\x9b2J"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naïve 猫 \U0001f600 'a\\b'", "naïve 猫 \U0001f600 'a\\b'"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),  # a joiner that Persian needs
        (RED, "\\x1b[31mred\\x1b[0m"),
        (LINES, "two\\nlines\\r"),
        (BELL, "\\x07bell\\x9b2J"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),  # the rest would be shown from right to left
        ("a\u2028b", "a\\u2028b"),
        ("a\udcffb", "a\\udcffb"),  # a byte of a file name that is not UTF-8
        (Path("a\tb"), "a\\tb"),
    ],
)
def test_printable(text, shown):
    assert terminal.printable(text) == shown


@pytest.mark.parametrize(
    ("number", "words", "shown"),
    [
        (1, ("step",), "1 step"),
        (0, ("step",), "0 steps"),
        (1200, ("image",), "1,200 images"),
        (1, ("class", "classes"), "1 class"),
        (2, ("class", "classes"), "2 classes"),
    ],
)
def test_one_thing_is_not_many(number, words, shown):
    assert terminal.counted(number, *words) == shown


def test_a_run_of_one_step_has_one_step(tmp_path):
    scores = {"top1": 1.0, "top5": 1.0, "loss": 0.5, "examples": 1}
    summary = {"params": 5, "macs": 1, "step": 1, "wall_seconds": 1.0, "device": "cpu"}
    text = common.describe_summary(summary | {"test": scores, "unreadable": {"3": "x"}}, tmp_path)
    assert "1 step in 1 s" in text and text.count("1 image\n") == 1
    assert "1 training image" in text and "1 training images" not in text


def test_what_verbs_print_is_plain(capsys):
    def printing(values, overrides, rest):
        print("one", RED, "two")
        print(BELL, end="\n\n")
        sys.stdout.writelines(["a\tb\n", "c\n"])
        assert not sys.stdout.isatty()
        return 3

    verb = types.SimpleNamespace(define=lambda values: None, main=printing)
    assert common.run("verb", verb, []) == 3  # pyright: ignore[reportArgumentType]
    assert capsys.readouterr().out == "one red two\n\\x07bell\\x9b2J\n\na\\tb\nc\n"


@pytest.mark.parametrize(
    "error",
    [DatasetError, common.UsageError, common.Failure, flags.Error],
    ids=lambda e: e.__name__,
)
def test_errors_show_names_in_one_line(capsys, error):
    def failing(values, overrides, rest):
        raise error(f"{RED}/{LINES} is missing")

    verb = types.SimpleNamespace(define=lambda values: None, main=failing)
    assert common.run("verb", verb, []) in (1, 2)  # pyright: ignore[reportArgumentType]
    shown = capsys.readouterr().err
    assert shown.startswith(
        "mobilenet verb: \\x1b[31mred\\x1b[0m/two\\nlines\\r is missing"
    ) and shown.endswith("\n")
    assert shown.count("\n") == 1


def test_errors_keep_their_own_lines(capsys):
    common._fail("verb", "first\n  second\nthird", 1)
    assert capsys.readouterr().err == "mobilenet verb: first\n  second\\nthird\n"


def test_log_messages_are_printable():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(common._PrintableLog("%(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    log.warning("%s is complete", RED + LINES)
    assert stream.getvalue() == "\\x1b[31mred\\x1b[0mtwo\\nlines\\r is complete\n"


def test_evaluation_tables_show_names():
    evaluation = Evaluation(
        index=np.arange(2),
        label=np.array([0, 1], np.int32),
        loss=np.zeros(2, np.float32),
        top=np.array([[0, 1], [0, 1]], np.int32),
        num_classes=2,
        skipped={7: f"folder/{LINES}.png: {BELL}"},
    )
    text = evaluate.table(evaluation, (RED, LINES))
    assert all(c.isprintable() for line in text.split("\n") for c in line)
    assert "\\x1b[31mred\\x1b[0m" in text and "two\\nlines\\r  " in text
    assert "#7 folder/two\\nlines\\r.png: \\x07bell\\x9b2J" in text


def test_progress_shows_names():
    stream = io.StringIO()
    Progress(1, 0, steps_per_epoch=1.0, stream=stream).line(f"Resuming {LINES}")
    assert stream.getvalue() == "Resuming two\\nlines\\r\n"


def test_sweeps_show_values_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = {"data.data_dir": "a[red]\x1b[31m[/x]"}
    point = points.make_point(tiny(), overrides)
    assert "data_dir=a[red]\\x1b[31m[/x]" in listing.table([point], tmp_path)
    directory = point.directory(tmp_path)
    directory.mkdir(parents=True)
    (directory / "point.json").write_text('{"error": "lost\\u001b[2J\\nforged: line"}')
    text = listing.summary([point], {point.key: "failed"}, tmp_path)
    assert "[/x]: lost\\x1b[2J\\nforged: line" in text


ENCODINGS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "C": {"LC_ALL": "C"},
    "C without UTF-8": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "utf-8": {"PYTHONIOENCODING": "utf-8:strict"},
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_character_can_be_printed(name):
    code = (
        "import sys; from mobilenet.cli import common, main\n"
        "main.VERBS['\\u732b\\udcff'] = 'a verb'\n"
        "sys.argv = ['mobilenet', '--help']\n"
        "sys.exit(main.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **ENCODINGS[name]},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert ("猫" if name in ("utf-8", "C") else "\\u732b").encode() in done.stdout
    assert b"\\udcff" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latin-1", "C"])
def test_a_run_on_hostile_names(tmp_path, name):
    """Training, evaluation and prediction, with names of files and classes of every kind."""
    names = [RED, LINES, "猫 → é", "plain"]
    for label, folder in enumerate(names):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(8):
            path = tmp_path / "data" / folder / f"{folder}{i}.png"
            Image.fromarray(np.full((8, 8), 60 * label + i, np.uint8)).save(path)
    (tmp_path / "data" / LINES / f"{RED}.png").write_bytes(b"broken")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **ENCODINGS[name]}
    run = f"--workdir={tmp_path / 'run 猫'}"

    def mobilenet(*args: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mobilenet", *args], env=environment, capture_output=True
        )
        assert done.returncode == code, done.stderr.decode(errors="replace")
        text = (done.stdout + done.stderr).decode(errors="replace")
        assert not set("\x1b\x07\x9b\r") & set(text), text
        return text

    data = [f"--config.data.data_dir={tmp_path / 'data'}", "--config.data.name=folder"]
    trained = mobilenet(
        "train", f"--config={TINY}", run, *data, "--config.data.on_error=skip",
        "--config.train.global_batch_size=4", "--config.data.image_size=8",
        "--config.data.train_examples=0",
    )  # fmt: skip
    assert "top-1" in trained
    table = mobilenet("evaluate", run, "--split=train")
    assert "two\\nlines\\r" in table and "\\x1b[31mred" in table
    assert ("猫 → é" if name == "C" else "\\u732b") in table  # Python takes C as UTF-8
    files = [str(path) for path in sorted((tmp_path / "data").rglob("*.png"))]
    shown = mobilenet("predict", run, *files, str(tmp_path / "lost\x07"), code=2)
    # One broken and one lost file, and the lines before and after the table.
    assert len(shown.splitlines()) == len(files) + 3
