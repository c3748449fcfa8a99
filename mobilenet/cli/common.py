"""What the verbs share: flags, overrides, errors and their exit codes."""

import contextlib
import logging
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mobilenet import config as config_lib
from mobilenet import experiment, rundir, runtime, terminal
from mobilenet.cli import usage
from mobilenet.cli.main import DIVERGED, FAILED, STARTED, USAGE
from mobilenet.config import Config, ConfigError

# What --config.KEY=VALUE does for a verb that uses a run as it is.
CARRIED_OUT = (
    "set how the run is carried out, such as --config.data.data_dir=DIR or "
    "--config.eval.batch_size=64"
)


class UsageError(ValueError):
    """A command line that cannot run; the message says what to write instead."""


class Failure(RuntimeError):
    """What a verb could not finish; the message says why."""


def run(verb: str, module: types.ModuleType, argv: list[str]) -> int:
    """Parses the verb's flags, runs it, and turns expected errors into a sentence and a code.

    A verb's module has `define(flag_values)` and `main(flag_values, overrides, rest) -> int`.
    """
    _configure_logging()
    values = flags.FlagValues()
    module.define(values)
    try:
        argv, overrides = split_overrides(argv)
        rest = parse(verb, module, values, argv)
        if rest is None:
            return 0
        take_threads(values)
        with terminal.plain_output():
            return module.main(values, overrides, rest)
    except flags.Error as error:
        return _fail(verb, usage.explain(error, verb, module, values), USAGE)
    except config_lib.ExperimentError as error:
        return _fail(verb, str(error), USAGE)  # its keys stand in a file, not on a command line
    except (UsageError, ConfigError) as error:
        return _fail(verb, usage.as_flags(str(error)), USAGE)
    except Failure as error:
        return _fail(verb, str(error), FAILED)
    except KeyboardInterrupt:
        return _fail(verb, "Interrupted.", 130)
    except Exception as error:
        # Imported late: the classes below come with the heavy modules, which a verb has by then.
        code = _expected(error)
        reason = usage.as_flags(str(error)) if code is not None else _surroundings(error)
        if reason is None:
            raise
        return _fail(verb, reason, FAILED if code is None else code)


def _surroundings(error: Exception) -> str | None:
    """What the machine, and not the program, is to blame for, in a sentence; None for bugs."""
    if isinstance(error, OSError) and error.errno:
        return explain(error)
    try:
        runtime.require_backend()  # JAX says little, wherever it first looks for a device
    except runtime.BackendError as cause:
        return str(cause)
    return None


def _expected(error: Exception) -> int | None:
    """The exit code of errors that explain themselves; None for bugs: they keep their traceback."""
    from mobilenet.data.datasets import DatasetError
    from mobilenet.data.images import UnreadableImage
    from mobilenet.report.results import ResultError
    from mobilenet.rundir import RunDirectoryError
    from mobilenet.train.checkpoints import CheckpointError
    from mobilenet.train.lanes import Diverged
    from mobilenet.train.loop import EmptySplitError
    from mobilenet.train.signals import Interrupted

    if isinstance(error, Interrupted):
        return 128 + error.signum
    if isinstance(error, Diverged):
        return DIVERGED
    if isinstance(error, DatasetError | UnreadableImage | EmptySplitError | ResultError):
        return USAGE
    if isinstance(error, CheckpointError | RunDirectoryError | runtime.BackendError):
        return FAILED
    return None


def keeps(verb: str, write: Callable[[], None]) -> bool:
    """Writes what a verb has printed already; a warning, and False, if it cannot be written."""
    try:
        write()
    except (rundir.RunDirectoryError, OSError) as error:
        text = str(error) if isinstance(error, rundir.RunDirectoryError) else explain(error)
        _fail(verb, f"{text} The result above is not kept.", FAILED)
        return False
    return True


def explain(error: OSError) -> str:
    """An error of the system in one sentence."""
    names = " and ".join(str(name) for name in (error.filename, error.filename2) if name)
    return f"{names or 'A file'} could not be used: {error.strerror or error}."


def _fail(verb: str, message: str, code: int) -> int:
    # Lines of a message that has several are indented; a break elsewhere is part of a name.
    shown = "\n".join(map(terminal.printable, re.split(r"\n(?=  )", message)))
    print(f"mobilenet {verb}: {shown}", file=sys.stderr)
    return code


class _PrintableLog(logging.Formatter):
    """Messages in one line each; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = terminal.printable(record.message)
        return super().formatMessage(record)


def _configure_logging() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableLog("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("mobilenet").setLevel(logging.INFO)
    # Orbax and JAX narrate there; what goes wrong comes back as an exception.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Every retry of a download; the error after the last one says what happened.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def parse(
    verb: str, module: types.ModuleType, values: flags.FlagValues, argv: list[str]
) -> list[str] | None:
    """Parses flags; None after printing the help that `--help` or `-h` asked for.

    ~ at the start of any text is the home directory: after `--flag=` no shell replaces it, and no
    flag but those for paths has texts that start so.

    Returns:
      The arguments that are no flags.
    """
    if any(arg in ("--help", "-h", "-help") for arg in argv):
        print(usage.text(verb, module, values, usage.width()))
        return None
    usage.take_numbers(values)
    rest = values(["mobilenet", *argv])[1:]
    for name in values:
        given: Any = values[name]
        if isinstance(given.value, str):
            given.value = os.path.expanduser(given.value)
    return [os.path.expanduser(each) for each in rest]


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Separates `--config.a.b=value` (or `--config.a.b value`) from the other arguments."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    position = 0
    while position < len(argv):
        arg = argv[position]
        position += 1
        name = arg.lstrip("-")
        if not (arg.startswith("-") and name.startswith("config.")):
            rest.append(arg)
            continue
        key, equals, value = name.removeprefix("config.").partition("=")
        if not equals:
            if position >= len(argv) or argv[position].startswith("--"):
                raise UsageError(f"{arg} has no value; write {arg}=VALUE.")
            value = argv[position]
            position += 1
        overrides[key] = value
    return rest, overrides


def flag(values: flags.FlagValues, name: str) -> Any:
    """The value of a flag."""
    return values[name].value


def require(values: flags.FlagValues, name: str, example: str) -> str:
    """The value of a flag that must be given."""
    value = flag(values, name)
    if not value:
        raise UsageError(f"--{name} is missing; for example --{name}={example}.")
    return value


def require_at_least(values: flags.FlagValues, **least: int) -> None:
    """Refuses numbers below their least: `require_at_least(values, jobs=1)`."""
    for name, bound in least.items():
        if flag(values, name) < bound:
            raise UsageError(f"--{name} is {flag(values, name)}; it must be {bound} or more.")


def refuse_arguments(rest: list[str]) -> None:
    """Refuses words that are no flags, for verbs that take none."""
    if rest:
        meant = (
            f"did you mean --{rest[0].lstrip('-')}?" if "=" in rest[0] else "flags start with --."
        )
        raise UsageError(f"{rest[0]!r} is not a flag; {meant}")


def define_checkpoint(values: flags.FlagValues) -> None:
    """The flags that name a run and one of its checkpoints."""
    flags.DEFINE_string("workdir", "", "the run directory", flag_values=values)
    flags.DEFINE_string(
        "checkpoint",
        "result",
        "result (which the test result is of), newest, best (in validation), or a step",
        flag_values=values,
    )


def run_config(
    workdir: Path,
    overrides: Mapping[str, str],
    *,
    verb: str,
    also: Sequence[str] = (),
    start: Config = None,
) -> Config:
    """The configuration of a run that a verb uses, with overrides of how that is carried out.

    Args:
      workdir: the run directory.
      overrides: of the command line; those of keys that change what the run computes are refused.
      verb: that takes them.
      also: keys besides config.RUNTIME_KEYS that the verb takes.
      start: what the overrides are applied to, different in these keys; None is the run's own.

    Raises:
      ConfigError: not a run directory, or an override that is refused.
    """
    config = rundir.read_config(workdir)
    changed = (config if start is None else start).copy_and_resolve_references()
    experiment.override(changed, overrides)
    refused = [key for key in config_lib.differences(config, changed) if key not in also]
    if refused:
        more = f", and of which images are seen: {', '.join(also)}" if also else ""
        raise ConfigError(
            f"{', '.join(refused)} would change what the run computes; {verb} takes overrides of "
            "how it is carried out, such as --config.data.data_dir or --config.eval.batch_size"
            f"{more}."
        )
    if overrides:
        config_lib.validate(changed)
    return changed


def train(values: flags.FlagValues, config: Config, workdir: Path) -> dict[str, Any] | None:
    """Trains a complete configuration, or finishes what is begun; its summary, on process 0."""
    rundir.inherit(config, workdir)
    config_lib.validate(config)
    apply_cpu_devices(values)

    from mobilenet.workflows.train import train

    runtime.prepare_compiler()
    with devices(values):
        return train(config, workdir, began=STARTED)


def describe_summary(summary: dict[str, Any], workdir: Path) -> str:
    """A finished run's result in a few lines."""
    from mobilenet.train.metrics import shows_top5

    steps = terminal.counted(summary["step"], "step")
    lines = [
        f"{summary['params']:,} parameters, {summary['macs'] / 1e6:.1f} M MACs, "
        f"{steps} in {summary['wall_seconds']:.0f} s on {summary['device']}"
    ]
    for split in ("validation", "test"):
        if split in summary:
            scores = summary[split]
            top5 = f", top-5 {100 * scores['top5']:.2f} %"
            if not shows_top5(summary.get("num_classes", 1000)):
                top5 = ""
            lines.append(
                f"{split}: top-1 {100 * scores['top1']:.2f} %{top5}, "
                f"loss {scores['loss']:.4f} over {terminal.counted(scores['examples'], 'image')}"
            )
    if summary.get("unreadable"):
        images = terminal.counted(len(summary["unreadable"]), "training image")
        lines.append(f"unreadable and replaced: {images}")
    lines.append(f"run directory: {workdir}")
    return "\n".join(lines)


@contextlib.contextmanager
def devices(values: flags.FlagValues) -> Iterator[None]:
    """Starts `jax.distributed` when `--num_processes`, if a verb has it, asks for it; ends it."""
    import jax

    processes = flag(values, "num_processes") if "num_processes" in values else 1
    if processes == 1:
        runtime.require_backend()
        yield
        return
    coordinator = require(values, "coordinator", "127.0.0.1:9876")
    process = flag(values, "process_id")
    if not 0 <= process < processes:
        raise UsageError(
            f"--process_id is {process}; with --num_processes={processes} it must be 0 to "
            f"{processes - 1}."
        )
    jax.distributed.initialize(coordinator, processes, process)
    try:
        yield
    finally:
        jax.distributed.shutdown()


def define_threads(values: flags.FlagValues) -> None:
    """The flag for the threads of a run or a sweep that begins."""
    flags.DEFINE_integer(
        "threads",
        0,
        "threads of XLA on CPU, kept until the run or the sweep ends; 0 is the machine's cores",
        flag_values=values,
    )


def take_threads(values: flags.FlagValues) -> None:
    """Has XLA compute with the threads of the run or sweep that the flags name, if it has begun.

    A run that is made from another one (`--to`) takes those of its source.

    Raises:
      UsageError: `--threads` asks for others than those of the directory.
    """
    asked = flag(values, "threads") if "threads" in values else 0
    if asked < 0:
        raise UsageError(
            f"--threads is {asked}; it must be 1 or more, or 0 for the machine's cores."
        )
    scale = flag(values, "scale") if "scale" in values else ""  # each has a sweep of its own
    named = [flag(values, name) for name in ("to", "workdir") if name in values]
    directories = [Path(name) / scale for name in named if name]
    begun = [rundir.threads(directory) for directory in directories]
    if asked and begun and begun[0] and asked != begun[0]:
        raise UsageError(
            f"--threads is {asked}, but {directories[0]} was begun with {begun[0]}; other threads "
            "round differently. Leave --threads out, or give another directory."
        )
    runtime.use_threads(next(filter(None, [begun[0] if begun else None, asked, *begun]), None))


def define_devices(values: flags.FlagValues) -> None:
    """Flags of a run over several processes."""
    define_threads(values)
    flags.DEFINE_integer(
        "num_processes", 1, "processes of the run, on one machine or several", flag_values=values
    )
    flags.DEFINE_integer("process_id", 0, "which of them this is, from 0", flag_values=values)
    flags.DEFINE_string("coordinator", "", "where process 0 listens", flag_values=values)
    flags.DEFINE_integer(
        "cpu_devices",
        0,
        "devices that the CPU is split into; 0 is JAX's choice",
        flag_values=values,
    )


def apply_cpu_devices(values: flags.FlagValues) -> None:
    """Sets the number of CPU devices; must run before JAX's backend starts."""
    count = flag(values, "cpu_devices") if "cpu_devices" in values else 0
    if count < 0:
        raise UsageError(f"--cpu_devices is {count}; it must be 0 or more.")
    if count:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(count)
