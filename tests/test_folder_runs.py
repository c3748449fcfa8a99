"""Runs on folders of images: what is trained on, matched by name, calibrated with, or refused."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import tiny

from mobilenet import build, transfer
from mobilenet.data.datasets import DatasetError
from mobilenet.data.memory import UnreadableExample
from mobilenet.train import loop

Folder = Callable[[dict[str, int]], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes grey images: path of a folder below the data -> how many."""

    def write(counts: dict[str, int]) -> Path:
        for level, (name, count) in enumerate(counts.items()):
            (tmp_path / "data" / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((8, 8), 40 * level + index, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
        return tmp_path / "data"

    return write


def on_folder(root: Path, **overrides: Any) -> Any:
    return tiny(
        data__name="folder", data__data_dir=str(root), data__train_examples=0,
        train__global_batch_size=2, augment__mixup_alpha=0.0, **overrides,
    )  # fmt: skip


def damage(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"no image")


def test_one_class_is_refused(folder: Folder, tmp_path: Path):
    root = folder({"photos": 6})
    with pytest.raises(DatasetError, match="has one class, 'photos'.*needs two or more"):
        build.build(on_folder(root), tmp_path / "run")
    for outputs in (1, 5):
        with pytest.raises(DatasetError, match="has one class, 'photos'"):
            build.build(on_folder(root, model__num_classes=outputs), tmp_path / "run")
    assert not (tmp_path / "run" / "data.json").exists()


@pytest.mark.parametrize("normalization", ["dataset", "symmetric"])
def test_a_folder_without_a_train_part_is_not_trained_on(
    normalization: str, folder: Folder, tmp_path: Path
):
    root = folder({"test/a": 3, "test/b": 3})
    config = on_folder(root, data__normalization=normalization)
    with pytest.raises(DatasetError, match="has no training examples.*data.train_split"):
        build.build(config, tmp_path / "run")
    config = on_folder(root / "test", data__test_fraction=1.0, data__normalization=normalization)
    with pytest.raises(DatasetError, match="lower data.test_fraction"):
        build.build(config, tmp_path / "run")


def test_what_is_left_out_of_a_folder_is_a_fact_of_the_run(folder: Folder, tmp_path: Path):
    root = folder({"a": 6, "b": 6})
    (root / "b" / "9.heic").write_bytes(b"")
    parts = build.build(on_folder(root), tmp_path)
    assert parts.facts[0]["left_out"] == {".heic": 1}


def test_class_names_are_the_same_in_any_unicode_form(folder: Folder, tmp_path: Path):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    assert transfer.match_classes([decomposed, "tea"], ["tea", composed]) == [1, 0]
    assert transfer.match_classes([composed], [decomposed]) == [0]
    assert transfer.match_classes(["the", decomposed], ["the"]) == decomposed
    root = folder({composed: 6, "tea": 6})
    build.build_data(on_folder(root), tmp_path)
    (root / composed).rename(root / decomposed)
    assert build.build_data(on_folder(root), tmp_path).class_names == (composed, "tea")
    # The names of a run that was made on macOS, by a version that kept their form.
    text = (tmp_path / "data.json").read_text()
    (tmp_path / "data.json").write_text(text.replace("caf\\u00e9", "cafe\\u0301"))
    data = build.build_data(on_folder(root), tmp_path)
    assert data.class_names == (composed, "tea") and data.classes is None


@pytest.mark.parametrize("in_memory", ["always", "never"])
def test_a_train_part_without_a_readable_image(in_memory: str, folder: Folder, tmp_path: Path):
    damage(folder({"a": 6, "b": 6}))
    config = on_folder(tmp_path / "data", data__in_memory=in_memory, data__on_error="skip")
    with pytest.raises(UnreadableExample, match="at least 1 readable image.*data.normalization"):
        build.build_data(config)
    config.data.normalization = "symmetric"
    data = build.build_data(config)
    with pytest.raises(UnreadableExample, match="no example can be read; the first is .*png"):
        next(iter(data.train_batches(0, 1)))


def test_a_test_part_without_a_readable_image(folder: Folder, tmp_path: Path):
    root = folder({"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2})
    damage(root / "test")
    data = build.build_data(on_folder(root, data__on_error="skip"))
    rows = {"label": np.zeros(2), "mask": np.zeros(2)}
    message = r"No image of the split 'test' can be read; the first is .*/test/.*png: no known"
    with pytest.raises(loop.EmptySplitError, match=message):
        loop.evaluate(lambda *_: rows, data.eval_batches, {}, "test", 2, data.splits)


def test_calibration_takes_all_images_below_a_folder(folder: Folder, tmp_path: Path):
    root = folder({"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2})
    loose = tmp_path / "loose"
    (loose / "below").mkdir(parents=True)
    for index, path in enumerate(("1.png", "2.png", "below/3.png")):
        Image.fromarray(np.full((8, 8), 10 * index, np.uint8)).save(loose / path)
    config = on_folder(root)
    assert len(np.concatenate(list(build.build_data(config).calibration_batches(512)))) == 6
    config.quantize.calibration_dir = str(loose)
    found = np.concatenate(list(build.build_data(config).calibration_batches(512)))
    assert found[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert len(np.concatenate(list(build.build_data(config).calibration_batches(2)))) == 2
    config.quantize.calibration_dir = str(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="quantize.calibration_dir=.*nothing is not a folder"):
        next(build.build_data(config).calibration_batches(512))
