"""The table of the README: the comparisons that say most, each from one committed row."""

import csv
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from mobilenet.report import benchmarks as benchmark_rows
from mobilenet.report import claims, deployments, pretrained, results, variants
from mobilenet.report.pages import blocks, parity, recipes, treatments
from mobilenet.report.pages.blocks import Grid, Line, Row
from mobilenet.report.table import Table
from mobilenet.terminal import counted

PIPELINE_ONLY = "pipeline only"
NO_VERDICT = "none, n = 1"


@dataclasses.dataclass(frozen=True)
class Reference:
    """A published figure in experiments/reference.

    Attributes:
      file: the CSV's name without its ending.
      where: column -> value, which one row has.
      column: with the figure.
      sign: -1 where the column counts a loss as positive.
    """

    file: str
    where: Mapping[str, str]
    column: str
    sign: int = 1


@dataclasses.dataclass(frozen=True)
class Found:
    """What a row says: the difference in text, its n, the verdict, and the rows."""

    difference: str
    n: str
    verdict: str
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
      page: subject whose page has the details.
      question, comparison: in a few words.
      find: (experiments/results, this entry's rows) -> what they say.
      table: the results file.
      where: column -> value; the first row that has all is the entry's.
      baseline: the same for the row that it is compared with, where rows name none.
      published: a figure, or what the paper says without one; "" for nothing.
    """

    page: str
    question: str
    comparison: str
    find: Callable[[Path, Row, Row | None], Found]
    table: Table
    where: Mapping[str, str]
    baseline: Mapping[str, str] = dataclasses.field(default_factory=dict)
    published: Reference | str = ""


def _signed(middle: float, low: float | None = None, high: float | None = None) -> str:
    ends = "" if low is None or high is None else f" [{low:+.1f}, {high:+.1f}]"
    return f"{middle:+.1f}{ends}"


def over_seeds(directory: Path, row: Row, baseline: Row | None) -> Found:
    """The difference that a row states, over seeds; networks that have not learnt say so."""
    del directory, baseline
    number = blocks.count(row)
    ends = [float(row[key]) for key in ("difference_low", "difference_high") if row[key]]
    text = _signed(float(row["difference"]), *ends)
    own = float(row.get("top1_mean") or row["top1"])
    verdict = blocks.verdict(row)
    if number < 2:
        verdict = NO_VERDICT
    weak = max(own, own - float(row["difference"])) < blocks.LEARNT
    if weak and blocks.of_cifar(row):
        verdict = PIPELINE_ONLY
    return Found(text, counted(number, "seed"), verdict, (row,))


def over_images(directory: Path, row: Row, baseline: Row | None) -> Found:
    """The difference of two treatments of one network, over images."""
    del directory
    assert baseline is not None
    middle, low, high = treatments.on_images(row, baseline)
    text, n = _signed(middle, low, high), f"{row['examples']} images"
    return Found(text, n, blocks.judged(low, high), (row, baseline))


def from_logs(directory: Path, row: Row, baseline: Row | None) -> Found:
    """The paired difference of two recipes over seeds, from their logs."""
    assert baseline is not None
    found = recipes.between(directory, row, baseline)
    if found is None:
        return Found("–", "0 seeds", NO_VERDICT, (row, baseline))
    text = _signed(found.mean, found.low, found.high)
    verdict = blocks.judged(found.low, found.high) if found.n > 1 else NO_VERDICT
    return Found(text, f"{found.n} seeds", verdict, (row, baseline))


def of_logits(directory: Path, row: Row, baseline: Row | None) -> Found:
    """The largest difference of a logit over all cases of a framework."""
    del baseline
    mine = [
        each for each in pretrained.PARITY.rows(directory) if each["framework"] == row["framework"]
    ]
    largest = float(parity.worst(mine)["max_abs_difference"])
    scale = max(float(each["logits_scale"]) for each in mine)
    verdict = "agree" if largest <= parity.TOLERANCE else "differ"
    return Found(f"{largest:.1e} of {scale:.1f}", f"{len(mine)} cases", verdict, tuple(mine))


def of_codes(directory: Path, row: Row, baseline: Row | None) -> Found:
    """How many codes of logits are equal."""
    del directory, baseline
    equal = float(row["equal"])
    verdict = "equal" if equal == 1 else "differ"
    return Found(f"{100 * equal:.2f} % equal", f"{row['images']} images", verdict, (row,))


def of_times(directory: Path, row: Row, baseline: Row | None) -> Found:
    """How much longer another implementation takes, with the range over rounds."""
    del directory, baseline
    middle, low, high = (float(row[f"ratio{end}"]) for end in ("", "_low", "_high"))
    verdict = "faster" if low > 1 else "slower" if high < 1 else "inconclusive"
    text = f"x {middle:.2f} ({low:.2f}–{high:.2f})"
    return Found(text, f"{row['rounds']} rounds", verdict, (row,))


QUANTIZATION, COMPRESSION = (variants.TABLES[n].table for n in ("quantization", "compression"))
TRANSFER = results.TABLES["transfer"]
FLOAT = {"experiment": "imagenet", "variant": "float"}
KRISHNAMOORTHI = {"method": "weights only", "w_bits": "8"}

ENTRIES = (
    Entry(
        "ablations", "linear bottleneck?", "linear - ReLU6", over_seeds, claims.TABLE,
        {"claim": "fig6a", "role": "claimed"}, published="higher",
    ),
    Entry(
        "ablations", "SE in each block?", "SE - none", over_seeds, claims.TABLE,
        {"claim": "se", "role": "claimed"}, published="+1.2",
    ),
    Entry(
        "quantization", "8 bits, per tensor?", "w8 - float", over_images, QUANTIZATION,
        {"experiment": "imagenet", "variant": "w8, per tensor"}, FLOAT,
        Reference(
            "quantization", {**KRISHNAMOORTHI, "w_granularity": "per-layer"}, "drop", -1
        ),
    ),
    Entry(
        "quantization", "equalised, corrected?", "w8 - float", over_images, QUANTIZATION,
        {"experiment": "imagenet", "variant": "w8, per tensor, equalised below 6, corrected"},
        FLOAT,
        Reference(
            "quantization",
            {"method": "CLE + bias absorption + bias correction (DFQ)", "w_bits": "8"}, "drop", -1,
        ),
    ),
    Entry(
        "quantization", "8 bits, per channel?", "w8 - float", over_images, QUANTIZATION,
        {"experiment": "imagenet", "variant": "w8, per channel"}, FLOAT,
        Reference(
            "quantization", {**KRISHNAMOORTHI, "w_granularity": "per-channel"}, "drop", -1
        ),
    ),
    Entry(
        "compression", "half zeros?", "50 % zero - dense", over_seeds, COMPRESSION,
        {"experiment": "pruning", "variant": "50 %"},
        published=Reference(
            "compression", {"model": "MobileNetV2 1.0 224", "compression": "50% sparsity"}, "delta"
        ),
    ),
    Entry(
        "compression", "sparse or thin?", "75 % zero - thin", over_seeds, COMPRESSION,
        {"experiment": "pruning", "variant": "75 %, from scratch"}, published="higher",
    ),
    Entry(
        "transfer", "pretrained weights?", "tuned - scratch", from_logs, TRANSFER,
        {"row": "all_layers"}, {"row": "from_scratch"},
    ),
    Entry(
        "parity", "torchvision's network?", "logits", of_logits, pretrained.PARITY,
        {"framework": "torchvision"},
    ),
    Entry(
        "exports", "LiteRT's integers?", "codes of logits", of_codes, deployments.EXECUTOR,
        {"part": "network", "kernels": "builtin", "rounding": "builtin"},
    ),
    Entry(
        "speed", "time of a step?", "PyTorch / ours", of_times, benchmark_rows.TABLE,
        {"case": "train_224", "implementation": "torch"},
    ),
    Entry(
        "speed", "time of an image?", "torch.compile / ours", of_times, benchmark_rows.TABLE,
        {"case": "evaluate_224_1", "implementation": "torch_compile"},
    ),
)  # fmt: skip


def _published(root: Path, entry: Entry) -> str:
    if not isinstance(entry.published, Reference):
        return entry.published or "–"
    wanted = entry.published
    path = root / "experiments" / "reference" / f"{wanted.file}.csv"
    if not path.exists():
        return "–"
    with path.open(newline="") as lines:
        row = blocks.find(list(csv.DictReader(lines)), wanted.where)
    return "–" if row is None else f"{wanted.sign * float(row[wanted.column]):+.1f}"


def grid(root: Path) -> Grid:
    """The table, of the entries whose rows are committed.

    Args:
      root: the checkout, with experiments/results and experiments/reference.
    """
    directory, lines = root / "experiments" / "results", []
    for entry in ENTRIES:
        rows = entry.table.rows(directory)
        row = blocks.find(rows, entry.where)
        baseline = blocks.find(rows, entry.baseline) if entry.baseline else None
        if row is None or (entry.baseline and baseline is None):
            continue
        found = entry.find(directory, row, baseline)
        cells = (entry.question, entry.comparison, found.difference, found.n, found.verdict)
        cells += (_published(root, entry), f"[{entry.page}](experiments/results/{entry.page}.md)")
        lines.append(Line(cells, found.rows))
    heads = ("question", "comparison", "difference [95 %]", "n", "verdict", "published", "page")
    return Grid(heads, tuple(lines))


def text(root: Path) -> str:
    """The block between the README's markers; arguments as `grid`."""
    shown = grid(root)
    notes = (
        "Differences are in percentage points of top-1 with 95 % intervals, over seeds (t) or over "
        "test images (Newcombe), as n says; of times, the ratio with its range over rounds. "
        f"*{PIPELINE_ONLY.capitalize()}*: the networks have not learnt yet, so the line "
        f"{blocks.PIPELINE}. Published figures are of ImageNet."
    )
    return f"{shown.text()}\n\n{notes}"


START, END = "<!-- results:headline -->", "<!-- end:headline -->"


def render(readme: str, block: str) -> str:
    """The README with the block between its markers.

    Raises:
      ResultError: a marker is missing.
    """
    if START not in readme or END not in readme:
        raise results.ResultError(f"The README has no {START} ... {END}; add both lines.")
    head, rest = readme.split(START, 1)
    return f"{head}{START}\n{block}\n{END}{rest.split(END, 1)[1]}"
