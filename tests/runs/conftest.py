"""Runs that several tests share."""

import subprocess
from pathlib import Path

import pytest
from support import TINY, Command, start


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the digits are prepared, once for all runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def mobilenet(cache: Path) -> Command:
    def run(*args: str, devices: int = 1, ok: bool = True) -> subprocess.CompletedProcess[str]:
        process = start(cache, *args, devices=devices)
        out, err = process.communicate(timeout=300)
        if ok:
            assert process.returncode == 0, err
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def finished(mobilenet: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one undisturbed run; tests read it and leave it as it is."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    mobilenet("train", f"--config={TINY}", f"--workdir={workdir}")
    return workdir
