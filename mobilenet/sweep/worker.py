"""A process of `mobilenet sweep --jobs=N`: trains points of a plan until none is left.

python -m mobilenet.sweep.worker PARENT PLAN WORKDIR INDEX JOBS LANES MAX_FAILURES

PARENT is the number of the process that starts it.
"""

import os
import sys
from pathlib import Path

from mobilenet import runtime, terminal


def main(argv: list[str]) -> int:
    """Runs the worker; 0 even when points failed: their directories say so.

    Returns:
      2 if points could not begin, for their configuration or data, 1 if the worker could not. The
      last line on stderr says why.
    """
    terminal.show_every_character()
    parent, plan, workdir = int(argv[0]), Path(argv[1]), Path(argv[2])
    index, jobs, lanes, max_failures = map(int, argv[3:])
    # A sweep that is killed takes its workers with it; they save first.
    runtime.end_with_parent(parent)
    runtime.keep_memory()
    from mobilenet.rundir import RunDirectoryError
    from mobilenet.sweep import machine, points, runner
    from mobilenet.train.signals import Interrupted

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, runner.cores(index, jobs))  # XLA's threads inherit it
    try:
        machine.join(workdir)
        runtime.prepare_compiler()
        planned = points.read_plan(plan)
        runner.work(planned, workdir, lanes=lanes, max_failures=max_failures, offset=index / jobs)
    except Interrupted:
        return 0
    except runner.REFUSALS as error:
        print(terminal.printable(error), file=sys.stderr)
        return runner.REFUSED
    except (runtime.BackendError, RunDirectoryError) as error:
        print(terminal.printable(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
