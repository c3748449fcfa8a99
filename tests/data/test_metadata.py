"""Directories of strangers: what their metadata may name, and what it may not."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mobilenet.data import metadata
from mobilenet.data.datasets import DatasetError, open_dataset, prepare
from mobilenet.data.tfrecord import convert_tfrecord, dataset_subdirectory

LABEL = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"


@pytest.fixture
def copy(tmp_path, digits_dir) -> Path:
    """A prepared data set under a name that needs no preparation here."""
    target = tmp_path / "data" / "copied" / "1.0.0"
    shutil.copytree(digits_dir / "digits" / "1.0.0", target)
    return target


def _edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | values))


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module in the current folder; it leaves a file when it is imported."""
    folder = tmp_path / "trap"
    folder.mkdir()
    (folder / "stranger.py").write_text(
        f"from pathlib import Path\nPath({str(folder / 'sprung')!r}).touch()\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder / "sprung"
    sys.modules.pop("stranger", None)


def _in_a_feature(folder: Path, name: str) -> None:
    content = json.loads((folder / "features.json").read_text())
    content["featuresDict"]["features"]["label"]["pythonClassName"] = name
    (folder / "features.json").write_text(json.dumps(content))


def _by_another_spelling(folder: Path, name: str) -> None:
    content = json.loads((folder / "features.json").read_text())
    del content["featuresDict"]["features"]["label"]["pythonClassName"]
    content["featuresDict"]["features"]["label"]["python_class_name"] = name
    (folder / "features.json").write_text(json.dumps(content))


def _at_the_top(folder: Path, name: str) -> None:
    _edit(folder / "features.json", pythonClassName=name)


def _in_the_old_form(folder: Path, name: str) -> None:
    dictionary = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    content = {"type": dictionary, "content": {"x": {"type": name, "content": {}}}}
    (folder / "features.json").write_text(json.dumps(content))


def _in_a_text_of_json(folder: Path, name: str) -> None:
    content = json.loads((folder / "features.json").read_text())
    hidden = json.dumps({"feature": {"type": name, "content": {}}, "length": None})
    content["featuresDict"]["features"]["label"] = {
        "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
        "jsonFeature": {"json": " " + hidden},
    }
    (folder / "features.json").write_text(json.dumps(content))


def _in_the_other_file(folder: Path, name: str) -> None:
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["pythonClassName"] = name
    _edit(folder / "dataset_info.json", features=features)


PLACES = [
    _in_a_feature, _by_another_spelling, _at_the_top, _in_the_old_form, _in_a_text_of_json,
    _in_the_other_file,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__.strip("_"))
def test_features_of_others_are_not_imported(copy, trap, place):
    place(copy, "stranger.Feature")
    data_dir = copy.parents[1]
    with pytest.raises(DatasetError, match=r"names the feature class 'stranger\.Feature'"):
        open_dataset("copied", data_dir=data_dir)
    with pytest.raises(DatasetError, match=r"names the feature class 'stranger\.Feature'"):
        prepare("copied", data_dir)
    _edit(copy / "dataset_info.json", fileFormat="tfrecord")
    with pytest.raises(DatasetError, match=r"names the feature class 'stranger\.Feature'"):
        convert_tfrecord(copy, data_dir / "new" / "1.0.0")
    assert "stranger" not in sys.modules and not trap.exists()
    assert not (data_dir / "new").exists()


def test_modules_of_tfds_that_are_no_features_are_refused(copy):
    for name in ("tensorflow_datasets.testing.TestCase", "os.path", f"{LABEL}.x", "ClassLabel"):
        _in_a_feature(copy, name)
        with pytest.raises(DatasetError, match="which is not one of TFDS's own"):
            open_dataset("copied", data_dir=copy.parents[1])


def test_tfds_own_features_are_opened(copy, cifar_dir):
    assert open_dataset("copied", data_dir=copy.parents[1]).num_classes == 10
    metadata.read(cifar_dir / "cifar10" / "3.0.2")


def test_every_feature_class_of_tfds_is_known():
    from tensorflow_datasets.core.features.feature import FeatureConnector

    registered = {name for name in FeatureConnector._registered_features if "Digits" not in name}
    own = "tensorflow_datasets.core.features."
    needed = {name for name in registered if name.startswith(own) and "top_level" not in name}
    assert needed <= metadata._own_classes()


OUTSIDE = ["../../out", "/tmp/out", "a/b", "..", ".", "a\\b", "C:x", ".hidden", "a\nb", "a\0b", 7]


@pytest.fixture
def stranger(tmp_path, copy) -> Path:
    """A TFRecord data set; that its shards are missing shows only after the names."""
    _edit(copy / "dataset_info.json", fileFormat="tfrecord")
    return copy


@pytest.mark.parametrize("value", OUTSIDE)
@pytest.mark.parametrize("key", ["name", "configName", "version"])
def test_names_that_lead_elsewhere_are_refused(stranger, tmp_path, key, value):
    before = sorted(tmp_path.rglob("*"))
    _edit(stranger / "dataset_info.json", **{key: value})
    expected = "is not a plain name|a version is three numbers"
    with pytest.raises(DatasetError, match=expected):
        dataset_subdirectory(stranger)
    with pytest.raises(DatasetError, match=expected):
        convert_tfrecord(stranger, tmp_path / "new" / "1.0.0")
    assert sorted(tmp_path.rglob("*")) == before


TEMPLATES = [
    "../{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "/tmp/{SPLIT}.{FILEFORMAT}", "a/{FILEFORMAT}",
    "{FILEFORMAT}\\x", "{HOME}.{FILEFORMAT}", "{SPLIT:>999999999}", "{SPLIT.__class__}",
    "{}", "{{SPLIT}}", ".{FILEFORMAT}", 5,
]  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_that_lead_elsewhere_are_refused(copy, tmp_path, template):
    before = sorted(tmp_path.rglob("*"))
    info = json.loads((copy / "dataset_info.json").read_text())
    info["splits"][0]["filepathTemplate"] = template
    (copy / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match="it must be a plain file name"):
        open_dataset("copied", data_dir=copy.parents[1])
    _edit(copy / "dataset_info.json", fileFormat="tfrecord")
    with pytest.raises(DatasetError, match="it must be a plain file name"):
        convert_tfrecord(copy, tmp_path / "new" / "1.0.0")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".x", None])
def test_splits_that_lead_elsewhere_are_refused(stranger, tmp_path, name):
    info = json.loads((stranger / "dataset_info.json").read_text())
    info["splits"][0]["name"] = name
    (stranger / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match="gives the split .*, which is not a plain name"):
        convert_tfrecord(stranger, tmp_path / "new" / "1.0.0")


def _damage(folder: Path, name: str, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "7", b"\xff\xfe", "[" * 100_000])
def test_metadata_that_is_no_json_object(copy, name, content):
    _damage(copy, name, content)
    with pytest.raises(DatasetError, match=rf"{name} cannot be used, it is not"):
        open_dataset("copied", data_dir=copy.parents[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"splits": 3}, "splits are not a list"),
        ({"splits": [3]}, "splits are not a list"),
        ({"splits": [{"name": "a", "shardLengths": ["x"]}]}, "shardLengths of 'a' are not numbers"),
        (
            {"splits": [{"name": "a", "shardLengths": [None]}]},
            "shardLengths of 'a' are not numbers",
        ),
        ({"splits": [{"name": "a", "shardLengths": [-1]}]}, "fewer than 0 records"),
        ({"name": ""}, "it gives no name"),
        ({"version": None}, "it gives no version"),
    ],
)
def test_metadata_of_another_shape(stranger, tmp_path, values, message):
    _edit(stranger / "dataset_info.json", **values)
    with pytest.raises(DatasetError, match=message):
        convert_tfrecord(stranger, tmp_path / "new" / "1.0.0")


def test_nothing_is_overwritten(stranger, tmp_path):
    for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to(tmp_path / "nowhere")):
        target = tmp_path / f"target{len(list(tmp_path.iterdir()))}"
        make(target)
        with pytest.raises(DatasetError, match="exists and is not overwritten"):
            convert_tfrecord(stranger, target)
    (tmp_path / "file").touch()
    info = json.loads((stranger / "dataset_info.json").read_text())
    _edit(stranger / "dataset_info.json", splits=[])
    with pytest.raises(DatasetError, match="cannot be written"):
        convert_tfrecord(stranger, tmp_path / "file" / "1.0.0")
    for split in info["splits"]:  # two shards of one name
        split["filepathTemplate"] = "{DATASET}.{FILEFORMAT}"
    _edit(stranger / "dataset_info.json", splits=info["splits"])
    (stranger / f"{info['name']}.tfrecord").touch()
    with pytest.raises(DatasetError, match="gives two shards the same name"):
        convert_tfrecord(stranger, tmp_path / "new" / "1.0.0")
    assert not (tmp_path / "new").exists()
