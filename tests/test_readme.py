"""The front page: its size, its links, and every command in it, run in a fresh clone."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import transcripts
from PIL import Image
from random_weights import random_weights, write_legacy

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGE = """Text.

```console
$ mobilenet train --config=a.py \\
    --workdir=runs/a
step 5/10, loss 0.5, top-1 90.2 %, 12 images/s
...
test: top-1 91.0 % over 360 images
$ true
```

```python own.py
X = 1
```

<!-- numbers: of other images -->
```console
$ mobilenet evaluate
top-1 89.78 %
```
"""


def test_the_page_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 200
    assert len(text.encode()) <= 20_000


def test_links_lead_somewhere():
    assert transcripts.LINK.search(README.read_text())
    assert transcripts.dead_links(README) == []


def test_reading_a_page():
    first, second, file, third = transcripts.read_commands(PAGE)
    assert first.text == "mobilenet train --config=a.py \\\n    --workdir=runs/a"
    assert (first.line, len(first.expected), first.numbers) == (4, 3, True)
    assert (second.text, second.expected) == ("true", ())
    assert (file.file, file.text) == ("own.py", "X = 1\n")
    assert (third.numbers, third.line) == (False, 18)


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("top-1 99.17 %, 360 images", "top-1 98.61 %,  360 images", True),
        ("top-1 99.17 %, 360 images", "top-1 91.11 %, 360 images", False),
        ("top-1 99.17 %, 360 images", "top-1 99.17 %, 361 images", False),
        ("404 steps in 40 s", "404 steps in 1m10s", True),
        ("404 steps in 40 s", "404 steps after 40 s", False),
        ("488,058 parameters", "488,059 parameters", False),
        ("1,455 images/s, 0m37s left", "98 images/s, 1m02s left", True),
    ],
)
def test_comparing_lines(expected: str, actual: str, same: bool):
    assert transcripts.same_line(expected, actual) is same


@pytest.mark.parametrize(
    ("expected", "actual", "fault"),
    [
        (["a", "...", "c"], ["a", "b", "", "c"], ""),
        (["a", "..."], ["a", "b"], ""),
        (["a", "c"], ["a", "b", "c"], "expected 'c', got 'b'"),
        (["a"], ["a", "b"], "expected the end, got 'b'"),
        (["a", "...", "d"], ["a", "b"], "expected 'd', got no such line"),
        ([], ["whatever"], ""),
    ],
)
def test_comparing_outputs(expected: list[str], actual: list[str], fault: str):
    assert transcripts.first_difference(expected, actual) == fault


def write_images(directory: Path) -> None:
    """A folder of images as a reader has it, and one image to classify."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 4)):
        for index, name in enumerate(("daisy", "dandelion", "roses", "sunflowers", "tulips")):
            folder = directory / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                values = rng.integers(0, 80, (64, 80, 3)) + np.array([40 * index, 90, 150])
                Image.fromarray(np.uint8(np.clip(values, 0, 255))).save(folder / f"{i}.jpg")
    Image.open(directory / "images/test/roses/0.jpg").save(directory / "photo.jpg")


def copy_project(target: Path) -> None:
    """A fresh clone, or a copy of the files where the project is not a repository."""
    if subprocess.run(["git", "clone", "--quiet", ROOT, target], capture_output=True).returncode:
        made = shutil.ignore_patterns(".git", ".venv*", "runs", "build", "*.egg-info", "*cache*")
        shutil.copytree(ROOT, target, ignore=made)


@pytest.mark.slow
def test_commands_of_the_page(tmp_path: Path):
    clone = tmp_path / "mobilenet"
    copy_project(clone)
    write_images(clone)
    write_legacy(clone / "keras.h5", random_weights(0.35), top=False)
    hidden = {"VIRTUAL_ENV", "PYTHONPATH", "JAX_NUM_CPU_DEVICES", "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "100"}
    shell = transcripts.Shell(clone, environment)
    try:
        for command in transcripts.read_commands(README.read_text()):
            if command.file:
                (clone / command.file).write_text(command.text)
                continue
            code, lines = shell.run(command.text)
            where = f"README.md:{command.line}: {command.text}\n" + "\n".join(lines[-40:])
            assert code == 0, where
            fault = transcripts.first_difference(command.expected, lines, numbers=command.numbers)
            assert not fault, f"{fault}\n{where}"
    finally:
        shell.close()
