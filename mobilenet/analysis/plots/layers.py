"""What the layers of a network hold, cost and lose: layer by layer, in the order of computation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mobilenet.analysis import stats
from mobilenet.analysis.plots import style
from mobilenet.analysis.stats import Frame

# Role of a layer in its block, told by colour.
ROLES = ("expand", "depthwise", "project", "sum")


@style.styled
def shares(table: Frame, *, ylabel: str, xlabel: str, title: str = "") -> Figure:
    """What a whole consists of: a stacked bar of 100 % for each row, a segment for each column.

    Args:
      table: amounts of one unit, none negative, no row without any; the index names the bars, from
        the top, the columns name the segments, from the left.
      ylabel: what the index is; xlabel: what the amounts are shares of.
      title: of the figure: which network on which data.

    Raises:
      ValueError: a missing or negative amount, or a row whose sum is 0.
    """
    amounts = table.to_numpy(dtype=float)
    if amounts.size == 0 or not (amounts >= 0).all() or not (amounts.sum(axis=1) > 0).all():
        raise ValueError(
            "The table of shares has a missing or negative amount, or a row without any; give "
            "amounts of 0 or more, and something in every row."
        )
    percent = 100 * amounts / amounts.sum(axis=1, keepdims=True)
    bars = [str(name) for name in table.index]
    figure, axes = style.new_axes(6.4, 0.9 + 0.28 * len(table), title)
    left = np.zeros(len(table))
    palette = style.colours(len(table.columns))
    for column, (name, colour) in enumerate(zip(table.columns, palette, strict=True)):
        size = percent[:, column]
        axes.barh(bars, size, left=left, color=colour, edgecolor="white", label=str(name))
        for bar, (start, width) in enumerate(zip(left, size, strict=True)):
            if width >= 3:  # narrower segments have no room for digits
                axes.text(
                    start + width / 2, bar, f"{width:.0f}", color=_on(colour),
                    ha="center", va="center", fontsize=style.SMALL,
                )  # fmt: skip
        left = left + size
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlim=(0, 100), xlabel=xlabel, ylabel=ylabel)
    style.legend_right(axes)
    return figure


def _on(colour: Any) -> str:
    """White on dark colours, black on light ones."""
    return "white" if np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) < 0.5 else "black"


@style.styled
def tensor_sizes(
    table: Frame, limits: Mapping[str, float], *, ylabel: str, title: str = ""
) -> Figure:
    """How large the output of every layer is, in order of computation, with limits drawn across.

    Args:
      table: one row for each layer: `layer` (its name, BLOCK/ROLE or BLOCK), `kind` (groups layers
        by colour) and `size`.
      limits: label -> a size of the same unit, drawn as a line, such as a peak.
      ylabel: what the sizes are, with their unit.
      title: of the figure: which network on which data.

    Raises:
      ValueError: no layer.
    """
    if len(table) == 0:
        raise ValueError("The table of tensor sizes has no layer; give at least one.")
    figure, axes = style.new_axes(style.PAGE, 2.9, title)
    positions = np.arange(len(table))
    sizes = table["size"].to_numpy(dtype=float)
    kinds = list(dict.fromkeys(table["kind"]))
    for kind, colour in zip(kinds, style.colours(len(kinds)), strict=True):
        chosen = (table["kind"] == kind).to_numpy()
        axes.bar(positions[chosen], sizes[chosen], width=0.85, color=colour, label=kind)
    for (name, size), line in zip(limits.items(), ("--", "-.", ":") * len(limits), strict=False):
        label = f"{name}: {size:,.0f}"
        axes.axhline(size, color="0.25", linestyle=line, linewidth=1, label=label)
    name_blocks(axes, [str(name) for name in table["layer"]])
    axes.set(ylabel=ylabel, ylim=(0, None))
    _legend_above(axes, 2)
    return figure


@style.styled
def sensitivity(frame: Frame, *, of: str = "weights", network: str = "") -> Figure:
    """What a network loses when one site alone is rounded: a line for each number of bits.

    Args:
      frame: columns site, bits and divergence (nats; those of 0 are drawn at the axis's end), as
        `mobilenet quantize --sensitivity` writes them, sites in the order to be drawn in.
      of: what was rounded: "weights" or "activations".
      network: which one on which data, for the title.

    Raises:
      ValueError: a column that is missing.
    """
    stats.require(frame, ["site", "bits", "divergence"])
    title = f"Effect of rounding the {of} of one layer alone{': ' if network else ''}{network}"
    names = [_layer(str(site)) for site in frame["site"]]
    frame = frame.assign(layer=names)
    layers = list(dict.fromkeys(names))
    positive = frame["divergence"][frame["divergence"] > 0]
    least = float(positive.min()) if len(positive) else 1e-6
    figure, axes = style.new_axes(style.PAGE, 3.1, title)
    there = {_role(layer) for layer in layers}
    roles = [role for role in (*ROLES, "other") if role in there]
    paints = {"other": "0.3", **dict(zip(ROLES, style.PALETTE, strict=False))}
    for count in sorted(set(frame["bits"].tolist())):
        line = frame[frame["bits"] == count]
        xs = np.array([layers.index(layer) for layer in line["layer"]])
        ys = np.maximum(line["divergence"].to_numpy(dtype=float), least)
        axes.plot(xs, ys, color="0.75", linewidth=0.7, zorder=1, label=f"_{style.text(count)}")
        axes.annotate(
            f"{style.text(count)} bits", (xs[-1], ys[-1]), xytext=(8, 0),
            textcoords="offset points", va="center", fontsize=style.SMALL, annotation_clip=False,
        )  # fmt: skip
        mine = np.array([_role(layer) for layer in line["layer"]])
        for role, marker in zip(roles, style.markers(len(roles)), strict=True):
            chosen = mine == role
            named = role in axes.get_legend_handles_labels()[1]
            axes.plot(
                xs[chosen], ys[chosen], color=paints[role], marker=marker, markersize=3.5,
                linestyle="none", label="" if named else role,
            )  # fmt: skip
    name_blocks(axes, layers)
    axes.set_yscale("log")
    axes.set_ylabel("divergence from the float\nnetwork's outputs, nats")
    _legend_above(axes, len(roles))
    return figure


def _legend_above(axes: Axes, columns: int) -> None:
    """A legend above the axes, where it covers neither bars nor lines."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0.0, ncols=columns)


def _layer(site: str) -> str:
    """A site without what all sites of its kind end in."""
    for ending in ("/weights", "/output", "/conv"):
        site = site.removesuffix(ending)
    return site


def _role(layer: str) -> str:
    role = layer.partition("/")[2]
    return role if role in ROLES else "other"


def name_blocks(axes: Axes, layers: Sequence[str]) -> None:
    """Names blocks below their layers: "1.0" for blocks_1_0, every other one on a grey ground.

    Layers outside of the blocks that follow each other share a name of several lines.
    """
    blocks = [layer.partition("/")[0] for layer in layers]
    groups: list[tuple[str, int, int]] = []  # name, first and last position
    for place, block in enumerate(blocks):
        inside = block.startswith("blocks_")
        # Long names stand below the short ones of the blocks next to them.
        name = block.removeprefix("blocks_").replace("_", ".") if inside else f"\n{block}"
        if groups and blocks[place - 1] == block:
            groups[-1] = (groups[-1][0], groups[-1][1], place)
        elif groups and not inside and not blocks[place - 1].startswith("blocks_"):
            groups[-1] = (f"{groups[-1][0]},{name}", groups[-1][1], place)
        else:
            groups.append((name, place, place))
    axes.set_xticks([(first + last) / 2 for _, first, last in groups], [n for n, *_ in groups])
    for _, first, last in groups[1::2]:
        axes.axvspan(first - 0.5, last + 0.5, color="0.96", zorder=0, linewidth=0)
    axes.set_xlim(-0.8, len(layers) - 0.2)
    axes.set_xlabel("block (stage.block)")
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0)
