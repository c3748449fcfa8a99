"""What the papers claim, as data."""

import dataclasses

SANDLER = "Sandler et al. 2018, arXiv 1801.04381"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
      name: on the command line.
      source: paper and place.
      statement: what is claimed, in a sentence.
      published: the printed figure, or what the text says without one.
      check: how it is judged. "analytic": by arithmetic (`mobilenet.report.analytic`). "higher":
        the first variant is more accurate than the second. "equivalent": they differ by less than
        `margin`.
      experiment: its file, for claims that need runs; its `comparisons` name the two variants.
      margin: of "equivalent", in percentage points, chosen before anything was measured.
      recalled: the statement was not read in its source: no threshold, only a direction.
    """

    name: str
    source: str
    statement: str
    published: str
    check: str
    experiment: str = ""
    margin: float = 0.0
    recalled: bool = False


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "fig6a",
        f"{SANDLER}, Fig. 6a, sections 3.2 and 6.4",
        "Linear bottlenecks are more accurate than bottlenecks with ReLU6.",
        "higher; a curve without numbers",
        "higher",
        "experiments/ablations/bottleneck.py",
    ),
    Claim(
        "fig6b_expansion",
        f"{SANDLER}, Fig. 6b, section 6.4",
        "Shortcuts between bottlenecks are better than shortcuts between expanded layers.",
        "higher; a curve without numbers",
        "higher",
        "experiments/ablations/shortcut.py",
    ),
    Claim(
        "fig6b_none",
        f"{SANDLER}, Fig. 6b",
        "Shortcuts between expanded layers are better than none.",
        "higher; a curve without numbers",
        "higher",
        "experiments/ablations/shortcut.py",
        recalled=True,
    ),
    Claim(
        "expansion_5_to_10",
        f"{SANDLER}, section 4",
        "Expansion ratios of 5 to 10 give nearly the same accuracy at the same cost: here 10 and 6 "
        "at nearly equal MACs, within 1 point.",
        "nearly the same curves, without numbers",
        "equivalent",
        "experiments/ablations/expansion.py",
        margin=1.0,
    ),
    Claim(
        "se",
        "Hou et al. 2021, arXiv 2103.02907; README of houqb/CoordAttention",
        "Squeeze-and-excitation makes MobileNetV2 more accurate.",
        "+1.2 points on ImageNet (72.3 to 73.5)",
        "higher",
        "experiments/ablations/squeeze_excite.py",
    ),
    Claim(
        "head",
        f"{SANDLER}, section 4",
        "Below width 1 the last 1x1 convolution is better kept wide than thinned.",
        "higher; no numbers",
        "higher",
        "experiments/ablations/head.py",
    ),
    Claim(
        "fig5_width",
        f"{SANDLER}, Fig. 5",
        "Accuracy rises with the width multiplier.",
        "higher; +11.5 points on ImageNet from 0.35 to 1.0 at 224 px (released checkpoints)",
        "higher",
        "experiments/ablations/width_resolution.py",
    ),
    Claim(
        "fig5_resolution",
        f"{SANDLER}, Fig. 5",
        "Accuracy rises with the resolution.",
        "higher; +11.5 points on ImageNet from 96 to 224 px at width 1.0 (released checkpoints)",
        "higher",
        "experiments/ablations/width_resolution.py",
    ),
    Claim(
        "table1",
        f"{SANDLER}, Table 1",
        "A block is a 1x1 expansion, a 3x3 depthwise layer with the stride, a 1x1 projection.",
        "h x w x k to h/s x w/s x k'",
        "analytic",
    ),
    Claim(
        "table2",
        f"{SANDLER}, Table 2",
        "The network's inputs, ratios, channels, repeats and strides.",
        "11 rows",
        "analytic",
    ),
    Claim(
        "table3",
        f"{SANDLER}, Table 3",
        "The most channels, and the memory in 16 bits, between bottlenecks at each resolution.",
        "16/32/64/160/320/1280 channels, at most 400 kB",
        "analytic",
    ),
    Claim(
        "table4_params",
        f"{SANDLER}, Table 4",
        "Parameters at widths 1.0 and 1.4.",
        "3.4 M, 6.9 M",
        "analytic",
    ),
    Claim(
        "table4_macs",
        f"{SANDLER}, Table 4",
        "Multiply-adds at widths 1.0 and 1.4, within 1 %.",
        "300 M, 585 M",
        "analytic",
    ),
    Claim(
        "checkpoint_costs",
        "tensorflow/models: research/slim/nets/mobilenet/README.md",
        "Weights and multiply-adds of the released checkpoints.",
        "22 rows",
        "analytic",
    ),
    Claim(
        "fig5_range",
        f"{SANDLER}, section 4",
        "The family spans 7 to 585 M multiply-adds and 1.7 to 6.9 M parameters.",
        "7 to 585 M, 1.7 to 6.9 M",
        "analytic",
    ),
    Claim(
        "block_cost",
        f"{SANDLER}, section 3.3",
        "A stride-1 block with an expansion costs h w d' t (d' + k^2 + d'') multiply-adds.",
        "the formula",
        "analytic",
    ),
    Claim(
        "bottlenecks",
        f"{SANDLER}, section 4",
        "The network has 19 residual bottleneck layers.",
        "19",
        "analytic",
    ),
    Claim(
        "shortcuts",
        "tensorflow/models: research/slim/nets/mobilenet/conv_blocks.py",
        "A block has a shortcut when its stride is 1 and its channels agree.",
        "10 of 17 blocks",
        "analytic",
    ),
    Claim(
        "head_width",
        f"{SANDLER}, section 4",
        "Widths below 1 do not thin the last 1x1 convolution.",
        "1280 channels",
        "analytic",
    ),
    Claim(
        "expansion_below_1",
        f"{SANDLER}, section 3.4",
        "An expansion ratio below 1 gives the classical residual bottleneck.",
        "structure",
        "analytic",
    ),
    Claim(
        "se_params",
        "Hou et al. 2021, arXiv 2103.02907; README of houqb/CoordAttention",
        "Parameters with squeeze-and-excitation in every block.",
        "3.89 M",
        "analytic",
    ),
    Claim(
        "t_way_split",
        f"{SANDLER}, section 5.1",
        "A block computed in groups of channels has the same outputs and multiply-adds in less "
        "memory.",
        "equal outputs and multiply-adds",
        "analytic",
    ),
)
