"""experiments/README.md: its tables say what the files say, and what it shows really runs."""

import inspect
import re
import shutil
from pathlib import Path

import pytest
import transcripts

from mobilenet.cli.main import main
from mobilenet.config import ConfigError
from mobilenet.experiment import load_config, load_module, read_note
from mobilenet.sweep import scales

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments"
PAGE = FOLDER / "README.md"
# Folders of experiments -> the page of their results.
FOLDERS = {
    "ablations": "ablations",
    "quantization": "quantization",
    "compression": "compression",
    "transfer": "transfer",
    "comparison": "comparison",
    "baselines": "baselines",
    "benchmarks": "speed",
}
NOT_RUN = "not run by this project yet"


def question(path: Path) -> str:
    """What the file's first line asks, as a sentence."""
    first = (load_module(str(path)).__doc__ or "").split("\n", 1)[0]
    asks = first.partition(" Asks: ")[2]
    assert asks.endswith("?"), f"{path} does not say what it asks"
    return asks[0].upper() + asks[1:]


def taken(path: Path) -> list[str]:
    """The scales that the file takes."""
    found = []
    for scale in scales.SCALES:
        try:
            load_config(f"{path}:{'' if scale == 'full' else scale}")
        except ConfigError:
            continue
        found.append(scale)
    return found


def cost(path: Path) -> str:
    """Runs and time, of what the file says about its cost."""
    said = re.sub(r"^\w+: ", "", read_note(str(path), "Cost"))
    assert said, f"{path} does not say its cost"
    return said.partition(" on ")[0].replace(" runs of ", " x ")


def experiments_table() -> str:
    lines = ["| file | question | scales | cost | result |", "|---|---|---|---|---|"]
    for folder, page in FOLDERS.items():
        lines.append(f"| **[{folder}]({folder})** | | | | [{page}](results/{page}.md) |")
        for path in sorted((FOLDER / folder).glob("*.py")):
            note = read_note(str(path), "Result")
            assert note == NOT_RUN or (ROOT / note).is_file(), f"{path}: Result is {note!r}"
            letters = " ".join(scale[0] for scale in taken(path))
            result = "not run" if note == NOT_RUN else "yes"
            lines.append(
                f"| {path.stem} | {question(path)} | {letters} | {cost(path)} | {result} |"
            )
    return "\n".join(lines)


def scales_table() -> str:
    rows = [f"| `{name}` | {name[0]} | {means} |" for name, means in scales.SCALES.items()]
    return "\n".join(["| scale | letter | what runs |", "|---|---|---|", *rows])


def between(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end:{name} -->", PAGE.read_text(), re.DOTALL)
    assert found, f"{PAGE} has no block {name}"
    return found[1]


def blocks(start: str) -> list[str]:
    """Code blocks that begin with a text, fenced."""
    return [
        block
        for block in re.findall(r"```\w*\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if block.startswith(start)
    ]


def test_the_tables_are_what_the_files_say():
    files = {path.relative_to(FOLDER).parts[0] for path in FOLDER.glob("*/*.py")}
    assert files == set(FOLDERS)
    assert between("experiments") == experiments_table()
    assert between("scales") == scales_table()
    text = PAGE.read_text()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert max(map(len, tables)) <= 110 and len(text.splitlines()) <= 220


def test_its_links_lead_somewhere():
    assert transcripts.dead_links(PAGE) == []
    assert len(transcripts.LINK.findall(PAGE.read_text())) > len(FOLDERS)


def test_costs_are_those_of_the_sweeps():
    for path in FOLDER.glob("*/*.py"):
        note = read_note(str(path), "Cost")
        said = re.search(r"(?:(\w+): )?(\d+) runs of", note)
        if said:
            scale = "" if said[1] in (None, "full") else said[1]
            module = load_module(str(path))
            assert len(module.sweep(scale)) == int(said[2]), f"{path}: {note}"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's own experiment, in a folder of its own, where the commands run."""
    (text,) = blocks('"""Kernel size.')
    assert len(text.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "experiments").symlink_to(FOLDER)
    (tmp_path / "kernel.py").write_text(text)
    return tmp_path / "kernel.py"


def commands() -> list[str]:
    """Commands of the page about its own experiment, without the program's name."""
    found = re.findall(r"^    mobilenet (.*runs/kernel.*)$", PAGE.read_text(), re.MULTILINE)
    assert [command.split()[0] for command in found] == ["sweep", "sweep", "compare"]
    return found


def test_the_dry_run_of_the_page_is_what_is_printed(
    example: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(commands()[0].split()) == 0
    assert capsys.readouterr().out == blocks("variant  done")[0]


@pytest.mark.slow
def test_the_experiment_of_the_page_trains_and_is_compared(
    example: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(example.parent / "cache"))
    shapes = []
    for command in commands()[1:]:
        smoke = [
            each.replace("kernel.py", "kernel.py:smoke")
            for each in command.split()
            if "num_epochs" not in each
        ]
        assert main(smoke) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 80
        shapes.append(out)
    swept, compared = shapes
    assert "6 runs: 6 done" in swept and "next: mobilenet compare --workdir=runs/kernel" in swept
    assert re.search(r"^5x5 +2/2 ", swept, re.MULTILINE)
    assert re.search(r"^5x5 .* 2 ", compared, re.MULTILINE)


def test_the_functions_of_the_page_exist(tmp_path: Path):
    (text,) = blocks("from mobilenet.sweep.space import")
    file = tmp_path / "mine.py"
    file.write_text(f"{text}\n\ndef get_config(arg=''): ...\n")
    points = load_module(str(file)).sweep()
    assert len(points) == 12 and set(points[0]) >= {"seed", "model.expansion_ratio"}
    shutil.rmtree(tmp_path)
    assert "arg" in inspect.signature(scales.base).parameters
