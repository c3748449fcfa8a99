import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilenet import config as config_lib
from mobilenet.data import datasets, images, listing
from mobilenet.data.datasets import DatasetError, labels_of, names_of, open_dataset, open_images


def test_folder_with_train_and_test(picture_folder):
    root = picture_folder("data/train", {"b": 4, "a": 3}).parent
    picture_folder("data/test", {"b": 2}, suffix="PNG")
    (root / "train" / "a" / ".hidden.png").write_bytes(b"")
    (root / "train" / "a" / "notes.txt").write_text("no image")
    (root / "train" / ".cache").mkdir()
    dataset = open_dataset("folder", data_dir=root, validation_fraction=0.0)
    assert dataset.class_names == ("a", "b") and dataset.image_shape is None
    train = dataset.splits["train"]
    assert sorted(labels_of(train).tolist()) == [0, 0, 0, 1, 1, 1, 1]
    for i in range(len(train)):
        data, label = train.read(i)
        path = Path(train.describe(i))
        assert path.read_bytes() == data and path.parent.name == "ab"[label]
    # Class b is label 1 in test as well, although test has no class a.
    assert labels_of(dataset.splits["test"]).tolist() == [1, 1]
    # The order mixes the classes, and another look gives the same.
    assert labels_of(train).tolist() != sorted(labels_of(train).tolist())
    again = open_dataset("folder", data_dir=root, validation_fraction=0.0).splits["train"]
    assert [again.describe(i) for i in range(7)] == [train.describe(i) for i in range(7)]


@pytest.mark.parametrize("name", ["validation", "val"])
def test_folder_with_validation(picture_folder, name):
    root = picture_folder("data/train", {"a": 5}).parent
    picture_folder("data/test", {"a": 1})
    picture_folder(f"data/{name}", {"a": 2})
    splits = open_dataset("folder", data_dir=root).splits
    assert {k: len(v) for k, v in splits.items()} == {"train": 5, "validation": 2, "test": 1}
    # Used as the test part, it cannot validate as well: that part is carved from train.
    splits = open_dataset(
        "folder", data_dir=root, test_split="validation", validation_fraction=0.2
    ).splits
    assert {k: len(v) for k, v in splits.items()} == {"train": 4, "validation": 1, "test": 2}


def test_single_folder_is_split_per_class(picture_folder):
    root = picture_folder("data", {"a": 10, "b": 5})
    splits = open_dataset("folder", data_dir=root, validation_fraction=0.0).splits
    test = sorted(Path(splits["test"].describe(i)) for i in range(len(splits["test"])))
    names = [f"{p.parent.name}/{p.name}" for p in test]
    assert names == ["a/004.png", "a/009.png", "b/004.png"]
    assert len(splits["train"]) == 12


def test_real_flowers(flowers_dir):
    dataset = open_dataset("folder", data_dir=flowers_dir)
    assert dataset.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert {k: len(v) for k, v in dataset.splits.items()} == {
        "train": 810,
        "validation": 90,
        "test": 225,
    }
    assert np.bincount(labels_of(dataset.splits["validation"])).min() >= 10


def test_bad_folders(picture_folder, tmp_path):
    with pytest.raises(DatasetError, match="'folder' needs a folder of images"):
        open_dataset("folder")
    with pytest.raises(DatasetError, match="is not a folder; name one that exists"):
        open_dataset("folder", data_dir=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no class folders"):
        open_dataset("folder", data_dir=tmp_path / "empty")

    root = picture_folder("data/train", {"a": 3}).parent
    with pytest.raises(DatasetError, match="has no split 'test'; it has train.*data.test_split"):
        open_dataset("folder", data_dir=root)
    picture_folder("data/test", {"a": 1, "zebra": 1})
    with pytest.raises(
        DatasetError, match="class 'zebra' in its test part, but the train part does not"
    ):
        open_dataset("folder", data_dir=root)
    (root / "train" / "nothing").mkdir()
    with pytest.raises(DatasetError, match="class folder .*nothing holds no images"):
        open_dataset("folder", data_dir=root)

    flat = picture_folder("flat", {"a": 3})
    with pytest.raises(DatasetError, match="test_fraction=0.1 leaves no test image"):
        open_dataset("folder", data_dir=flat, test_fraction=0.1)
    with pytest.raises(DatasetError, match="A single folder of classes has only train and test"):
        open_dataset("folder", data_dir=flat, test_split="validation")


def parts_of(root: Path, **settings) -> dict[str, list[str]]:
    splits = open_dataset("folder", data_dir=root, **settings).splits
    return {role: sorted(names_of(part)) for role, part in splits.items()}


def test_the_order_of_examples_is_kept(picture_folder):
    # A run whose examples came in another order would go on to train on its validation examples.
    root = picture_folder("data", {"a": 4, "b": 3})
    settings = {"data_dir": root, "test_fraction": 0.3}
    splits = open_dataset("folder", **settings, validation_fraction=0.0).splits
    order = ["a/001.png", "b/002.png", "b/000.png", "a/002.png", "a/000.png", "b/001.png"]
    assert list(names_of(splits["train"])) == order
    assert list(names_of(splits["test"])) == ["a/003.png"]
    carved = open_dataset("folder", **settings, validation_fraction=0.4).splits["validation"]
    assert list(names_of(carved)) == [order[2], order[4]]


# ------------------------------------------------------------------------------ names of the parts


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("Training", "", "Test"),
        ("TRAIN", "Validation", "TEST"),
        ("train", "valid", "testing"),
        ("train", "dev", "test"),
        ("training_set", "val_set", "test_set"),
        ("Train-Set", "Valid", "Test Set"),
    ],
)
def test_usual_names_of_parts(picture_folder, train, validation, test):
    root = picture_folder(f"data/{train}", {"a": 5, "b": 5}).parent
    picture_folder(f"data/{test}", {"a": 1, "b": 2})
    if validation:
        picture_folder(f"data/{validation}", {"a": 2, "b": 2})
    sizes = {role: len(names) for role, names in parts_of(root, validation_fraction=0.2).items()}
    expected = {"train": 10, "validation": 4} if validation else {"train": 8, "validation": 2}
    assert sizes == {**expected, "test": 3}


def test_names_of_parts_that_are_given(picture_folder):
    root = picture_folder("data/one", {"a": 5, "b": 5}).parent
    picture_folder("data/two", {"a": 1, "b": 2})
    given = {"train_split": "One", "test_split": "two", "validation_fraction": 0.0}
    assert {role: len(names) for role, names in parts_of(root, **given).items()} == {
        "train": 10,
        "validation": 0,
        "test": 3,
    }
    message = "has no split 'tow'; it has one, two. Name the folder of the test part with data.test"
    with pytest.raises(DatasetError, match=message):
        open_dataset("folder", data_dir=root, train_split="one", test_split="tow")
    with pytest.raises(
        DatasetError, match="train_split='one', test_split='ONE' name the same folder"
    ):
        open_dataset("folder", data_dir=root, train_split="one", test_split="ONE")


def test_two_folders_that_may_be_the_test_part(picture_folder):
    root = picture_folder("data/train", {"a": 5, "b": 5}).parent
    picture_folder("data/test_set", {"a": 1, "b": 2})
    picture_folder("data/testing", {"a": 1, "b": 1})
    message = (
        "has test_set and testing, and both may be its test part; name one with data.test_split"
    )
    with pytest.raises(DatasetError, match=message):
        open_dataset("folder", data_dir=root)
    assert len(parts_of(root, test_split="testing")["test"]) == 2


def test_train_and_validation_without_test(picture_folder):
    root = picture_folder("data/train", {"a": 5, "b": 5}).parent
    picture_folder("data/valid", {"a": 1, "b": 2})
    with pytest.raises(
        DatasetError, match="has no split 'test'.*data.test_split='valid' uses that part"
    ):
        open_dataset("folder", data_dir=root)
    sizes = {role: len(names) for role, names in parts_of(root, test_split="valid").items()}
    assert sizes == {"train": 9, "validation": 1, "test": 3}


def test_train_alone(picture_folder):
    root = picture_folder("data/train", {"a": 5, "b": 5}).parent
    with pytest.raises(
        DatasetError, match=f"set data.data_dir='{root}/train' to take data.test_fr"
    ):
        open_dataset("folder", data_dir=root)
    assert len(parts_of(root / "train")["test"]) == 2


@pytest.mark.parametrize("name", ["test", "Test"])
def test_a_test_part_alone_can_be_evaluated_and_not_trained(picture_folder, name):
    root = picture_folder(f"data/{name}", {"a": 1, "b": 2}).parent
    dataset = open_dataset("folder", data_dir=root)
    assert dataset.class_names == ("a", "b")
    sizes = {role: len(part) for role, part in dataset.splits.items()}
    assert sizes == {"train": 0, "validation": 0, "test": 3}
    with pytest.raises(DatasetError, match="no training examples; name its train part with data"):
        datasets.require_trainable(dataset, str(root))


def test_classes_that_are_called_like_parts(picture_folder):
    # Vehicles, and a check of documents: these hold images, next to other classes.
    assert open_dataset(
        "folder", data_dir=picture_folder("vehicles", {"bus": 5, "train": 5})
    ).class_names == ("bus", "train")
    assert open_dataset(
        "folder", data_dir=picture_folder("papers", {"invalid": 5, "valid": 5})
    ).class_names == ("invalid", "valid")


def test_parts_without_class_folders(picture_folder):
    root = picture_folder("data", {"train": 5, "Test": 5})
    message = "has Test, train, which look like parts of a data set but hold no class folders"
    with pytest.raises(DatasetError, match=message):
        open_dataset("folder", data_dir=root)


def test_parts_under_other_names_are_no_classes(picture_folder):
    root = picture_folder("data/seg_train/inner", {"a": 5, "b": 5}).parents[1]
    picture_folder("data/seg_test/inner", {"a": 5, "b": 5})
    picture_folder("data", {"seg_pred": 5})
    with pytest.raises(
        DatasetError, match="seg_test, seg_train, which look like parts.*train_spli"
    ):
        open_dataset("folder", data_dir=root)
    root = picture_folder("stations", {"train station": 5, "test site": 5})
    assert open_dataset("folder", data_dir=root).num_classes == 2


# ------------------------------------------------------------------------------------------- files


def test_every_format_that_pillow_decodes_is_read(encode):
    known = Image.registered_extensions()
    decoded = {ending[1:] for ending, kind in known.items() if kind in Image.OPEN} | {"mpo"}
    unfit = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
    assert listing.EXTENSIONS == decoded - {e[1:] for e, kind in known.items() if kind in unfit}
    written = {known[f".{ending}"] for ending in listing.EXTENSIONS} & set(Image.SAVE)
    written -= {"IM"}  # Pillow warns that it will be dropped
    pixels = np.full((16, 16, 3), 200, np.uint8)
    for kind in sorted(written):
        mode = {"MSP": "1", "XBM": "1", "BLP": "P"}.get(kind, "RGB")
        data = encode(Image.fromarray(pixels).convert(mode), kind)
        assert images.decode_image(data, 3).ndim == 3, kind


def test_images_with_other_endings_and_below_class_folders(picture_folder, caplog):
    root = picture_folder("data", {"a": 6, "b": 6})
    for old, new in (("0.png", "0.jfif"), ("1.png", "1.JPE"), ("2.png", "2.AVIF")):
        (root / "a" / f"00{old}").rename(root / "a" / f"00{new}")
    for below in ("day 1", "day 2/camera"):
        (root / "b" / below).mkdir(parents=True)
    (root / "b" / "003.png").rename(root / "b" / "day 1" / "003.png")
    (root / "b" / "004.png").rename(root / "b" / "day 2/camera" / "004.png")
    parts = parts_of(root, validation_fraction=0.0, test_fraction=0.5)
    assert sorted(parts["train"] + parts["test"]) == [
        "a/000.jfif", "a/001.JPE", "a/002.AVIF", "a/003.png", "a/004.png", "a/005.png",
        "b/000.png", "b/001.png", "b/002.png", "b/005.png",
        "b/day 1/003.png", "b/day 2/camera/004.png",
    ]  # fmt: skip
    assert not caplog.records


def test_files_that_are_left_out_are_counted(picture_folder, caplog):
    root = picture_folder("data", {"a": 6, "b": 6})
    for name in ("b/notes.txt", "b/label.txt", "a/IMG_1", "a/.hidden.png", "a/7.heic", "loose.jpg"):
        (root / name).write_text("")
    for name in ("a/.DS_Store", "a/Thumbs.db", "a/._001.png", "README.md"):  # no examples of anyone
        (root / name).write_text("")
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "a" / "round.png").symlink_to("round.png")
    for name in ("__MACOSX/a", ".ipynb_checkpoints", "a/.ipynb_checkpoints"):
        (root / name).mkdir(parents=True)
        shutil.copy(root / "a" / "001.png", root / name / "001.png")
    dataset = open_dataset("folder", data_dir=root)
    assert sum(len(part) for part in dataset.splits.values()) == 12
    assert dataset.left_out == {
        ".txt": 2,
        ".heic": 1,
        "without an ending": 1,
        "hidden": 1,
        "not files, or links to nothing": 2,
        "outside of the class folders": 1,
    }
    assert "files left out: 8 (1 .heic, 2 .txt, 1 hidden, 2 not files" in caplog.text


def test_a_class_folder_of_other_files(picture_folder):
    root = picture_folder("data", {"a": 2, "b": 2})
    for file in (root / "b").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(
        DatasetError, match=r"class folder .*b holds no images \(2 .heic\); add some"
    ):
        open_dataset("folder", data_dir=root, test_fraction=0.5)


def test_folders_next_to_the_parts_are_told(picture_folder, caplog):
    root = picture_folder("data/train", {"a": 5, "b": 5}).parent
    picture_folder("data/test", {"a": 1, "b": 2})
    picture_folder("data/unlabelled", {"x": 2})
    open_dataset("folder", data_dir=root)
    assert "unlabelled: not a part of the data set" in caplog.text


def test_file_names_that_are_not_utf_8(picture_folder):
    root = picture_folder("data", {"a": 5, "b": 5})
    os.rename(root / "a" / "001.png", os.fsencode(root / "a") + b"/caf\xe9.png")
    splits = open_dataset("folder", data_dir=root, validation_fraction=0.0).splits
    names = [name for part in splits.values() for name in names_of(part)]
    assert b"a/caf\xe9.png" in [os.fsencode(name) for name in names] and len(names) == 10
    for part in splits.values():
        assert all(images.decode_image(part.read(i)[0]).shape for i in range(len(part)))
    os.rename(root / "b", os.fsencode(root) + b"/th\xe9")
    with pytest.raises(DatasetError, match=r"th\\xe9' has a name that is not UTF-8; rename it"):
        open_dataset("folder", data_dir=root)


def test_small_classes_without_a_test_image(picture_folder, caplog):
    root = picture_folder("data", {"large": 20, "small": 3, "tiny": 1})
    open_dataset("folder", data_dir=root, validation_fraction=0.0)
    assert "The test part has no image of 2 of 3 classes (small, tiny)" in caplog.text
    caplog.clear()
    open_dataset("folder", data_dir=root, validation_fraction=0.0, test_fraction=1)
    assert not caplog.records


# ------------------------------------------------------------------------------- Unicode and links


def test_class_names_in_other_unicode_forms(picture_folder):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    root = picture_folder("data/train", {composed: 3, "tea": 3}).parent
    picture_folder("data/test", {decomposed: 2, "tea": 1})
    dataset = open_dataset("folder", data_dir=root)
    assert dataset.class_names == (composed, "tea")
    assert sorted(labels_of(dataset.splits["test"]).tolist()) == [0, 0, 1]
    assert all(dataset.splits["test"].read(i)[0] for i in range(3))
    picture_folder("data/train/" + decomposed, {"more": 1})
    with pytest.raises(
        DatasetError, match="two class folders with the name .*different Unicode forms"
    ):
        open_dataset("folder", data_dir=root)


def test_parts_and_classes_that_are_links_to_each_other(picture_folder):
    root = picture_folder("data/train", {"a": 3, "b": 3}).parent
    (root / "test").symlink_to("train")
    with pytest.raises(
        DatasetError, match="train_split='train', test_split='test' name the same folder"
    ):
        open_dataset("folder", data_dir=root)
    (root / "test").unlink()
    picture_folder("data/test", {"b": 2})
    (root / "test" / "a").symlink_to("../train/a")
    with pytest.raises(DatasetError, match="test/a and .*train/a both contain the images of"):
        open_dataset("folder", data_dir=root)
    (root / "test" / "a").unlink()
    (root / "test" / "b" / "again.png").symlink_to(root / "train" / "b" / "001.png")
    with pytest.raises(DatasetError, match="train/b/001.png of the train part and .*again.png of"):
        open_dataset("folder", data_dir=root)


def test_links_that_lead_back_are_followed_once(picture_folder):
    root = picture_folder("data", {"a": 4, "b": 4})
    (root / "a" / "again").symlink_to(".")
    parts = parts_of(root, test_fraction=0.5, validation_fraction=0.0)
    assert len(parts["train"] + parts["test"]) == 8


# ------------------------------------------------------------------------------------ directories


def make_run(directory: Path) -> Path:
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "config.json").write_text(config_lib.to_json(config_lib.get_config()))
    Image.new("RGB", (4, 4)).save(directory / "curves.png")
    return directory


def test_directories_of_runs_are_no_classes(picture_folder, caplog):
    root = picture_folder("data", {"a": 5, "b": 5})
    make_run(root / "run")
    make_run(root / "runs" / "first")
    make_run(root / "a" / "run")
    point = make_run(root / "sweep" / "points" / "0123")
    (point / "point.json").write_text("{}")
    Image.new("RGB", (4, 4)).save(root / "sweep" / "comparison.png")
    dataset = open_dataset("folder", data_dir=root)
    assert dataset.class_names == ("a", "b")
    assert sum(len(part) for part in dataset.splits.values()) == 10
    assert "skipped the run directories" in caplog.text
    # A file of that name alone makes no run: classes are not skipped because of it.
    (root / "b" / "config.json").write_text('{"camera": "left"}')
    assert open_dataset("folder", data_dir=root).class_names == ("a", "b")
    with pytest.raises(
        DatasetError, match="is the directory of a run or a sweep. Name the folder of the "
    ):
        open_dataset("folder", data_dir=make_run(picture_folder("both", {"a": 5, "b": 5})))


def test_a_folder_of_images_of_any_kind(picture_folder, tmp_path):
    root = picture_folder("data/train", {"a": 2, "b": 1}).parent
    shutil.copy(root / "train" / "a" / "000.png", root / "loose.png")
    make_run(root / "run")
    source = open_images(str(root), "quantize.calibration_dir")
    assert list(source.paths) == [
        "loose.png",
        "train/a/000.png",
        "train/a/001.png",
        "train/b/000.png",
    ]
    assert source.labels == (0, 0, 0, 0)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    with pytest.raises(DatasetError, match=r"calibration_dir=.*texts holds no images \(1 .txt\)"):
        open_images(str(tmp_path / "texts"), "quantize.calibration_dir")
    with pytest.raises(DatasetError, match="quantize.calibration_dir=nowhere is not a folder"):
        open_images("nowhere", "quantize.calibration_dir")


def test_one_class_is_not_trained(picture_folder):
    root = picture_folder("data/photos", {"red": 3, "green": 3}).parent
    dataset = open_dataset("folder", data_dir=root)
    message = "has one class, 'photos', with examples such as .*data/photos/.*; training needs two"
    with pytest.raises(DatasetError, match=message):
        datasets.require_trainable(dataset, str(root))
