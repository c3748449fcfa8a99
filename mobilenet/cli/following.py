"""The next command, said where a verb ends: one that can be pasted.

next: mobilenet evaluate --workdir=runs/digits --split=test
  or: mobilenet predict --workdir=runs/digits photo.jpg
"""

import contextlib
import shlex
import shutil
import sys
from pathlib import Path

from mobilenet import experiment, rundir
from mobilenet.cli import columns
from mobilenet.config import Config, ConfigError

# Data set -> the experiment that trains on it; a folder's takes the place of the images as well.
EXPERIMENTS = {
    "digits": "experiments/baselines/digits.py",
    "cifar10": "experiments/baselines/cifar10.py",
    "folder": "experiments/transfer/finetune.py",
}


def command(verb: str, *words: object, **flags: object) -> list[str]:
    """The words of a command, quoted as a shell takes them.

    Args:
      verb: of `mobilenet`.
      words: arguments after the flags: paths, or overrides as in "--config.seed=1".
      flags: name -> value; "config__seed" is --config.seed, True is the flag alone.
    """
    parts = [_quoted(program()), verb]
    for name, value in flags.items():
        dotted = name.replace("__", ".")
        parts.append(f"--{dotted}" if value is True else f"--{dotted}={_quoted(str(value))}")
    return [*parts, *(_quoted(str(word)) for word in words)]


def program() -> str:
    """How the program was called, where its name alone would not be found: .venv/bin/mobilenet."""
    called = sys.argv[0]
    if Path(called).name == "mobilenet" and shutil.which("mobilenet") is None:
        return called
    return "mobilenet"


def _quoted(text: str) -> str:
    """A word as a shell takes it, with the quotes that make it shortest to read."""
    if "'" in text and not set(text) & set('"$`\\!'):
        return f'"{text}"'
    return shlex.quote(text)


def lines(*commands: list[str]) -> str:
    """What to print: the next command, and others that may follow instead.

    A command that is wider than the terminal goes on after a backslash, between two words.
    """
    labels = ["next:", *["  or:"] * (len(commands) - 1)]
    return "\n".join(
        shown(each, first=f"{label} ") for label, each in zip(labels, commands, strict=True)
    )


def shown(words: list[str], *, first: str = "", indent: int = 6) -> str:
    """A command in lines of the terminal's width: `first`, then its words."""
    room, found, line = columns.width(), [], first + words[0]
    for place, word in enumerate(words[1:], 2):
        mark = 0 if place == len(words) else len(" \\")
        if len(line) + 1 + len(word) + mark > room:
            found.append(f"{line} \\")
            line = " " * indent + word
        else:
            line = f"{line} {word}"
    return "\n".join([*found, line])


def trained(workdir: Path, config: Config, splits: tuple[str, ...]) -> str:
    """What follows a run that is done: evaluate it, classify images with it.

    Args:
      workdir: the run directory.
      config: of the run.
      splits: that have examples.
    """
    split = next((name for name in ("test", "validation") if name in splits), "train")
    images = config.data.data_dir if config.data.name == "folder" else "photo.jpg"
    return lines(
        command("evaluate", workdir=workdir, split=split),
        command("predict", images, workdir=workdir),
    )


def fine_tune(workdir: Path) -> list[str]:
    """The command that trains the weights of a run directory on a folder of images."""
    target = workdir.with_name(f"{workdir.name}_finetuned")
    return command(
        "train",
        config=EXPERIMENTS["folder"],
        workdir=target,
        config__pretrained=workdir,
        config__data__data_dir="IMAGES",
    )


def train_on(workdir: Path, config: Config, target: Path) -> list[str]:
    """The command that trains the network of a run directory further.

    Args:
      workdir: of the network.
      config: of the run, for its data.
      target: the run directory of the training.
    """
    name = config.data.name
    data = {"config__data__data_dir": config.data.data_dir} if name == "folder" else {}
    file = _experiment(workdir, name)
    return command("train", config=file, workdir=target, config__pretrained=workdir, **data)


def _is_small(workdir: Path, smoke: Config) -> bool:
    """Whether the network of a run is as small as that of a smoke form."""
    model = rundir.read_config(workdir).model
    return all(model[key] == smoke.model[key] for key in ("blocks", "width_multiplier"))


def _experiment(workdir: Path, data_name: str) -> str:
    """An experiment that trains on a data set and takes the weights; "FILE.py" if none does."""
    known = EXPERIMENTS.get(data_name)
    for file in (known, f"{known}:smoke") if known else ():
        with contextlib.suppress(ConfigError):
            config = experiment.load_config(file, {"pretrained": str(workdir)})
            if file.endswith(":smoke") and not _is_small(workdir, config):
                continue  # a smoke form takes any weights, and trains two steps
            rundir.inherit(config, workdir / "none")  # a ConfigError where the network is another
            return file
    return "FILE.py"
