r"""Reads weight files of other projects into run directories, and writes runs to weight files.

    mobilenet convert --from=keras model.weights.h5 --to=runs/keras_1.0
    mobilenet convert --from=tflite model.tflite --to=runs/int8 --labels=labels.txt
    mobilenet convert --workdir=runs/c10 --to=c10.safetensors
    mobilenet convert --workdir=runs/c10 --to=c10.pth      # with torchvision's names

--from is keras (.weights.h5, .h5, .keras), tfjs (model.json), torchvision, timm, huggingface (.pth,
.bin, .safetensors), tflite, or safetensors (written by this verb). Width, padding, BN epsilon,
classes and preprocessing come with the weights. What a file does not say is assumed, and printed;
--labels and --config.KEY=VALUE set it, or correct what the file says. No code of a file is run.
"""

from pathlib import Path

from absl import flags

from mobilenet import config as config_lib
from mobilenet import experiment
from mobilenet.cli import common, following, usage
from mobilenet.terminal import counted, printable

REQUIRED = ("to",)
ARGUMENTS = "[FILE]"
OVERRIDES = "with --from: set what the file does not say, or says wrong"
PLACEHOLDERS = {"from": "FORMAT", "to": "DIR_OR_FILE", "names": "PROJECT"}


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string("from", "", "format of the weight file to read", flag_values=values)
    flags.DEFINE_string(
        "to", "", "the run directory to make, or the file to write", flag_values=values
    )
    flags.DEFINE_string(
        "labels",
        "",
        "with --from: file with the names of the outputs, one per line",
        flag_values=values,
    )
    flags.DEFINE_string(
        "names",
        "",
        "whose names the tensors in the file get: mobilenet or torchvision; without it, as the "
        "ending of the file says",
        flag_values=values,
    )
    common.define_checkpoint(values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    target = Path(common.require(values, "to", "runs/keras_1.0"))
    file_format, workdir = common.flag(values, "from"), common.flag(values, "workdir")
    if bool(file_format) == bool(workdir):
        raise common.UsageError(
            "Give either --from=FORMAT and a file, to make a run directory, or --workdir=RUN, to "
            "write its weights; for example --from=keras model.weights.h5 --to=runs/keras_1.0."
        )
    from mobilenet.models.pretrained.weights import PretrainedError

    try:
        if workdir:
            return _write(values, Path(workdir), target, overrides, rest)
        return _read(values, file_format, target, overrides, rest)
    except PretrainedError as error:
        raise common.UsageError(str(error)) from error


def _read(
    values: flags.FlagValues,
    file_format: str,
    target: Path,
    overrides: dict[str, str],
    rest: list[str],
) -> int:
    if len(rest) != 1:
        raise common.UsageError(
            f"{counted(len(rest), 'file')} given; write mobilenet convert --from={file_format} "
            f"FILE --to={target}."
        )
    for name in ("names", "checkpoint"):
        if values[name].present:
            raise common.UsageError(f"--{name} goes with --workdir; drop it.")
    base = config_lib.get_config()
    changes = {key: experiment.convert(base, key, text) for key, text in overrides.items()}
    labels = _read_labels(common.flag(values, "labels"))

    from mobilenet import conversion
    from mobilenet.models import pretrained

    weights = pretrained.read(file_format, Path(rest[0]))
    config = conversion.write_run(weights, target, labels=labels, overrides=changes)
    model, data = config.model, config.data
    outputs = counted(model.num_classes, "output") if model.num_classes else "no classifier"
    print(
        f"{target}: MobileNetV2 {model.width_multiplier:g}, {outputs}, {data.image_size} pixels, "
        f"padding {model.padding}, BN epsilon {model.bn_epsilon:g}, images {data.normalization}"
    )
    for note in (*weights.notes, *conversion.assumptions(weights, labels, changes)):
        print(printable(usage.as_flags(note)))
    commands = [
        following.command("predict", "photo.jpg", workdir=target),
        following.fine_tune(target),
    ]
    print(following.lines(*commands[0 if model.num_classes else 1 :]))
    return 0


def _read_labels(path: str) -> list[str] | None:
    if not path:
        return None
    try:
        # Editors of Windows write a mark before the first name.
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise common.UsageError(f"--labels={path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise common.UsageError(
            f"--labels={path} is not text in UTF-8; save it as UTF-8, one name a line."
        ) from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def _write(
    values: flags.FlagValues,
    workdir: Path,
    target: Path,
    overrides: dict[str, str],
    rest: list[str],
) -> int:
    common.refuse_arguments(rest)
    if overrides or common.flag(values, "labels"):
        raise common.UsageError(
            "--config and --labels go with --from; a run has its own configuration and names."
        )

    from mobilenet import conversion

    by_ending = "torchvision" if target.suffix == ".pth" else "mobilenet"
    names = common.flag(values, "names") or by_ending
    weights = conversion.read_run(workdir, common.flag(values, "checkpoint"))
    notes = conversion.write_file(weights, target, names)
    print(f"{target}: {weights.source}, with {names}'s names")
    for note in notes:
        print(printable(note))
    return 0
