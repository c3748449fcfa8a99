"""The machine settings of a sweep, which are decided when it begins.

    WORKDIR/machine.json    the threads, and what else of the machine decides how sums are rounded

The same command uses these threads again with other cores, with other `--jobs` or on other nodes.
So a point does not depend on which process trains it (`mobilenet.runtime`).
"""

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from mobilenet import rundir, runtime
from mobilenet.train import records

log = logging.getLogger("mobilenet")


def begin(workdir: Path, threads: int | None = None) -> int:
    """Decides the threads of the sweep in `workdir`, unless it has begun, and uses them.

    It must be called before JAX starts a backend to have an effect on this process.

    Args:
      workdir: of the sweep; made if absent.
      threads: of a sweep that begins here; None is what `mobilenet.runtime.use_threads` chooses.

    Returns:
      The threads of the sweep.
    """
    path = workdir / rundir.MACHINE_FILE
    begun = rundir.threads(workdir)
    if begun is None:
        count = threads or runtime.use_threads()
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_once(path, {"threads": count})
        begun = rundir.threads(workdir)  # of another command that began at the same moment
        if begun is None:  # the file is damaged
            begun = count
            rundir.write_json(path, {"threads": count})
    runtime.use_threads(begun)
    return begun


def join(workdir: Path, *, computes: bool = True) -> None:
    """Uses the threads of a sweep that has begun, and warns if this machine rounds differently.

    Args:
      workdir: of the sweep.
      computes: whether this process trains points, rather than its workers.
    """
    runtime.use_wide_vectors()
    begun = begin(workdir)
    before: dict[str, Any] = rundir.read_json(workdir / rundir.MACHINE_FILE)
    here = records.numerics({"processor": records.processor(), "versions": records.versions()})
    here["threads"] = runtime.use_threads() if computes else begun
    here["vector_bits"] = runtime.vector_bits()
    changed = records.differing(before, here)
    if changed:
        log.warning(
            "The sweep in %s began on a machine that differs in %s; runs that are trained now "
            "differ from those by rounding.",
            workdir, changed,
        )  # fmt: skip
    if "processor" not in before:
        rundir.write_json(workdir / rundir.MACHINE_FILE, {**here, **before})


def _write_once(path: Path, value: Any) -> None:
    """Writes a JSON file unless it exists; readers see it whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with rundir.writing(path):
        temporary.write_text(json.dumps(value) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    temporary.unlink(missing_ok=True)
