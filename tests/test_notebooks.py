"""Every notebook: clean in git, and run from a folder of its own until its figures are there."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from mobilenet.analysis import plots

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
GALLERY = ROOT / "notebooks" / "README.md"
FIGURES = ROOT / "experiments" / "results" / "figures"
# Without the language, ruff takes a notebook for one of another language and checks nothing.
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
CELL_SECONDS = 300

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
TRAINING = ("01_quickstart", "06_transfer")  # minutes


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_notebook_is_clean(path: Path):
    text = path.read_text()
    content = json.loads(text)
    nbformat.validate(content)
    assert content["metadata"] == METADATA
    for cell in content["cells"]:
        assert cell["metadata"] == {}, cell["id"]
        assert "".join(cell["source"]).strip(), f"{cell['id']} is empty"
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
    # Saving it again changes nothing, so a diff shows what was edited.
    assert text == json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def text_of(page: Path) -> str:
    """What a page says: a Markdown file, or the Markdown cells of a notebook."""
    if page.suffix == ".md":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def linked(page: Path) -> set[Path]:
    """The files of this project that a page links or shows."""
    targets = re.findall(r"\]\(([^)\s#]+)", text_of(page))
    return {(page.parent / target).resolve() for target in targets if "://" not in target}


@pytest.mark.parametrize("path", [*NOTEBOOKS, GALLERY], ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path):
    missing = [str(target) for target in linked(path) if not target.exists()]
    assert not missing


@each_notebook
def test_a_notebook_shows_the_figures_it_draws_on_its_web_page(path: Path):
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in code]
    drawn = {
        name
        for source in sources
        if "plots.keep(" in source
        for name in re.findall(r'"(\d\d_\w+)"\)', source)
    }
    number = path.stem.split("_")[0]
    assert drawn == {file.stem for file in linked(path) if file.name.startswith(f"{number}_")}
    assert drawn == {file.stem for file in FIGURES.glob(f"{number}_*.svg")}


def test_the_gallery_has_a_figure_and_a_sentence_for_every_notebook():
    sections = GALLERY.read_text().split("\n## [")[1:]
    assert len(sections) == len(NOTEBOOKS)
    for path, section in zip(NOTEBOOKS, sections, strict=True):
        assert f"]({path.name})" in section
        assert f"](../experiments/results/figures/{path.stem.split('_')[0]}_" in section
        assert len(re.sub(r"!\[[^)]*\)", "", section).split()) > 20


def test_every_figure_is_shown_on_some_page():
    rooms = ("experiments", "mobilenet", "notebooks")
    pages = [*ROOT.glob("*.md"), *(p for room in rooms for p in (ROOT / room).rglob("*.md"))]
    shown = set().union(*(linked(page) for page in [*pages, *NOTEBOOKS]))
    assert [f.name for f in sorted(FIGURES.iterdir()) if f.resolve() not in shown] == []


def test_no_figure_is_there_twice():
    files = sorted(FIGURES.iterdir())
    contents = [file.read_bytes() for file in files]
    twins = [file.name for k, file in enumerate(files) if contents[k] in contents[:k]]
    assert twins == []


def kernel(folder: Path) -> AsyncKernelManager:
    """A kernel of this interpreter, whatever kernels are installed; it listens on loopback."""
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
    )
    specs = KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)
    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs, ip="127.0.0.1")


def outputs(notebook: Any) -> list[Any]:
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow) if p.stem in TRAINING else p for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_notebook_runs_anywhere_and_makes_its_figures(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here, figures = tmp_path / "here", tmp_path / "figures"
    here.mkdir()
    # Jupyter's, IPython's and the compiler's files stay out of the user's directories.
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    environment = {**os.environ, plots.FIGURES_VARIABLE: str(figures)}
    del environment["JAX_NUM_CPU_DEVICES"]  # the tests' two devices; a user has one
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        km=kernel(tmp_path),
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(here)}},
    )
    # The client ends only kernels it has made itself, unless told to.
    client.execute(env=environment, cleanup_kc=True)

    assert list(here.iterdir()) == [], "a notebook leaves nothing where it runs"
    number = path.stem.split("_")[0]
    written = {file.name for file in figures.iterdir()}
    committed = {f.name for f in (ROOT / "experiments/results/figures").glob(f"{number}_*.svg")}
    assert written and written == committed
    shown = [out for out in outputs(notebook) if "image/png" in out.get("data", {})]
    assert len(shown) >= len(written), "every figure is shown"
    assert written <= {file.name for file in linked(path)}, "every figure is linked"
    printed = "".join(out.text for out in outputs(notebook) if out.output_type == "stream")
    assert "Warning" not in printed, printed
