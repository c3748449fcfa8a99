"""A run's network as a file for another runtime, and a comparison of that file, as rows.

Float runs give float files. Runs with `quantize` give their integer network (LiteRT, ONNX), or its
simulation in float (StableHLO).
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mobilenet import architecture, build, inference, rundir
from mobilenet import config as config_lib
from mobilenet.config import Config
from mobilenet.export import litert, onnx, operations, runtimes, stablehlo, verify
from mobilenet.export.operations import ExportError
from mobilenet.quantize import integer, lowering
from mobilenet.train import records

ENDINGS = {"litert": ".tflite", "onnx": ".onnx", "stablehlo": ".stablehlo"}
# Stated with every latency.
LATENCY_NOTE = (
    "batch 1, one thread, this machine's processor; it says little about a phone's latency"
)


class Deployment:
    """A run's network, ready for export.

    Attributes:
      graph: the integer network of a quantised run; None for a float run.
      metadata: what an application needs: labels, preprocessing, configuration, commit.
    """

    def __init__(self, workdir: Path, checkpoint: str = "result", config: Config = None) -> None:
        """Reads a run.

        Args:
          workdir: the run directory.
          checkpoint: as in `inference.read_checkpoint`.
          config: of the run, with other config.RUNTIME_KEYS; None uses the stored one.

        Raises:
          ConfigError, CheckpointError, RunDirectoryError: the run or checkpoint does not exist.
          ExportError: the network has no integer form.
        """
        config = rundir.read_config(workdir) if config is None else config
        restored = inference.read_checkpoint(workdir, checkpoint)
        stored = build.require_stored(workdir)
        self.workdir, self.config = workdir, config
        self._stored, self._variables = stored, jax.device_get(restored.eval_variables)
        config = config.copy_and_resolve_references()
        config.model.dtype = "float32"  # whatever training used
        num_classes = build.resolve_classes(config, len(stored["class_names"]))
        fast = architecture.build_model(config, num_classes)
        # Variables are arguments: if they were constants, XLA would round them at compile time.
        forward = jax.jit(lambda variables, images: fast.apply(variables, images, False))
        self._forward = functools.partial(forward, self._variables)
        config.model.conv_form = "grouped"  # runtimes recognise this form as depthwise
        network = architecture.build_model(config, num_classes)
        self._shape = architecture.image_shape(config)
        self._apply = lambda images: network.apply(self._variables, images, False)
        self.graph: integer.Graph | None = None
        if config_lib.is_quantized(config):
            try:
                self.graph = lowering.lower(network, self._variables, self._shape)
            except lowering.LoweringError as error:
                raise ExportError(str(error)) from error
        self.metadata = _metadata(self.config, stored, num_classes, restored.step)

    def write(self, to: str, path: Path, *, integer_io: bool = False) -> None:
        """Writes the file, and next to it its metadata as JSON.

        Args:
          to: a key of ENDINGS.
          path: of the file.
          integer_io: TFLite files of quantised runs take and return int8 codes.

        Raises:
          ExportError: an extra is missing, the format cannot hold the network, or integer codes
            were requested for a network that has none.
          RunDirectoryError: the path cannot be written.
        """
        if integer_io and (self.graph is None or to != "litert"):
            raise ExportError("Integer input and output need a quantised run and a TFLite file.")
        metadata = {**self.metadata, "format": to}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with rundir.writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._write(to, temporary, metadata, integer_io)
                os.replace(temporary, path)
                rundir.write_json(path.with_name(f"{path.name}.json"), metadata)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _write(self, to: str, path: Path, metadata: dict[str, Any], integer_io: bool) -> None:
        if to == "stablehlo":
            stablehlo.write(path, self._apply, self._shape)
        elif self.graph is None:
            program = operations.trace(self._apply, self._shape)
            (litert if to == "litert" else onnx).write_float(path, program, metadata)
        elif to == "litert":
            litert.write_integer(path, self.graph, metadata, integer_io=integer_io)
        else:
            onnx.write_integer(path, self.graph, metadata)

    def check(self, to: str, path: Path, split: str, examples: int) -> list[dict[str, Any]]:
        """Runs a file and compares it with the network.

        Args:
          to: its format.
          path: of the file.
          split: whose images are classified.
          examples: largest number of them, from the start; 0 takes all.

        Returns:
          A row for each runtime: accuracy of the file and of the network in JAX, agreement of the
          two, latency, bytes. For integer files also the kinds of operations and, for each kind,
          the difference from the integer executor.
        """
        prepare = jax.jit(build.preprocess(self._data.mean, self._data.std))
        parts = [(prepare(image), label) for image, label in self._data.evaluated(split, examples)]
        images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        ours = self._answers(images)
        rows = []
        for name, run, prepare in self._runners(to, path):
            given = prepare(images)
            theirs = self._real(verify.answers(run, given))
            rows.append(
                {
                    **self.facts(to, path),
                    "runtime": name,
                    "split": split,
                    "examples": len(images),
                    "top1": float((theirs.argmax(1) == labels).mean()),
                    "top1_jax": float((ours.argmax(1) == labels).mean()),
                    "agreement": float((theirs.argmax(1) == ours.argmax(1)).mean()),
                    **verify.differences(theirs, ours),
                    **verify.latency(run, given[0]),
                    "latency_note": LATENCY_NOTE,
                    **records.environment(),
                }
            )
        if to == "litert":
            rows[0]["operations"] = verify.count_operations(path)
            if self.graph is not None:
                rows[0]["float_operations"] = verify.float_operations(path)
                rows[0]["executor"] = verify.compare_operations(path, self.graph, images[:8])
        for row in rows:
            row["cause"], row["warning"] = verify.explain(row, integer=self.graph is not None)
        return rows

    def _real(self, answers: np.ndarray) -> np.ndarray:
        """Logits of a file whose outputs may be codes."""
        if answers.dtype.kind not in "iu" or self.graph is None:
            return answers
        return litert.signed(self.graph).dequantize_output(answers)

    def _answers(self, images: np.ndarray) -> np.ndarray:
        """Logits of the network in JAX, [B, K]; the last chunk is padded, to compile only once."""
        count = min(64, len(images))
        filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % count, axis=0)])
        chunks = range(0, len(filled), count)
        found = [np.asarray(self._forward(filled[i : i + count])) for i in chunks]
        return np.concatenate(found)[: len(images)]

    def facts(self, to: str, path: Path) -> dict[str, Any]:
        """The entries of a row that are known before the file is run."""
        weights = self.config.quantize.weights.bits if self.graph else 0
        activations = self.config.quantize.activations.bits if self.graph else 0
        return {
            "file": path.name,
            "format": to,
            "bytes": path.stat().st_size,
            "weight_bits": weights,
            "activation_bits": activations,
            "run": self.workdir.name,
            "step": self.metadata["step"],
            # For an integer file: the distance between two neighbouring codes of its logits.
            "logit_step": self.graph.grids[self.graph.output].scale if self.graph else None,
            "config": self.metadata["fingerprint"],
        }

    def _runners(
        self, to: str, path: Path
    ) -> list[tuple[str, Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]]:
        """(name, function of one image, preparation of images) for each runtime."""

        def same(images: np.ndarray) -> np.ndarray:
            return images

        if to == "onnx":
            return [("onnxruntime", runtimes.OnnxRuntime(path).run, same)]
        if to == "stablehlo":
            call = jax.jit(stablehlo.read(path))
            return [("jax", lambda image: np.asarray(call(image[None])), same)]
        found = []
        for kernels in ("builtin", "xnnpack"):
            runtime = runtimes.LiteRT(path, kernels=kernels)
            prepare = same
            if runtime.reads_codes:
                assert self.graph is not None
                prepare = litert.signed(self.graph).quantize_input
            found.append((f"litert ({kernels})", runtime.run, prepare))
        return found

    @functools.cached_property
    def _data(self) -> build.Data:
        # The images may have only some of the classes, for example with converted weights.
        return build.build_data(self.config, self.workdir, match_classes=True)


def _metadata(
    config: Config, stored: dict[str, Any], num_classes: int, step: int
) -> dict[str, Any]:
    names = list(stored["class_names"])
    names += [f"class {index}" for index in range(len(names), num_classes)]
    return {
        "labels": names[:num_classes],
        "preprocessing": {
            "image_size": config.data.image_size,
            "channels": config.data.channels,
            "crop_fraction": config.data.crop_fraction,
            # (value / 255 - mean) / std of each channel's 8-bit values.
            "mean": stored["mean"],
            "std": stored["std"],
        },
        "config": json.loads(config_lib.to_json(config)),
        "fingerprint": config_lib.fingerprint(config),
        "commit": records.commit(),
        "step": int(step),
    }
