"""What `mobilenet benchmark` measured: the results file, names for readers, and the figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def plot(rows: Sequence[Row], path: Path) -> None:
    """Saves `draw` of benchmark rows; `path` ends in .svg or .png."""
    from mobilenet.analysis import plots

    plots.save(draw(rows), path)


def draw(rows: Sequence[Row]) -> "Figure":
    """Draws `plots.steps` of benchmark rows.

    Args:
      rows: of `mobilenet benchmark`; of several machines, those of the first one's are drawn.
    """
    from mobilenet.analysis import plots

    peers = {name: label for name, label in LABELS.items() if name not in VARIANTS}
    names = {**peers, **{name: f"this project {LABELS[name]}" for name in VARIANTS}}
    return plots.steps(rows, names)
