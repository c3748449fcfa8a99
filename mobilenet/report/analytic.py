"""The papers' claims about structure, cost and memory, checked by arithmetic on the real network.

What a check needs of a network it is handed as `Network`, measured by a function that the caller
gives; what is published it reads in experiments/reference, where every row names its source.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mobilenet.report import rows

MEGA = 1e6


@dataclasses.dataclass(frozen=True)
class Network:
    """What is read off a configuration with 1000 classes.

    Attributes:
      blocks: of the plan: in_features, expanded_features, features, strides, expands, shortcut.
      layers: of the cost model: name, role, in_shape, out_shape, macs, bn_channels.
      head_features: channels of the last 1x1 convolution.
      params, params_weights, params_folded, params_with_statistics, macs: as `cost.Totals`.
      kernel_size: of the depthwise convolutions.
    """

    blocks: Sequence[Any]
    layers: Sequence[Any]
    head_features: int
    params: int
    params_weights: int
    params_folded: int
    params_with_statistics: int
    macs: int
    kernel_size: int = 3


class Measure(Protocol):
    """Gives the network of MobileNetV2's base configuration with some keys changed."""

    def network(self, resolution: int = 224, **model: Any) -> Network:
        """The network at a side of `resolution` pixels with `model.KEY` overrides."""
        ...

    def split_peak(self, parts: int | None, resolution: int, **model: Any) -> int:
        """Peak elements when blocks are computed in `parts` groups; None: a channel at a time."""
        ...

    def split_difference(self, parts: int) -> tuple[float, bool]:
        """Largest difference of a block's outputs when it is split, and whether MACs stay."""
        ...


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
      ours: this project's numbers, in words.
      matched, compared: published values that agree, and all that were compared.
      remark: what a reader must know next to it.
    """

    ours: str
    matched: int
    compared: int
    remark: str = ""

    @property
    def verdict(self) -> str:
        """ "confirmed" if every value agrees, "contradicted" otherwise."""
        return "confirmed" if self.matched == self.compared else "contradicted"


class MissingReference(ValueError):
    """Published values that are not where they belong; the message names the file."""


def _published(reference: Path, name: str, **having: str) -> list[dict[str, str]]:
    """Rows of a file of published values that were read in their source, or computed from it."""
    path = reference / name
    found = [
        row
        for row in rows.read(path)
        if row["verified"] != "memory" and all(row[k] == v for k, v in having.items())
    ]
    if not found:
        shown = ", ".join(f"{k}={v}" for k, v in having.items()) or "any value"
        raise MissingReference(
            f"{path} has no row with {shown}; run in the checkout, which has the reference files."
        )
    return found


def _same(published: str, value: float) -> bool:
    """Whether a printed number is `value` rounded or cut off at the printed digit."""
    digits = len(published.partition(".")[2])
    cut = int(value * 10**digits) / 10**digits
    return float(published) in (round(value, digits), cut)


def table1(measure: Measure, reference: Path) -> Finding:
    """Table 1: h x w x k -> 1x1 to tk -> depthwise with stride s -> 1x1 to k', in all blocks."""
    del reference  # the table is symbolic
    network = measure.network()
    matched = 0
    for block in network.blocks:
        own = [la for la in network.layers if la.name.startswith(f"{block.name}/")]
        height, width, channels = own[0].in_shape
        out = (-(-height // block.strides), -(-width // block.strides))
        expected = [
            ("depthwise", (*out, block.expanded_features)),
            ("project", (*out, block.features)),
        ]
        if block.expanded_features != channels:
            expected.insert(0, ("expand", (height, width, block.expanded_features)))
        matched += [(la.role, tuple(la.out_shape)) for la in own] == expected
    return Finding(
        f"{matched} of {len(network.blocks)} blocks have its layers and shapes",
        matched,
        len(network.blocks),
        "where t = 1 there is no expansion layer, as in the released code",
    )


def table2(measure: Measure, reference: Path) -> Finding:
    """Table 2: input, channels, strides and repeats of every row."""
    network = measure.network()
    expected = _published(reference, "architecture.csv")
    got: dict[int, tuple[str, ...]] = {}

    def shape(of: Sequence[int]) -> str:
        return "x".join(map(str, of))

    stem = network.layers[0]
    got[0] = (shape(stem.in_shape), "", str(stem.out_shape[2]), "1", _stride(stem))
    stages: dict[int, list[Any]] = {}
    for block in network.blocks:
        stages.setdefault(block.stage, []).append(block)
    for stage, blocks in stages.items():
        first = next(la for la in network.layers if la.name.startswith(f"{blocks[0].name}/"))
        ratios = {block.expanded_features / block.in_features for block in blocks}
        got[1 + stage] = (
            shape(first.in_shape),
            " ".join(f"{ratio:g}" for ratio in sorted(ratios)),
            str(blocks[-1].features),
            str(len(blocks)),
            str(blocks[0].strides),
        )
    head = next(la for la in network.layers if la.role == "head")
    got[len(got)] = (shape(head.in_shape), "", str(head.out_shape[2]), "1", _stride(head))
    # The rows of pooling and of the classifier have no numbers but their inputs.
    last = [shape(head.out_shape), shape(network.layers[-1].in_shape)]
    matched = 0
    for row in expected:
        number = int(row["row"])
        if number in got:
            matched += got[number] == tuple(row[k] for k in ("input", "t", "c", "n", "s"))
        else:
            matched += row["input"] == last[number - len(got)]
    return Finding(f"{matched} of {len(expected)} rows", matched, len(expected))


def _stride(layer: Any) -> str:
    return str(-(-layer.in_shape[0] // layer.out_shape[0]))


def table3(measure: Measure, reference: Path) -> Finding:
    """Table 3: channels between bottlenecks at each resolution, and the largest of 16 bits each."""
    network = measure.network()
    widest: dict[int, int] = {}
    for layer in network.layers:
        if layer.role in ("project", "head"):
            # The head's map is pooled at once: what stays is one vector.
            size = 1 if layer.role == "head" else layer.out_shape[0]
            widest[size] = max(widest.get(size, 0), layer.out_shape[2])
    published = _published(reference, "table3_memory.csv")
    largest = max(size * size * channels * 2 // 1000 for size, channels in widest.items())
    matched = 0
    shown = []
    for row in published:
        if row["size"] == "max":
            # Printed to one digit: 401.4 kB are the 400 of the table.
            matched += abs(largest / float(row["mobilenet_v2_kb"]) - 1) <= 0.01
            continue
        size = int(row["size"].split("x")[0])
        matched += widest.get(size) == int(row["mobilenet_v2_channels"])
        shown.append(f"{widest.get(size)}")
    return Finding(
        f"channels {'/'.join(shown)}, at most {largest} kB",
        matched,
        len(published),
        "at 56, 28 and 14 pixels the table prints the next stage's channels; the maximum agrees",
    )


def table4_params(measure: Measure, reference: Path) -> Finding:
    """Table 4: millions of parameters at widths 1.0 and 1.4, in any usual way of counting."""
    matched, shown = 0, []
    published = _table4(reference)
    for row in published:
        network = measure.network(width_multiplier=float(row["width"]))
        counts = (
            network.params_weights,
            network.params_folded,
            network.params,
            network.params_with_statistics,
        )
        matched += any(_same(row["params_m"], count / MEGA) for count in counts)
        shown.append(f"{counts[0] / MEGA:.2f}-{counts[-1] / MEGA:.2f} M")
    return Finding(
        ", ".join(shown),
        matched,
        len(published),
        "from weights alone to all variables; no counting gives 6.9 M, and the released checkpoint "
        "table prints 6.06 M",
    )


def table4_macs(measure: Measure, reference: Path) -> Finding:
    """Table 4: millions of multiply-adds at widths 1.0 and 1.4, within 1 %."""
    matched, shown = 0, []
    published = _table4(reference)
    for row in published:
        macs = measure.network(width_multiplier=float(row["width"])).macs / MEGA
        matched += abs(macs / float(row["macs_m"]) - 1) <= 0.01
        shown.append(f"{macs:.1f} M")
    return Finding(", ".join(shown), matched, len(published))


def _table4(reference: Path) -> list[dict[str, str]]:
    found = _published(reference, "imagenet_checkpoints.csv", model="MobileNetV2")
    return [row for row in found if row["source"].endswith("Table 4")]


def checkpoint_costs(measure: Measure, reference: Path) -> Finding:
    """The released checkpoints' table: weights and multiply-adds at 22 widths and resolutions."""
    found = _published(reference, "imagenet_checkpoints.csv", model="MobileNetV2")
    table = [row for row in found if "MobileNet V2 ImageNet checkpoints" in row["source"]]
    matched = 0
    for row in table:
        network = measure.network(int(row["resolution"]), width_multiplier=float(row["width"]))
        matched += _same(row["params_m"], network.params_weights / MEGA) and _same(
            row["macs_m"], network.macs / MEGA
        )
    return Finding(f"{matched} of {len(table)} rows to the printed digit", matched, len(table))


def fig5_range(measure: Measure, reference: Path) -> Finding:
    """Section 4: the family spans 7 to 585 M multiply-adds and 1.7 to 6.9 M parameters."""
    del reference
    small, large = measure.network(96, width_multiplier=0.35), measure.network(width_multiplier=1.4)
    agree = [
        abs(small.macs / 7e6 - 1) <= 0.1,
        abs(large.macs / 585e6 - 1) <= 0.01,
        _same("1.7", small.params / MEGA),
        _same("6.9", large.params / MEGA),
    ]
    return Finding(
        f"{small.macs / MEGA:.1f} to {large.macs / MEGA:.0f} M multiply-adds, "
        f"{small.params / MEGA:.1f} to {large.params / MEGA:.1f} M parameters",
        sum(agree),
        len(agree),
        "the released checkpoint table prints 11 M for width 0.35 at 96 pixels",
    )


def block_cost(measure: Measure, reference: Path) -> Finding:
    """Section 3.3: h w d' t (d' + k^2 + d'') multiply-adds of a stride-1 block that expands."""
    del reference
    network = measure.network()
    k = network.kernel_size
    matched = compared = 0
    for block in network.blocks:
        if block.strides != 1 or not block.expands:
            continue
        own = [la for la in network.layers if la.name.startswith(f"{block.name}/")]
        height, width, channels = own[0].in_shape
        formula = height * width * block.expanded_features * (channels + k * k + block.features)
        matched += formula == sum(layer.macs for layer in own)
        compared += 1
    return Finding(
        f"{matched} of {compared} such blocks to the unit",
        matched,
        compared,
        "at stride 2 the depthwise layer and the projection run at the output's size, and at t = 1 "
        "there is no expansion: both cost less than the formula",
    )


def bottlenecks(measure: Measure, reference: Path) -> Finding:
    """Section 4, text: 19 residual bottleneck layers."""
    del reference
    count = len(measure.network().blocks)
    return Finding(f"{count}", int(count == 19), 1, "Table 2 of the same paper lists 17")


def shortcuts(measure: Measure, reference: Path) -> Finding:
    """The released code: a shortcut where the stride is 1 and the channels agree; 10 of 17."""
    del reference
    blocks = measure.network().blocks
    ruled = [b.strides == 1 and b.in_features == b.features for b in blocks]
    present = [b.shortcut != "none" for b in blocks]
    matched = sum(a == b for a, b in zip(ruled, present, strict=True))
    return Finding(
        f"{sum(present)} of {len(blocks)} blocks",
        matched + (sum(present) == 10),
        len(blocks) + 1,
    )


def head_width(measure: Measure, reference: Path) -> Finding:
    """Section 4: 1280 channels in the last 1x1 convolution at every width up to 1."""
    del reference
    widths = (0.25, 0.35, 0.5, 0.75, 1.0)
    heads = [measure.network(width_multiplier=width).head_features for width in widths]
    return Finding(
        f"{'/'.join(map(str, heads))} at widths {'/'.join(map(str, widths))}",
        heads.count(1280),
        len(widths),
    )


def expansion_below_1(measure: Measure, reference: Path) -> Finding:
    """Section 3.4: below t = 1 the block is the classical bottleneck, narrow in its middle."""
    del reference
    blocks = measure.network(expansion_ratio=0.25).blocks[1:]  # the first keeps t = 1
    narrow = [block.expanded_features < block.in_features for block in blocks]
    return Finding(
        f"at t = 1/4, {sum(narrow)} of {len(narrow)} blocks are narrow inside",
        sum(narrow),
        len(narrow),
    )


def se_params(measure: Measure, reference: Path) -> Finding:
    """CoordAttention's SE row: parameters with a squeeze width of a quarter of the input."""
    row = _published(
        reference, "attention_se.csv", model="MobileNetV2 1.0", attention="SE", dataset="ImageNet"
    )[0]
    params = measure.network(se_ratio=0.25, se_base="input").params
    return Finding(f"{params:,}", int(_same(row["params_m"], params / MEGA)), 1)


def t_way_split(measure: Measure, reference: Path) -> Finding:
    """Section 5.1: a block in groups of channels gives the same outputs and MACs in less memory."""
    tolerance = 1e-5
    parts = (2, 5)  # the ends of what the paper recommends
    differences, same_macs = zip(*(measure.split_difference(n) for n in parts), strict=True)
    matched = sum(d <= tolerance for d in differences) + sum(same_macs)
    table = _published(reference, "peak_memory.csv", definition="block_split")
    agree = 0
    for row in table:
        n = int(row["split"]) if row["split"].isdigit() else None
        peak = measure.split_peak(
            n,
            int(row["resolution"]),
            width_multiplier=float(row["width"]),
            expansion_ratio=float(row["t"]),
        )
        agree += peak == int(row["peak_elements"])
    return Finding(
        f"outputs within {max(differences):.1e}, MACs {'equal' if all(same_macs) else 'differ'}; "
        f"peak memory equals {agree} of {len(table)} rows",
        matched + agree,
        2 * len(parts) + len(table),
    )


CHECKS: dict[str, Callable[[Measure, Path], Finding]] = {
    function.__name__: function
    for function in (
        table1,
        table2,
        table3,
        table4_params,
        table4_macs,
        checkpoint_costs,
        fig5_range,
        block_cost,
        bottlenecks,
        shortcuts,
        head_width,
        expansion_below_1,
        se_params,
        t_way_split,
    )
}
