"""Converts weights of other projects to run directories, and a run's weights to files.

`write_run` makes an ordinary run directory from `Weights`, so `evaluate`, `predict` and notebooks
can use converted weights, with the correct preprocessing, like any others. `read_run` and
`write_file` work in the other direction.
"""

import collections
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mobilenet import architecture, build, imagenet, inference, rundir
from mobilenet import config as config_lib
from mobilenet.config import Config
from mobilenet.data import transforms
from mobilenet.models import cost
from mobilenet.models.pretrained import native, pytorch, safetensors_file, state_dict
from mobilenet.models.pretrained.weights import (
    DATA_SET_KEYS,
    IMAGE_KEYS,
    PretrainedError,
    Weights,
    preset,
    shape_problems,
)
from mobilenet.rundir import RunDirectoryError
from mobilenet.train import records, state
from mobilenet.train.checkpoints import Checkpoints

NAMES = ("mobilenet", "torchvision")


def settle_names(weights: Weights, labels: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the network's outputs.

    Args:
      weights: with `model.num_classes` in its settings.
      labels: one name per output, in order. Names that occur twice, such as ImageNet's "crane", get
        their index after them. None uses the names in the file; or else ImageNet's WordNet ids for
        1,000 outputs (for 1,001 after "background", as in TensorFlow); or else numbers.

    Returns:
      () for a feature extractor.

    Raises:
      PretrainedError: the number of labels is not the number of outputs.
    """
    outputs = weights.settings["model.num_classes"]
    if labels is not None:
        if len(labels) != outputs:
            raise PretrainedError(
                f"There are {len(labels)} labels for {outputs} outputs of {weights.source}; give "
                "one name for each output, in order."
            )
        counts = collections.Counter(labels)
        return tuple(
            f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(labels)
        )
    if weights.class_names is not None:
        return weights.class_names
    if outputs == 1000:
        return imagenet.wordnet_ids()
    if outputs == 1001:
        return ("background", *imagenet.wordnet_ids())
    return tuple(map(str, range(outputs)))


def make_config(
    weights: Weights, class_names: Sequence[str], overrides: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a converted network: defaults, then the weights' settings, overrides.

    If the classes are ImageNet's, the data set is too, so that `evaluate` finds a copy of it.

    Raises:
      ConfigError: an override does not exist or is not possible.
      PretrainedError: the weights do not fit this configuration; the message names the tensors.
    """
    config = config_lib.get_config()
    if imagenet.is_usual_order(class_names):
        config_lib.update(config, {"data.name": "imagenet2012", "data.test_split": "validation"})
    config_lib.update(config, weights.settings)
    config_lib.update(config, dict(overrides or {}))
    config_lib.validate(config)
    model = architecture.build_model(config, config.model.num_classes)
    image = jax.ShapeDtypeStruct((1, *architecture.image_shape(config)), jnp.float32)
    built = jax.eval_shape(model.lazy_init, jax.random.key(0), image)
    found = {"params": weights.params, "batch_stats": weights.batch_stats}
    problems = shape_problems(_shapes(found), _shapes(built))
    if problems:
        raise PretrainedError(
            f"The weights of {weights.source} do not fit their configuration: {problems}."
        )
    return config


def _shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables))
    }


def assumptions(
    weights: Weights,
    labels: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Assumptions about settings that neither the file nor the user gives, a sentence for each.

    Args:
      weights, labels, overrides: as in `write_run`.
    """
    found = []
    keys = [key for key in weights.assumed if key not in (overrides or {})]
    if keys:
        values = ", ".join(f"{key}={weights.settings[key]}" for key in keys)
        found.append(
            f"The file does not say how images are prepared; assumed is {values}. Change it with "
            "--config.KEY=VALUE."
        )
    outputs = weights.settings["model.num_classes"]
    if outputs and labels is None and weights.class_names is None:
        names = f"0 to {outputs - 1}"
        if outputs in (1000, 1001):
            names = "ImageNet's, in the usual order"
        found.append(
            f"The file has no class names; assumed are {names}. Give others with --labels=FILE."
        )
    return tuple(found)


def _normalization(
    weights: Weights, config: Config, overrides: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the weights, or of the preset that the user set."""
    key = "data.normalization"
    chosen = overrides.get(key, weights.settings.get(key))
    if chosen == weights.settings.get(key):
        return weights.mean, weights.std
    if chosen not in transforms.NORMALIZATIONS:
        raise PretrainedError(
            f"{key} is {chosen!r}, for which no file has numbers; allowed are "
            f"{', '.join(sorted(transforms.NORMALIZATIONS))}."
        )
    return transforms.normalization(chosen, config.data.channels)


def write_run(
    weights: Weights,
    workdir: Path,
    *,
    labels: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Makes a run directory of converted weights: a finished run of zero steps.

    Args:
      weights: from `mobilenet.models.pretrained.read`.
      workdir: must not exist, or be empty. It appears complete or not at all.
      labels: names of the outputs (`settle_names`).
      overrides: dotted keys -> values of the configuration, over the weights' settings.

    Returns:
      The configuration, as in `config.json`.

    Raises:
      RunDirectoryError: the directory is not empty, or cannot be written.
      PretrainedError, ConfigError: labels, weights and configuration do not fit together.
    """
    rundir.require_new(workdir)
    class_names = settle_names(weights, labels)
    config = make_config(weights, class_names, overrides)
    mean, std = _normalization(weights, config, overrides or {})
    costs = cost.totals(architecture.layer_costs(config, config.model.num_classes))
    variables = {"params": weights.params, "batch_stats": weights.batch_stats}
    start = state.create(variables, build.build_optimizer(config), ema=False)
    summary = {
        "status": "done",
        "step": 0,
        "source": weights.source,
        "notes": [*weights.notes, *assumptions(weights, labels, overrides)],
        "params": costs.params,
        "macs": costs.macs,
        **records.environment(),
    }
    stored = {
        "mean": list(mean),
        "std": list(std),
        "class_names": list(class_names),
    }
    partial = workdir.with_name(f".{os.getpid()}.{workdir.name[:40]}")
    try:
        with rundir.writing(workdir):
            partial.mkdir(parents=True)
        rundir.write_json(partial / build.DATA_FILE, stored)
        with Checkpoints(partial / "checkpoints") as checkpoints:
            checkpoints.save(start)
        rundir.write_json(partial / "summary.json", summary)
        rundir.write_atomically(partial / "config.json", config_lib.to_json(config))
        with rundir.writing(workdir):
            os.replace(partial, workdir)
        rundir.sync_directory(workdir.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return config


def read_run(workdir: Path, which: str = "newest") -> Weights:
    """The evaluated weights of a run (averaged ones if it has them), for writing them to a file.

    Args:
      workdir: the run directory.
      which: "newest", "best" or a step.

    Raises:
      ConfigError, CheckpointError: the run or the checkpoint does not exist.
      RunDirectoryError: the run is incomplete, or quantised.
    """
    config = rundir.read_config(workdir)
    stored = build.require_stored(workdir)
    if config_lib.is_quantized(config):
        raise RunDirectoryError(
            f"{workdir} is quantised, and a file of float weights cannot hold what it computes; "
            f"give the run that it started from (pretrained is {config.pretrained!r})."
        )
    restored = inference.read_checkpoint(workdir, which)
    variables = restored.eval_variables
    outputs = build.resolve_classes(config, len(stored["class_names"]))
    # The path of a folder is valid on one machine only.
    kept = (*IMAGE_KEYS, *(() if config.data.name == "folder" else DATA_SET_KEYS))
    settings = {
        key: value
        for key, value in config_lib.flatten(config)
        if key.startswith("model.") or key in kept
    }
    mean, std = tuple(stored["mean"]), tuple(stored["std"])
    if config.data.normalization == "pretrained":
        settings["data.normalization"] = preset(mean, std)
    return Weights(
        variables["params"],
        variables["batch_stats"],
        {**settings, "model.num_classes": outputs},
        mean,
        std,
        tuple(stored["class_names"]),
        f"{workdir.name}, step {restored.step}",
    )


def write_file(weights: Weights, path: Path, names: str) -> tuple[str, ...]:
    """Writes weights to a file.

    Args:
      weights: with the whole network in `settings`, as from `read_run`.
      path: a new file. `.safetensors` also holds settings, preprocessing and class names in its
        metadata. `.pth` is a state dict for `torch.load(..., weights_only=True)` without these.
      names: "mobilenet" (this project's, for `.safetensors`) or "torchvision".

    Returns:
      Sentences that a user of the file must know.

    Raises:
      PretrainedError: the kind of file or the names are unknown, the file exists, or torchvision
        has no names for a part of the network.
      RunDirectoryError: the file cannot be written.
    """
    if names not in NAMES:
        raise PretrainedError(f"The names {names!r} are not known; allowed are {', '.join(NAMES)}.")
    if path.suffix not in (".safetensors", ".pth"):
        raise PretrainedError(f"{path.name} must end in .safetensors or .pth.")
    if path.suffix == ".pth" and names != "torchvision":
        raise PretrainedError(
            "A .pth file needs --names=torchvision; for other names, write .safetensors."
        )
    with rundir.writing(path):
        if path.exists():
            raise PretrainedError(f"{path} exists already; give --to a new file.")
    notes: tuple[str, ...] = ()
    if names == "mobilenet":
        data = native.dumps(weights)
    else:
        arrays, notes = pytorch.tensors(weights)
        if path.suffix == ".pth":
            data = state_dict.dumps(arrays)
        else:
            # PyTorch's libraries check "format".
            metadata = {"format": "pt", native.KEY: native.describe(weights)}
            data = safetensors_file.dumps(arrays, metadata)
    with rundir.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    rundir.write_bytes_atomically(path, data)
    return notes
