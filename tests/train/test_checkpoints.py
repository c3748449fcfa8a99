"""Checkpoints: round trip, newest and best, damage, other structures, a full disk."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_states import assert_same, largest_file, make_state

from mobilenet.train import state
from mobilenet.train.checkpoints import CheckpointError, Checkpoints, restore_state


def test_round_trip_to_numpy_and_to_state(tmp_path: Path):
    saved = make_state(5)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved, {"top1": 0.5})
        checkpoints.wait()
        restored = checkpoints.read(5)
    assert restored.step == 5 and restored.meta["metrics"] == {"top1": 0.5}
    kernel = restored.items["params"]["stem"]["conv"]["kernel"]
    assert type(kernel) is np.ndarray
    assert_same(restored.eval_variables, state.to_host(saved.eval_variables))
    assert_same(restore_state(restored, make_state()), state.to_host(saved))


def test_newest_and_best_are_kept_across_restarts(tmp_path: Path):
    with Checkpoints(tmp_path, keep_newest=2, keep_best=1) as checkpoints:
        for step, top1 in ((1, 0.1), (2, 0.9), (3, None), (4, 0.4)):
            checkpoints.save(make_state(step), None if top1 is None else {"top1": top1})
    with Checkpoints(tmp_path, keep_newest=2, keep_best=1) as checkpoints:
        for step, top1 in ((5, 0.3), (6, None)):
            checkpoints.save(make_state(step), None if top1 is None else {"top1": top1})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best_step() == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "meta"])
def test_a_damaged_newest_is_skipped_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1))
        checkpoints.save(make_state(2))
    file = largest_file(tmp_path / "2" / "params")
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))
    elif damage == "truncate":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "remove":
        file.unlink()
    else:
        (tmp_path / "2" / "meta" / "metadata").write_text("{")
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.read_newest()
        assert restored is not None and restored.step == 1
        assert f"{tmp_path / '2'} is damaged" in caplog.text
        # The damaged one must not stand in the way of writing its step again.
        checkpoints.discard_after(1)
        checkpoints.save(make_state(2))
        checkpoints.wait()
        assert_same(checkpoints.read(2).items["params"], state.to_host(make_state(2).params))


def test_wrong_bytes_with_right_checksums_are_noticed(tmp_path: Path):
    # A whole item swapped for another step's: every file is intact, the digest is not.
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1))
        checkpoints.save(make_state(2))
    shutil.rmtree(tmp_path / "2" / "params")
    shutil.copytree(tmp_path / "1" / "params", tmp_path / "2" / "params")
    with pytest.raises(CheckpointError, match="bytes of its params do not match"):
        Checkpoints(tmp_path, read_only=True).read(2)


def test_all_damaged_is_an_error_and_none_is_none(tmp_path: Path):
    assert Checkpoints(tmp_path / "empty", read_only=True).read_newest() is None
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1))
    largest_file(tmp_path / "1" / "params").unlink()
    with pytest.raises(CheckpointError, match="All 1 checkpoints"):
        Checkpoints(tmp_path, read_only=True).read_newest()


def test_unfinished_directories_are_not_checkpoints(tmp_path: Path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1))
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        checkpoints.save(make_state(2))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"width": 4}, r"params/stem/conv/kernel is \(4, 3\) instead of \(4, 4\)"),
        ({"ema": False}, "ema/params/stem/conv/kernel is unexpected"),
        ({"optimizer": "adamw"}, "is missing"),
    ],
)
def test_checkpoints_that_do_not_fit_say_where(tmp_path: Path, like: dict, message: str):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1))
        checkpoints.wait()
        with pytest.raises(CheckpointError, match=message):
            restore_state(checkpoints.read(1), make_state(**like))


def test_missing_step_lists_those_there_are(tmp_path: Path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(3))
        checkpoints.wait()
        with pytest.raises(CheckpointError, match="no checkpoint of step 4; it has 3"):
            checkpoints.read(4)


def test_a_full_disk_is_a_clear_error(small_disk: Path):
    with pytest.raises(CheckpointError, match="The disk is full"):
        with Checkpoints(small_disk) as checkpoints:
            checkpoints.save(make_state(1, width=500_000))
            checkpoints.wait()
