"""The next command, said where a verb ends: one that can be pasted.

next: mobilenet evaluate --workdir=runs/digits --split=test
  or: mobilenet predict --workdir=runs/digits photo.jpg
"""

import shlex
from pathlib import Path

from mobilenet.config import Config

# Data set -> the experiment that trains on it; a folder's takes the place of the images as well.
EXPERIMENTS = {
    "digits": "experiments/baselines/digits.py",
    "cifar10": "experiments/baselines/cifar10.py",
    "folder": "experiments/transfer/finetune.py",
}


def command(verb: str, *words: object, **flags: object) -> str:
    """A command as a shell takes it.

    Args:
      verb: of `mobilenet`.
      words: arguments after the flags: paths, or overrides as in "--config.seed=1".
      flags: name -> value; "config__seed" is --config.seed, True is the flag alone.
    """
    parts = ["mobilenet", verb]
    for name, value in flags.items():
        dotted = name.replace("__", ".")
        parts.append(f"--{dotted}" if value is True else f"--{dotted}={shlex.quote(str(value))}")
    return " ".join([*parts, *(shlex.quote(str(word)) for word in words)])


def lines(*commands: str) -> str:
    """The lines to print: the next command, and others that may follow instead."""
    labels = ["next:", *["  or:"] * (len(commands) - 1)]
    return "\n".join(f"{label} {each}" for label, each in zip(labels, commands, strict=True))


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


def fine_tune(workdir: Path) -> str:
    """The command that trains the weights of a run directory on a folder of images."""
    target = workdir.with_name(f"{workdir.name}_finetuned")
    return command(
        "train",
        config=EXPERIMENTS["folder"],
        workdir=target,
        config__pretrained=workdir,
        config__data__data_dir="IMAGES",
    )


def train_on(workdir: Path, config: Config, target: Path) -> str:
    """The command that trains the network of a run directory further.

    Args:
      workdir: of the network.
      config: of the run, for its data.
      target: the run directory of the training.
    """
    name = config.data.name
    data = {"config__data__data_dir": config.data.data_dir} if name == "folder" else {}
    file = EXPERIMENTS.get(name, "FILE.py")
    return command("train", config=file, workdir=target, config__pretrained=workdir, **data)
