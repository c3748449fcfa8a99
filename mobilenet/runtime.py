"""What a program sets before the backend starts: memory, vectors, threads, the compilation cache.

The command lines call them, and so do workers of sweeps and jobs of a cluster: the same run must be
compiled and computed alike wherever it is carried out. A notebook should, before it computes
anything.

What is equal to the bit on CPU. XLA cuts the sums of a matrix product into as many pieces as it has
threads, and the order of a sum decides its rounding. So the number of threads belongs to a run: it
is decided once, when the run or its sweep begins, by the cores of the machine (`machine_cores`),
stored with the run, and taken again by whoever continues or evaluates it. How many cores then do
the work changes nothing: one core, two, `taskset`, `sweep --jobs=2`, a Slurm job, a resumed run and
a program from the compilation cache give the same bits. A run is not equal to the bit with another
number of threads, another vector width, another kind of processor, another version of jaxlib,
another number of devices, or as one of several lanes. One training step then differs by float32
rounding, which training amplifies, so that small runs can end as two different trainings.
`tests/sweep/test_threads.py` holds what is equal to the bit, and prints the difference of a small
run with one thread and with two.
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

# Of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_PR_SET_PDEATHSIG = 1  # of prctl(2), from linux/prctl.h
_THREADS = "PJRT_NPROC"  # of XLA: threads of its CPU backend; NPROC is read where this is absent
_POOL = "tf_XLAEigen"  # what XLA calls the threads that compute, as Linux shows them
_WIDTH = "xla_cpu_prefer_vector_width"  # of XLA_FLAGS
# Address space set aside with huge pages; pages are taken from the system when they are written.
_RESERVED = 8 << 30


def keep_memory(reserve: int = _RESERVED) -> bool:
    """Keeps freed memory for the next step instead of giving it back, on Linux with glibc.

    XLA allocates the temporary memory of a step, a gigabyte or more, when the step starts, and
    frees it when it ends. By default that goes to the system and back: at every step each page is
    mapped and zeroed again. Kept, it is written over; in huge pages, it is also found faster. The
    process then holds its peak memory until it ends.

    It must be called before NumPy and JAX are imported: their threads would have arenas of malloc's
    of their own by then, which cannot grow, and XLA would be given one of those.

    Left alone are processes whose user has chosen (an environment variable MALLOC_*, GLIBC_TUNABLES
    or LD_PRELOAD), and other systems.

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
    """Grows the heap by `size` untouched bytes and asks for huge pages there."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if not block:
        return  # a limit on address space: the heap grows as it must
    huge = 2 << 20
    start = -(-block // huge) * huge
    libc.madvise(start, (block + size - start) // huge * huge, mmap.MADV_HUGEPAGE)
    libc.free(block)


def use_wide_vectors(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Has XLA compile for vectors of 512 bits on AMD processors that have them.

    XLA prefers 256 bits everywhere, for processors of Intel that lower their clock for more. AMD's
    do not, and steps become some per cent shorter. Sums are taken in another order then, so results
    of the two widths differ by rounding.

    It must be called before JAX starts a backend, which is when XLA reads its flags; later it does
    nothing. Left alone is who has set that flag in XLA_FLAGS, and every other processor.

    Args:
      cpuinfo: where Linux describes the processor.

    Returns:
      Whether wide vectors were asked for.
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
    """Width of the vectors that XLA compiles for: what it prefers, as far as the processor has it.

    Args:
      cpuinfo: where Linux describes the processor.

    Returns:
      Bits, or None where the processor does not say.
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
    """Cores of the machine, or of the container or cluster job that this process is in.

    The affinity of a process (`taskset`, a worker's share) does not count, so that the processes of
    one machine agree. Limits of control groups do (version 2), because threads beyond them only
    wait.

    Args:
      groups: where the control groups are.
      own: the process's group below it, such as "/job"; None is what Linux says.
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
    """Cores that this process may use: those of its affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int | None:
    """Threads that XLA's CPU backend computes with; None before it starts, and beyond Linux."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            names.append(path.read_text())
    return sum(name.startswith(_POOL) for name in names) or None


def use_threads(count: int | None = None) -> int:
    """Has XLA compute with this many threads, whatever cores they run on.

    It must be called before JAX starts a backend; later it changes nothing.

    Args:
      count: at least 1; None is what PJRT_NPROC says, or else `machine_cores()`.

    Returns:
      How many threads this process computes with: not `count` if its backend has started with
      others, or is split into more devices.
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
    """What every program that computes sets: wide vectors, its threads, and a cache on disk.

    Call it before JAX starts a backend.

    Args:
      directory: of `cache_compilations`.

    Returns:
      What `cache_compilations` does.
    """
    use_wide_vectors()
    use_threads()
    return cache_compilations(directory)


def end_with_parent(parent: int | None = None) -> None:
    """Has this process get SIGTERM when the one that started it ends, on Linux: no orphans.

    Args:
      parent: the process that started this one, as it has said itself: if it has ended already,
        which the system does not tell afterwards, this one gets the signal now. None is whoever is
        the parent now.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def describe_exit(code: int) -> str:
    """How a process ended, by its code of `subprocess`, as in "was ended by SIGSEGV"."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", as for want of memory" if name == "SIGKILL" else "")


def cache_compilations(directory: Path | None = None) -> Path | None:
    """Keeps compiled programs on disk, so that the same step is compiled once a machine.

    A resumed run, an evaluation and the next seed of an experiment load their steps instead. JAX
    keys entries by program, options and versions (threads are no part of a program: they cut its
    sums when it runs); the directory also by the processor, because a
    program for one with more instructions would crash one with fewer, and home directories are
    shared between machines. Left alone when JAX_COMPILATION_CACHE_DIR is set or
    JAX_ENABLE_COMPILATION_CACHE is off.

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
        return None  # a read-only home: compile as ever
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
    """JAX has no device to compute on; the message says what it was told to use."""


def require_backend() -> None:
    """Starts JAX's backend, if it has not been.

    Raises:
      BackendError: it does not start, as with JAX_PLATFORMS=cuda on a machine without a GPU.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that it found any
        chosen = os.environ.get("JAX_PLATFORMS", "")
        reason = f": {error}" if str(error) else ""
        raise BackendError(
            f"JAX finds no device with JAX_PLATFORMS={chosen!r}{reason}. Unset it, or set it to a "
            "platform that this machine has, such as cpu."
        ) from error
