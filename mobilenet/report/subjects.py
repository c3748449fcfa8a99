"""The subjects of experiments/results: their pages, their files, and what a new result needs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from mobilenet.report import (
    benchmarks,
    claims,
    comparison,
    deployments,
    pretrained,
    results,
    variants,
)
from mobilenet.report.pages import (
    ablations,
    blocks,
    compression,
    exports,
    headline,
    index,
    parity,
    quantization,
    recipes,
    speed,
)
from mobilenet.report.pages import comparison as comparison_page
from mobilenet.report.table import Table


@dataclasses.dataclass(frozen=True)
class Subject:
    """One page and the results files that it shows.

    Attributes:
      name: of the page, without its ending.
      tables: the files.
      page: experiments/results -> the page.
      runs: what `mobilenet report NAME` is given, in a few words.
      required, optional: flags of `mobilenet report NAME`.
      several: whether it is given more than one run.
    """

    name: str
    tables: tuple[Table, ...]
    page: Callable[[Path], blocks.Page]
    runs: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ("remarks",)
    several: bool = False

    def has_rows(self, directory: Path) -> bool:
        """Whether any of its files has rows."""
        return any(table.rows(directory) for table in self.tables)


RECIPE = ("overrides", "published_top1", "published_source", "remarks")
SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(
            "ablations",
            (claims.TABLE,),
            ablations.page,
            "the --workdir of `mobilenet reproduce`",
            required=("scale",),
        ),
        Subject(
            "quantization",
            (variants.TABLES["quantization"].table,),
            quantization.page,
            "a sweep's directory, or a run with sensitivity_*.csv, which needs --row alone",
            required=("row", "config"),
            optional=("overrides", "remarks"),
        ),
        Subject(
            "compression",
            (variants.TABLES["compression"].table,),
            compression.page,
            "a sweep's directory",
            required=("row", "config"),
            optional=("overrides", "remarks"),
        ),
        Subject(
            "transfer",
            (results.TABLES["transfer"],),
            recipes.transfer,
            "run directories of one configuration, one for each seed",
            required=("row", "config"),
            optional=RECIPE,
            several=True,
        ),
        Subject(
            "baselines",
            (results.TABLES["baselines"],),
            recipes.baselines,
            "run directories of one configuration, one for each seed",
            required=("row", "config"),
            optional=RECIPE,
            several=True,
        ),
        Subject(
            "comparison",
            (comparison.TABLE,),
            comparison_page.page,
            "the --workdir of `mobilenet compare`",
            required=("scale", "config"),
        ),
        Subject(
            "speed",
            (benchmarks.TABLE,),
            speed.page,
            "the --workdir of `mobilenet benchmark`",
            optional=(),
        ),
        Subject(
            "exports",
            (deployments.EXPORTS, deployments.EXECUTOR),
            exports.page,
            "a directory of `mobilenet export --verify`",
            required=("row",),
        ),
        Subject(
            "parity",
            (pretrained.PARITY, pretrained.ACCURACY),
            parity.page,
            "the evaluation_*.json of a converted run",
            required=("row",),
            optional=("published_top1", "published_source", "remarks"),
        ),
    )
}


def pages(directory: Path) -> dict[str, blocks.Page]:
    """Subject -> its page, of those that have rows in experiments/results."""
    return {
        name: subject.page(directory)
        for name, subject in SUBJECTS.items()
        if subject.has_rows(directory)
    }


def write(root: Path) -> list[str]:
    """Writes the pages, their index, and the README's table, from the committed rows.

    Args:
      root: the checkout.

    Returns:
      The names of the files below the checkout.

    Raises:
      ResultError: the README lacks the markers of its table.
    """
    directory = root / "experiments" / "results"
    made = pages(directory)
    texts = {directory / f"{name}.md": page.text() for name, page in made.items()}
    texts[directory / "README.md"] = index.text(directory, made)
    readme = root / "README.md"
    if readme.exists():
        texts[readme] = headline.render(readme.read_text(), headline.text(root))
    for path, text in texts.items():
        path.write_text(text)
    return [path.relative_to(root).as_posix() for path in texts]
