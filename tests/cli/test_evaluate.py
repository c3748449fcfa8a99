"""`mobilenet evaluate` of converted ImageNet weights on a folder, as its help shows it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_weights import small_weights

from mobilenet import conversion, imagenet
from mobilenet.cli.main import main


@pytest.mark.parametrize("labels", [None, imagenet.names()], ids=["ids", "names"])
def test_converted_imagenet_weights_are_evaluated_on_a_folder(
    labels: tuple[str, ...] | None, tmp_path: Path
):
    photos, run = tmp_path / "photos", tmp_path / "run"
    for place, name in enumerate(("n01440764_tench", "n03126707_crane")):
        (photos / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((16, 16, 3), 90 * place + number, np.uint8)
            Image.fromarray(pixels).save(photos / name / f"{number}.png")
    config = conversion.write_run(small_weights(1000), run, labels=labels)
    # Whose own test split is called validation.
    assert (config.data.name, config.data.test_split) == ("imagenet2012", "validation")
    argv = [
        "evaluate", f"--workdir={run}", "--config.data.name=folder",
        f"--config.data.data_dir={photos}", "--config.data.test_fraction=1",
    ]  # fmt: skip
    assert main(argv) == 0
    (report,) = run.glob("evaluation_test_*.json")
    found = json.loads(report.read_text())
    matrix = np.array(found["confusion_matrix"])
    assert matrix.sum(1)[[0, 517]].tolist() == [2, 2] and matrix.sum() == 4
    assert found["overrides"]["data.name"] == "folder"
