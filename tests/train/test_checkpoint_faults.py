"""What goes wrong around checkpoints: odd paths, errors of the system, names, failed writes."""

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_states import assert_same, largest_file, make_state

from mobilenet import rundir
from mobilenet.train import state
from mobilenet.train.checkpoint_files import DamageError
from mobilenet.train.checkpoints import (
    CheckpointError,
    Checkpoints,
    read_checkpoint,
    require_begun,
)

ROOT = Path(__file__).parents[2]


def save_two(directory: Path) -> None:
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(make_state(1), {"top1": 0.5})
        checkpoints.save(make_state(2), {"top1": 0.4})


# ------------------------------------------------------------------------ paths


@pytest.mark.parametrize(
    "name",
    [
        *("lr[0.1] 日本", "st*r", "qu?stion", "back\\slash\n\t%2F'\"{a,b}|;#~$HOME", "gs:"),
        *("é" * 120, "a.orbax-checkpoint-tmp", os.fsdecode(b"latin\xe9")),
    ],
)
def test_checkpoints_are_read_back_from_any_path(tmp_path: Path, name: str):
    # A pattern in the name must not match the neighbour.
    save_two(tmp_path / name.replace("*", "a").replace("?", "e") / "neighbour")
    directory = tmp_path / name / "checkpoints"
    save_two(directory)
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.steps() == [1, 2] and checkpoints.best_step() == 1
        restored = checkpoints.read_newest()
    assert restored is not None and restored.step == 2
    assert_same(restored.eval_variables, state.to_host(make_state(2).eval_variables))
    assert read_checkpoint(tmp_path / name, "best").step == 1


def read_items(directory: Path, step: int) -> dict:
    return Checkpoints(directory, read_only=True).read(step).items


def long_path(base: Path, length: int) -> Path:
    path = str(base)
    while len(path) < length - 200:
        path += "/" + "y" * 190
    return Path(f"{path}/{'z' * (length - len(path) - 1)}")


def test_checkpoints_are_read_back_from_a_long_path(tmp_path: Path):
    workdir = long_path(tmp_path, 3700)
    with rundir.locked(workdir):
        save_two(workdir / "checkpoints")
    assert read_checkpoint(workdir).step == 2


def test_a_path_that_is_too_long_is_refused_before_training(tmp_path: Path):
    workdir = long_path(tmp_path, 3900)
    with pytest.raises(rundir.RunDirectoryError, match="has 3900 bytes, but 3800 are allowed"):
        with rundir.locked(workdir):
            pass
    with pytest.raises(rundir.RunDirectoryError, match="allowed"):
        Checkpoints(workdir / "checkpoints")
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_steps_are_no_checkpoints(tmp_path: Path):
    save_two(tmp_path)
    for name in ("007", "²", "3.damaged", "-4"):
        (tmp_path / name).mkdir()
    (tmp_path / "9").write_text("a file")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.best_step() == 1


# ------------------------------------------------------------------------ what is no damage


@contextlib.contextmanager
def few_files(more: int) -> Iterator[None]:
    """The process can open so many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(soft) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[more], hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("more", [2, 20])
def test_too_many_open_files_are_no_damage(tmp_path: Path, more: int):
    save_two(tmp_path)
    with few_files(more), Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="Too many open files") as caught:
            checkpoints.read_newest()
        assert not isinstance(caught.value, DamageError)
        with pytest.raises(CheckpointError, match="Too many open files"):
            checkpoints.save(make_state(3))
            checkpoints.wait()
    assert read_items(tmp_path, 2)["params"]


@pytest.mark.parametrize("file", ["params", "meta"])
def test_a_disk_that_answers_with_an_error_is_no_damage(tmp_path: Path, file: str):
    save_two(tmp_path)
    path = largest_file(tmp_path / "2" / file)
    path.rename(tmp_path / "kept")
    path.symlink_to("/proc/self/mem")  # opens, and answers every read with EIO
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=os.strerror(errno.EIO)) as caught:
            checkpoints.read_newest()
        assert not isinstance(caught.value, DamageError)
    (tmp_path / "kept").replace(path)
    assert read_items(tmp_path, 2)["params"]


def test_a_backend_that_does_not_start_is_no_damage(tmp_path: Path):
    save_two(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(tmp_path)],
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == "other BackendError\n", done.stderr


_READ = """
import sys
from mobilenet.train.checkpoints import CheckpointError, Checkpoints
try:
    Checkpoints(sys.argv[1], read_only=True).read_newest()
except CheckpointError as error:
    print("damage", error)
except Exception as error:
    print("other", type(error).__name__)
"""


def test_a_newer_schema_is_no_damage(tmp_path: Path):
    save_two(tmp_path)
    meta = tmp_path / "2" / "meta" / "metadata"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"schema": 2}))
    with pytest.raises(CheckpointError, match="has schema 2, this version reads 1"):
        Checkpoints(tmp_path, read_only=True).read_newest()


# ------------------------------------------------------------------------ what is


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "\x80", '{"schema": 1}', '{"schema": 1, "step": "2", "digests": {}}'],
)
def test_a_meta_that_is_none_is_damage(tmp_path: Path, text: str):
    save_two(tmp_path)
    (tmp_path / "2" / "meta" / "metadata").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamageError, match="is damaged"):
        Checkpoints(tmp_path, read_only=True).read(2)
    restored = Checkpoints(tmp_path, read_only=True).read_newest()
    assert restored is not None and restored.step == 1


def test_changed_metrics_are_damage(tmp_path: Path):
    save_two(tmp_path)
    meta = tmp_path / "2" / "meta" / "metadata"
    meta.write_text(meta.read_text().replace("0.4", "0.9"))
    with pytest.raises(DamageError, match="does not match its digest"):
        Checkpoints(tmp_path, read_only=True).read(2)
    assert Checkpoints(tmp_path, read_only=True).best_step() == 1


def test_a_damaged_checkpoint_is_set_aside_and_not_deleted(tmp_path: Path):
    save_two(tmp_path)
    largest_file(tmp_path / "2" / "params").unlink()
    kept = sorted(path.name for path in (tmp_path / "2").iterdir())
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.read_newest()
        assert restored is not None
        checkpoints.discard_after(restored.step)
        checkpoints.save(make_state(2))
    assert Checkpoints(tmp_path, read_only=True).steps() == [1, 2]
    assert sorted(path.name for path in (tmp_path / "2.damaged").iterdir()) == kept


@pytest.mark.parametrize("content", ["", "{", "[1]", "\0"])
def test_metrics_that_orbax_once_kept_do_not_matter(tmp_path: Path, content: str):
    save_two(tmp_path)
    (tmp_path / "1" / "metrics").mkdir()
    (tmp_path / "1" / "metrics" / "metrics").write_text(content)
    with Checkpoints(tmp_path, keep_newest=1) as checkpoints:
        checkpoints.save(make_state(3))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3] and checkpoints.best_step() == 1


def test_a_renamed_checkpoint_is_refused(tmp_path: Path):
    save_two(tmp_path)
    (tmp_path / "2").rename(tmp_path / "500")
    with Checkpoints(tmp_path) as checkpoints:
        for read in (checkpoints.read_newest, lambda: checkpoints.read(500)):
            with pytest.raises(
                CheckpointError, match="500 is a checkpoint of step 2 under another name"
            ):
                read()
        assert checkpoints.steps() == [1, 500]


def test_checkpoints_that_have_gone_are_missed(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    require_begun(tmp_path, checkpoints)
    for status, step in (("running", 0), ("failed", 7), ("diverged", 7)):
        rundir.write_json(tmp_path / "summary.json", {"status": status, "step": step})
        require_begun(tmp_path, checkpoints)
    for status in ("running", "interrupted", "done"):
        rundir.write_json(tmp_path / "summary.json", {"status": status, "step": 121})
        with pytest.raises(CheckpointError, match="was trained to step 121.*holds no checkpoint"):
            require_begun(tmp_path, checkpoints)
    save_two(tmp_path / "checkpoints")
    require_begun(tmp_path, checkpoints)


def test_what_cannot_be_read_is_not_deleted(tmp_path: Path):
    save_two(tmp_path)
    (tmp_path / "1").rename(tmp_path / "0")  # under another name
    path = tmp_path / "2" / "meta" / "metadata"
    path.rename(tmp_path / "kept")
    path.symlink_to("/proc/self/mem")
    with Checkpoints(tmp_path, keep_newest=1, keep_best=0) as checkpoints:
        for step in (3, 4):
            checkpoints.save(make_state(step))
        checkpoints.wait()
        assert checkpoints.steps() == [0, 2, 4]
        with pytest.raises(CheckpointError, match="step 1 under another name"):
            checkpoints.best_step()


def test_a_reader_next_to_a_running_job_finds_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with Checkpoints(tmp_path, keep_newest=1, keep_best=0) as checkpoints:
        checkpoints.save(make_state(1))
        checkpoints.wait()
        reader, found = Checkpoints(tmp_path, read_only=True), []
        for step in range(2, 12):
            checkpoints.save(make_state(step))
            restored = reader.read_newest()
            assert restored is not None
            found.append(restored.step)
            reader.best_step()
    assert found == sorted(found) and caplog.text == ""


# ------------------------------------------------------------------------ failed writes

_WRITE = """
import subprocess, sys
sys.path.insert(0, "tests")
from small_states import make_state
from mobilenet.train.checkpoints import CheckpointError, Checkpoints
width = int(sys.argv[2])
try:
    with Checkpoints(sys.argv[1]) as checkpoints:
        if not width:
            subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
        checkpoints.save(make_state(1, width=width or 3))
except CheckpointError as error:
    print(error)
"""


# A TensorStore write ends after the event loop that waited for it was closed. The argument is a
# full disk, where saving a checkpoint fails first; "" saves none.
_LATE = """
import asyncio, sys, time
sys.path.insert(0, "tests")
import tensorstore
from small_states import make_state
from mobilenet.train.checkpoints import CheckpointError, Checkpoints
promise, future = tensorstore.Promise.new()
async def wait():
    await future
async def start():
    asyncio.ensure_future(wait())
    await asyncio.sleep(0.1)
if sys.argv[1]:
    try:
        with Checkpoints(sys.argv[1]) as checkpoints:
            checkpoints.save(make_state(1, width=500_000))
    except CheckpointError as error:
        print(error)
loop = asyncio.new_event_loop()
loop.run_until_complete(start())
loop.close()
promise.set_result(1)
time.sleep(0.5)
"""


@pytest.mark.parametrize("failed", [False, True])
def test_a_late_write_of_a_failed_checkpoint_prints_no_traceback(small_disk: Path, failed: bool):
    command = [sys.executable, "-c", _LATE, str(small_disk) if failed else ""]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0 and ("The disk is full" in done.stdout) == failed
    assert ("Event loop is closed" in done.stderr) == (not failed)


@pytest.mark.parametrize(
    ("width", "reason"), [(500_000, "The disk is full"), (0, "Read-only file system")]
)
def test_a_program_ends_after_a_failed_write(small_disk: Path, width: int, reason: str):
    done = subprocess.run(
        [sys.executable, "-c", _WRITE, str(small_disk), str(width)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert reason in done.stdout and done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr and "Event loop" not in done.stderr
    assert done.returncode == 0
    if width:  # what was written of it is gone, and its space free again
        assert list(small_disk.iterdir()) == []
