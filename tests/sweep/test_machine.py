"""The threads of a sweep: decided once, taken again by all who train its points."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mobilenet import rundir, runtime
from mobilenet.sweep import machine

# What a command takes before its backend starts; the backend of this process has started.
TAKEN = """
import json, os, sys
from mobilenet.cli import common, sweep, train, quantize
from absl import flags
verb, *args = json.loads(sys.argv[1])
values = flags.FlagValues()
globals()[verb].define(values)
values(["mobilenet", *args])
try:
    common.take_threads(values)
    print(json.dumps(int(os.environ["PJRT_NPROC"])))
except common.UsageError as error:
    print(json.dumps(str(error)))
"""


def taken(*args: str) -> Any:
    environment = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    done = subprocess.run(
        [sys.executable, "-c", TAKEN, json.dumps(args)],
        env={**environment, "JAX_NUM_CPU_DEVICES": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_commands_take_the_threads_of_what_has_begun(tmp_path: Path):
    run, sweep, new = (tmp_path / name for name in ("run", "sweep", "new"))
    for directory, file in ((run, "summary.json"), (sweep, rundir.MACHINE_FILE)):
        directory.mkdir()
        rundir.write_json(directory / file, {"threads": 5})
    assert taken("train", f"--workdir={run}") == taken("sweep", f"--workdir={sweep}") == 5
    assert taken("quantize", f"--workdir={run}", f"--to={new}") == 5
    assert taken("quantize", f"--workdir={run}", f"--to={new}", "--threads=3") == 3
    assert taken("train", f"--workdir={new}") == runtime.machine_cores()
    assert taken("train", f"--workdir={new}", "--threads=3") == 3
    refused = taken("sweep", f"--workdir={sweep}", "--threads=3")
    assert f"--threads is 3, but {sweep} was begun with 5" in refused
    assert "must be 1 or more" in taken("train", f"--workdir={new}", "--threads=-1")


def test_a_sweep_decides_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "mobilenet")
    assert machine.begin(tmp_path / "a", 3) == 3
    assert machine.begin(tmp_path / "a", 4) == 3 == rundir.threads(tmp_path / "a")
    machine.join(tmp_path / "b")
    found = rundir.read_json(tmp_path / "b" / rundir.MACHINE_FILE)
    assert found["threads"] == runtime.use_threads() and found["jaxlib"] and found["processor"]
    assert found["vector_bits"] == runtime.vector_bits()
    machine.join(tmp_path / "b")
    assert not caplog.messages
    assert sorted(os.listdir(tmp_path / "b")) == [rundir.MACHINE_FILE]


def test_who_computes_otherwise_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "mobilenet")
    here = runtime.use_threads()
    machine.begin(tmp_path, here + 1)
    machine.join(tmp_path, computes=False)  # its workers compute, and take the right ones
    assert not caplog.messages
    machine.join(tmp_path)
    (message,) = caplog.messages
    assert f"threads {here + 1} before and {here} now" in message and str(tmp_path) in message
    found = rundir.read_json(tmp_path / rundir.MACHINE_FILE)
    rundir.write_json(tmp_path / rundir.MACHINE_FILE, {**found, "threads": here, "jaxlib": "0.1"})
    machine.join(tmp_path)
    assert "jaxlib 0.1 before and" in caplog.messages[-1]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"threads": "2"}', '{"threads": 0}'])
def test_a_damaged_record_is_written_again(tmp_path: Path, text: str):
    (tmp_path / rundir.MACHINE_FILE).write_text(text)
    assert machine.begin(tmp_path, 3) == 3 == rundir.threads(tmp_path)
    machine.join(tmp_path)
    assert rundir.read_json(tmp_path / rundir.MACHINE_FILE)["threads"] == 3
