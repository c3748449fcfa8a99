"""The committed figures that are drawn from committed rows; notebooks draw the others."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mobilenet import rundir
from mobilenet.analysis import plots
from mobilenet.report import benchmarks, comparison_views, rows, variants


def drawings(results: Path) -> dict[str, Callable[[], Figure]]:
    """Name of a figure -> what draws it.

    Args:
      results: the experiments/results directory.
    """
    found: dict[str, Callable[[], Figure]] = {"overview": plots.overview}
    found["benchmark"] = lambda: benchmarks.draw(rows.read(results / "benchmark.csv"))
    compared = rows.read(results / "comparison.csv")
    for scale in dict.fromkeys(row["scale"] for row in compared):
        mine = [row for row in compared if row["scale"] == scale]
        found[f"comparison_{scale}"] = lambda mine=mine: comparison_views.plot(mine)
    compressed = variants.by_figure("compression", rows.read(results / "compression.csv"))
    for file, mine in compressed.items():
        found[Path(file).stem] = lambda mine=mine: variants.draw_budgets(mine)
    for run in sorted((results / "logs" / "sensitivity").iterdir()):
        for table in sorted(run.glob("sensitivity_*.csv")):
            found[f"{table.stem}_{run.name}"] = lambda table=table: sensitivity(table)
    return found


def sensitivity(table: Path) -> Figure:
    """Draws a table of `mobilenet quantize --sensitivity` in its run directory."""
    of = table.stem.partition("_")[2]
    network = plots.network(rundir.read_config(table.parent))
    return plots.sensitivity(pd.read_csv(table), of=of, network=network)


def write(results: Path) -> list[Path]:
    """Draws all figures of committed rows again; returns their paths."""
    written = []
    for name, draw in drawings(results).items():
        written.append(results / "figures" / f"{name}.svg")
        plots.save(draw(), written[-1])
    return written
