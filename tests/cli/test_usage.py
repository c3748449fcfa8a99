"""What `--help` shows: every verb's flags, examples and notes, fitted to the terminal."""

import importlib
import re
import tomllib
import types
from typing import Any

import pytest
from absl import flags
from support import ROOT

from mobilenet import __version__
from mobilenet.cli import common, usage
from mobilenet.cli.main import VERBS, main


def load(verb: str) -> tuple[Any, flags.FlagValues]:
    module: Any = importlib.import_module(f"mobilenet.cli.{verb}")
    values = flags.FlagValues()
    module.define(values)
    return module, values


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_help_fits_the_terminal(verb: str, columns: int):
    module, values = load(verb)
    text = usage.text(verb, module, values, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert text.startswith(f"usage: mobilenet {verb} ")
    for name in values:
        assert re.search(rf"^  --(\[no\])?{name}\b", text, re.MULTILINE), name
    for name in getattr(module, "REQUIRED", ()):
        assert f"--{name}=" in text.splitlines()[0] + text.splitlines()[1]
    assert f"\n  mobilenet {verb} " in text[text.index("\nexamples:") :]
    assert text.count("(required)") == len(getattr(module, "REQUIRED", ()))


@pytest.mark.parametrize("verb", VERBS)
def test_overrides_are_listed_where_they_are_taken(verb: str):
    module, values = load(verb)
    text = usage.text(verb, module, values, 80)
    refused = ("compare", "report", "prepare")
    assert ("  --config.KEY=VALUE" in text) == (verb not in refused)


@pytest.mark.parametrize("verb", VERBS)
def test_required_flags_are_those_that_are_missed(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    module, _ = load(verb)
    for name in getattr(module, "REQUIRED", ()):
        argv = [f"--{other}=x" for other in module.REQUIRED if other != name]
        assert main([verb, *argv, *(["a.jpg"] if verb == "predict" else [])]) == 2
        error = capsys.readouterr().err
        assert f"--{name} is missing" in error or f"--{name}=" in error


def test_hints_install_extras_from_the_checkout():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = set()
    for path in (ROOT / "mobilenet").rglob("*.py"):
        # Parts of a text that stands in several lines are joined first.
        text = re.sub(r'"\s*\n\s*f?"', "", path.read_text())
        for hint in re.findall(r"pip\s+install\s+([^`]*)`", text):
            match = re.fullmatch(r"-e\s+'\.\[(\w+|\{\w+\})\]'", hint)
            assert match, f"{path}: pip install {hint}"
            found |= {match[1]} - {"{missing}"}
    assert found <= set(project["optional-dependencies"]) and "export" in found


MODULE = types.SimpleNamespace(
    __doc__="""One line.

    mobilenet verb --jobs=1        # short
    mobilenet verb --jobs=2 \\
        --name=x

mobilenet verb --name=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa --jobs=3 --wait=false --of=a   # long

Notes that are long enough to be wrapped at the end of a line of sixty columns:
  file.csv    a row per class
  file.json   all of it
""",
    REQUIRED=("name",),
    ARGUMENTS="FILE ...",
    OVERRIDES="set a key",
    PLACEHOLDERS={"name": "WORD"},
)


def test_the_layout():
    values = flags.FlagValues()
    flags.DEFINE_string("name", "", "of it", flag_values=values)
    flags.DEFINE_integer("jobs", 1, "how many", flag_values=values)
    flags.DEFINE_boolean("wait", True, "for the end", flag_values=values)
    flags.DEFINE_enum("of", "a", ["a", "b"], "which", flag_values=values)
    flags.DEFINE_list("bits", ["4", "8"], "to try", flag_values=values)
    module: Any = MODULE
    assert (
        usage.text("verb", module, values, 60)
        == """\
usage: mobilenet verb --name=WORD [flags]
                      [--config.KEY=VALUE ...] FILE ...

One line.

flags:
  --name=WORD             of it (required)
  --jobs=N                how many (default: 1)
  --[no]wait              for the end (default: yes)
  --of=a|b                which (default: a)
  --bits=A,B              to try (default: 4,8)
  --config.KEY=VALUE      set a key

examples:
  # short
  mobilenet verb --jobs=1
  mobilenet verb --jobs=2 --name=x
  # long
  mobilenet verb --name=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \\
      --jobs=3 --wait=false --of=a

Notes that are long enough to be wrapped at the end of a
line of sixty columns:
  file.csv    a row per class
  file.json   all of it"""
    )


def test_help_and_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = []
    for argv in (["cost", "--help"], ["cost", "-h"], ["help", "cost"], ["--help", "cost"]):
        assert main(argv) == 0
        shown.append(capsys.readouterr().out)
    assert len(set(shown)) == 1 and shown[0].startswith("usage: mobilenet cost")
    for argv in (["help"], ["--help"], ["-h"]):
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {verb} " in out for verb in VERBS)
        assert max(map(len, out.splitlines())) <= 80
    assert main([]) == 2
    capsys.readouterr()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mobilenet {__version__}\n"


def test_flags_take_the_numbers_that_keys_take():
    values = flags.FlagValues()
    flags.DEFINE_integer("count", 1, "", flag_values=values)
    flags.DEFINE_float("part", 1.0, "", flag_values=values)
    module: Any = MODULE
    common.parse("verb", module, values, ["--count=1e2", "--part=1/4"])
    assert values.count == 100 and isinstance(values.count, int) and values.part == 0.25
    common.parse("verb", module, values, ["--count", "-3", "--part=1e2"])
    assert values.count == -3 and values.part == 100.0


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("data.data_dir is ''; give it.", "--config.data.data_dir is ''; give it."),
        ("set quantize.weights.bits.", "set --config.quantize.weights.bits."),
        ("set pretrained='runs/a'", "set --config.pretrained='runs/a'"),
        ("use in_memory='never'.", "use --config.data.in_memory='never'."),
        ("with --data_dir=DIR", "with --data_dir=DIR"),
        ("did you mean seed?", "did you mean --config.seed?"),
        ("such as --config.data.data_dir or", "such as --config.data.data_dir or"),
        ("/home/me/model.name is no file", "/home/me/model.name is no file"),
        ("model.name.txt and my-data.name", "model.name.txt and my-data.name"),
        ("overrides of data.*", "overrides of data.*"),
        ("model.names and pretrained weights", "model.names and pretrained weights"),
    ],
)
def test_messages_name_keys_as_they_are_typed(message: str, shown: str):
    assert usage.as_flags(message) == shown
