"""Imports run one way: who may know whom, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Package or module -> the project's modules it may import; the nearest entry above a file counts.
ALLOWED: dict[str, tuple[str, ...]] = {
    "mobilenet/keys.py": (),
    "mobilenet/settings.py": ("mobilenet.keys",),
    "mobilenet/config.py": (
        "mobilenet.settings", "mobilenet.keys", "mobilenet.quantize.rules",
        "mobilenet.compress.rules",
    ),
    "mobilenet/rundir.py": ("mobilenet.config",),
    # The record of a checkpoint, which it imports when it is asked for one.
    "mobilenet/identity.py": ("mobilenet.config", "mobilenet.rundir", "mobilenet.train"),
    "mobilenet/models": ("mobilenet.models",),
    "mobilenet/data": ("mobilenet.data",),
    "mobilenet/streams.py": (),
    "mobilenet/terminal.py": (),
    "mobilenet/train": (
        "mobilenet.train", "mobilenet.rundir", "mobilenet.runtime", "mobilenet.streams",
        "mobilenet.terminal",
    ),
    "mobilenet/trees.py": (),
    "mobilenet/quantize": ("mobilenet.quantize", "mobilenet.models", "mobilenet.trees"),
    # The vocabulary of quantisation, which configurations check: no JAX.
    "mobilenet/quantize/rules.py": (),
    # Files of networks; its verb hands it pictures and variables.
    "mobilenet/export": ("mobilenet.export", "mobilenet.quantize", "mobilenet.models"),
    "mobilenet/compress": ("mobilenet.compress", "mobilenet.models", "mobilenet.trees"),
    # The vocabulary of pruning, for the same reason.
    "mobilenet/compress/rules.py": (),
    "mobilenet/analysis": (
        "mobilenet.analysis", "mobilenet.rundir", "mobilenet.config", "mobilenet.identity",
        "mobilenet.sweep.space", "mobilenet.terminal",
    ),
    # What is committed: rows, tables, pages, claims.
    "mobilenet/report": (
        "mobilenet.report", "mobilenet.analysis", "mobilenet.rundir", "mobilenet.config",
        "mobilenet.identity", "mobilenet.terminal", "mobilenet.sweep.naming",
        "mobilenet.sweep.ledger",
    ),
    "mobilenet/teacher.py": (
        "mobilenet.architecture", "mobilenet.config", "mobilenet.rundir", "mobilenet.models",
        "mobilenet.compress", "mobilenet.train",
    ),
    "mobilenet/imagenet.py": (),
    "mobilenet/transfer.py": ("mobilenet.config", "mobilenet.imagenet", "mobilenet.train"),
    "mobilenet/build.py": (
        "mobilenet.architecture", "mobilenet.transfer", "mobilenet.teacher", "mobilenet.config",
        "mobilenet.rundir", "mobilenet.identity",
        "mobilenet.models", "mobilenet.data", "mobilenet.train", "mobilenet.quantize",
        "mobilenet.compress",
    ),
    # What a verb does to runs, for the command line and notebooks alike.
    "mobilenet/workflows": (
        "mobilenet.build", "mobilenet.config", "mobilenet.rundir", "mobilenet.runtime",
        "mobilenet.train",
    ),
    "mobilenet/architecture.py": (
        "mobilenet.config", "mobilenet.models", "mobilenet.train.steps", "mobilenet.quantize",
    ),
    "mobilenet/inference.py": (
        "mobilenet.architecture", "mobilenet.build", "mobilenet.config", "mobilenet.data",
        "mobilenet.rundir", "mobilenet.train",
    ),
    "mobilenet/conversion.py": (
        "mobilenet.architecture", "mobilenet.build", "mobilenet.config", "mobilenet.data",
        "mobilenet.imagenet", "mobilenet.inference", "mobilenet.models", "mobilenet.rundir",
        "mobilenet.train",
    ),
    "mobilenet/quantization.py": (
        "mobilenet.architecture", "mobilenet.build", "mobilenet.config", "mobilenet.quantize",
        "mobilenet.models",
    ),
    "mobilenet/deployment.py": (
        "mobilenet.architecture", "mobilenet.build", "mobilenet.config", "mobilenet.inference",
        "mobilenet.export", "mobilenet.models", "mobilenet.quantize", "mobilenet.rundir",
        "mobilenet.train",
    ),
    "mobilenet/compression.py": (
        "mobilenet.architecture", "mobilenet.build", "mobilenet.config", "mobilenet.conversion",
        "mobilenet.inference", "mobilenet.models", "mobilenet.rundir", "mobilenet.train",
        "mobilenet.compress", "mobilenet.trees",
    ),
    "mobilenet/runtime.py": (),
    "mobilenet/neighbours.py": (),
    "mobilenet/experiment.py": (
        "mobilenet.config", "mobilenet.neighbours", "mobilenet.settings", "mobilenet.sweep.space",
        "mobilenet.data.datasets",  # when a smoke form sees data of a user's own
    ),
    "mobilenet/report/reproduction.py": (
        "mobilenet.settings",
        "mobilenet.config", "mobilenet.experiment", "mobilenet.build",
        "mobilenet.architecture", "mobilenet.inference", "mobilenet.models",
        "mobilenet.sweep", "mobilenet.report", "mobilenet.train.records",
    ),
    # Its PyTorch half is an extra that nothing else imports.
    "mobilenet/benchmark": (
        "mobilenet.benchmark", "mobilenet.runtime", "mobilenet.config", "mobilenet.build",
        "mobilenet.architecture", "mobilenet.inference",
        "mobilenet.models", "mobilenet.train", "mobilenet.data", "mobilenet.rundir",
        "mobilenet.report", "mobilenet.quantize", "mobilenet.export",
    ),
    "mobilenet/sweep": (
        "mobilenet.sweep", "mobilenet.config", "mobilenet.build", "mobilenet.identity",
        "mobilenet.architecture", "mobilenet.inference", "mobilenet.rundir",
        "mobilenet.runtime", "mobilenet.train", "mobilenet.models", "mobilenet.data.datasets",
        "mobilenet.settings", "mobilenet.streams", "mobilenet.terminal",
        "mobilenet.analysis.stats",
    ),
    # Names of variants, for those who read runs.
    "mobilenet/sweep/naming.py": (),
    "mobilenet/sweep/ledger.py": ("mobilenet.rundir",),
    # What experiment files are written with.
    "mobilenet/sweep/space.py": (),
    "mobilenet/sweep/scales.py": ("mobilenet.config", "mobilenet.sweep.space"),
    # Verbs see `build`, what it hands back, and each other's shared part.
    "mobilenet/cli": (
        "mobilenet.__version__", "mobilenet.cli", "mobilenet.config", "mobilenet.build",
        "mobilenet.keys", "mobilenet.settings", "mobilenet.imagenet",
        "mobilenet.architecture", "mobilenet.inference", "mobilenet.train",
        "mobilenet.data", "mobilenet.models", "mobilenet.analysis", "mobilenet.benchmark",
        "mobilenet.runtime", "mobilenet.rundir", "mobilenet.report", "mobilenet.sweep",
        "mobilenet.experiment", "mobilenet.conversion",
        "mobilenet.quantization",
        "mobilenet.export", "mobilenet.deployment",
        "mobilenet.compression", "mobilenet.workflows", "mobilenet.streams", "mobilenet.terminal",
    ),
    "mobilenet/__main__.py": ("mobilenet.cli",),
    "mobilenet/__init__.py": (),
    "experiments": ("mobilenet.config", "mobilenet.sweep.space", "mobilenet.sweep.scales"),
}  # fmt: skip


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("mobilenet", "experiments")}


SOURCES = sorted([*ROOT.glob("mobilenet/**/*.py"), *ROOT.glob("experiments/**/*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path):
    relative = path.relative_to(ROOT).as_posix()
    rule = max((r for r in ALLOWED if relative.startswith(r)), key=len, default=None)
    assert rule is not None, f"{relative} has no rule in ALLOWED"
    for name in imported(path):
        assert any(name == ok or name.startswith(ok + ".") for ok in ALLOWED[rule]), (
            f"{relative} imports {name}"
        )


def test_collectives_are_named_in_three_places():
    collectives = ("pmean", "psum", "pmin", "pmax", "all_gather", "axis_index", "ppermute",
                   "all_to_all")  # fmt: skip
    allowed = ("train/steps.py", "models/normalization.py", "quantize/layers.py")
    for path in ROOT.glob("mobilenet/**/*.py"):
        text = path.read_text()
        if any(f"lax.{name}(" in text for name in collectives):
            assert path.as_posix().endswith(allowed), path
