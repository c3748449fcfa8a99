"""The package's own pages: what they say of files, names and imports is so, and their code runs."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transcripts
from support import ROOT
from test_imports import ALLOWED

PACKAGE = ROOT / "mobilenet"
PAGES = ("README.md", "GUIDE.md", "EXTENDING.md", "CHANGELOG.md")
pytestmark = pytest.mark.usefixtures("digits_cache")


def read(page: str) -> str:
    return (PACKAGE / page).read_text()


def section(page: str, title: str) -> str:
    return read(page).split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every line of the tables in a text, but their heads."""
    for line in re.findall(r"^\|(.*)\|$", text, re.MULTILINE):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if "`" in cells[0]:
            yield cells


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)


def test_the_layout_has_every_room_and_what_it_imports():
    layout = section("README.md", "Layout")
    rooms = {code(row[0])[0].rstrip("/"): row[2] for row in rows(layout) if len(row) == 3}
    assert rooms.keys() == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    wrong = []
    for room, text in rooms.items():
        names = {name.removeprefix("mobilenet.") for name in ALLOWED[f"mobilenet/{room}"]}
        right = ", ".join(f"`{name}`" for name in sorted(names - {room, "__version__"}))
        if text != (right or "nothing else"):
            wrong.append(f"{room}: {right or 'nothing else'}")
    assert not wrong, "mobilenet/README.md: last cells must be\n" + "\n".join(wrong)


def test_the_layout_has_every_module():
    layout = section("README.md", "Layout")
    named = [name for row in rows(layout) if len(row) == 2 for name in code(row[0])]
    there = {path.name for path in PACKAGE.glob("*.py")}
    assert set(named) == there, f"mobilenet/README.md differs in {set(named) ^ there}"
    assert len(set(named)) == len(named)


def test_the_glossary_is_in_order():
    words = re.findall(r"^\| ([a-z ,]+) \|", section("README.md", "Glossary"), re.MULTILINE)[1:]
    assert len(words) > 20 and words == sorted(words)


@functools.cache
def defined(path: Path) -> set[str]:
    """Names that a module defines: functions, classes, their methods, and constants."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_the_places_to_extend_exist():
    named = 0
    for file, names, *_ in rows(read("EXTENDING.md")):
        path = ROOT / code(file)[0]
        if code(file)[0].startswith("tests/") and not code(names):
            assert path.exists(), path
            continue
        for name in code(names):
            assert path.is_file() and name in defined(path), f"{path.name} has no {name}"
            named += 1
    assert named > 20


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    assert transcripts.dead_links(PACKAGE / page) == []


@pytest.mark.parametrize("page", PAGES)
def test_keys_that_pages_name_exist(page: str):
    from mobilenet import config as config_lib

    keys = dict(config_lib.flatten(config_lib.get_config()))
    sections = {key.rpartition(".")[0] for key in keys} - {""}
    roots = "|".join(sorted({name.partition(".")[0] for name in sections}))
    modules = {name.removeprefix("mobilenet.") for names in ALLOWED.values() for name in names}
    for text in set(code(read(page))) - modules:
        for found in re.findall(rf"^(?:--config\.)?((?:{roots})\.[a-z_.]+)", text):
            known = found in keys or found.rstrip(".") in sections
            assert known or any(key.startswith(found) for key in keys), found


@pytest.mark.parametrize(
    "page", [pytest.param("README.md", marks=pytest.mark.slow), "EXTENDING.md"]
)
def test_python_of_the_pages_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"__name__": "page"}
    for index, text in enumerate(blocks(page)):
        exec(compile(text, f"{page}, block {index + 1}", "exec"), found)  # noqa: S102
