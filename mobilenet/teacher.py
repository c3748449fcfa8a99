"""The teacher of a distilled run: a run directory, checked against the student's."""

import dataclasses
import json
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet import architecture, rundir
from mobilenet import config as config_lib
from mobilenet.compress import distill
from mobilenet.config import Config, ConfigError
from mobilenet.models.network import Network
from mobilenet.train.checkpoints import read_checkpoint


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A network that is evaluated and not trained.

    Attributes:
      description: its configuration and how its images are prepared, as JSON. A compiled step
        depends on these, so teachers that only differ in their weights share a step.
      variables: for its evaluation; an argument of the step, never a part of the run's state.
      facts: entries for the summary of a run.
    """

    description: str
    variables: Any
    facts: dict[str, Any]


def read(
    directory: Path,
    stored: Mapping[str, Any] | None,
    config: Config,
    class_names: tuple[str, ...],
    num_classes: int,
) -> Teacher:
    """Reads a teacher: the result of a run of any network.

    Args:
      directory: its run directory.
      stored: its normalisation and class names.
      config: of the student.
      class_names: of the student's data.
      num_classes: of the student's classifier.

    Raises:
      ConfigError: not a run, or its classes or images are not the student's.
      CheckpointError: its weights cannot be read.
    """
    own, outputs = check(directory, stored, config, class_names, num_classes)
    assert stored is not None
    restored = read_checkpoint(directory, "result")
    description = json.dumps(
        {
            "config": config_lib.to_json(own),
            "outputs": outputs,
            "mean": stored["mean"],
            "std": stored["std"],
        }
    )
    return Teacher(description, restored.eval_variables, {"step": restored.step})


def check(
    directory: Path,
    stored: Mapping[str, Any] | None,
    config: Config,
    class_names: tuple[str, ...],
    num_classes: int,
) -> tuple[Config, int]:
    """Checks whether a run can teach, without its weights; arguments as in `read`.

    Returns:
      Its configuration and its classifier's width.

    Raises:
      ConfigError: not a run, or its classes or images are not the student's.
    """
    key = "compress.distillation.teacher"
    if stored is None:
        raise ConfigError(
            f"{key} is {str(directory)!r}, which is not a complete run; give the directory of a "
            "run that `mobilenet train` or `mobilenet convert` made."
        )
    own = rundir.read_config(directory)
    names = tuple(unicodedata.normalize("NFC", name) for name in stored["class_names"])
    outputs = own.model.num_classes if own.model.num_classes is not None else len(names)
    if names != class_names or outputs != num_classes:
        raise ConfigError(
            f"{key} is {str(directory)!r}, which has {_few(names)} with {outputs} outputs, but "
            f"the student has {_few(class_names)} with {num_classes}; both must have the same "
            "classes, in the same order."
        )
    for name in ("image_size", "channels"):
        if own.data[name] != config.data[name]:
            raise ConfigError(
                f"{key} is {str(directory)!r}, which was trained on images of data.{name}="
                f"{own.data[name]}, but the student uses {config.data[name]}; both must be the "
                "same."
            )
    return own, outputs


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} classes ({shown})"


def make_guide(
    description: str,
    config: Config,
    student: Network,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Callable[..., jax.Array]:
    """The student's loss (`distill.make_guide`).

    The teacher runs in evaluation mode on the augmented images, with its own normalisation: if it
    differs from the student's, the images are normalised again.

    Args:
      description: of the teacher.
      config: of the student.
      student: its network.
      mean, std: of its images.

    Raises:
      ConfigError: a transfer between networks without maps of a common resolution.
    """
    settings = json.loads(description)
    own = config_lib.from_json(settings["config"])
    network = architecture.build_model(own, settings["outputs"])
    scale = np.asarray(std, np.float32) / np.asarray(settings["std"], np.float32)
    shift = (np.asarray(mean) - np.asarray(settings["mean"])) / np.asarray(settings["std"])
    same = tuple(settings["mean"]) == tuple(mean) and tuple(settings["std"]) == tuple(std)

    def teach(variables: Any, images: jax.Array) -> Any:
        if not same:
            images = images * scale + shift.astype(np.float32)
        return network.apply(variables, images, False, endpoints=True)

    kind = config.compress.distillation.transfer
    pairs: list[tuple[str, str]] = []
    if kind != "none":
        shape = architecture.image_shape(config)
        pairs = distill.pair_maps(_maps(student, shape), _maps(network, shape), kind)
        if not pairs:
            more = " with the same channels" if kind == "features" else ""
            raise ConfigError(
                f"compress.distillation.transfer is {kind!r}, but no stages of the student and the "
                f"teacher have maps of the same resolution{more}; set it to none, or to attention, "
                "which works with any channels."
            )
    return distill.make_guide(teach, kind, pairs)


def _maps(network: Network, shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    # As on one device: collectives would need a mapped axis.
    alone = network.clone(bn_axis_name=None, bn_axis_index_groups=None)

    def endpoints(key: jax.Array, image: jax.Array) -> Any:
        _, found = alone.init_with_output(key, image, False, endpoints=True)[0]
        return found

    found = jax.eval_shape(endpoints, jax.random.key(0), image)
    return {name: tuple(leaf.shape) for name, leaf in found.items()}
