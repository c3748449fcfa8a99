"""What is set before the backend starts, each in a process of its own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mobilenet import runtime

PROBE = """
import ctypes, json, pathlib, sys
from mobilenet import runtime
kept = runtime.keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def resident():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(l for l in lines if l.startswith("VmRSS")).split()[1]) / 1024
before = resident()
block = libc.malloc(200 << 20)
libc.memset(block, 1, 200 << 20)
libc.free(block)
print(json.dumps([kept, resident() - before]))
"""

CACHE = """
import json, jax
from mobilenet import runtime
directory = runtime.prepare_compiler()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 3 + 1)(1.0)
print(json.dumps(str(directory) if directory else None))
"""

# Sums of a matrix product, as the backend cuts them.
SUMS = """
import hashlib, json, os, sys
cores, asked = json.loads(sys.argv[1])
if cores:
    os.sched_setaffinity(0, cores)
from mobilenet import runtime
if asked:
    runtime.use_threads(asked)
runtime.prepare_compiler()
import jax, numpy as np
import jax.numpy as jnp
x, w = jnp.linspace(-1, 1, 65536 * 16).reshape(65536, 16), jnp.linspace(-1, 2, 16 * 96)
digest = hashlib.sha256(np.asarray(jax.jit(lambda x, y: x.T @ y)(x, x @ w.reshape(16, 96))))
flags = os.environ.get("XLA_FLAGS")
late = [runtime.use_threads(7), runtime.use_wide_vectors(), os.environ.get("XLA_FLAGS") == flags]
print(json.dumps([digest.hexdigest(), runtime.threads(), runtime.machine_cores(), late]))
"""


def run(code: str, *args: object, **environment: str) -> Any:
    names = ("MALLOC_", "GLIBC_", "LD_PRELOAD", "JAX_COMPILATION", "JAX_ENABLE_COMP", "PJRT_NPROC")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(args)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_stays_unless_the_user_chose():
    kept, grown = run(PROBE)
    assert kept and grown > 190
    kept, grown = run(PROBE, MALLOC_ARENA_MAX="2")
    assert not kept and grown < 50


def test_wide_vectors_are_for_amd_and_for_who_did_not_choose(tmp_path: Path, monkeypatch):
    cpuinfo, flag = tmp_path / "cpuinfo", "--xla_cpu_prefer_vector_width="
    monkeypatch.setattr(runtime, "threads", lambda: None)  # as before the backend starts
    for vendor, instructions, flags, expected in (
        ("AuthenticAMD", "avx2 avx512f avx512cd", "", f"{flag}512"),
        ("AuthenticAMD", "avx2 avx512f avx512cd", "--other", f"--other {flag}512"),
        ("AuthenticAMD", "avx2 avx512f avx512cd", f"{flag}128", f"{flag}128"),
        ("AuthenticAMD", "avx2 fma", "", ""),
        ("GenuineIntel", "avx2 avx512f avx512cd", "", ""),
    ):
        cpuinfo.write_text(f"vendor_id : {vendor}\nflags : {instructions}\n")
        monkeypatch.setenv("XLA_FLAGS", flags)
        assert runtime.use_wide_vectors(cpuinfo) == (expected != flags)
        assert os.environ["XLA_FLAGS"] == expected
    assert not runtime.use_wide_vectors(tmp_path / "missing")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_sums_are_of_the_threads_and_not_of_the_cores(tmp_path: Path):
    cores = sorted(os.sched_getaffinity(0))
    one_device = {"JAX_NUM_CPU_DEVICES": "1", "XDG_CACHE_HOME": str(tmp_path)}
    whole, threads, machine, late = run(SUMS, None, None, **one_device)
    assert threads == machine and late == [machine, False, True]
    assert run(SUMS, cores[:1], None, **one_device) == [whole, threads, machine, late]
    one, threads, *_ = run(SUMS, cores, 1, **one_device)
    two, *_ = run(SUMS, cores[:1], 2, **one_device)
    assert threads == 1 and one != two  # or the comparison above would show nothing
    assert run(SUMS, None, None, PJRT_NPROC="1", **one_device)[:2] == [one, 1]
    assert run(SUMS, None, 1, **{**one_device, "JAX_NUM_CPU_DEVICES": "3"})[1] == 3


def test_cores_are_those_of_the_container_or_job(tmp_path: Path):
    machine = os.cpu_count() or 1
    assert runtime.machine_cores(tmp_path, "/job") == machine  # no control groups at all
    job = tmp_path / "job" / "step"
    job.mkdir(parents=True)
    (job / "cpuset.cpus.effective").write_text(f"0-{machine + 3},{machine + 8}\n")
    (job / "cpu.max").write_text("max 100000\n")
    assert runtime.machine_cores(tmp_path, "/job/step") == machine
    (job / "cpuset.cpus.effective").write_text("1\n")
    assert runtime.machine_cores(tmp_path, "/job/step") == 1
    assert runtime.machine_cores(tmp_path, "/job") == machine
    (job / "cpuset.cpus.effective").write_text("\n")
    (job.parent / "cpu.max").write_text("50000 100000\n")  # half a core, of the group above
    assert runtime.machine_cores(tmp_path, "/job/step") == 1


def test_vectors_are_as_wide_as_preferred_and_possible(tmp_path: Path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    assert runtime.vector_bits(cpuinfo) is None
    for instructions, flags, expected in (
        ("avx avx2 avx512f", "", 256),
        ("avx avx2 avx512f", "--xla_cpu_prefer_vector_width=512", 512),
        ("avx avx2", "--xla_cpu_prefer_vector_width=512", 256),
        ("avx avx2", "--xla_cpu_prefer_vector_width=128", 128),
        ("sse2", "", 128),
    ):
        cpuinfo.write_text(f"flags\t\t: {instructions}\n")
        monkeypatch.setenv("XLA_FLAGS", flags)
        assert runtime.vector_bits(cpuinfo) == expected


def test_compilations_are_kept_where_the_user_says(tmp_path: Path):
    used = run(CACHE, XDG_CACHE_HOME=str(tmp_path))
    assert isinstance(used, str) and Path(used).parent == tmp_path / "mobilenet" / "xla"
    entries = sorted(path.name for path in Path(used).iterdir())
    assert entries
    assert run(CACHE, XDG_CACHE_HOME=str(tmp_path)) == used
    assert sorted(path.name for path in Path(used).iterdir()) == entries  # nothing new: a hit
    own = tmp_path / "own"
    assert run(CACHE, JAX_COMPILATION_CACHE_DIR=str(own)) == str(own) and list(own.iterdir())
    assert run(CACHE, JAX_ENABLE_COMPILATION_CACHE="false") is None
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run(CACHE, XDG_CACHE_HOME=str(blocked)) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_worker_ends_with_the_program_that_started_it():
    worker = "import time; from mobilenet import runtime; runtime.end_with_parent(); "
    worker += "print('ready', flush=True); time.sleep(60)"
    program = (
        "import subprocess, sys, time\n"
        f"worker = subprocess.Popen([sys.executable, '-c', {worker!r}], stdout=subprocess.PIPE)\n"
        "worker.stdout.readline()\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 20
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _alive(pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_worker_whose_parent_has_ended_already_ends_too(tmp_path: Path):
    worker = (
        "import os, sys, time\n"
        "from mobilenet import runtime\n"
        "parent = int(sys.argv[1])\n"
        "print(os.getpid(), flush=True)\n"
        "while os.getppid() == parent:\n"
        "    time.sleep(0.01)\n"
        "runtime.end_with_parent(parent)\n"
        "time.sleep(60)\n"
    )
    program = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, '-c', {worker!r}, str(os.getpid())]\n"
        "worker = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "print(int(worker.stdout.readline()), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 20
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _alive(pid)


def test_how_processes_end_is_named():
    for command, expected in (
        ("kill -KILL $$", "was ended by SIGKILL, probably for lack of memory"),
        ("kill -SEGV $$", "was ended by SIGSEGV"),
        ("exit 3", "ended with code 3"),
    ):
        assert runtime.describe_exit(subprocess.run(["sh", "-c", command]).returncode) == expected


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent to be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
