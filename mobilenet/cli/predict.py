"""Classifies picture files with a run: the five best classes with probabilities.

mobilenet predict --workdir=runs/c10 photo.jpg other.png
mobilenet predict --workdir=runs/c10 --json pictures/*.jpg
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import flags

from mobilenet.cli import common
from mobilenet.terminal import printable

REQUIRED = ("workdir",)
ARGUMENTS = "IMAGE ..."
OVERRIDES = common.CARRIED_OUT


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    common.define_checkpoint(values)
    flags.DEFINE_boolean("json", False, "one JSON object a line", flag_values=values)


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return f"{path}: it needs more memory than there is."
    return f"{path}: {error}"


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb; unreadable pictures are named and make the exit code 2, the others shown."""
    if not rest:
        raise common.UsageError("No picture was given; write mobilenet predict ... photo.jpg.")
    workdir = Path(common.require(values, "workdir", "runs/digits"))
    config = common.run_config(workdir, overrides, verb="predict")

    from mobilenet import inference, runtime
    from mobilenet.data.memory import READ_ERRORS

    runtime.prepare_compiler()
    restored = inference.read_checkpoint(workdir, common.flag(values, "checkpoint"))
    predictor = inference.Predictor(config, restored.eval_variables, workdir)
    failed = 0
    batch = 32  # pictures decoded and classified together; bounds memory for long lists
    for start in range(0, len(rest), batch):
        pictures, paths = [], []
        for path in rest[start : start + batch]:
            try:
                pictures.append(predictor.load(Path(path).read_bytes()))
                paths.append(path)
            except READ_ERRORS as error:
                failed += 1
                print(f"mobilenet predict: {printable(_reason(path, error))}", file=sys.stderr)
        if not pictures:
            continue
        for path, probabilities in zip(paths, predictor(np.stack(pictures)), strict=True):
            best = np.argsort(-probabilities, kind="stable")[:5]
            found = {predictor.class_names[i]: float(probabilities[i]) for i in best}
            if common.flag(values, "json"):
                print(json.dumps({"file": path, "classes": found}))
                continue
            shown = ", ".join(f"{printable(name)} {100 * p:.1f} %" for name, p in found.items())
            print(f"{printable(path)}: {shown}")
    return 2 if failed else 0
