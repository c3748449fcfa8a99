"""Converts prepared TFDS directories from TFRecord to ArrayRecord, without TensorFlow or Beam.

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
from typing import Any, NamedTuple

from mobilenet.data import metadata
from mobilenet.data.datasets import DatasetError

_MASK_DELTA = 0xA282EAD8  # tensorflow/tsl/lib/hash/crc32c.h


class CorruptRecord(DatasetError):
    """A damaged TFRecord file; the message names the file and the byte offset."""


def masked_crc32c(data: bytes) -> int:
    """CRC-32C of data, rotated and shifted as TFRecord stores it; 0 .. 2**32 - 1."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def read_tfrecord(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yields the records of one TFRecord file after a check of their checksums.

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
    info = metadata.read(source)
    found = info.get("fileFormat") or "tfrecord"
    if found != "tfrecord":
        raise DatasetError(
            f"{source} is stored as {found}; only tfrecord can be converted, "
            "and array_record can be opened without conversion."
        )
    return info


def dataset_subdirectory(source_dir: str | os.PathLike[str]) -> str:
    """The path of the data set in `source_dir` below a data_dir: name[/config]/version.

    Raises:
      DatasetError: as `metadata.read`; so the names never lead out of the data_dir.
    """
    source = Path(source_dir)
    return metadata.subdirectory(_read_info(source), source)


class _Shard(NamedTuple):
    old: str  # file names
    new: str
    records: int


def _shards(source: Path, dataset: str, split: dict[str, Any]) -> list[_Shard]:
    """The files of a split; also writes its filepathTemplate, which the copy needs."""
    lengths = metadata.shard_lengths(split)
    template = split.get("filepathTemplate") or metadata.DEFAULT_TEMPLATE
    old = _shard_names(template, dataset, split["name"], "tfrecord", len(lengths))
    new = _shard_names(template, dataset, split["name"], "array_record", len(lengths))
    if old == new:  # the template contains the name of the format
        template = metadata.DEFAULT_TEMPLATE
        new = _shard_names(template, dataset, split["name"], "array_record", len(lengths))
    for name in old:
        if not (source / name).is_file():
            raise DatasetError(
                f"{source} lacks the shard {name}, which its dataset_info.json lists; "
                "copy or prepare the data set again."
            )
    split["filepathTemplate"] = template
    return [_Shard(*shard) for shard in zip(old, new, lengths, strict=True)]


def _copy_shard(source: Path, target: Path, expected: int) -> int:
    """Writes a TFRecord file as ArrayRecord; returns the bytes of its records."""
    from array_record.python.array_record_module import ArrayRecordWriter

    # One record per group is best for random access; TFDS writes the same.
    writer = ArrayRecordWriter(str(target), "group_size:1")
    count = num_bytes = 0
    try:
        for record in read_tfrecord(source):
            writer.write(record)
            count += 1
            num_bytes += len(record)
    finally:
        writer.close()
    if count != expected:
        raise DatasetError(
            f"{source} holds {count} records, but dataset_info.json says {expected}; "
            "copy or prepare the data set again."
        )
    return num_bytes


def convert_tfrecord(
    source_dir: str | os.PathLike[str], target_dir: str | os.PathLike[str]
) -> dict[str, Any]:
    """Writes an ArrayRecord copy of a prepared TFDS data set.

    Records are copied byte for byte and shards keep their numbers, so indices and sub-splits select
    the same examples. The target directory appears only when the copy is complete.

    Args:
      source_dir: the version directory, with dataset_info.json, features.json and the shards.
      target_dir: the version directory to create, such as DATA_DIR/cifar10/3.0.2 (see
        `dataset_subdirectory`); it must not exist.

    Returns:
      name, version, target (the directory), splits (records per split), num_bytes (of the records).

    Raises:
      CorruptRecord: a shard is damaged or truncated.
      DatasetError: not a TFRecord data set, missing shards, record counts that differ from
        dataset_info.json, metadata that `metadata.read` refuses, or a target that exists or cannot
        be written.
    """
    source, target = Path(source_dir), Path(target_dir)
    info = _read_info(source)
    metadata.subdirectory(info, source)  # raises if there is no name or no version
    if os.path.lexists(target):
        raise DatasetError(f"{target} exists and is not overwritten; remove it or name another.")
    listed = info.get("splits", [])
    splits = {split["name"]: _shards(source, info["name"], split) for split in listed}
    shards = [shard for shards in splits.values() for shard in shards]
    written = {shard.new for shard in shards}
    if len(written) < len(shards) or len(splits) < len(listed):
        raise DatasetError(
            f"{source} gives two shards the same name, by the filepathTemplate or the splits of "
            "its dataset_info.json; copy or prepare the data set again."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise DatasetError(f"{target} cannot be written ({error}); name another place.") from error
    try:
        num_bytes = sum(
            _copy_shard(source / shard.old, temporary / shard.new, shard.records)
            for shard in shards
        )
        kept = written | {shard.old for shard in shards}
        for path in source.iterdir():
            if path.is_file() and path.name not in kept:
                shutil.copyfile(path, temporary / path.name)
        info["fileFormat"] = "array_record"
        info.pop("alternativeFileFormats", None)
        (temporary / "dataset_info.json").write_text(json.dumps(info, indent=1) + "\n")
        temporary.chmod(0o755)  # mkdtemp makes it private, but users share data sets
        try:
            temporary.rename(target)
        except OSError as error:
            raise DatasetError(
                f"{target} was created while the copy was made; remove one of the two."
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {
        "name": info["name"],
        "version": info["version"],
        "target": str(target),
        "splits": {name: sum(s.records for s in shards) for name, shards in splits.items()},
        "num_bytes": num_bytes,
    }
