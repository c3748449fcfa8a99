"""Prose uses the field's plain words: docstrings, comments, messages, notebooks and markdown."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("mobilenet", "experiments", "notebooks")

# Words that are refused (regular expressions) -> what to write instead.
WORDS = {
    r"pictures?": "image",
    r"arms?": "variant",
    r"beside": "next to, with, or in addition to",
    r"behind": "after",
    r"(?:bits|bytes|filters?|images|MACs|steps|values|weights) an? "
    r"(?:channel|epoch|image|layer|stage|step|tensor|weight)": "per channel, per image, ...",
}
# Phrases in which such a word is right.
ALLOWED: tuple[str, ...] = ()
_WORD = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)
_COMMENT = re.compile(r"(?:^|\s)#\s(.*)$", re.MULTILINE)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def plain_word(word: str) -> str:
    """What to write instead of a word that `WORDS` refuses."""
    return next(new for old, new in WORDS.items() if re.fullmatch(old, word, re.IGNORECASE))


def python_prose(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment, docstring, and string with a space in it, f-strings too."""
    for match in _COMMENT.finditer(source):
        yield source.count("\n", 0, match.start(1)) + 1, match[1]
    if source.lstrip().startswith("%"):
        return  # a notebook's magic, which is not Python
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def prose(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of everything in a file that people read; none if it has no refused word."""
    text = path.read_text(encoding="utf-8")
    if not _WORD.search(text):
        return
    if path.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(text)["cells"]):
            source = "".join(cell["source"])
            parts = [(1, source)] if cell["cell_type"] == "markdown" else python_prose(source)
            yield from ((f"cell {number}", part) for _, part in parts)
    elif path.suffix == ".md":
        # Code in several lines keeps its lines, so that numbers stay right.
        text = _CODE.sub(lambda match: "`" + "\n" * match[0].count("\n"), text)
        yield from ((str(number), line) for number, line in enumerate(text.split("\n"), 1))
    else:
        yield from ((str(line), part) for line, part in python_prose(text))


def refused(text: str) -> list[str]:
    """The refused words of a text; code in backticks does not count."""
    text = _CODE.sub("`", text)
    for phrase in ALLOWED:
        text = text.replace(phrase, "")
    return [match[1] for match in _WORD.finditer(text)]


def files() -> list[Path]:
    """Sources, notebooks and markdown of the project."""
    found = [ROOT / "README.md"]
    for folder in FOLDERS:
        found += [p for end in ("py", "md", "ipynb") for p in (ROOT / folder).rglob(f"*.{end}")]
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("One image per batch, and next to it its label.", []),
        ("`pictures` is a name, Picture a word.", ["Picture"]),
        ("The armed forces, an arm, and what is behind it.", ["arm", "behind"]),
        ("8 bits a channel, besides others", ["bits a channel"]),
    ],
)
def test_words_are_found(text: str, words: list[str]):
    assert refused(text) == words


def test_all_prose_of_a_file_is_read(tmp_path: Path):
    source = '"""A picture."""\npicture = 1  # behind\nraise ValueError(f"{picture} arms")\n'
    cells = [("markdown", "A picture"), ("code", "%matplotlib inline"), ("code", "x = 1  # arm")]
    notebook = {"cells": [{"cell_type": kind, "source": [text]} for kind, text in cells]}
    for name, text, expected in (
        ("a.py", source, [("1", "A picture."), ("2", "behind"), ("3", " arms")]),
        ("b.md", "One\n`a\nb` picture\n", [("1", "One"), ("2", "`a"), ("3", "b` picture")]),
        ("c.ipynb", json.dumps(notebook), [("cell 0", "A picture"), ("cell 2", "arm")]),
    ):
        (tmp_path / name).write_text(text)
        assert sorted(p for p in prose(tmp_path / name) if p[1].strip()) == expected


def test_prose_uses_plain_words():
    found = [
        f"{path.relative_to(ROOT)}:{place}: {word!r}; write {plain_word(word)}"
        for path in files()
        for place, text in prose(path)
        for word in refused(text)
    ]
    assert not found, "\n".join(found)
