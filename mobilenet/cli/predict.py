"""Classifies image files with a run: the best classes and their probabilities.

    mobilenet predict --workdir=runs/c10 photo.jpg photos
    mobilenet predict --workdir=runs/c10 'photos/**/*.png' --top=1
    mobilenet predict --workdir=runs/c10 --format=csv photos > answers.csv

Arguments are files, folders (all images below them) and patterns in quotes, where ** is any number
of folders. The order is that of the arguments; a folder's and a pattern's files are sorted by name.
A file that cannot be read is named on stderr and the rest is classified; the exit code is then 2.
"""

import csv
import glob
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mobilenet import imagenet
from mobilenet.cli import columns, common
from mobilenet.data import listing
from mobilenet.data.sources import DatasetError
from mobilenet.streams import Lasting
from mobilenet.terminal import printable

REQUIRED = ("workdir",)
ARGUMENTS = "IMAGE|FOLDER|PATTERN ..."
OVERRIDES = common.CARRIED_OUT

FORMATS = ("table", "csv", "json")
CSV_FIELDS = ("file", "rank", "class", "name", "probability")

Answer = tuple[int, float]  # class, probability


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    common.define_checkpoint(values)
    flags.DEFINE_enum(
        "format",
        "table",
        FORMATS,
        "csv is a row per file and class, json an object per line and file",
        flag_values=values,
    )
    flags.DEFINE_integer("top", 5, "classes to show per file, the best first", flag_values=values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb; files that cannot be read are named and make the exit code 2."""
    if not rest:
        raise common.UsageError(
            "No image was given; write mobilenet predict --workdir=runs/digits photo.jpg, with "
            "files, folders or patterns."
        )
    layout = common.flag(values, "format")
    common.require_at_least(values, top=1)
    workdir = Path(common.require(values, "workdir", "runs/digits"))
    config = common.run_config(workdir, overrides, verb="predict")
    paths, missing = find(rest)
    for reason in missing:
        _complain(reason)
    if not paths:
        return 2

    from mobilenet import inference, runtime

    runtime.prepare_compiler()
    restored = inference.read_checkpoint(workdir, common.flag(values, "checkpoint"))
    predictor = inference.Predictor(config, restored.eval_variables, workdir)
    out = _make_writer(layout, paths, predictor.class_names, common.flag(values, "top"))
    failed, began = len(missing), time.monotonic()
    for prediction in predictor.files(paths):
        if prediction.probabilities is None:
            failed += 1
            _complain(prediction.error)
        else:
            out.write(prediction.path, best(prediction.probabilities, common.flag(values, "top")))
    if len(paths) > 1:
        sys.stdout.flush()
        seconds = time.monotonic() - began
        _note(f"{len(paths):,} files in {seconds:.1f} s.")
    return 2 if failed else 0


def find(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that arguments name, and a sentence for each argument that names none.

    Args:
      arguments: files, folders and patterns. A file is taken whatever it is called; a folder and a
        pattern give the files with the ending of an image format, sorted, and others are counted
        in a log message.
    """
    found: list[str] = []
    missing: list[str] = []
    for argument in arguments:
        is_pattern = glob.has_magic(argument) and not os.path.lexists(argument)
        try:
            if is_pattern:
                found += _match(argument)
            elif os.path.isdir(argument):
                found += _walk(argument)
            else:
                found.append(argument)  # a missing file is named when it is read
        except DatasetError as error:
            missing.append(str(error))
    return found, missing


def _walk(folder: str) -> list[str]:
    walk = listing.Walk()
    names = walk.images(folder)
    if not names:
        counts = listing.describe_counts(walk.left_out)
        raise DatasetError(f"{folder}: the folder holds no images{counts}.")
    walk.tell(folder)
    return [os.path.join(folder, name) for name in names]


def _match(pattern: str) -> list[str]:
    matches = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    if not matches:
        raise DatasetError(f"{pattern}: no file matches the pattern.")
    images = [path for path in matches if listing.is_image_name(os.path.basename(path))]
    if not images:
        raise DatasetError(
            f"{pattern}: {len(matches)} files match, but none has the ending of an image format."
        )
    if len(images) < len(matches):
        _note(f"{pattern}: {len(matches) - len(images)} files left out that are no images.")
    return images


def best(probabilities: np.ndarray, count: int) -> list[Answer]:
    """The classes with the highest probabilities, best first; of equal ones the first class."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(int(i), float(probabilities[i])) for i in order]


def _complain(text: str) -> None:
    sys.stdout.flush()
    _note(f"mobilenet predict: {text}")


def _note(text: str) -> None:
    print(printable(text), file=sys.stderr)


class _Table:
    """A line per file: the best class, its probability, and as many others as fit."""

    def __init__(self, paths: Sequence[str], class_names: Sequence[str], top: int) -> None:
        self._names = imagenet.readable(class_names)
        self._width = columns.width() if sys.stdout.isatty() else 0  # 0: nothing is cut
        files = max(map(columns.size, ["file", *paths]))
        classes = max(map(columns.size, ["class", *self._names]))
        if self._width:
            classes = min(classes, self._width // 4)
            left = self._width - len("  100.0  ") - classes
            files = min(files, self._width * 3 // 8 if top > 1 else left)
        self._files, self._classes = files, classes
        head = f"{'file':<{files}}  {'%':>5}  {'class':<{classes}}"
        print((head + "  next, in %" if top > 1 else head).rstrip())

    def write(self, path: str, answers: Sequence[Answer]) -> None:
        (first, probability), *others = answers
        line = (
            f"{columns.fit(path, self._files, keep_end=True)}  {100 * probability:>5.1f}  "
            f"{columns.fit(self._names[first], self._classes)}"
        )
        shown = [f"{printable(self._names[i])} {100 * p:.1f}" for i, p in others]
        while self._width and columns.size(f"{line}  {', '.join(shown)}") > self._width:
            if not shown:
                break
            shown.pop()
        print(f"{line}  {', '.join(shown)}".rstrip())


class _Csv:
    """A row per file and class; the bytes of odd file names are kept where no terminal is."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = class_names
        self._put([CSV_FIELDS])

    def write(self, path: str, answers: Sequence[Answer]) -> None:
        ranked = enumerate(answers, start=1)
        self._put([path, rank, i, self._names[i], f"{p:.6f}"] for rank, (i, p) in ranked)

    def _put(self, rows: Iterable[Sequence[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_exactly(text.getvalue())


class _Json:
    """An object per line and file, in ASCII."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = class_names

    def write(self, path: str, answers: Sequence[Answer]) -> None:
        classes = [{"class": i, "name": self._names[i], "probability": p} for i, p in answers]
        write_exactly(json.dumps({"file": path, "classes": classes}) + "\n")


def _make_writer(
    layout: str, paths: Sequence[str], class_names: Sequence[str], top: int
) -> _Table | _Csv | _Json:
    if layout == "table":
        return _Table(paths, class_names, top)
    return _Csv(class_names) if layout == "csv" else _Json(class_names)


def write_exactly(text: str) -> None:
    """Writes text to stdout for a program: in UTF-8, with the bytes of names as they are.

    A terminal gets it as text, in which a name cannot steer it.
    """
    stream: Any = getattr(sys.stdout, "buffer", None)
    if stream is None or sys.stdout.isatty():
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    lasting: Any = Lasting(stream)  # as sys.stdout is: `| head` is no error
    lasting.write(text.encode("utf-8", "surrogateescape"))
    lasting.flush()
