"""A run directory from outside: what its files and its lock say."""

import json
import threading
from pathlib import Path

import pytest

from mobilenet import config as config_lib
from mobilenet import identity, rundir
from mobilenet.report import rows


@pytest.mark.parametrize(
    ("summary", "point", "status"),
    [
        (None, None, "pending"),
        (None, '{"error": null}', "pending"),
        (None, '{"error": "no data"}', "failed"),
        ('{"status": "running"}', None, "killed"),
        ('{"status": "running"}', '{"error": "later"}', "failed"),
        ('{"status": "interrupted"}', '{"error": null}', "interrupted"),
        ('{"status": "failed"}', None, "failed"),
        ('{"status": "done"}', '{"error": "of an earlier attempt"}', "done"),
        ('{"status": "diverged"}', None, "diverged"),
        ('{"status": "pruned"}', None, "pruned"),
        ('{"status": "do', None, "damaged"),
        ('{"status": "done"}', "[]", "damaged"),
    ],
)
def test_status(tmp_path: Path, summary: str | None, point: str | None, status: str):
    for name, text in (("summary.json", summary), ("point.json", point)):
        if text is not None:
            (tmp_path / name).write_text(text)
    assert rundir.status(tmp_path) == status in rundir.STATUSES
    with rundir.locked(tmp_path):
        assert rundir.status(tmp_path) == "running"
        assert rundir.status(tmp_path, held=True) == status
    assert rundir.status(tmp_path) == status


def test_a_directory_has_one_holder(tmp_path: Path):
    with rundir.locked(tmp_path):
        assert rundir.is_locked(tmp_path)
        with pytest.raises(rundir.InUseError, match="Another process"), rundir.locked(tmp_path):
            pass
    assert not rundir.is_locked(tmp_path) and not rundir.is_locked(tmp_path / "none")
    with rundir.locked(tmp_path):
        pass


def test_a_holder_can_be_waited_for(tmp_path: Path):
    order = []
    with rundir.locked(tmp_path):

        def wait() -> None:
            with rundir.locked(tmp_path, wait=True):
                order.append("second")

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(rundir.RunDirectoryError, match="cannot be used") as caught,
        rundir.locked(tmp_path / "file" / "run"),
    ):
        pass
    assert not isinstance(caught.value, rundir.InUseError)


def test_a_directory_keeps_its_configuration(tmp_path: Path):
    config = config_lib.get_config()
    with pytest.raises(config_lib.ConfigError, match="has no config.json"):
        rundir.read_config(tmp_path)
    identity.begin(tmp_path, config)
    assert config_lib.to_json(rundir.read_config(tmp_path)) == config_lib.to_json(config)
    config.log.every_steps = 7  # how a run is carried out may change
    identity.begin(tmp_path, config)
    assert rundir.read_config(tmp_path).log.every_steps == 7
    config.seed = 3
    with pytest.raises(config_lib.ConfigError, match="seed is 0 there and 3 now"):
        identity.begin(tmp_path, config)


def test_files_are_replaced_whole(tmp_path: Path):
    path = tmp_path / "a.json"
    rundir.write_json(path, {"b": 1, "a": (2, 3)})
    assert json.loads(path.read_text()) == {"a": [2, 3], "b": 1}
    assert rundir.read_json(path) == {"a": [2, 3], "b": 1}
    assert rundir.read_json(tmp_path / "none.json") is None
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_rows_keep_their_order_and_refuse_other_fields(tmp_path: Path):
    path = tmp_path / "r.csv"
    assert rows.read(path) == []
    rows.write(path, ("a", "b"), [{"a": 1, "b": "x, y"}, {"a": 0, "b": ""}])
    assert rows.read(path) == [{"a": "1", "b": "x, y"}, {"a": "0", "b": ""}]
    with pytest.raises(ValueError, match="c"):
        rows.write(path, ("a",), [{"c": 1}])
    assert len(rows.read(path)) == 2
