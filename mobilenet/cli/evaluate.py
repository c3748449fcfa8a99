"""Measures a run on a split: top-1, top-5, precision, recall and F1 a class, confusion matrix.

    mobilenet evaluate --workdir=runs/c10 --split=test
    mobilenet evaluate --workdir=runs/c10 --split=validation --checkpoint=newest
    mobilenet evaluate --workdir=runs/keras --config.data.name=folder \
        --config.data.data_dir=photos --config.data.test_fraction=1

The full result is written to evaluation_SPLIT.json in the run directory, and one row an example
(index, label, five best classes, loss) to evaluation_SPLIT.npz. Other images than the run's are
named by overrides of data.*; their classes are found among the run's by name or by WordNet id
(n01440764_tench), and the files' names end in a hash of the overrides.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mobilenet import config as config_lib
from mobilenet import rundir
from mobilenet.cli import common
from mobilenet.terminal import printable
from mobilenet.train.metrics import Evaluation

# Keys that say which pictures are evaluated, and not what the run computes of one.
PICTURES = (
    *(f"data.{key}" for key in ("name", "train_split", "validation_split", "test_split")),
    *(f"data.{key}" for key in ("validation_fraction", "test_fraction", "train_examples")),
    *(f"data.{key}" for key in ("image_size", "crop_fraction", "in_memory", "on_error")),
)
# Of these, what belongs to one data set and says nothing of another.
PARTS = (
    *(f"data.{key}" for key in ("train_split", "validation_split", "test_split")),
    "data.train_examples",
)

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
        # The names of its parts are another data set's.
        default = dict(config_lib.flatten(config_lib.get_config()))
        config_lib.update(start, {key: default[key] for key in PARTS})
    config = common.run_config(workdir, overrides, verb="evaluate", also=PICTURES, start=start)
    changed = config_lib.differences(rundir.read_config(workdir), config)
    common.apply_cpu_devices(values)

    from mobilenet import build, inference, runtime
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
            print(table(evaluation, data.class_names), flush=True)
            if common.keeps("evaluate", lambda: write(path, report, evaluation)):
                print(f"written to {path} and {path.with_suffix('.npz').name}")
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


def write(path: Path, report: dict[str, Any], evaluation: Evaluation) -> None:
    """Writes the report as JSON and, next to it, a row for each example as .npz.

    Raises:
      RunDirectoryError: they cannot be written.
    """
    rows = io.BytesIO()
    np.savez_compressed(
        rows,
        index=evaluation.index,
        label=evaluation.label,
        top=evaluation.top,
        loss=evaluation.loss,
    )
    rundir.write_bytes_atomically(path.with_suffix(".npz"), rows.getvalue())
    rundir.write_json(path, report)


def full_report(evaluation: Evaluation, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Everything about an evaluation as JSON values."""
    classes = evaluation.per_class()
    return {
        **evaluation.summary(),
        "unreadable": {str(i): why for i, why in evaluation.skipped.items()},
        "class_names": list(class_names),
        "per_class": {name: values.tolist() for name, values in classes.items()},
        "confusion_matrix": evaluation.confusion_matrix().tolist(),
    }


def table(evaluation: Evaluation, class_names: tuple[str, ...], most: int = 30) -> str:
    """The result for a terminal: totals, a row a class, and the matrix when it fits.

    Args:
      evaluation: what to show.
      class_names: of the data set.
      most: classes to list; of more, those with the lowest F1.
    """
    lines = [
        f"top-1 {100 * evaluation.top1:.2f} %   top-5 {100 * evaluation.top5:.2f} %   loss "
        f"{evaluation.mean_loss:.4f}   {len(evaluation.label)} images"
    ]
    for index, why in list(evaluation.skipped.items())[:5]:
        lines.append(f"not counted, unreadable: #{index} {printable(why)}")
    classes = evaluation.per_class()
    names = [printable(name) for name in class_names] + [
        f"class {i}" for i in range(len(class_names), evaluation.num_classes)
    ]
    shown = np.arange(evaluation.num_classes)
    if len(shown) > most:
        shown = np.argsort(classes["f1"], kind="stable")[:most]
        lines.append(f"the {most} of {evaluation.num_classes} classes with the lowest F1:")
    width = min(24, max(len("class"), *(len(names[i]) for i in shown)))
    lines.append(f"\n{'class':<{width}}  precision  recall      F1  images")
    for i in shown:
        lines.append(
            f"{names[i][:width]:<{width}}  {100 * classes['precision'][i]:>9.2f}"
            f"  {100 * classes['recall'][i]:>6.2f}  {100 * classes['f1'][i]:>6.2f}"
            f"  {classes['support'][i]:>6}"
        )
    if evaluation.num_classes <= 12:
        matrix = evaluation.confusion_matrix()
        cell = max(3, len(str(matrix.max())))
        lines.append("\nconfusion matrix: rows are labels, columns predictions")
        header = " ".join(f"{name[:cell]:>{cell}}" for name in names)
        lines.append(f"{'':<{width}}  {header}")
        for name, row in zip(names, matrix, strict=True):
            lines.append(f"{name[:width]:<{width}}  " + " ".join(f"{v:>{cell}}" for v in row))
    return "\n".join(lines)
