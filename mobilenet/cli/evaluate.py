"""Measures a run on a split: accuracy, calibration, every class, the confusion matrix.

    mobilenet evaluate --workdir=runs/c10 --split=test
    mobilenet evaluate --workdir=runs/c10 --split=validation --checkpoint=newest
    mobilenet evaluate --workdir=runs/keras --config.data.name=folder \
        --config.data.data_dir=photos --config.data.test_fraction=1

The run directory keeps the result in three files: evaluation_SPLIT.json has all of it,
evaluation_SPLIT.csv a row per class, and evaluation_SPLIT.npz a row per image (name, index, label,
logits, top, loss).

Overrides of data.* name other images than the run's. Their classes are found among the run's by
name or by WordNet id (n01440764_tench), and the names of the files end in a hash of the overrides.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mobilenet import config as config_lib
from mobilenet import imagenet, rundir
from mobilenet.cli import columns, common
from mobilenet.terminal import counted, printable
from mobilenet.train.metrics import Evaluation

# Keys that say which images are evaluated, and not what the run computes of one.
IMAGES = (
    *(f"data.{key}" for key in ("name", "train_split", "validation_split", "test_split")),
    *(f"data.{key}" for key in ("validation_fraction", "test_fraction", "train_examples")),
    *(f"data.{key}" for key in ("image_size", "crop_fraction", "in_memory", "on_error")),
)
# Of these, what belongs to one data set and says nothing of another.
PARTS = (
    *(f"data.{key}" for key in ("train_split", "validation_split", "test_split")),
    "data.train_examples",
)
# Columns of evaluation_SPLIT.csv. Ratios are fractions, empty where they have no images. `recall`
# is the class's top-1, with its 95 % Wilson interval; `confidence` is the mean over its images.
CLASS_FIELDS = (
    *("class", "name", "readable_name", "images", "predicted"),
    *("recall", "recall_low", "recall_high", "precision", "f1", "confidence"),
)
FILES = {".json": "everything", ".csv": "per class", ".npz": "per image, with logits and names"}
MOST_CLASSES = 30  # in the terminal's table
MOST_IN_MATRIX = 12  # classes of a confusion matrix that is printed

REQUIRED = ("workdir",)
OVERRIDES = "set how the run is evaluated, and on which images (keys of data)"


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    common.define_checkpoint(values)
    flags.DEFINE_string("split", "test", "train, validation or test", flag_values=values)
    common.define_devices(values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    common.refuse_arguments(rest)
    split = common.flag(values, "split")
    if split not in ("train", "validation", "test"):
        raise common.UsageError(f"--split is {split!r}; allowed are train, validation, test.")
    workdir = Path(common.require(values, "workdir", "runs/digits"))
    start = rundir.read_config(workdir)
    if overrides.get("data.name", start.data.name) != start.data.name:
        # Another data set has other names for its parts.
        default = dict(config_lib.flatten(config_lib.get_config()))
        config_lib.update(start, {key: default[key] for key in PARTS})
    config = common.run_config(workdir, overrides, verb="evaluate", also=IMAGES, start=start)
    changed = config_lib.differences(rundir.read_config(workdir), config)
    common.apply_cpu_devices(values)

    from mobilenet import build, inference, runtime
    from mobilenet.data import datasets
    from mobilenet.train import records

    runtime.prepare_compiler()
    with common.devices(values):
        import jax

        restored = inference.read_checkpoint(workdir, common.flag(values, "checkpoint"))
        data = build.build_data(config, workdir, match_classes=True)
        evaluation = inference.evaluate(config, data, restored.eval_variables, split)
        if jax.process_index() == 0:
            report = full_report(evaluation, data.class_names)
            report |= {"split": split, "step": restored.step, **records.environment()}
            report |= {"overrides": {key: new for key, (_, new) in changed.items()}}
            report["seen"] = data.dataset.examples[split]
            path = workdir / file_name(split, config if changed else None, report["seen"], workdir)
            print(f"{workdir}, step {restored.step}, {split} split")
            print(table(evaluation, data.class_names, columns.width()), flush=True)
            names = datasets.names_of(data.dataset.splits[split])
            if common.keeps("evaluate", lambda: write(path, report, evaluation, names)):
                print(f"\nwritten to {workdir}:")
                for suffix, what in FILES.items():
                    name = path.with_suffix(suffix).name
                    print(f"  {name:<{len(path.name)}}  {what}")
    return 0


def file_name(split: str, other: Any, seen: dict[str, Any], workdir: Path) -> str:
    """Where a result is kept: that on the run's own data is not replaced by one on other data.

    Args:
      split: that was evaluated.
      other: the configuration, if overrides changed what is computed; else None.
      seen: what the images are known by (`datasets.identify`).
      workdir: the run directory, whose data.json says what the run's own images are.
    """
    from mobilenet import build

    stored = build.read_stored(workdir) or {}
    own = (stored.get("examples") or {}).get(split)
    parts = [f"evaluation_{split}"]
    if other is not None:
        parts.append(config_lib.fingerprint(other))
    elif own is not None and own != seen:
        parts.append(seen["digest"])
    return "_".join(parts) + ".json"


def write(path: Path, report: dict[str, Any], evaluation: Evaluation, names: Sequence[str]) -> None:
    """Writes the report as JSON and, next to it, a row per class as .csv and per image as .npz.

    Args:
      path: of the JSON file.
      report: from `full_report`.
      evaluation: with logits.
      names: of every example of the split, by index; Unicode strings whose surrogates stand for
        bytes of file names that are not UTF-8.

    Raises:
      RunDirectoryError: they cannot be written.
    """
    rows: dict[str, Any] = {"name": np.array([names[index] for index in evaluation.index])}
    rows |= {"index": evaluation.index, "label": evaluation.label, "top": evaluation.top}
    rows["loss"] = evaluation.loss
    if evaluation.logits is not None:
        rows["logits"] = evaluation.logits
    content = io.BytesIO()
    np.savez_compressed(content, **rows)
    rundir.write_bytes_atomically(path.with_suffix(".npz"), content.getvalue())
    rundir.write_atomically(path.with_suffix(".csv"), class_rows(evaluation, report["class_names"]))
    rundir.write_json(path, report)


def full_report(evaluation: Evaluation, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Everything about an evaluation as JSON values."""
    classes = evaluation.per_class()
    return {
        **evaluation.summary(),
        "ece": evaluation.calibration_error,
        "unreadable": {str(i): why for i, why in evaluation.skipped.items()},
        "class_names": list(class_names),
        "per_class": {name: values.tolist() for name, values in classes.items()},
        "confusion_matrix": evaluation.confusion_matrix().tolist(),
    }


def class_rows(evaluation: Evaluation, class_names: Sequence[str]) -> str:
    """The text of evaluation_SPLIT.csv: one row per class, of CLASS_FIELDS."""
    from mobilenet.analysis.stats import wilson

    classes = evaluation.per_class()
    names = all_names(evaluation, class_names)
    readable = imagenet.readable(names)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(CLASS_FIELDS)
    for i, name in enumerate(names):
        images, predicted = int(classes["support"][i]), int(classes["predicted"][i])
        correct = round(classes["recall"][i] * images)
        found = _defined(classes, i)
        low, high = wilson(correct, images) if images else (None, None)
        found |= {"recall_low": low, "recall_high": high}
        ratios = [found.get(key) for key in CLASS_FIELDS[5:]]
        cells = ["" if value is None else f"{value:.6f}" for value in ratios]
        out.writerow([i, name, readable[i], images, predicted, *cells])
    return text.getvalue()


def _defined(classes: Mapping[str, np.ndarray], i: int) -> dict[str, float | None]:
    """The ratios of a class; None where there is nothing that they could be of."""
    images, predicted = classes["support"][i], classes["predicted"][i]
    counts = {"precision": predicted, "f1": images + predicted}
    return {
        key: float(classes[key][i]) if counts.get(key, images) else None
        for key in ("recall", "precision", "f1", "confidence")
        if key in classes
    }


def all_names(evaluation: Evaluation, class_names: Sequence[str]) -> list[str]:
    """A name for each output of the classifier, which may have more than the data has classes."""
    more = range(len(class_names), evaluation.num_classes)
    return [*class_names, *(f"class {i}" for i in more)]


def table(evaluation: Evaluation, class_names: Sequence[str], width: int = 80) -> str:
    """The result for a terminal: totals, a row per class, and the matrix where it fits.

    Args:
      evaluation: what to show.
      class_names: of the data set.
      width: columns of the terminal. Of more than MOST_CLASSES classes those with the lowest F1 are
        listed.
    """
    names = imagenet.readable(all_names(evaluation, class_names))
    lines = _totals(evaluation)
    for index, why in list(evaluation.skipped.items())[:5]:
        lines.append(f"not counted, unreadable: #{index} {printable(why)}")
    if len(evaluation.skipped) > 5:
        lines.append(f"and {len(evaluation.skipped) - 5} more")
    lines += _class_table(evaluation, names, width)
    if evaluation.num_classes <= MOST_IN_MATRIX:
        lines += _matrix(evaluation.confusion_matrix(), names, width)
    return "\n".join(lines)


def _totals(evaluation: Evaluation) -> list[str]:
    from mobilenet.analysis.stats import wilson

    count = len(evaluation.label)
    low, high = wilson(round(evaluation.top1 * count), count)
    top5 = f", top-5 {100 * evaluation.top5:.2f} %" if evaluation.shows_top5 else ""
    lines = [
        f"top-1 {100 * evaluation.top1:.2f} % [{100 * low:.2f}, {100 * high:.2f}]{top5}, "
        f"loss {evaluation.mean_loss:.4f}, {counted(count, 'image')}",
        "[ ]: 95 % interval (Wilson)",
    ]
    error = evaluation.calibration_error
    if error is not None:
        lines[1] += f"; expected calibration error (ECE) {100 * error:.2f} %"
    return lines


def _class_table(evaluation: Evaluation, names: Sequence[str], width: int) -> list[str]:
    classes = evaluation.per_class()
    shown = list(range(evaluation.num_classes))
    lines = ["\nper class, in %:"]
    if len(shown) > MOST_CLASSES:
        # A class without images has no F1 that could be low.
        order = np.argsort(classes["f1"], kind="stable")
        shown = [int(i) for i in order if classes["support"][i]][:MOST_CLASSES]
        present = np.count_nonzero(classes["support"])
        lines = [
            f"\nthe {len(shown)} classes with the lowest F1, of {present:,} with images, in %:"
        ]
    ratios = list(_defined(classes, 0))
    numbers = max(len("#"), len(str(max(shown))))
    head = "  images" + "".join(f"  {key:>{max(6, len(key))}}" for key in ratios)
    longest = max(len("class"), *(columns.size(names[i]) for i in shown))
    wide = min(longest, max(len("class"), width - numbers - 2 - len(head)))
    lines.append(f"{'#':>{numbers}}  {'class':<{wide}}{head}")
    for i in shown:
        cells = [
            f"  {'-' if value is None else f'{100 * value:.2f}':>{max(6, len(key))}}"
            for key, value in _defined(classes, i).items()
        ]
        lines.append(
            f"{i:>{numbers}}  {columns.fit(names[i], wide)}  {classes['support'][i]:>6}"
            + "".join(cells)
        )
    return lines


def _matrix(matrix: np.ndarray, names: Sequence[str], width: int) -> list[str]:
    """The confusion matrix: classes by name where all fit, else by their numbers in the table."""
    count = max(2, len(str(matrix.max())))
    longest = max(map(columns.size, names))
    labels, what = list(names), ""
    if longest > 10 or longest + len(names) * (max(count, longest) + 2) > width:
        labels, what = list(map(str, range(len(names)))), " by class number (#)"
        longest = max(map(len, labels))
    cell = max(count, longest)
    rows = [
        columns.fit(label, longest) + "".join(f"  {value:>{cell}}" for value in row)
        for label, row in zip(labels, matrix, strict=True)
    ]
    # Numbers and names stand over the last digit of their column.
    head = "".join("  " + " " * (cell - columns.size(label)) + printable(label) for label in labels)
    title = f"\nconfusion matrix{what}: rows are labels, columns are predictions"
    return [title, " " * longest + head, *rows]
