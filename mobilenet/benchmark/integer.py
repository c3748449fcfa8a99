"""Compares the integer executor with LiteRT: do the codes of real int8 networks agree?

    python -m mobilenet.benchmark.integer --files=DIR --images=DIR \\
        --out=experiments/results/integer_executor.csv

Each quantised TFLite classifier of a folder classifies the photographs of another folder
(`labels.csv` with the columns path and class_index), in LiteRT and in `mobilenet.quantize.integer`.
A row counts the codes that are equal and that differ by one, and gives the largest difference:

    network     logits of all photographs, of LiteRT's built-in kernels and of XNNPACK, its default
    any other   results of one kind of operation, which gets LiteRT's own inputs, so that it
                inherits no difference from earlier operations

The executor's rounding "builtin" is that of LiteRT's built-in kernels, and leaves no difference.
Its default, "double", rounds ties in convolutions differently: one code in thousands differs by
one, and this grows over a network. XNNPACK requantises in yet another way.
"""

# LiteRT is an extra; types are not checked against it.
# pyright: reportMissingImports=false

import argparse
import csv
import importlib.metadata
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mobilenet.data import images
from mobilenet.export.runtimes import LiteRT, compare_operations, difference, installed
from mobilenet.quantize import integer, tflite_file
from mobilenet.report import rows as csv_rows
from mobilenet.report.deployments import EXECUTOR
from mobilenet.train import records

KERNELS = ("builtin", "xnnpack")
# LiteRT's own, and the executor's default.
ROUNDINGS: tuple[integer.Rounding, ...] = ("builtin", "double")


class Photographs(NamedTuple):
    """Images [B, size, size, 3], float32 in [-1, 1], and labels int64 [B], 0 .. 999."""

    images: np.ndarray
    labels: np.ndarray


def photographs(folder: Path, size: int, limit: int | None = None) -> Photographs:
    """The images of a folder's labels.csv, prepared for evaluation (centre crop of 87.5 %).

    Args:
      folder: with labels.csv, which has the columns path (relative to it) and class_index.
      size: side in pixels.
      limit: number of images, evenly spread; None takes all.
    """
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    if limit is not None:
        rows = [rows[n * len(rows) // limit] for n in range(limit)]
    found = [images.load_eval_view((folder / row["path"]).read_bytes(), size=size) for row in rows]
    return Photographs(
        np.stack(found).astype(np.float32) / 127.5 - 1,
        np.array([int(row["class_index"]) for row in rows]),
    )


def hits(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Top-1 and top-5, in per cent; 1,001 classes have a background before the first class."""
    wanted = labels + logits.shape[1] - 1000
    found = np.argsort(-logits.astype(np.int64), axis=1, kind="stable")[:, :5] == wanted[:, None]
    return 100 * float(found[:, 0].mean()), 100 * float(found.any(axis=1).mean())


def executor_logits(
    graph: integer.Graph,
    codes: np.ndarray,
    *,
    rounding: integer.Rounding = "double",
    batch_size: int = 4,
) -> np.ndarray:
    """Codes of the logits [B, classes] from codes of images, a few images at a time."""
    return np.concatenate(
        [
            integer.run(graph, codes[start : start + batch_size], rounding=rounding)
            for start in range(0, len(codes), batch_size)
        ]
    )


def measure(path: Path, found: Photographs, *, compared: int) -> Iterator[dict[str, Any]]:
    """The rows of one file, without versions and commit, for the roundings of `ROUNDINGS`.

    Args:
      path: of the file.
      found: images of its size.
      compared: number of images on which single operations are compared.
    """
    graph = tflite_file.read(path)
    scale = graph.grids[graph.output].scale
    codes = graph.quantize_input(found.images)
    runtimes = {name: LiteRT(path, int(graph.output), kernels=name) for name in KERNELS}
    answers = {
        name: np.stack([runtime.run(image).ravel() for image in codes])
        for name, runtime in runtimes.items()
    }
    # Evenly spread over the classes.
    few = codes[:: max(1, len(codes) // compared)][:compared]
    for rounding in ROUNDINGS:
        common = {"file": path.name, "rounding": rounding}
        started = time.perf_counter()
        ours = executor_logits(graph, codes, rounding=rounding)
        seconds = (time.perf_counter() - started) / len(codes)
        print(f"{path.name}, {rounding}: {seconds:.3f} s per image", file=sys.stderr)
        top1, top5 = hits(ours, found.labels)
        for kernels, theirs in answers.items():
            apart = difference([ours], [theirs])
            litert_top1, litert_top5 = hits(theirs, found.labels)
            yield {
                **common,
                **apart,
                "part": "network",
                "kernels": kernels,
                "images": len(codes),
                "largest_real": scale * apart["largest"],
                "mean_real": scale * apart["mean"],
                "top1_agreement": float((ours.argmax(1) == theirs.argmax(1)).mean()),
                "top1": top1,
                "top5": top5,
                "litert_top1": litert_top1,
                "litert_top5": litert_top5,
            }
        for part, apart in compare_operations(path, graph, few, rounding=rounding).items():
            yield {**common, **apart, "part": part, "kernels": "builtin", "images": len(few)}


def rows(files: Path, images: Path, *, compared: int) -> Iterator[dict[str, Any]]:
    """The rows of every .tflite file of a folder."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("ai-edge-litert", "numpy")
    )
    here = records.environment()
    stamp = {"processor": here["processor"], "versions": versions, "commit": here["commit"]}
    for path in sorted(files.glob("*.tflite")):
        shape = tflite_file.read(path).input_shape
        assert shape is not None  # the reader always has one
        for row in measure(path, photographs(images, shape[0]), compared=compared):
            yield {**row, **stamp}


def main(argv: list[str] | None = None) -> int:
    """Writes the table and prints it; returns 1 if an operation differs by more than one code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", type=Path, required=True, help="folder of .tflite files")
    parser.add_argument("--images", type=Path, required=True, help="folder with labels.csv")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    parser.add_argument(
        "--compared", type=int, default=8, help="images compared operation by operation"
    )
    args = parser.parse_args(argv)
    if not installed():
        print(
            "LiteRT is not installed; `pip install -e '.[export]'` in the checkout brings it.",
            file=sys.stderr,
        )
        return 2
    found: list[dict[str, Any]] = []
    for row in rows(args.files, args.images, compared=args.compared):
        found.append(row)
        print(
            f"{row['file'][:28]:<28} {row['rounding']:<8} {row['part']:<14} {row['kernels']:<8} "
            f"equal {row['equal']:.6f}, one apart {row['off_by_one']:.6f}, largest {row['largest']}"
            + (f", agreement {row['top1_agreement']:.3f}" if row["part"] == "network" else ""),
            flush=True,
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    csv_rows.write(args.out, EXECUTOR.fields, found)
    return int(any(row["largest"] > 1 for row in found if row["part"] != "network"))


if __name__ == "__main__":
    sys.exit(main())
