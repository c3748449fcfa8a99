"""Figures of committed rows: the files say what the rows and the code say now."""

import re
from pathlib import Path

import pytest

from mobilenet.analysis import plots
from mobilenet.report import figures

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
FIGURES = RESULTS / "figures"
DRAWN = figures.drawings(RESULTS)


def texts(path: Path) -> list[str]:
    return sorted(re.findall(r"<text[^>]*>([^<]*)<", path.read_text()))


@pytest.mark.parametrize("name", DRAWN)
def test_a_committed_figure_says_what_is_drawn_now(tmp_path: Path, name: str):
    plots.save(DRAWN[name](), tmp_path / "now.svg")
    found = texts(tmp_path / "now.svg")
    assert found
    assert texts(FIGURES / f"{name}.svg") == found, "run mobilenet.report.figures.write"


def test_every_figure_is_drawn_by_a_notebook_or_from_rows():
    others = {path.stem for path in FIGURES.iterdir() if not re.match(r"0\d_", path.name)}
    assert others == {*DRAWN, "inverted_residual"}


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*.svg")), ids=lambda path: path.stem)
def test_figures_are_small_and_carry_no_dates_or_program_versions(path: Path):
    content = path.read_text()
    # Images and heat maps are embedded as pixels.
    assert len(content) < (90_000 if "<image" in content else 60_000)
    assert "dc:date" not in content and "Matplotlib v" not in content
