"""A real Slurm on the loopback interface runs a sweep; a job that is preempted goes on."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from mobilenet import rundir
from mobilenet.config import ConfigError
from mobilenet.sweep import runner, slurm
from mobilenet.sweep.points import Point

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(happens: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, f"{what} did not happen in {seconds} s"
        time.sleep(0.2)


def control(*words: str) -> str:
    return subprocess.run(["scontrol", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One controller and one node of two cores, started for this module and ended with it."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or getpass.getuser() != "root":
        pytest.skip(f"needs root and Slurm's {', '.join(missing) or 'programs'}")
    directory = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (directory / name).mkdir()
    key, munge_socket = directory / "munge.key", directory / "munge.socket"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    host = socket.gethostname()
    (directory / "slurm.conf").write_text(
        f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge_socket}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    daemons: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SLURM_CONF", str(directory / "slurm.conf"))
        for command in (
            [
                "munged", "--foreground", "--force", f"--key-file={key}",
                f"--socket={munge_socket}", f"--pid-file={directory}/munge.pid",
                f"--seed-file={directory}/munge.seed", f"--log-file={directory}/munge.log",
            ],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D"],
        ):  # fmt: skip
            log = stack.enter_context(open(directory / f"{command[0]}.out", "w"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            daemons.insert(0, process)
            if command[0] == "munged":
                wait_for(munge_socket.exists, 20, "munged's socket")
        try:
            wait_for(
                lambda: subprocess.run(
                    ["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True
                ).stdout.strip() == "idle",
                60,
                "an idle node",
            )  # fmt: skip
            yield directory
        finally:
            subprocess.run(["scancel", "--me", "--full"], capture_output=True)
            for process in daemons:
                process.terminate()
                process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.slurm
def test_a_sweep_of_four_points_with_one_requeued(
    cluster: Path, tiny_points: list[Point], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # This process has its flags with its backend; jobs inherit the environment and set their own.
    jax.devices()
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    # The first is long enough to be caught in the middle, and saves only when it is told to stop.
    long = {"train.num_epochs": 400.0, "checkpoint.every_steps": 1000000, "eval.every_epochs": 0.0}
    chosen = [_with(tiny_points[0], long), *tiny_points[1:4]]
    caught = chosen[0]
    settings = slurm.parse(["cpus=1", "time=60"])
    outcome = slurm.run(chosen, tmp_path, settings=settings, wait=False, progress=False)
    assert outcome.statuses.keys() == {p.key for p in chosen} and len(chosen) == 4
    # The same command again submits nothing twice.
    queued = slurm._queue()
    slurm.run(chosen, tmp_path, settings=settings, wait=False, progress=False)
    assert slurm._queue() <= queued

    metrics = caught.directory(tmp_path) / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), 180, "a step of the first point")
    job = slurm._job_of(caught, tmp_path)
    assert job is not None
    # It signals again while the job that is queued again cannot be signalled, and then complains.
    scancel = subprocess.Popen(["scancel", "--signal=USR2", job], stderr=subprocess.DEVNULL)
    wait_for(lambda: "Restarts=1" in control("show", "job", job), 120, "requeueing")
    scancel.kill()
    scancel.wait()
    assert rundir.status(caught.directory(tmp_path)) == "interrupted"
    # Slurm holds a job that is queued again for two minutes.
    outcome = slurm.run(chosen, tmp_path, settings=settings, progress=False)
    assert outcome.done == [p.key for p in chosen]
    log = (caught.directory(tmp_path) / "log.txt").read_text()
    assert "Resuming" in log and log.count("test at step") == 1
    local = tmp_path / "local"
    runner.run([caught], local, progress=False)
    ours, theirs = (
        rundir.read_json(caught.directory(d) / "summary.json")["test"] for d in (tmp_path, local)
    )
    assert ours == theirs


def _with(point: Point, overrides: dict) -> Point:
    from mobilenet.sweep.points import make_point

    return make_point(point.config, overrides)


def test_settings_are_checked():
    assert slurm.parse(["partition=gpu", "gpus=2", "time=30"]) == {
        "slurm_partition": "gpu", "gpus_per_node": 2, "timeout_min": 30,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="KEY=VALUE with one of partition"):
        slurm.parse(["nodes=2"])
    with pytest.raises(ConfigError, match="cpus must be a number"):
        slurm.parse(["cpus=many"])
    found = slurm.parse(["time=1e2", "mem=1/2"])
    assert found == {"timeout_min": 100, "mem_gb": 0.5} and isinstance(found["timeout_min"], int)


def test_a_machine_without_slurm_is_told(
    tiny_points: list[Point], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="squeue does not answer"):
        slurm.run(tiny_points[:1], tmp_path / "sweep", settings={}, progress=False)
