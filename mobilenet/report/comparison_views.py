"""Compared networks as a figure."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from mobilenet.analysis import plots
from mobilenet.report import networks

Row = Mapping[str, str]


def finished(rows: Iterable[Row]) -> list[Row]:
    """The rows that have an accuracy."""
    return [row for row in rows if row["top1_mean"]]


PANELS = ("macs", "latency_ms")


def plot(rows: Sequence[Row]) -> Figure:
    """Accuracy against multiply-adds, and against latency where it was measured.

    Args:
      rows: of a `Comparison`; those without a finished run are left out.

    Returns:
      The figure. A family has one colour and marker; bars are 95 % intervals over seeds, and the
      fastest and slowest round of the latency. One seed has no interval and no bar.
    """
    rows = finished(rows)
    panels = [field for field in PANELS if any(row[field] for row in rows)]
    columns = [*panels, "latency_ms_low", "latency_ms_high"]
    table = pd.DataFrame(
        {
            "kind": family,
            "label": row["network"].removeprefix(family).strip(" -").replace(" ", ", ", 1)
            or family,
            **{name: _number(row[name]) for name in columns if name in row},
            "mean": float(row["top1_mean"]) / 100,
            "low": _number(row["low"]) / 100,
            "high": _number(row["high"]) / 100,
        }
        for row in rows
        for family in (_family(row),)
    )
    data = dict.fromkeys(plots.data_set(row["data"]) for row in rows)
    title = f"Networks trained by one recipe, {', '.join(data)}"
    return plots.budgets(table, panels, named=panels, title=title)


def _number(text: str) -> float:
    return float(text or "nan")


def _family(row: Row) -> str:
    return networks.NAMES.get(row["model"], (row["model"], ""))[0]
