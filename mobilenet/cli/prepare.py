r"""Gets a data set ready for random access, without TensorFlow.

    mobilenet prepare --dataset=cifar10 --data_dir=~/tensorflow_datasets
    mobilenet prepare --from_tfrecord=~/tensorflow_datasets/cifar10/3.0.2 --data_dir=data

The second form converts a copy that TFDS prepared as TFRecord. The records stay the same bytes.
"""

from pathlib import Path

from absl import flags

from mobilenet.cli import common


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string(
        "dataset", "", "name of a TFDS data set, to download and prepare", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir",
        "",
        "directory that receives NAME/VERSION (needed with --from_tfrecord)",
        flag_values=values,
    )
    flags.DEFINE_string(
        "from_tfrecord",
        "",
        "NAME/VERSION directory of a TFRecord copy, to convert",
        flag_values=values,
    )


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    if rest or overrides:
        raise common.UsageError("prepare takes flags alone; `mobilenet prepare --help` lists them.")
    dataset, source = common.flag(values, "dataset"), common.flag(values, "from_tfrecord")
    if bool(dataset) == bool(source):
        raise common.UsageError(
            "Give either --dataset=NAME or --from_tfrecord=DIRECTORY, for example "
            "--dataset=cifar10."
        )
    from mobilenet.data import datasets, tfrecord

    if dataset:
        try:
            path = datasets.prepare(dataset, common.flag(values, "data_dir"))
        except datasets.DownloadError as error:
            raise common.Failure(str(error)) from error
        print(f"{dataset} is ready in {path}")
        return 0
    origin = Path(source).expanduser()
    root = Path(common.require(values, "data_dir", "data")).expanduser()
    target = root / tfrecord.dataset_subdirectory(origin)
    done = tfrecord.convert_tfrecord(origin, target)
    shown = ", ".join(f"{split} {count:,}" for split, count in done["splits"].items())
    print(f"converted {shown} records to {target}; use --config.data.data_dir={root}")
    return 0
