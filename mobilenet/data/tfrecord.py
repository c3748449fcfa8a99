"""Prepared TFDS directories from TFRecord to ArrayRecord, without TensorFlow or Beam.

The records of the two formats are the same bytes; only the framing differs. A TFRecord file is a
sequence of: length (uint64, little endian), masked CRC-32C of the length, data, masked CRC-32C of
the data (tensorflow/core/lib/io/record_writer.h).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilenet.data.datasets import DatasetError

_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_MASK_DELTA = 0xA282EAD8  # tensorflow/tsl/lib/hash/crc32c.h


class CorruptRecord(DatasetError):
    """A TFRecord file that is damaged; the message names the file and the byte offset."""


def masked_crc32c(data: bytes) -> int:
    """CRC-32C of data, rotated and shifted as TFRecord stores it; 0 .. 2**32 - 1."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def read_tfrecord(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yields the records of one TFRecord file, each checked.

    Raises:
      CorruptRecord: a checksum differs or the file ends inside a record.
    """
    size = os.path.getsize(path)
    offset = 0

    def corrupt(what: str) -> CorruptRecord:
        return CorruptRecord(
            f"{os.fspath(path)} is corrupt: {what} in the record at byte {offset} of {size}; "
            "copy or prepare this file again."
        )

    with open(path, "rb") as file:
        while header := file.read(12):
            if len(header) < 12:
                raise corrupt("the file ends inside the header")
            length, length_crc = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != length_crc:
                raise corrupt("the length has a wrong checksum")
            if offset + 12 + length + 4 > size:
                raise corrupt("the file ends")
            data = file.read(length)
            (data_crc,) = struct.unpack("<I", file.read(4))
            if masked_crc32c(data) != data_crc:
                raise corrupt("the data has a wrong checksum")
            yield data
            offset += 12 + length + 4


def _shard_names(template: str, dataset: str, split: str, suffix: str, shards: int) -> list[str]:
    """File names of a split from TFDS's template (tensorflow_datasets/core/naming.py)."""
    names = []
    for shard in range(shards):
        fields = {
            "DATASET": dataset,
            "SPLIT": split,
            "FILEFORMAT": suffix,
            "SHARD_INDEX": f"{shard:05d}",
            "NUM_SHARDS": f"{shards:05d}",
            "SHARD_X_OF_Y": f"{shard:05d}-of-{shards:05d}",
        }
        names.append(re.sub(r"\{(\w+)\}", lambda match, f=fields: f[match[1]], template))
    return names


def _read_info(source: Path) -> dict[str, Any]:
    path = source / "dataset_info.json"
    if not path.is_file() or not (source / "features.json").is_file():
        raise DatasetError(
            f"{source} holds no dataset_info.json and features.json; "
            "name the version directory of a prepared TFDS data set, as DIR/cifar10/3.0.2."
        )
    info = json.loads(path.read_text())
    found = info.get("fileFormat") or "tfrecord"
    if found != "tfrecord":
        raise DatasetError(
            f"{source} is stored as {found}; only tfrecord is converted, "
            "and array_record can be opened as it is."
        )
    return info


def dataset_subdirectory(source_dir: str | os.PathLike[str]) -> str:
    """Where the data set of `source_dir` belongs below a data_dir: name[/config]/version."""
    info = _read_info(Path(source_dir))
    parts = [info["name"], info.get("configName", ""), info["version"]]
    return "/".join(part for part in parts if part)


def convert_tfrecord(
    source_dir: str | os.PathLike[str], target_dir: str | os.PathLike[str]
) -> dict[str, Any]:
    """Writes an ArrayRecord copy of a prepared TFDS data set.

    Records are copied byte for byte and shards keep their numbers, so indices and sub-splits select
    the same examples. The copy appears under its name only when it is complete.

    Args:
      source_dir: the version directory, with dataset_info.json, features.json and the shards.
      target_dir: the version directory to create, as DATA_DIR/cifar10/3.0.2 (see
        `dataset_subdirectory`); it must not exist.

    Returns:
      name, version, target (the directory), splits (records per split), num_bytes (of the records).

    Raises:
      CorruptRecord: a damaged or shortened shard.
      DatasetError: not a TFRecord data set, missing shards, record counts that differ from
        dataset_info.json, or a target that exists.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    source, target = Path(source_dir), Path(target_dir)
    info = _read_info(source)
    if target.exists():
        raise DatasetError(f"{target} exists and is never overwritten; remove it or name another.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    counts: dict[str, int] = {}
    num_bytes = 0
    try:
        shard_files = set()
        for split in info.get("splits", []):
            lengths = [int(length) for length in split.get("shardLengths", [])]
            template = split.get("filepathTemplate") or _DEFAULT_TEMPLATE
            names = [
                _shard_names(template, info["name"], split["name"], suffix, len(lengths))
                for suffix in ("tfrecord", "array_record")
            ]
            if names[0] == names[1]:  # a template that spells the format out
                template = _DEFAULT_TEMPLATE
                names[1] = _shard_names(
                    template, info["name"], split["name"], "array_record", len(lengths)
                )
            for old, new, expected in zip(*names, lengths, strict=True):
                shard_files.add(old)
                if not (source / old).is_file():
                    raise DatasetError(
                        f"{source} lacks the shard {old} that its dataset_info.json lists; "
                        "copy or prepare the data set again."
                    )
                # One record a group is what random access wants, and what TFDS writes.
                writer = ArrayRecordWriter(str(temporary / new), "group_size:1")
                count = 0
                try:
                    for record in read_tfrecord(source / old):
                        writer.write(record)
                        count += 1
                        num_bytes += len(record)
                finally:
                    writer.close()
                if count != expected:
                    raise DatasetError(
                        f"{source / old} holds {count} records where dataset_info.json says "
                        f"{expected}; copy or prepare the data set again."
                    )
            counts[split["name"]] = sum(lengths)
            split["filepathTemplate"] = template
        for path in source.iterdir():
            if path.is_file() and path.name not in shard_files:
                shutil.copyfile(path, temporary / path.name)
        info["fileFormat"] = "array_record"
        info.pop("alternativeFileFormats", None)
        (temporary / "dataset_info.json").write_text(json.dumps(info, indent=1) + "\n")
        temporary.chmod(0o755)  # mkdtemp makes it private; a data set is shared between users
        try:
            temporary.rename(target)
        except OSError as error:
            raise DatasetError(
                f"{target} appeared while the copy was made; remove one of the two."
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {
        "name": info["name"],
        "version": info["version"],
        "target": str(target),
        "splits": counts,
        "num_bytes": num_bytes,
    }
