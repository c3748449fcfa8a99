"""The entry point: picks the verb, and turns expected errors into one sentence and an exit code."""

import importlib
import os
import sys
import time

from mobilenet import runtime, streams, terminal

STARTED = time.time()  # the program's start, before the heavy imports below a verb

# What it does, in the order of a user's day.
VERBS = {
    "train": "train from a configuration, or continue a run",
    "evaluate": "measure a run on a split: top-1, top-5, per-class table, confusion matrix",
    "predict": "classify picture files with a run",
    "sweep": "train every point of an experiment's sweep() that is not done yet",
    "reproduce": "the papers' claims, what our runs say about them, and the verdict",
    "cost": "parameters, MACs and activation memory of a configuration, layer by layer",
    "benchmark": "time steps beside plain Flax and PyTorch, in alternating turns",
    "quantize": "post-training quantisation of a run; what each layer loses; mixed precision",
    "compare": "networks of a sweep beside each other: accuracy, cost, speed, training time",
    "report": "turn finished runs into committed rows, and rows into the README's tables",
    "shrink": "cut a run's channels to a budget, as a new run; or count what a run has left",
    "convert": "weights in and out: other projects' checkpoints to runs, runs to weight files",
    "export": "a run as a file for LiteRT, ONNX Runtime or StableHLO, verified there",
    "prepare": "get a data set ready: download, or convert a TFRecord copy to ArrayRecord",
}

# Exit codes beside 0 (done) and 128 + signal (interrupted, and saved).
FAILED, USAGE, DIVERGED = 1, 2, 3


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return (
        "usage: mobilenet <verb> [flags]\n\n"
        + "\n".join(lines)
        + "\n\n`mobilenet <verb> --help` lists a verb's flags.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs `mobilenet <verb> [flags]`.

    Returns:
      0 done; 1 the run failed; 2 the command, the configuration or the data cannot be used; 3 the
      training diverged; 128 + n interrupted by signal n after saving.
    """
    if argv is None:  # not a call from Python, whose process is not ours to change
        streams.open_standard_files()
        terminal.show_every_character()
    with streams.lasting():
        return _run(argv)


def _run(argv: list[str] | None) -> int:
    program = argv is None
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0 if argv else USAGE
    verb, rest = argv[0], argv[1:]
    if program:
        runtime.keep_memory()  # the verbs import NumPy and JAX
        runtime.use_wide_vectors()  # some verbs compute before they train, and prepare there
    if verb not in VERBS:
        print(
            f"mobilenet: {verb!r} is not a verb; choose from {', '.join(VERBS)}.", file=sys.stderr
        )
        return USAGE
    # Third-party start-up chatter (absl's preinit notice, gRPC) is not the user's concern.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    module = importlib.import_module(f"mobilenet.cli.{verb}")
    from mobilenet.cli import common

    return common.run(verb, module, rest)


if __name__ == "__main__":
    sys.exit(main())
