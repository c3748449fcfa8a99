"""A wheel of the project is complete: the quick start runs from it, outside of the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from support import ROOT

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, env=environment | more, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the sources, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "results", "*.egg-info")
    for name in ("mobilenet", "experiments"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    done = run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ".",
        cwd=folder / "source",
    )  # fmt: skip
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("setuptools, which builds the wheel, cannot be downloaded")
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The commands of an environment that has the wheel, and the packages of this one."""
    home = wheel.parent / "environment"
    venv.create(home, symlinks=True)
    done = run(
        *(sys.executable, "-m", "pip", "--python", home / "bin/python", "install"),
        *("--no-index", "--no-deps", wheel),
        cwd=wheel.parent,
    )
    assert done.returncode == 0, done.stderr
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return home / "bin"


def test_the_wheel_has_every_module_and_every_experiment(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    shared = "/share/mobilenet/"
    found = {name.partition(shared)[2] if shared in name else name for name in names}
    sources = [*ROOT.glob("mobilenet/**/*.py"), *ROOT.glob("experiments/*/*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in sources} <= found


def test_the_quick_start_runs_outside_of_the_checkout(installed: Path, tmp_path: Path):
    cache = str(tmp_path / "cache")
    folder = tmp_path / "empty"
    folder.mkdir()
    where = run(
        installed / "python", "-c", "import mobilenet; print(mobilenet.__file__)", cwd=folder
    )
    assert Path(where.stdout.strip()).is_relative_to(installed.parent)
    for verb, rest, said in (
        ("train", "--config=experiments/baselines/digits.py:smoke --workdir=runs/quick", "test"),
        ("evaluate", "--workdir=runs/quick --split=test", "top-1"),
        ("cost", "--config=experiments/baselines/digits.py", "MACs"),
        ("sweep", "--config=experiments/ablations/se.py --workdir=runs/se --dry_run", "not a file"),
    ):
        done = run(installed / "mobilenet", verb, *rest.split(), cwd=folder, XDG_CACHE_HOME=cache)
        assert said in done.stdout + done.stderr, (verb, done.stdout, done.stderr)
        assert done.returncode == (2 if said == "not a file" else 0)
    assert sorted(path.name for path in folder.iterdir()) == ["runs"]
