"""Settings before the backend starts: memory, vectors, threads, the compilation cache.

Command lines call these functions, and so do workers of sweeps and jobs of a cluster: the same run
must be compiled and computed in the same way everywhere. A notebook should call them before it
computes anything.

Results that are equal to the last bit on CPU: XLA divides the sums of a matrix product into as many
parts as it has threads, and the order of a sum decides its rounding. So the number of threads
belongs to a run. It is decided once, when the run or its sweep begins, from the cores of the
machine (`machine_cores`). It is stored with the run, and used again when the run is continued or
evaluated. The number of cores that do the work changes nothing: one core, two, `taskset`, `sweep
--jobs=2`, a Slurm job, a resumed run and a program from the compilation cache give the same bits.
Results differ with another number of threads, another vector width, another kind of processor,
another version of jaxlib, another number of devices, or as one of several lanes. One training step
then differs by float32 rounding. Training amplifies this, so small runs can have quite different
results. `tests/sweep/test_threads.py` checks what is equal to the last bit, and prints the
difference of a small run between one thread and two.
"""

import contextlib
import ctypes
import hashlib
import mmap
import os
import platform
import re
import signal
import sys
from pathlib import Path
from typing import Any

# Constants of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_PR_SET_PDEATHSIG = 1  # of prctl(2), from linux/prctl.h
_THREADS = "PJRT_NPROC"  # sets the threads of XLA's CPU backend; without it, NPROC is read
_POOL = "tf_XLAEigen"  # XLA's name of the threads that compute, as Linux shows it
_WIDTH = "xla_cpu_prefer_vector_width"  # in XLA_FLAGS
# Address space reserved with huge pages; the system provides a page when it is first written.
_RESERVED = 8 << 30


def keep_memory(reserve: int = _RESERVED) -> bool:
    """Keeps freed memory for the next step instead of returning it, on Linux with glibc.

    XLA allocates the temporary memory of a step, a gigabyte or more, when the step starts, and
    frees it when it ends. By default the memory goes back to the system, and at every step each
    page is mapped and zeroed again. If it is kept, it is only overwritten; in huge pages, its
    addresses are also found faster. The process then holds its peak memory until it ends.

    It must be called before NumPy and JAX are imported: otherwise their threads already have their
    own arenas of malloc, which cannot grow, and XLA would get one of those.

    It does nothing if the user has made a choice (an environment variable MALLOC_*, GLIBC_TUNABLES
    or LD_PRELOAD), or on other systems.

    Args:
      reserve: bytes of address space to mark for huge pages.

    Returns:
      Whether memory is kept.
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD")) for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # One arena, because only the main one can grow past 64 MiB without mmap.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    done = all([libc.mallopt(name, value) for name, value in settings])
    if done and hasattr(mmap, "MADV_HUGEPAGE"):
        _mark_huge(libc, reserve)
    return done


def _mark_huge(libc: ctypes.CDLL, size: int) -> None:
    """Grows the heap by `size` unused bytes and requests huge pages for them."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if not block:
        return  # there is a limit on address space; the heap grows when needed
    huge = 2 << 20
    start = -(-block // huge) * huge
    libc.madvise(start, (block + size - start) // huge * huge, mmap.MADV_HUGEPAGE)
    libc.free(block)


def use_wide_vectors(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Lets XLA compile for vectors of 512 bits on AMD processors that have them.

    XLA prefers 256 bits everywhere, because some Intel processors lower their clock for wider
    vectors. AMD's do not, and steps become a few per cent shorter. The order of sums changes, so
    results of the two widths differ by rounding.

    It must be called before JAX starts a backend, because XLA reads its flags then; later it has no
    effect. It does nothing if XLA_FLAGS already sets the width, or on other processors.

    Args:
      cpuinfo: where Linux describes the processor.

    Returns:
      Whether wide vectors were requested.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    if _WIDTH in flags or "AuthenticAMD" not in text or " avx512f " not in text:
        return False
    if threads() is not None:
        return False
    os.environ["XLA_FLAGS"] = f"{flags} --{_WIDTH}=512".strip()
    return True


def vector_bits(cpuinfo: Path = Path("/proc/cpuinfo")) -> int | None:
    """Width of the vectors that XLA compiles for: its preference, if the processor supports it.

    Args:
      cpuinfo: where Linux describes the processor.

    Returns:
      Bits, or None if the processor does not state them.
    """
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    if found is None:
        return None
    words = found.group(1).split()
    has = 512 if "avx512f" in words else 256 if "avx" in words else 128
    wanted = re.findall(rf"{_WIDTH}=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return min(has, int(wanted[-1]) if wanted else 256)


def machine_cores(groups: Path = Path("/sys/fs/cgroup"), own: str | None = None) -> int:
    """Cores of the machine, or of the container or cluster job of this process.

    The affinity of a process (`taskset`, a worker's share) does not count, so that the processes of
    one machine agree. Limits of control groups (version 2) count, because threads beyond them would
    only wait.

    Args:
      groups: where the control groups are.
      own: the process's group below it, such as "/job"; None uses what Linux reports.
    """
    count = os.cpu_count() or 1
    if own is None:
        mine = Path("/proc/self/cgroup")
        text = mine.read_text() if mine.exists() else ""
        own = "".join(re.findall(r"^0::(.*)$", text, re.MULTILINE))
    place = groups / own.lstrip("/")
    for group in (place, *place.parents):
        if not group.is_relative_to(groups):
            break
        with contextlib.suppress(OSError, ValueError):
            parts = (group / "cpuset.cpus.effective").read_text().strip().split(",")
            ends = [[int(end) for end in part.split("-")] for part in parts]
            count = min(count, sum(end[-1] - end[0] + 1 for end in ends))
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            count = min(count, -(-int(quota) // int(period)))
    return max(1, count)


def usable_cores() -> int:
    """Number of cores that this process may use, from its affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int | None:
    """Number of threads of XLA's CPU backend; None before it starts, and on other systems."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # the thread has ended
            names.append(path.read_text())
    return sum(name.startswith(_POOL) for name in names) or None


def use_threads(count: int | None = None) -> int:
    """Lets XLA compute with this many threads, on whatever cores they run.

    It must be called before JAX starts a backend; later it has no effect.

    Args:
      count: at least 1; None uses PJRT_NPROC, or else `machine_cores()`.

    Returns:
      The number of threads of this process. It differs from `count` if the backend has already
      started with another number, or is split into more devices.
    """
    started = threads()
    if started is not None:
        return started
    if count is None:
        text = os.environ.get(_THREADS, "")
        count = int(text) if text.isdigit() and int(text) else machine_cores()
    devices = os.environ.get("JAX_NUM_CPU_DEVICES", "")
    count = max(count, int(devices) if devices.isdigit() else 1)  # each device has one
    os.environ[_THREADS] = str(count)
    return count


def prepare_compiler(directory: Path | None = None) -> Path | None:
    """Settings for every program that computes: wide vectors, threads, and a cache on disk.

    Call it before JAX starts a backend.

    Args:
      directory: of `cache_compilations`.

    Returns:
      The result of `cache_compilations`.
    """
    use_wide_vectors()
    use_threads()
    return cache_compilations(directory)


def end_with_parent(parent: int | None = None) -> None:
    """Lets this process get SIGTERM when the process that started it ends (on Linux).

    Args:
      parent: the id of the process that started this one. If it has already ended, which the system
        does not report afterwards, this process gets the signal now. None is the current parent.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def describe_exit(code: int) -> str:
    """How a process ended, from its code in `subprocess`, as in "was ended by SIGSEGV"."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", probably for lack of memory" if name == "SIGKILL" else "")


def cache_compilations(directory: Path | None = None) -> Path | None:
    """Keeps compiled programs on disk, so that each step is compiled once on a machine.

    A resumed run, an evaluation and the next seed of an experiment load their steps from it. JAX's
    keys of entries contain program, options and versions (threads are not part of a program: they
    divide its sums when it runs). The directory also depends on the processor: a program for a
    processor with more instructions would crash on one with fewer, and machines may share home
    directories. It does nothing if JAX_COMPILATION_CACHE_DIR is set or JAX_ENABLE_COMPILATION_CACHE
    is off.

    Args:
      directory: where; None is XDG_CACHE_HOME (or ~/.cache) /mobilenet/xla.

    Returns:
      The directory in use, or None if the cache is off or the directory cannot be made.
    """
    import jax

    settings: Any = jax.config
    if not settings.jax_enable_compilation_cache:
        return None
    if settings.jax_compilation_cache_dir:
        return Path(settings.jax_compilation_cache_dir)
    if directory is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        directory = Path(home) / "mobilenet" / "xla"
    directory = directory / _processor()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a read-only home: compile every time
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory


def _processor() -> str:
    """A name for the instructions that this processor has."""
    text = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        text += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class BackendError(RuntimeError):
    """JAX has no device to compute on; the message says which one was requested."""


def require_backend() -> None:
    """Starts JAX's backend, if it has not started yet.

    Raises:
      BackendError: it does not start, for example with JAX_PLATFORMS=cuda without a GPU.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that there is a device
        chosen = os.environ.get("JAX_PLATFORMS", "")
        reason = f": {error}" if str(error) else ""
        raise BackendError(
            f"JAX finds no device with JAX_PLATFORMS={chosen!r}{reason}. Unset it, or set it to a "
            "platform that this machine has, such as cpu."
        ) from error
