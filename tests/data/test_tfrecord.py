import json
import shutil
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from mobilenet.data import datasets, tfrecord
from mobilenet.data.datasets import DatasetError, open_dataset
from mobilenet.data.tfrecord import convert_tfrecord


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _frame(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + _masked(length) + record + _masked(record)


def _records(source: Path, split: str, count: int) -> list[bytes]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with ArrayRecordDataSource([str(p) for p in sorted(source.glob(f"*{split}*"))]) as data:
        return list(data[i] for i in range(count))


def _as_tfrecord(source: Path, target: Path, counts: dict[str, list[int]]) -> None:
    """Writes the first records of an ArrayRecord data set as TFRecord shards of given sizes."""
    target.mkdir(parents=True)
    info = json.loads((source / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        lengths = counts[split["name"]]
        records = iter(_records(source, split["name"], sum(lengths)))
        split["shardLengths"] = [str(length) for length in lengths]
        for shard, length in enumerate(lengths):
            name = f"{info['name']}-{split['name']}.tfrecord-{shard:05d}-of-{len(lengths):05d}"
            (target / name).write_bytes(b"".join(_frame(next(records)) for _ in range(length)))
    (target / "dataset_info.json").write_text(json.dumps(info))
    for path in [source / "features.json", *source.glob("*.txt")]:
        shutil.copy(path, target)


@pytest.fixture
def small(tmp_path, digits_dir) -> Path:
    """The first digits as a TFRecord data set: 5 + 4 for training, 3 for testing."""
    target = tmp_path / "old" / "digits" / "1.0.0"
    _as_tfrecord(digits_dir / "digits" / "1.0.0", target, {"train": [5, 4], "test": [3]})
    return target


def test_known_checksum():
    # RFC 3720, B.4: CRC-32C of 32 zero bytes is 0x8a9136aa.
    assert google_crc32c.value(bytes(32)) == 0x8A9136AA
    assert tfrecord.masked_crc32c(bytes(32)) == struct.unpack("<I", _masked(bytes(32)))[0]
    # The first 12 bytes of any TFRecord whose first record has 3 bytes, as TensorFlow writes them.
    assert (
        struct.pack("<QI", 3, tfrecord.masked_crc32c(struct.pack("<Q", 3))) == _frame(b"abc")[:12]
    )


def test_convert_small(small, tmp_path, digits_dir):
    target = tmp_path / "new" / tfrecord.dataset_subdirectory(small)
    report = convert_tfrecord(small, target)
    assert report["splits"] == {"train": 9, "test": 3} and report["name"] == "digits"
    assert report["target"] == str(target) and report["version"] == "1.0.0"
    assert sorted(p.name for p in target.iterdir()) == [
        "dataset_info.json",
        "digits-test.array_record-00000-of-00001",
        "digits-train.array_record-00000-of-00002",
        "digits-train.array_record-00001-of-00002",
        "features.json",
    ]
    assert [p.name for p in target.parent.iterdir()] == ["1.0.0"]  # no temporary folder is left
    original = digits_dir / "digits" / "1.0.0"
    assert _records(target, "train", 9) == _records(original, "train", 9)
    assert report["num_bytes"] == sum(
        map(len, _records(original, "train", 9) + _records(original, "test", 3))
    )
    # A renamed copy is opened as plain TFDS data, so that nothing is prepared unseen.
    (tmp_path / "new" / "digits").rename(tmp_path / "new" / "converted")
    read = open_dataset("converted", data_dir=tmp_path / "new", validation_fraction=0.0).splits
    whole = open_dataset("digits", data_dir=digits_dir, validation_fraction=0.0).splits
    assert [read["train"].read(i) for i in range(9)] == [whole["train"].read(i) for i in range(9)]
    assert [read["test"].read(i) for i in range(3)] == [whole["test"].read(i) for i in range(3)]


def test_convert_real_cifar10(cifar_dir, tmp_path):
    source = tmp_path / "old" / "cifar10" / "3.0.2"
    _as_tfrecord(cifar_dir / "cifar10" / "3.0.2", source, {"train": [150, 150], "test": [100]})
    with pytest.raises(DatasetError, match=rf"prepare --from_tfrecord={source} --data_dir=NEW_DIR"):
        open_dataset("cifar10", data_dir=tmp_path / "old")
    convert_tfrecord(source, tmp_path / "new" / "cifar10" / "3.0.2")
    got = open_dataset("cifar10", data_dir=tmp_path / "new", validation_fraction=0.0)
    want = open_dataset("cifar10", data_dir=cifar_dir, validation_fraction=0.0)
    assert got.class_names == want.class_names
    indices = range(300)
    assert datasets.read_many(got.splits["train"], indices) == datasets.read_many(
        want.splits["train"], indices
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:20] + b"\xff" + data[21:], "data has a wrong checksum.* at byte 0 of"),
        (lambda data: b"\xff" + data[1:], "length has a wrong checksum in the record at byte 0"),
        (lambda data: data[:-3], "the file ends in the record at byte [1-9]"),
        (lambda data: data + b"\x01\x02", "the file ends inside the header"),
    ],
)
def test_damaged_files(small, tmp_path, damage, message):
    path = small / "digits-train.tfrecord-00001-of-00002"
    path.write_bytes(damage(path.read_bytes()))
    target = tmp_path / "new" / "digits" / "1.0.0"
    with pytest.raises(tfrecord.CorruptRecord, match=rf"{path} is corrupt: .*{message}"):
        convert_tfrecord(small, target)
    assert list(target.parent.iterdir()) == []


def test_refusals(small, tmp_path, digits_dir):
    with pytest.raises(DatasetError, match="exists and is not overwritten"):
        convert_tfrecord(small, tmp_path)
    with pytest.raises(
        DatasetError, match="is stored as array_record; only tfrecord can be converted"
    ):
        convert_tfrecord(digits_dir / "digits" / "1.0.0", tmp_path / "x")
    with pytest.raises(DatasetError, match="holds no dataset_info.json and features.json"):
        convert_tfrecord(tmp_path, tmp_path / "x")
    test_shard = small / "digits-test.tfrecord-00000-of-00001"
    test_shard.write_bytes(_frame(b"one record"))
    with pytest.raises(DatasetError, match="holds 1 records, but dataset_info.json says 3"):
        convert_tfrecord(small, tmp_path / "x")
    test_shard.unlink()
    with pytest.raises(DatasetError, match="lacks the shard digits-test.tfrecord-00000-of-00001"):
        convert_tfrecord(small, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_records_are_any_bytes(tmp_path):
    path = tmp_path / "file"
    records = [b"", b"\0" * 5, np.arange(256, dtype=np.uint8).tobytes() * 40]
    path.write_bytes(b"".join(map(_frame, records)))
    assert list(tfrecord.read_tfrecord(path)) == records
