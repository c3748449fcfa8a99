"""Training a run from its configuration, or to its end from where it stands."""

import contextlib
from pathlib import Path
from typing import Any, TextIO

import jax

from mobilenet import build, rundir, runtime
from mobilenet.config import Config
from mobilenet.train import loop


def train(
    config: Config,
    workdir: str | Path,
    *,
    shared: build.Shared | None = None,
    began: float | None = None,
    stream: TextIO | None = None,
) -> dict[str, Any] | None:
    """Trains a run, or continues the one in a directory; nothing is left to do for a finished one.

    Args:
      config: complete configuration; what comes with the weights in `pretrained` is taken over in
        place.
      workdir: the run directory, made if absent.
      shared: of the runs in this process; None shares nothing.
      began, stream: as `loop.train`.

    Returns:
      The summary, as summary.json has it; None in processes of a run but its first.

    Raises:
      ConfigError, DatasetError: what cannot run; nothing is left in a new directory.
      InUseError: another process trains in the directory.
      Others as `loop.train`.
    """
    workdir = Path(workdir)
    # For a notebook: the command line has done so.
    runtime.use_wide_vectors()
    runtime.use_threads(rundir.threads(workdir))
    is_main = jax.process_index() == 0
    # Process 0 holds the lock for all.
    with rundir.locked(workdir) if is_main else contextlib.nullcontext():
        parts = build.build(config, workdir, shared=shared)
        summary = loop.train(parts, workdir, began=began, stream=stream)
    return summary if is_main else None
