"""What `mobilenet benchmark` measured: the results file, names for readers, and the figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet.report.table import Table

LABELS = {
    "ours": "this project",
    "flax": "plain Flax",
    "grouped": "grouped",
    "shifted": "shifted",
    "remat": "with remat",
    "qat": "with quantisers (w8a8)",
    "pruned": "with masks",
    "pillow": "Pillow",
    "tf_data": "tf.data",
    "torch": "PyTorch eager",
    "torch_compile": "torch.compile",
}
TABLE = Table(
    "benchmark",
    (
        *("case", "work", "implementation", "model", "image_size", "batch_size", "params", "macs"),
        *("seconds", "seconds_low", "seconds_high", "images_per_second"),
        *("ratio", "ratio_low", "ratio_high", "first_step_seconds", "peak_mb", "temp_mb"),
        *("bandwidth_share", "check", "rounds", "memory", "device", "processor", "versions"),
        *("environment", "commit"),
    ),
    by="",
    page="speed",
)
VARIANTS = ("remat", "qat", "pruned")  # of this project, and no peers
Row = Mapping[str, Any]


def _points(rows: Sequence[Row], key: str, scale: float) -> dict[float, Row]:
    """One row a shape: the first case that measured it."""
    points: dict[float, Row] = {}
    for row in rows:
        points.setdefault(scale * float(row[key]), row)
    return points


def plot(rows: Sequence[Row], path: Path) -> None:
    """Time of a training step against the batch and against MACs, and ratios to the peers.

    Args:
      rows: of `mobilenet benchmark`; of several machines, those of the first one's are drawn.
      path: of the picture; its ending says the format.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["processor"] == rows[0]["processor"]]
    train = [
        r
        for r in rows
        if r["work"] == "train"
        and r["implementation"] == "ours"
        and r["memory"] == "kept"
        and int(r["image_size"]) == 224
    ]
    plain = [r for r in train if r["model"] == "1.0"]
    widths = [r for r in train if r["batch_size"] in ("16", 16) and "SE" not in r["model"]]
    bars = [
        r
        for r in rows
        if r["work"] not in ("block", "input") and r["implementation"] not in ("ours", *VARIANTS)
    ]
    # What two shapes or more were measured of: one point shows no proportion.
    lines = [
        (points, label)
        for points, label in (
            (_points(plain, "batch_size", 1.0), "batch size (width 1.0)"),
            (_points(widths, "macs", 1e-6), "million MACs an image (batch 16)"),
        )
        if len(points) > 1
    ]
    columns = len(lines) + bool(bars)
    figure = Figure(figsize=(max(1, columns) * 4.2, 3.8), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0]) if columns else []
    for axis, (points, label) in zip(axes, lines, strict=False):
        xs = sorted(points)
        middle, low, high = (
            [float(points[x][key]) for x in xs]
            for key in ("seconds", "seconds_low", "seconds_high")
        )
        below = [m - v for m, v in zip(middle, low, strict=True)]
        above = [v - m for m, v in zip(middle, high, strict=True)]
        axis.errorbar(xs, middle, (below, above), marker="o", capsize=3, color="C0")
        axis.plot([0, xs[-1]], [0, middle[-1]], "--", color="0.6", label="proportional")
        axis.legend()
        axis.set(xlabel=label, ylabel="seconds a training step", xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
    if bars:
        axis = axes[-1]
        names = [f"{r['case']}, {LABELS[r['implementation']]}" for r in bars]
        ratios = [float(r["ratio"]) for r in bars]
        axis.barh(
            names, ratios, color=["C1" if "flax" in r["implementation"] else "C0" for r in bars]
        )
        axis.axvline(1, color="0.3")
        axis.set(xscale="log", xlim=(0.5, None), xlabel="peer's time / ours")
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize=6)
    figure.savefig(path, dpi=130)
