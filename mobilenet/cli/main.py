"""The entry point: picks the verb, and turns expected errors into one sentence and an exit code."""

import difflib
import importlib
import os
import sys
import time

from mobilenet import __version__, runtime, streams, terminal

STARTED = time.time()  # the program's start, before the heavy imports below a verb

# What it does, in the order of a user's day.
VERBS = {
    "train": "train a network from a configuration, or continue a run",
    "evaluate": "measure a run on a split: accuracy, per class, confusion matrix",
    "predict": "classify image files with a run",
    "config": "list the keys of a configuration: meaning, default, what is allowed",
    "cost": "parameters, MACs and memory of a configuration, layer by layer",
    "sweep": "train every point of an experiment that is not done yet",
    "compare": "compare the networks of a sweep: accuracy, cost, speed, time",
    "reproduce": "the papers' claims, what our runs say about them, and the verdict",
    "report": "turn finished runs into committed rows, and rows into pages",
    "quantize": "quantise a run after training; find what each layer loses",
    "shrink": "cut a run's channels to a budget; count what a run has left",
    "convert": "read other projects' weight files into runs, and write runs to them",
    "export": "write a run for LiteRT, ONNX Runtime or StableHLO, and verify it",
    "prepare": "download a data set, or convert a TFRecord copy to ArrayRecord",
    "benchmark": "time steps next to plain Flax and PyTorch, in alternating rounds",
}
# What other programs and people call a verb -> the verb.
SYNONYMS = {
    "fit": "train", "finetune": "train", "resume": "train", "eval": "evaluate",
    "test": "evaluate", "validate": "evaluate", "infer": "predict", "inference": "predict",
    "classify": "predict", "keys": "config", "options": "config", "macs": "cost",
    "flops": "cost", "summary": "cost", "ablate": "sweep", "search": "sweep", "bench": "benchmark",
    "profile": "benchmark", "ptq": "quantize", "quantise": "quantize", "prune": "shrink",
    "import": "convert", "download": "prepare", "claims": "reproduce",
}  # fmt: skip

# Exit codes next to 0 (done) and 128 + signal (interrupted, and saved).
FAILED, USAGE, DIVERGED = 1, 2, 3


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return (
        "usage: mobilenet VERB [flags]\n\n"
        + "\n".join(lines)
        + "\n\n`mobilenet help VERB` says what a verb does and lists its flags.\n"
    )


def _unknown(verb: str) -> str:
    near = SYNONYMS.get(verb) or next(iter(difflib.get_close_matches(verb, VERBS, n=1)), "")
    hint = f"did you mean {near}? " if near else ""
    return f"{verb!r} is not a verb; {hint}`mobilenet help` lists them."


def main(argv: list[str] | None = None) -> int:
    """Runs `mobilenet VERB [flags]`, `mobilenet help [VERB]` or `mobilenet --version`.

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
    if argv[:1] in (["-h"], ["--help"], ["help"]):
        argv = [*argv[1:2], "--help"] if argv[1:] else []
        program = False  # nothing is computed
        if not argv:
            print(_help(), end="")
            return 0
    if not argv:
        print(_help(), end="")
        return USAGE
    if argv[0] in ("--version", "version"):
        print(f"mobilenet {__version__}")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        print(f"mobilenet: {_unknown(verb)}", file=sys.stderr)
        return USAGE
    if program:
        runtime.keep_memory()  # the verbs import NumPy and JAX
        runtime.use_wide_vectors()  # some verbs compute before they train, and prepare there
    # Third-party start-up chatter (absl's preinit notice, gRPC) is not the user's concern.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    module = importlib.import_module(f"mobilenet.cli.{verb}")
    from mobilenet.cli import common

    return common.run(verb, module, rest)


if __name__ == "__main__":
    sys.exit(main())
