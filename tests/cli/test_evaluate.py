"""`mobilenet evaluate` of converted ImageNet weights on a folder, as its help shows it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_weights import small_weights

from mobilenet import build, conversion, imagenet, rundir
from mobilenet.cli.main import main
from mobilenet.data import datasets


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


def test_a_result_on_other_images_does_not_replace_the_runs_own(tmp_path: Path):
    folders = []
    for name, count in (("own", 2), ("other", 3)):
        for place, label in enumerate(("a", "b")):
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((16, 16, 3), 90 * place + number, np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / label / f"{number}.png")
        folders.append(tmp_path / name)
    run = tmp_path / "run"
    options = {"data.name": "folder", "data.data_dir": str(folders[0]), "data.test_fraction": 1.0}
    config = conversion.write_run(small_weights(2), run, labels=("a", "b"), overrides=options)
    # As a run that has trained on the folder says it.
    own = datasets.identify(build.open_dataset(config).splits["test"])
    stored = rundir.read_json(run / "data.json")
    rundir.write_json(run / "data.json", {**stored, "examples": {"test": own}})
    for folder in folders:
        assert main(["evaluate", f"--workdir={run}", f"--config.data.data_dir={folder}"]) == 0
    found = {path.name: json.loads(path.read_text()) for path in run.glob("evaluation_test*.json")}
    assert len(found) == 2 and found["evaluation_test.json"]["examples"] == 4
    assert {report["examples"] for report in found.values()} == {4, 6}
