"""Two CPU devices in every test process, quick compilation, and the places of optional things."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobilenet import runtime

# Before JAX's backend starts: compiled as in the programs whose results tests compare, and several
# tests compare two devices with one.
runtime.use_wide_vectors()
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# Small networks compile longer than they run. `make slow` sets 0: its proofs, with whatever they
# start, are of the program as users have it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture(scope="module")
def digits_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The digits are prepared once for all runs of a test process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "digits-cache"))
        yield


@pytest.fixture
def default_hangup() -> Iterator[None]:
    """SIGHUP has its default effect, even if the tests run under nohup, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a small file system needs privileges")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)
