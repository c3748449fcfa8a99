import json
import multiprocessing
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mobilenet.data import datasets, images
from mobilenet.data.datasets import DatasetError, Source, labels_of, open_dataset

# ------------------------------------------------------------------------------------------ digits


def test_digits_are_scikit_learns(digits_dir):
    from sklearn.datasets import load_digits

    dataset = open_dataset("digits", data_dir=digits_dir, validation_fraction=0.0)
    assert dataset.num_classes == 10 and dataset.class_names == tuple("0123456789")
    assert dataset.image_shape == (8, 8, 1)
    sizes = {name: len(source) for name, source in dataset.splits.items()}
    assert sizes == {"train": 1437, "validation": 0, "test": 360}

    pixels, labels = load_digits(return_X_y=True)
    scaled = np.round(pixels * 255 / 16).astype(np.uint8)
    for split, chosen in (("test", np.arange(1797) % 5 == 0), ("train", np.arange(1797) % 5 != 0)):
        source = dataset.splits[split]
        assert isinstance(source, Source)
        examples = datasets.read_many(source, range(len(source)))
        read = {(images.decode_image(data, 1).tobytes(), label) for data, label in examples}
        assert read == {
            (p.astype(np.uint8).tobytes(), int(y))
            for p, y in zip(scaled[chosen], labels[chosen], strict=True)
        }
    assert dataset.splits["test"].describe(17) == "digits/test record 17"
    assert isinstance(dataset.splits["test"].read(0)[0], bytes)


def _prepare_digits(folder: str) -> str:
    return str(datasets.prepare("digits", folder))


def test_digits_prepared_by_several_processes_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        targets = pool.map(_prepare_digits, [str(tmp_path)] * 2, chunksize=1)
    assert set(targets) == {str(tmp_path / "digits" / "1.0.0")}
    # Nothing half-made is left over.
    assert [p.name for p in (tmp_path / "digits").iterdir()] == ["1.0.0"]
    assert len(open_dataset("digits", data_dir=tmp_path).splits["test"]) == 360


def test_digits_in_the_cache_folder(digits_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert datasets.cache_dir() == tmp_path / "mobilenet" / "tfds"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", "/home/someone")
    assert datasets.cache_dir() == Path("/home/someone/.cache/mobilenet/tfds")


def test_digits_without_a_writable_folder(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")  # a file where a folder is needed; root may write anywhere
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        DatasetError, match="name a writable folder with data.data_dir=DIR, or set XDG_CACHE"
    ):
        open_dataset("digits")


def test_importing_is_cheap_and_never_needs_tensorflow(digits_dir):
    code = (
        "import sys; import mobilenet.data.datasets as d, mobilenet.data.pipeline, "
        "mobilenet.data.images, mobilenet.data.tfrecord\n"
        "heavy = {'tensorflow_datasets', 'tensorflow', 'jax', 'grain', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "d.open_dataset('digits', data_dir=sys.argv[1]).splits['train'].read(0)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, digits_dir], check=True)


# ------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [
        (10, 0.1, [9]),
        (10, 0.3, [3, 6, 9]),
        (7, 0.5, [1, 3, 5]),
        (5, 0.0, []),
        (3, 0.1, []),
    ],
)
def test_evenly_spaced(count, fraction, expected):
    assert np.flatnonzero(datasets.evenly_spaced(count, fraction)).tolist() == expected


def test_evenly_spaced_counts_decimal_fractions():
    # 100 * 0.29 is 28.999999999999996 in binary.
    assert datasets.evenly_spaced(100, 0.29).sum() == 29
    assert datasets.evenly_spaced(1_281_167, 0.01).sum() == 12_811
    assert datasets.evenly_spaced(9, 1 / 3).sum() == 2 + 1


def test_validation_is_carved_and_train_limited_after(digits_dir):
    whole = open_dataset("digits", data_dir=digits_dir, validation_fraction=0.0).splits["train"]
    parts = open_dataset("digits", data_dir=digits_dir, train_examples=20).splits
    labels = labels_of(whole)
    held_out = datasets.evenly_spaced(1437, 0.1)
    np.testing.assert_array_equal(labels_of(parts["validation"]), labels[held_out])
    np.testing.assert_array_equal(labels_of(parts["train"]), labels[~held_out][:20])
    assert parts["validation"].read(3) == whole.read(int(np.flatnonzero(held_out)[3]))
    assert parts["validation"].describe(0) == "digits/train record 9"


def test_parts_of_splits(digits_dir):
    parts = open_dataset(
        "digits", data_dir=digits_dir, train_split="train[:50%]", validation_split="train[50%:]"
    ).splits
    whole = open_dataset("digits", data_dir=digits_dir, validation_fraction=0.0).splits["train"]
    assert len(parts["train"]) + len(parts["validation"]) == 1437
    assert parts["validation"].read(0) == whole.read(len(parts["train"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": 1.0}, r"validation_fraction=1.0 was given; use .* \[0, 1\)"),
        ({"train_examples": -1}, r"train_examples=-1 was given; use 0 \(all\) or more"),
        ({"train_examples": 5000}, "train_examples=5000 was given, but the train part .* has 1294"),
        ({"test_split": "train"}, "train_split='train', test_split='train' name the same split"),
        (
            {"validation_split": "val"},
            "dataset 'digits' has no split 'val'; it has .* with data.validation_split",
        ),
        (
            {"train_split": "train[:x]"},
            r"split 'train\[:x\]' of dataset 'digits' cannot be parsed",
        ),
        (
            {"train_split": "train[:0]"},
            r"split 'train\[:0\]' of dataset 'digits' cannot be parsed",
        ),
    ],
)
def test_bad_settings(digits_dir, settings, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset("digits", data_dir=digits_dir, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_split": "train[90%:]"}, "train_split='train', validation_split='train.90%:]"),
        ({"test_split": "train[:20%]"}, "train_split='train', test_split='train.:20%]' .* share"),
        (
            {"train_split": "train[:60%]", "validation_split": "train[1430:]+train[500:510]"},
            "validation_split='train.1430:]+train.500:510]' of dataset 'digits' share records",
        ),
        ({"train_split": "train+test"}, "train_split='train.test', test_split='test' .* share"),
        (
            {"train_split": "train[:50%]", "test_split": "test+test[5:6]"},
            "^test_split='test.test.5:6]' of dataset 'digits' names records twice",
        ),
    ],
)
def test_splits_that_share_records(digits_dir, settings, message):
    with pytest.raises(DatasetError, match=message.replace("[", "\\[").replace("+", "\\+")):
        open_dataset("digits", data_dir=digits_dir, **settings)


def test_splits_that_meet_without_sharing_records(digits_dir):
    parts = open_dataset(
        "digits",
        data_dir=digits_dir,
        train_split="train[100:200]+train[300:]",
        validation_split="train[:100]+train[200:300]",
        test_split="test[5:]",
    ).splits
    assert {role: len(part) for role, part in parts.items()} == {
        "train": 1237,
        "validation": 200,
        "test": 355,
    }


def test_names_of_records(digits_dir):
    parts = open_dataset("digits", data_dir=digits_dir).splits
    assert datasets.names_of(parts["test"])[:2] == [
        "digits/1.0.0/test record 0",
        "digits/1.0.0/test record 1",
    ]
    assert datasets.names_of(parts["validation"])[0] == "digits/1.0.0/train record 9"
    assert len(datasets.names_of(parts["train"])) == len(parts["train"])


# -------------------------------------------------------------------------------------------- TFDS


def test_real_cifar10(cifar_dir, monkeypatch):
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("opening a data set touched the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    dataset = open_dataset("cifar10", data_dir=cifar_dir)
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.class_names[:3] == ("airplane", "automobile", "bird")
    assert {k: len(v) for k, v in dataset.splits.items()} == {
        "train": 45_000,
        "validation": 5_000,
        "test": 10_000,
    }
    data, label = dataset.splits["train"].read(0)
    assert isinstance(data, bytes) and data.startswith(b"\xff\xd8") and label == 7
    assert images.decode_image(data, 3).shape == (32, 32, 3)
    assert np.bincount(labels_of(dataset.splits["test"])).tolist() == [1000] * 10
    assert dataset.splits["train"].describe(0) == "cifar10/train record 0"
    assert len(open_dataset("cifar10:3.0.2", data_dir=cifar_dir).splits["test"]) == 10_000


def test_a_dataset_that_is_not_there(tmp_path):
    message = (
        rf"'cifar100' is not prepared in {tmp_path}; prepare it with "
        rf"`mobilenet prepare --dataset=cifar100 --data_dir={tmp_path}`"
    )
    with pytest.raises(DatasetError, match=message):
        open_dataset("cifar100", data_dir=tmp_path)
    with pytest.raises(DatasetError, match="dataset name 'a b' was given; use 'digits', 'folder'"):
        open_dataset("a b")
    with pytest.raises(DatasetError, match="dataset name 'huggingface:mnist' was given"):
        datasets.prepare("huggingface:mnist", tmp_path)


def test_prepare_explains_unknown_names(tmp_path):
    with pytest.raises(DatasetError, match="TFDS has no dataset 'no_such_data'"):
        datasets.prepare("no_such_data", tmp_path)
    with pytest.raises(DatasetError, match="'folder' needs no preparation"):
        datasets.prepare("folder", tmp_path)


def _write_tfds(folder: Path, features, examples: dict[str, list[dict]], version: str = "1.0.0"):
    """A prepared data set whose only content is what the test says."""
    import tensorflow_datasets as tfds

    builder_class = type(
        folder.name.title().replace("_", ""),
        (tfds.core.GeneratorBasedBuilder,),
        {
            "__module__": __name__,
            "name": folder.name,
            "VERSION": tfds.core.Version(version),
            "_info": lambda self: tfds.core.DatasetInfo(builder=self, features=features),
            "_split_generators": lambda self, _: {
                split: self._generate_examples(rows) for split, rows in examples.items()
            },
            "_generate_examples": lambda self, rows: iter(enumerate(rows)),
        },
        skip_registration=True,
    )
    tfds.disable_progress_bar()
    builder_class(data_dir=str(folder.parent)).download_and_prepare(file_format="array_record")


def test_splits_without_labels_are_refused(tmp_path, encode):
    import io

    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=3)}
    )
    data = encode(np.zeros((4, 4, 3), np.uint8))
    labelled = [{"image": io.BytesIO(data), "label": i % 3} for i in range(4)]
    hidden = [{"image": io.BytesIO(data), "label": -1} for _ in range(4)]
    _write_tfds(tmp_path / "hidden_labels", features, {"train": labelled, "test": hidden})
    with pytest.raises(
        DatasetError, match="hidden_labels/test record 0 has label -1; a split with"
    ):
        open_dataset("hidden_labels", data_dir=tmp_path)


def test_other_kinds_of_data_are_refused(tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    )
    rows = [{"text": "a", "label": 0}]
    _write_tfds(tmp_path / "some_text", features, {"train": rows, "test": rows})
    with pytest.raises(
        DatasetError, match="not an image classification data set: its features are label: Class"
    ):
        open_dataset("some_text", data_dir=tmp_path)


def test_versions_and_configs(tmp_path, digits_dir):
    import shutil

    source = digits_dir / "digits" / "1.0.0"
    for version in ("1.9.0", "1.10.0"):
        target = tmp_path / "many" / version
        shutil.copytree(source, target)
        info = json.loads((target / "dataset_info.json").read_text())
        (target / "dataset_info.json").write_text(json.dumps({**info, "version": version}))
    assert datasets._find_prepared("many", tmp_path).name == "1.10.0"
    assert datasets._find_prepared("many:1.9.0", tmp_path).name == "1.9.0"
    assert len(open_dataset("many", data_dir=tmp_path).splits["test"]) == 360
    for config in ("small", "large"):
        shutil.copytree(source, tmp_path / "configured" / config / "1.0.0")
    with pytest.raises(
        DatasetError, match="several configs in .*: large, small; name one as 'conf"
    ):
        open_dataset("configured", data_dir=tmp_path)
    assert datasets._find_prepared("configured/small", tmp_path).parent.name == "small"


def test_missing_shards_and_other_formats(tmp_path, digits_dir):
    import shutil

    target = tmp_path / "digits" / "1.0.0"
    shutil.copytree(digits_dir / "digits" / "1.0.0", target)
    next(target.glob("*test*")).unlink()
    with pytest.raises(DatasetError, match="dataset 'digits' is incomplete, .*test.* is missing"):
        open_dataset("digits", data_dir=tmp_path)
    info = json.loads((target / "dataset_info.json").read_text())
    for file_format, message in (
        ("tfrecord", "convert it with `mobilenet prepare --from_tfrecord="),
        ("riegeli", "is stored as riegeli; prepare it as array_record"),
    ):
        (target / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": file_format}))
        with pytest.raises(DatasetError, match=message):
            open_dataset("digits", data_dir=tmp_path)
    for damage in ("", "[]", '{"name": '):
        (target / "dataset_info.json").write_text(damage)
        with pytest.raises(DatasetError, match="info.json cannot be used, .*; copy or prepare"):
            open_dataset("digits", data_dir=tmp_path)


def test_prepare_without_tensorflow_says_what_to_install(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class NeedsTensorFlow:
        data_dir = str(tmp_path / "x")

        def download_and_prepare(self, **_: object) -> None:
            raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "builder", lambda *a, **k: NeedsTensorFlow())
    with pytest.raises(DatasetError, match=r"`pip install -e '\.\[prepare\]'` in the checkout"):
        datasets.prepare("x", tmp_path)
