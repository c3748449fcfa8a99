"""A process of `mobilenet sweep --jobs=N`: trains points of a plan until none is left.

python -m mobilenet.sweep.worker PLAN WORKDIR INDEX JOBS LANES MAX_FAILURES
"""

import os
import sys
from pathlib import Path

from mobilenet import runtime


def main(argv: list[str]) -> int:
    """Runs the worker; 0 even when points failed, which their directories tell."""
    plan, workdir = Path(argv[0]), Path(argv[1])
    index, jobs, lanes, max_failures = map(int, argv[2:])
    runtime.end_with_parent()  # a sweep that is killed takes its workers with it; they save first
    runtime.keep_memory()
    from mobilenet.sweep import points, runner
    from mobilenet.train.loop import Interrupted

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, runner.cores(index, jobs))  # before XLA counts its threads
    runtime.prepare_compiler()
    planned = points.read_plan(plan)
    try:
        runner.work(planned, workdir, lanes=lanes, max_failures=max_failures, offset=index / jobs)
    except Interrupted:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
