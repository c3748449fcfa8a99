"""Pages: what `mobilenet report` writes, readable, with every row, and true when rows change."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import flags

from mobilenet.cli import report
from mobilenet.cli.main import main
from mobilenet.report import results, rows, subjects
from mobilenet.report.pages import ablations, blocks, headline, parity, recipes
from mobilenet.report.table import Table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
PAGES = subjects.pages(RESULTS)
FILES = sorted([*RESULTS.glob("*.md"), ROOT / "README.md"])
TABLES = [table for subject in subjects.SUBJECTS.values() for table in subject.tables]


def generated(path: Path) -> str:
    """A page, or the part of the README that is written by the command."""
    text = path.read_text()
    if path != ROOT / "README.md":
        return text
    return text.split(headline.START)[1].split(headline.END)[0]


def test_every_subject_has_its_page_and_every_file_its_subject():
    assert {path.stem for path in RESULTS.glob("*.md")} == {*PAGES, "README"}
    assert {path.stem for path in RESULTS.glob("*.csv")} == {table.name for table in TABLES}
    assert all(table.page in subjects.SUBJECTS for table in TABLES)


def test_the_committed_pages_are_what_the_command_writes(tmp_path: Path):
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    shutil.copyfile(ROOT / "README.md", tmp_path / "README.md")
    for path in (tmp_path / "experiments/results").glob("*.md"):
        path.unlink()
    assert main(["report", f"--root={tmp_path}"]) == 0
    for path in FILES:
        again = (tmp_path / path.relative_to(ROOT)).read_text()
        assert again == path.read_text(), f"{path.name}: run `mobilenet report`"


LINK = re.compile(r"\]\([^)]*\)")


def tables(text: str) -> Iterator[list[str]]:
    for block in text.split("\n\n"):
        if block.startswith("|"):
            yield block.split("\n")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tables_are_narrow(path: Path):
    most = 7 if path == ROOT / "README.md" else blocks.COLUMNS
    text = generated(path)
    for table in tables(text):
        assert len({line.count("|") for line in table}) == 1, table[0]
        assert table[0].count("|") - 1 <= most, table[0]
        read = [LINK.sub("]", line) for line in table]  # what a reader sees of a line
        assert max(map(len, read)) <= blocks.WIDTH, max(read, key=len)
    others = [line for line in text.splitlines() if not line.startswith(("|", "!["))]
    assert path == ROOT / "README.md" or max(map(len, others)) <= blocks.WIDTH


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_row_is_on_its_page(table: Table):
    page = PAGES[table.page]
    text = (RESULTS / f"{table.page}.md").read_text()
    shown = [(line, row) for grid in page.grids for line in grid.lines for row in line.rows]
    for row in table.rows(RESULTS):
        lines = [line for line, mine in shown if mine == row]
        assert lines, row
        assert all(f"| {' | '.join(line.cells)} |" in text for line in lines)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_with_what_a_newcomer_asks(name: str):
    text = (RESULTS / f"{name}.md").read_text()
    heads = ("**Question.** ", "**Base network.** ", "**Comparisons registered.** ",
             "**Conclusion.** ", "**How to read the tables.** ")  # fmt: skip
    places = [text.index(head) for head in heads]
    assert places == sorted(places) and places[-1] < text.index("\n## ")
    for link in re.findall(r"\]\(([^)]*)\)", text):
        assert (RESULTS / link).exists(), link
    assert not re.search(r"costs? nothing|distinguishable|not significant|picture", text)


@pytest.mark.parametrize("name", ["ablations", "quantization", "compression", "comparison"])
def test_pages_of_networks_that_have_not_learnt_say_so_before_the_numbers(name: str):
    text = (RESULTS / f"{name}.md").read_text().replace("\n> ", " ")
    assert text.index(blocks.PIPELINE) < text.index("**Conclusion.**")


@pytest.mark.parametrize("name", PAGES)
def test_columns_have_one_kind_of_interval(name: str):
    for grid in PAGES[name].grids:
        for place, head in enumerate(grid.heads):
            if any("[" in line.cells[place] for line in grid.lines):
                kinds = [
                    kind for kind in ("95 % t", "95 % Wilson", "95 % Newcombe") if kind in head
                ]
                assert len(kinds) == 1, head


@pytest.mark.parametrize("name", PAGES)
def test_accuracies_and_their_intervals_are_possible(name: str):
    for grid in PAGES[name].grids:
        for place, head in enumerate(grid.heads):
            for line in grid.lines if head.startswith("top-1 %") else ():
                numbers = map(float, re.findall(r"[\d.]+", line.cells[place].partition("(")[0]))
                assert all(0 <= number <= 100 for number in numbers), line.cells[place]


def test_the_index_links_every_page_and_figure():
    text = (RESULTS / "README.md").read_text()
    for name in PAGES:
        assert f"({name}.md)" in text
    for figure in (RESULTS / "figures").glob("*.svg"):
        assert f"(figures/{figure.name})" in text
    for link in re.findall(r"\]\(([^)]*)\)", text):
        assert (RESULTS / link).exists(), link


# ------------------------------------------------------------------------------- the headline


def test_the_headline_has_rows_of_most_subjects():
    grid = headline.grid(ROOT)
    assert 10 <= len(grid.lines) <= 12
    assert {line.cells[-1] for line in grid.lines} >= {
        f"[{name}](experiments/results/{name}.md)"
        for name in ("ablations", "quantization", "compression", "transfer", "parity", "speed")
    }
    assert all(cell for line in grid.lines for cell in line.cells)


def test_the_headlines_published_figures_are_those_of_the_references():
    found = {line.cells[0]: line.cells[-2] for line in headline.grid(ROOT).lines}
    assert found["8 bits, per tensor?"] == "-71.8"  # 71.9 to 0.1, arXiv 1806.08342, table 2
    claim = ablations.KNOWN["se"]
    assert found["SE in each block?"] in claim.published


def test_the_headline_gives_no_verdict_on_networks_that_have_not_learnt():
    row = {"seeds": "0 1 2", "difference": "+5.00", "difference_low": "+2", "difference_high": "+8"}
    for top1, expected in (("45", "pipeline only"), ("84", "higher")):
        found = headline.over_seeds(RESULTS, {**row, "top1": top1, "config": "a.py:cifar"}, None)
        assert (found.difference, found.n, found.verdict) == (
            "+5.0 [+2.0, +8.0]", "3 seeds", expected,
        )  # fmt: skip
    # Of ImageNet such an accuracy is what can be had.
    imagenet = {**row, "top1": "72", "config": "a.py:imagenet"}
    assert headline.over_seeds(RESULTS, imagenet, None).verdict == "higher"
    one = {"seeds": "0", "difference": "+5", "difference_low": "", "difference_high": ""}
    found = headline.over_seeds(RESULTS, {**one, "top1": "90", "config": "a.py"}, None)
    assert (found.difference, found.n, found.verdict) == ("+5.0", "1 seed", headline.NO_VERDICT)


def test_a_readme_without_markers_is_refused():
    with pytest.raises(results.ResultError, match="has no <!-- results:headline -->"):
        headline.render("text", "table")


# --------------------------------------------------------------- sentences follow from the rows


def copy(tmp_path: Path, table: str, **changes: str) -> Path:
    """The committed results with other values in all rows of a table that have them."""
    target = tmp_path / "results"
    shutil.copytree(RESULTS, target)
    path = target / f"{table}.csv"
    found = rows.read(path)
    changed = [{**row, **{k: v for k, v in changes.items() if row[k]}} for row in found]
    rows.write(path, list(found[0]), changed)
    return target


def test_conclusions_change_with_the_rows(tmp_path: Path):
    target = copy(tmp_path, "ablations", verdict="contradicted", difference="-9.00")
    text = ablations.page(target).text()
    assert "0 are confirmed on these networks, 5 are contradicted and 0 are inconclusive" in (
        text.replace("\n", " ")
    )
    target = copy(tmp_path / "parity", "parity", max_abs_difference="0.5")
    assert "In 0 of 48 cases of 4 projects the logits agree" in parity.page(target).text()


def test_networks_that_have_learnt_need_no_caution(tmp_path: Path):
    target = copy(tmp_path, "ablations", top1_mean="93.00")
    page = ablations.page(target)
    assert page.caution == "" and blocks.PIPELINE not in page.text()


def test_rows_without_common_seeds_have_no_difference():
    assert recipes.signed(None) == "–"


def test_lines_do_not_end_within_an_interval():
    text = f"{'word ' * 18}is -1.03 [-3.66, +1.61] points"
    assert "[-3.66, +1.61]" in blocks.paragraph(text)


# ------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ablation", "runs"], "'ablation' is no subject; there are ablations, quantization"),
        (["ablation", "runs"], "Did you mean 'ablations'?"),
        (["speed"], "speed needs RUNS: the --workdir of `mobilenet benchmark`."),
        (["speed", "a", "b"], "speed takes one of RUNS, the --workdir of `mobilenet benchmark`"),
        (["speed", "a", "--row=x"], "--row is no flag of speed, which takes none of its own."),
        (["speed", "nowhere"], "nowhere has no benchmark.csv with rows"),
        (["baselines", "a", "--row=x"], "--config is missing; for example --config=experiments/"),
        (["--row=x"], "--row is no flag of report without a subject"),
        (["speed", "a", "--config.seed=1"], "report changes no configuration; say what the runs"),
    ],
)
def test_wrong_commands_are_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    (tmp_path / "experiments/results").mkdir(parents=True)
    assert main(["report", f"--root={tmp_path}", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_help_says_what_each_subject_needs():
    values = flags.FlagValues()
    report.define(values)
    notes = (report.__doc__ or "").split("SUBJECT and RUNS are: ")[1].replace("\n", " ")
    for name, subject in subjects.SUBJECTS.items():
        assert f'"{name}"' in notes
        for flag in ("row", "config", "scale"):
            _, _, needs = str(values[flag].help).partition("required for ")
            needing = re.split(r", | and ", needs)
            assert (name in needing) == (flag in subject.required), (name, flag)
