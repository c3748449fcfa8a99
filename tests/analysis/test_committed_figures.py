"""Figures of committed rows: the files say what the rows and the code say now."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from mobilenet import rundir
from mobilenet.analysis import plots
from mobilenet.report import benchmarks, comparison_views, rows, variants

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
FIGURES = RESULTS / "figures"
SENSITIVITY = RESULTS / "logs" / "sensitivity" / "cifar"


def sensitivity(of: str) -> Figure:
    table = pd.read_csv(SENSITIVITY / f"sensitivity_{of}.csv")
    return plots.sensitivity(table, of=of, network=plots.network(rundir.read_config(SENSITIVITY)))


DRAWN: dict[str, Callable[[], Figure]] = {
    "comparison_cifar": lambda: comparison_views.plot(rows.read(RESULTS / "comparison.csv")),
    "compression_cifar": lambda: variants.draw_budgets(rows.read(RESULTS / "compression.csv")),
    "overview": plots.overview,
    "sensitivity_activations_cifar": lambda: sensitivity("activations"),
    "sensitivity_weights_cifar": lambda: sensitivity("weights"),
}


def texts(path: Path) -> list[str]:
    return sorted(re.findall(r"<text[^>]*>([^<]*)<", path.read_text()))


@pytest.mark.parametrize("name", DRAWN)
def test_a_committed_figure_says_what_is_drawn_now(tmp_path: Path, name: str):
    plots.save(DRAWN[name](), tmp_path / "now.svg")
    found = texts(tmp_path / "now.svg")
    assert found and texts(FIGURES / f"{name}.svg") == found


def test_the_committed_figure_of_step_times_says_what_is_drawn_now(tmp_path: Path):
    benchmarks.plot(rows.read(RESULTS / "benchmark.csv"), tmp_path / "now.svg")
    assert texts(FIGURES / "benchmark.svg") == texts(tmp_path / "now.svg")


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*.svg")), ids=lambda path: path.stem)
def test_figures_are_small_and_carry_no_dates_or_program_versions(path: Path):
    content = path.read_text()
    # Images and heat maps are embedded as pixels.
    assert len(content) < (90_000 if "<image" in content else 60_000)
    assert "dc:date" not in content and "Matplotlib v" not in content
