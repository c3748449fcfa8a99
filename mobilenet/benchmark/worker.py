"""One implementation in its own process, timed at the parent's request.

Each implementation has a process, because two frameworks in one process would share threads and
allocator, and their peak memory could not be separated. The parent (`mobilenet.benchmark.suite`)
writes a line, and the worker answers with one line of JSON:

    (start)   {"first_step_seconds", "check"}     built, compiled, first step done
    run N     {"seconds": [...]}                  N steps, each waited for
    finish    {"peak_bytes", ...}                 measurements that take time, and the end

Errors are returned as {"error": text}.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> None:
    """Serves one implementation; `argv` holds the request as JSON (see `suite.Case`)."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # text that libraries print must not reach the parent as an answer

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    request = json.loads(argv[0])
    try:
        _serve(request, answer)
    except (ImportError, ValueError) as error:
        answer({"error": str(error)})


def _serve(request: dict[str, Any], answer: Any) -> None:
    from mobilenet import runtime

    runtime.end_with_parent(request["parent"])
    kept = request["memory"] == "kept" and runtime.keep_memory()
    runtime.use_wide_vectors()
    runtime.use_threads()
    if request["implementation"].startswith("torch"):
        # JAX only makes the initial weights, and leaves the accelerator to PyTorch.
        os.environ["JAX_PLATFORMS"] = "cpu"
    # The implementations of a case use the device at the same time.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from mobilenet import config as config_lib
    from mobilenet.benchmark import implementations

    config = config_lib.from_json(request["config"])
    names = ("implementation", "work", "batch_size", "num_classes", "block")
    spec = implementations.Spec(**{name: request[name] for name in names})
    implementation = implementations.prepare(config, spec)
    _forget_peak()
    before = _resident("VmRSS")
    started = time.perf_counter()
    first = implementation.step()
    implementation.wait(first)
    seconds = time.perf_counter() - started
    answer({"first_step_seconds": seconds, "check": implementation.check(first), "kept": kept})
    del first
    _forget_peak()  # the peak of the compilation
    for line in sys.stdin:
        verb, _, count = line.strip().partition(" ")
        if verb == "finish":
            break
        times = []
        for _ in range(int(count)):
            started = time.perf_counter()
            implementation.wait(implementation.step())
            times.append(time.perf_counter() - started)
        answer({"seconds": times})
    facts = {"peak_bytes": implementations.device_peak(spec) or max(0, _resident("VmHWM") - before)}
    answer({**facts, **implementation.analyse()})


def _resident(field: str) -> int:
    """Bytes of memory in use (VmRSS), or the largest value so far (VmHWM)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    """Resets VmHWM to the memory in use; no effect if Linux does not support it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
