"""Names of networks, and what a logged run trained, in a few words."""

import json
from collections.abc import Mapping
from pathlib import Path

from mobilenet.analysis import plots, stats
from mobilenet.report import results, variants

# model.name -> family, which has a colour, and member of it.
NAMES = {
    "mobilenet_v1": ("MobileNetV1", ""),
    "mobilenet_v2": ("MobileNetV2", ""),
    "mobilenet_v3_small": ("MobileNetV3", "small"),
    "mobilenet_v3_large": ("MobileNetV3", "large"),
    "resnet18": ("ResNet", "18"),
    "resnet50": ("ResNet", "50"),
}


def label(model: str) -> str:
    """The name of `model.name` as tables have it: "MobileNetV3-small"."""
    family, member = NAMES.get(model, (model, ""))
    return f"{family}-{member}" if member else family


def runs_of(directory: Path, row: Mapping[str, str]) -> list[Path]:
    """The logs of the runs that a row is the mean of, by seed.

    Args:
      directory: experiments/results.
      row: with `logs`, `seeds` and `overrides`.

    Raises:
      ResultError: the logs lack a run.
    """
    logs = directory / row["logs"]
    found = [logs / f"seed{seed}" for seed in row["seeds"].split()]
    if all(run.is_dir() for run in found):
        return found
    _, brace, rest = row["overrides"].partition("{")
    overrides = json.loads(brace + rest) if brace else {}
    return variants.find_runs(logs, {row["variant"]: overrides})[row["variant"]]


def top1(directory: Path, row: Mapping[str, str]) -> dict[int, float]:
    """Seed -> test accuracy in percent, from the logs of a row; errors as `runs_of`."""
    found = {}
    for run in runs_of(directory, row):
        seed = results.read_config(run)["seed"]
        found[seed] = 100 * results.read_summary(run, ["test.top1"])["test"]["top1"]
    return found


def interval(directory: Path, row: Mapping[str, str]) -> stats.Interval:
    """Mean and 95 % t-interval of a row over its seeds, in percent; errors as `runs_of`."""
    return stats.mean_interval(top1(directory, row).values(), within=stats.PERCENT)


def between(a: Mapping[int, float], b: Mapping[int, float]) -> stats.Interval | None:
    """The paired difference a - b of accuracies in percent; None without a common seed."""
    return stats.paired_difference(a, b, within=stats.POINTS) if a.keys() & b.keys() else None


def of_size(logs: Path, row: Mapping[str, str]) -> Path:
    """A logged run with as many parameters and multiply-adds as a row says.

    Raises:
      ResultError: there is none.
    """
    for path in sorted(logs.glob("*/summary.json")):
        summary = results.read_summary(path.parent, ())
        if all(str(summary.get(key)) == row[key] for key in ("params", "macs")):
            return path.parent
    raise results.ResultError(f"{logs} has no run with {row['params']} parameters.")


def describe(run: Path) -> str:
    """The network and the data of a run: "MobileNetV2, width 0.35, CIFAR-10 at 24 pixels"."""
    config = results.read_config(run)
    data = config["data"]
    name = "a folder of images" if data["name"] == "folder" else plots.data_set(data["name"])
    return (
        f"{label(config['model']['name'])}, width {config['model']['width_multiplier']:g}, "
        f"{name} at {data['image_size']} pixels"
    )
