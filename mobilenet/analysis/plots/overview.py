"""What the project is, in one figure: from an experiment file to an exported network and a page."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from mobilenet.analysis.plots import style

BLUE, VERMILION, GREEN, ORANGE = "#D9E8F4", "#F8E2D4", "#D5EDE5", "#FBF0D6"
# The channels of the first blocks, between them and inside: the shape of the network.
CHANNELS = (16, 96, 24, 144, 24, 144, 32, 192, 32, 192, 64)


@style.styled
def overview() -> Figure:
    """The way of a network through the project's verbs, and what each of them does."""
    figure = Figure(figsize=(style.PAGE, 2.75))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, 140), ylim=(0, 55))
    axes.set_axis_off()
    axes.text(
        2, 51.5, "MobileNetV2: train it, change it, make it small, measure it",
        fontsize=8.5, fontweight="bold",
    )  # fmt: skip
    _network(axes, (5, 37.5), 22, 11)
    axes.text(16, 33.5, "wide inside, narrow between", ha="center", color="0.35", fontsize=6.5)
    _box(axes, (2, 6), 28, 24, BLUE, "experiment file", (
        "a few lines of Python:", "variants of the network,", "baselines, seeds",
    ))  # fmt: skip
    _box(axes, (39, 6), 28, 42, BLUE, "train, sweep", (
        "JAX and Flax, on CPU or", "GPU; resumes after", "an interruption", "",
        "starts from scratch, or", "from released weights", "(convert)",
    ))  # fmt: skip
    _box(axes, (76, 35), 28, 13, GREEN, "quantize", ("PTQ and QAT,", "2 to 8 bits, mixed"))
    _box(
        axes, (76, 20.5), 28, 13, GREEN, "shrink", ("cuts channels; training", "prunes and distils")
    )
    _box(axes, (76, 6), 28, 13, GREEN, "export", ("TFLite, ONNX,", "StableHLO"))
    _box(
        axes,
        (113, 28),
        25,
        20,
        ORANGE,
        "compare",
        ("accuracy [interval],", "MACs, bytes,", "latency"),
    )
    _box(
        axes, (113, 6), 25, 19, ORANGE, "report", ("pages and figures", "from committed", "results")
    )
    for start, end in (((30, 18), (39, 18)), ((67, 27), (76, 27)), ((104, 27), (113, 27))):
        axes.annotate(
            "", end, start, arrowprops={"arrowstyle": "-|>", "color": "0.25", "linewidth": 1.2}
        )
    commands = "train, sweep, convert, quantize, shrink, export, compare and report"
    axes.text(2, 1.5, f"Commands of mobilenet: {commands}", color="0.35", fontsize=style.SMALL)
    return figure


def _box(
    axes: Axes,
    corner: tuple[float, float],
    width: float,
    height: float,
    colour: str,
    head: str,
    lines: Sequence[str],
) -> None:
    """A rounded box with a bold line and others below it, centred."""
    axes.add_patch(
        FancyBboxPatch(
            corner,
            width,
            height,
            boxstyle="round,pad=0,rounding_size=1.5",
            facecolor=colour,
            edgecolor="0.35",
            linewidth=0.8,
        )  # fmt: skip
    )
    middle, step = corner[0] + width / 2, 4.1
    top = corner[1] + height / 2 + step * len(lines) / 2
    axes.text(middle, top, head, ha="center", va="center", fontweight="bold", fontsize=8.5)
    for number, line in enumerate(lines, 1):
        axes.text(middle, top - step * number, line, ha="center", va="center", fontsize=7.5)


def _network(axes: Axes, corner: tuple[float, float], width: float, height: float) -> None:
    """The outline of a network that is wide inside its blocks and narrow between them."""
    step = width / (len(CHANNELS) - 1)
    xs = [corner[0] + step * place for place in range(len(CHANNELS))]
    middle = corner[1] + height / 2
    reach = [height / 2 * channels / max(CHANNELS) for channels in CHANNELS]
    above = [(x, middle + y) for x, y in zip(xs, reach, strict=True)]
    below = [(x, middle - y) for x, y in zip(xs, reach, strict=True)]
    axes.add_patch(
        Polygon([*above, *below[::-1]], facecolor=style.PALETTE[0], alpha=0.85, linewidth=0)
    )
