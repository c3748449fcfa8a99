"""What a summary says of how a run was computed, and what a run that goes on otherwise says."""

import logging
import os
from pathlib import Path

import jax
import pytest

from mobilenet import runtime
from mobilenet.rundir import write_json
from mobilenet.train import records

HERE = {
    "threads": 2, "vector_bits": 512, "processor": "AMD EPYC, 2 cores", "device": "1 x cpu (cpu)",
    "versions": {"jax": "1", "jaxlib": "1"},
}  # fmt: skip


def test_the_environment_says_what_computes():
    found = records.environment()
    assert found["threads"] == runtime.threads() and found["threads"] >= jax.device_count()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["vector_bits"] in (128, 256, 512)
    assert found["processor"].endswith(f"{os.cpu_count()} cores")


def test_a_part_that_is_computed_otherwise_is_told_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING, "mobilenet")
    assert records.computed(tmp_path, 0, HERE) == []  # nothing was there
    write_json(tmp_path / "summary.json", HERE)
    assert records.computed(tmp_path, 0, {**HERE, "threads": 1}) == []  # nothing was kept
    assert records.computed(tmp_path, 8, HERE) == []
    # The machine has other cores, and as many threads: the same sums.
    assert records.computed(tmp_path, 8, {**HERE, "processor": "AMD EPYC, 64 cores"}) == []
    assert not caplog.messages
    now = {**HERE, "threads": 1, "versions": {"jax": "1", "jaxlib": "2"}}
    parts = records.computed(tmp_path, 8, now)
    assert [(p["from_step"], p["threads"], p["jaxlib"]) for p in parts] == [
        (0, 2, "1"),
        (8, 1, "2"),
    ]
    (message,) = caplog.messages
    assert "threads 2 before and 1 now; jaxlib 1 before and 2 now" in message
    assert "until step 8" in message and "rounding" in message
    # A part of which no step was kept has computed nothing.
    write_json(tmp_path / "summary.json", {**now, "computed": parts})
    assert records.computed(tmp_path, 8, HERE) == []
    assert records.computed(tmp_path, 16, now) == parts
    assert len(records.computed(tmp_path, 16, HERE)) == 3


def test_old_and_damaged_summaries_say_nothing(tmp_path: Path):
    old = {"processor": "AMD EPYC, 2 cores", "versions": {"jax": "1", "jaxlib": "1"}}
    write_json(tmp_path / "summary.json", old)
    assert records.computed(tmp_path, 8, HERE) == []
    for text in ("", "[]", "{", "null", '{"computed": 3}'):
        (tmp_path / "summary.json").write_text(text)
        assert records.computed(tmp_path, 8, HERE) == []
