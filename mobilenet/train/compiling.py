"""How long the first step compiles: what was measured here before, or a guess by size.

    first_steps.json   in the directory of compiled programs: program -> {seconds, arrays, device}

A program that is in this file has been compiled on this machine, so JAX loads it from the same
directory. For another program, the time is estimated from its number of weight arrays, at the rate
of the programs in the file.
"""

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from mobilenet.rundir import write_atomically

FILE = "first_steps.json"
# Seconds per weight array where nothing has been measured: a training step of MobileNetV2 with 158
# arrays compiles in about 40 s on two cores.
RATE = 0.25
KEPT = 200  # programs in the file

_known: set[str] = set()  # programs that this process has compiled


def _file() -> Path | None:
    """Where times are kept; None if compiled programs are not."""
    settings: Any = jax.config
    directory = settings.jax_compilation_cache_dir
    return Path(directory) / FILE if settings.jax_enable_compilation_cache and directory else None


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    """Program -> its entry; {} if nothing can be read, because an estimate is not essential."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads(path.read_text()) if path else {}
        return {
            program: entry
            for program, entry in found.items()
            if isinstance(entry.get("seconds"), int | float) and entry.get("arrays", 0) > 0
        }
    return {}


def announcement(program: str, arrays: int) -> str | None:
    """What to say before the first step: about how long it compiles; None if it is compiled.

    Args:
      program: a key of the compiled step.
      arrays: weight arrays of its network.
    """
    path = _file()
    entries = _read(path)
    if program in _known or program in entries:
        return None
    later = " (cached afterwards)" if path else ""
    return f"compiling, about {_rounded(_estimate(entries, arrays))}{later}"


def _estimate(entries: Mapping[str, Mapping[str, Any]], arrays: int) -> float:
    device = jax.devices()[0].device_kind
    rates = [e["seconds"] / e["arrays"] for e in entries.values() if e.get("device") == device]
    return arrays * (statistics.median(rates) if rates else RATE)


def _rounded(seconds: float) -> str:
    if seconds >= 120:
        return f"{round(seconds / 60)} min"
    return f"{max(1, round(seconds))} s" if seconds < 10 else f"{5 * round(seconds / 5)} s"


def remember(program: str, arrays: int, seconds: float) -> None:
    """Keeps how long a program's first step took, if it was compiled here for the first time."""
    path = _file()
    entries = _read(path)
    if program not in _known and program not in entries and path is not None:
        entry = {"seconds": round(seconds, 3), "arrays": arrays}
        entries[program] = {**entry, "device": jax.devices()[0].device_kind}
        kept = dict(list(entries.items())[-KEPT:])
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            write_atomically(path, json.dumps(kept, indent=1) + "\n")
    _known.add(program)


class Program:
    """The compiled train step of a run, whose first step is announced and timed.

    Args:
      key: equal for equal programs on one kind and number of devices; "" is unknown, and silent.
      arrays: weight arrays of its network.
    """

    def __init__(self, key: str, arrays: int) -> None:
        self._key, self._arrays = f"{key} {jax.device_count()} {jax.__version__}", arrays
        self._shown = bool(key) and jax.process_index() == 0
        self._began = 0.0

    def begin(self, say: Callable[[str], None]) -> None:
        """Before the first step: says about how long it compiles, unless it is compiled."""
        text = announcement(self._key, self._arrays) if self._shown else None
        if text is not None:
            say(text)
        self._began = time.monotonic()

    def end(self) -> None:
        """After the first step: keeps how long it took."""
        if self._shown:
            remember(self._key, self._arrays, time.monotonic() - self._began)
