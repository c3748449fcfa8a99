"""What surrounds the code: the top level, the version, the citation and what CI runs."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import mobilenet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOP_LEVEL = {
    ".ci", ".github", ".gitignore", "CITATION.cff", "LICENSE", "Makefile", "README.md",
    "experiments", "mobilenet", "notebooks", "pyproject.toml", "tests",
}  # fmt: skip
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"


def read_yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_top_level_stays_small():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {Path(line).parts[0] for line in listed.stdout.splitlines()} <= TOP_LEVEL


def test_one_version_everywhere():
    citation = read_yaml("CITATION.cff")
    assert PROJECT["version"] == mobilenet.__version__ == str(citation["version"])
    changes = (ROOT / "mobilenet/CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+)", changes, re.MULTILINE)
    assert newest and newest[1] == PROJECT["version"]


def test_the_citation_has_what_the_format_requires():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["title"] == PROJECT["name"] and citation["license"] == PROJECT["license"]
    assert citation["authors"] and citation["message"] and citation["abstract"]
    cited = [reference["url"] for reference in citation["references"]]
    assert len(set(cited)) == len(cited) and "https://arxiv.org/abs/1801.04381" in cited
    for reference in citation["references"]:
        assert set(reference) <= {"type", "title", "authors", "year", "conference", "url"}
        assert reference["type"] in ("article", "conference-paper")
        assert all({"family-names", "given-names"} <= set(each) for each in reference["authors"])


def test_the_workflow_tests_every_python_with_pinned_and_newest_versions():
    workflow = read_yaml(".github/workflows/test.yml")
    job = workflow["jobs"]["test"]
    named = [text.rsplit(" ")[-1] for text in PROJECT["classifiers"] if "3." in text]
    assert job["strategy"]["matrix"] == {"python": named, "dependencies": ["pinned", "newest"]}
    python = next(step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert python["with"]["cache"] == "pip"
    files = python["with"]["cache-dependency-path"].split()
    assert files and all((ROOT / file).is_file() for file in files)
    commands = {step["if"].split("'")[1]: step["run"] for step in job["steps"] if "run" in step}
    assert commands == {"pinned": "make test", "newest": "make test CONSTRAINTS="}


def test_make_has_the_targets_that_ci_runs():
    commands = re.findall(r"^make (\w+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert commands == ["test", "newest", "slow"] and set(commands) <= targets()
    done = subprocess.run(
        ["make", "--dry-run", "unit", "VENV=absent", "CONSTRAINTS="],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--editable" in done.stdout and "--constraint" not in done.stdout


def test_the_newest_python_starts():
    done = subprocess.run(
        [ROOT / ".ci/newest-python"], capture_output=True, text=True, check=True
    ).stdout.strip()
    version = subprocess.run([done, "--version"], capture_output=True, text=True, check=True).stdout
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    assert found >= (3, 11)


def test_pins_are_exact_and_name_what_the_project_needs():
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pinned = {plain(line.partition("==")[0]) for line in lines}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    needed = {plain(re.split(r"[<>=\[;]", text)[0]) for text in wanted}
    assert needed <= pinned
