"""What `mobilenet evaluate` prints, and the files that it writes for later analyses."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_weights import small_weights

from mobilenet import conversion, imagenet
from mobilenet.cli import columns, common, evaluate
from mobilenet.cli.main import main
from mobilenet.train import loop
from mobilenet.train.metrics import Evaluation


def evaluation(label: list[int], first: list[int], classes: int, **more) -> Evaluation:
    """One whose best class is `first`; the others follow in order."""
    rest = [[c for c in range(classes) if c != best] for best in first]
    top = np.array([[best, *others][:5] for best, others in zip(first, rest, strict=True)])
    logits = np.zeros((len(label), classes), np.float32)
    logits[np.arange(len(label)), first] = 2
    return Evaluation(
        index=np.arange(len(label)), label=np.array(label, np.int32),
        loss=np.zeros(len(label), np.float32), top=top.astype(np.int32), num_classes=classes,
        logits=logits, **more,
    )  # fmt: skip


LONG = [f"a class whose name is far too long for any column {i}" for i in range(12)]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("names", [LONG, ["猫" * 30] * 12, list("abcdefghijkl")])
def test_a_table_fits_its_terminal(width: int, names: list[str]):
    found = evaluation([0, 1, 2, 11], [0, 2, 2, 11], 12)
    text = evaluate.table(found, names, width)
    assert max(map(columns.size, text.split("\n"))) <= width
    assert "expected calibration error (ECE)" in text and "top-5" in text


def test_the_matrix_of_long_names_has_numbers_whose_key_is_the_table():
    text = evaluate.table(evaluation([0, 1, 1], [0, 0, 1], 12), LONG)
    table, matrix = text.split("confusion matrix")
    assert "\n 1  a class whose name is" in table
    lines = matrix.split("\n")
    assert lines[0].startswith(" by class number (#): rows are labels")
    assert lines[1].split() == [str(i) for i in range(12)]
    assert lines[3].split() == ["1", "1", "1", *"0" * 10]
    short = evaluate.table(evaluation([0, 1, 1], [0, 0, 1], 2), ["cat", "dog"])
    assert short.split("\n")[-3:] == ["     cat  dog", "cat    1    0", "dog    1    1"]


@pytest.mark.parametrize(("classes", "shown"), [(2, False), (5, False), (6, True)])
def test_top5_is_not_shown_where_it_is_always_100(classes: int, shown: bool, tmp_path: Path):
    found = evaluation([0, 1], [0, 1], classes)
    summary = {"num_classes": classes, "params": 1, "macs": 1, "step": 1, "wall_seconds": 1.0,
               "device": "cpu", "test": found.summary()}  # fmt: skip
    texts = (
        evaluate.table(found, "abcdef"[:classes]),
        loop._describe("test", 1, found, None),
        common.describe_summary(summary, tmp_path),
    )
    assert ["top-5" in text for text in texts] == [shown] * 3


def test_intervals_stay_within_0_and_100_percent():
    assert "top-1 100.00 % [34.24, 100.00]" in evaluate.table(evaluation([0, 1], [0, 1], 2), "ab")
    assert "top-1 0.00 % [0.00, 65.76]" in evaluate.table(evaluation([0, 1], [1, 0], 2), "ab")


def test_a_row_per_class():
    names = ["cat, a", "two\nlines", "n01440764_tench"]
    text = evaluate.class_rows(evaluation([0, 0, 0, 1], [0, 0, 1, 1], 4), names)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["name"] for row in rows] == [*names, "class 3"]
    assert [row["readable_name"] for row in rows][2] == "tench (n01440764)"
    confidence = f"{confidence_of(4):.6f}"
    assert list(rows[0].values()) == [
        "0", "cat, a", "cat, a", "3", "2", "0.666667", "0.207660", "0.938508", "1.000000",
        "0.800000", confidence,
    ]  # fmt: skip
    # What has no images has no ratio.
    assert list(rows[3].values())[3:] == ["0", "0", *[""] * 6]


def test_classes_without_images_are_not_the_worst():
    label = list(range(3, 43))
    text = evaluate.table(evaluation(label, [0, *label[1:]], 100), [f"c{i}" for i in range(100)])
    assert "the 30 classes with the lowest F1, of 40 with images, in %:" in text
    rows = [line.split() for line in text.split("\n")[5:]]
    assert rows[0] == ["3", "c3", "1", "0.00", "-", "0.00", f"{100 * confidence_of(100):.2f}"]
    assert [row[0] for row in rows[1:3]] == ["4", "5"] and len(rows) == 30
    few = evaluate.table(evaluation([0], [0], 2), "ab")
    assert "\n1  b           0       -          -       -           -\n" in few


def confidence_of(classes: int) -> float:
    """Of `evaluation`: a logit of 2 next to zeros."""
    return float(np.exp(2) / (np.exp(2) + classes - 1))


def test_wordnet_ids_are_shown_with_their_names():
    known = ["n01440764", "n03126707_crane", "n99999999", "dog"]
    assert imagenet.readable(known) == [
        "tench (n01440764)", "crane (machine) (n03126707)", "n99999999", "dog",
    ]  # fmt: skip


def test_logits_labels_and_names_are_kept(tmp_path: Path):
    run, photos = tmp_path / "run", tmp_path / "photos"
    for place, label in enumerate(("a", "b")):
        (photos / label).mkdir(parents=True)
        for name in ("1.png", "näive, \n.png", "\udcff.png"):
            pixels = np.full((16, 16, 3), 90 * place, np.uint8)
            with open(photos / label / name, "wb") as file:
                Image.fromarray(pixels).save(file, "png")
    (photos / "b" / "3.png").write_bytes(b"no image")
    options = {"data.name": "folder", "data.data_dir": str(photos), "data.test_fraction": 1.0}
    conversion.write_run(small_weights(2), run, labels=("a", "b"), overrides=options)
    for size in (2, 64):
        argv = [f"--config.eval.batch_size={size}", "--config.data.on_error=skip"]
        assert main(["evaluate", f"--workdir={run}", *argv]) == 0
        (report,) = run.glob("evaluation_test*.json")
        rows, found = np.load(report.with_suffix(".npz")), json.loads(report.read_text())
        names = [f"{c}/{n}" for c in "ab" for n in ("1.png", "näive, \n.png", "\udcff.png")]
        assert sorted(rows["name"].tolist()) == sorted(names)
        assert [name[0] for name in rows["name"]] == ["ab"[label] for label in rows["label"]]
        assert rows["logits"].shape == (6, 2) and rows["logits"].dtype == np.float32
        np.testing.assert_array_equal(rows["logits"].argmax(1), rows["top"][:, 0])
        exponentials = np.exp(rows["logits"].astype(np.float64))
        loss = -np.log(exponentials[np.arange(6), rows["label"]] / exponentials.sum(1))
        np.testing.assert_allclose(rows["loss"], loss, rtol=1e-4, atol=1e-6)
        assert found["skipped"] == 1 and 0 <= found["ece"] <= 1
        text = report.with_suffix(".csv").read_text()
        per_class = list(csv.DictReader(io.StringIO(text, newline="")))
        assert [row["images"] for row in per_class] == ["3", "3"]
