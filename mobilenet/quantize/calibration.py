"""Bits, ranges and initial steps, from a float network's variables and some images."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet.models.network import Network
from mobilenet.quantize import numerics, observers
from mobilenet.quantize.fold import Folded
from mobilenet.quantize.layers import QUANT, SEEN, weight_grid
from mobilenet.quantize.rules import WEIGHTS, Rule, kind
from mobilenet.trees import Path, flatten, nest

LEARNED = ("step", "offset", "clip")  # parameters of a quantiser

log = logging.getLogger("mobilenet")


class CalibrationError(ValueError):
    """Images or weights from which no range can be derived; the message says where."""


def structure(network: Network, image_shape: tuple[int, int, int]) -> dict[str, dict[Path, Any]]:
    """Collection -> path of a leaf -> its shape and dtype, for images of that shape."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: network.init(key, x), jax.random.key(0), image)
    return {name: flatten(tree) for name, tree in shapes.items()}


def without_bits(quant: Any) -> Any:
    """The collection with every site at 0 bits: the network computes in float."""
    flat = flatten(quant)
    return nest({p: np.float32(0) if p[-1] == "bits" else leaf for p, leaf in flat.items()})


def empty(shapes: Mapping[Path, Any]) -> Any:
    """A `quant` collection of zeros: every site in float."""
    return nest({path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in shapes.items()})


def observe(
    network: Network, variables: Mapping[str, Any], batches: Iterable[np.ndarray]
) -> dict[str, observers.Observer]:
    """Observes all tensors of the float network on some images.

    Args:
      network: quantised (`layers.quantize_network`).
      variables: with a `quant` collection, whose bits are ignored.
      batches: normalised images, float32 [B, H, W, C]; the last batch may be smaller.

    Returns:
      Site -> observer, for activations.

    Raises:
      CalibrationError: there are no images, or a tensor has NaN or infinity.
    """
    variables = {**variables, QUANT: without_bits(variables[QUANT])}

    @jax.jit
    def see(variables: Any, images: jax.Array) -> Any:
        _, found = network.apply(variables, images, False, mutable=[SEEN])
        return found[SEEN]

    found: dict[str, observers.Observer] = {}
    for images in batches:
        if not len(images):
            continue
        for path, value in flatten(see(variables, jnp.asarray(images))).items():
            site = "/".join(path[:-1])
            try:
                found.setdefault(site, observers.Observer()).update(np.asarray(value))
            except observers.NotFinite as error:
                raise CalibrationError(
                    f"The tensor at {site} cannot be calibrated: {error}; the float network "
                    "diverged or its checkpoint is damaged, so evaluate it first."
                ) from error
    if not found:
        raise CalibrationError(
            "There are no images for calibration; set quantize.calibration_examples to at least 1."
        )
    return found


def folded_kernels(variables: Mapping[str, Any], epsilon: float) -> dict[str, np.ndarray]:
    """Site of weights -> the kernel that is rounded there, with normalisation folded in.

    Raises:
      CalibrationError: a kernel with NaN or infinity.
    """
    folded = Folded(variables, epsilon)
    found = {folded.site(layer): folded.kernel(layer) for layer in folded.layers}
    for site, kernel in found.items():
        if not np.isfinite(kernel).all():
            raise CalibrationError(
                f"The tensor at {site} has no range: it holds NaN or infinity; the float network "
                "diverged or its checkpoint is damaged, so evaluate it first."
            )
    return found


def weight_grids(
    variables: Mapping[str, Any], rules: Mapping[str, Rule], epsilon: float
) -> dict[str, tuple[np.ndarray, numerics.Grid]]:
    """Site of weights -> its folded kernel and its grid, for every site that is rounded."""
    quant = flatten(variables[QUANT])
    params = flatten(variables["params"])
    found = {}
    for site, kernel in folded_kernels(variables, epsilon).items():
        path = tuple(site.split("/"))
        bits = float(quant[(*path, "bits")])
        if bits:
            low, high = (quant.get((*path, name)) for name in ("low", "high"))
            step = params.get((*path, "step"))
            grid = weight_grid(jnp.asarray(kernel), bits, rules[site], low, high, step)
            found[site] = kernel, grid
    return found


def start(
    shapes: Mapping[str, Mapping[Path, Any]],
    variables: Mapping[str, Any],
    found: Mapping[str, observers.Observer],
    rules: Mapping[str, Rule],
    *,
    epsilon: float,
    percentile: float = 99.99,
    counters: Mapping[str, float],
) -> dict[str, Any]:
    """Variables of the quantised network: ranges and steps that follow from the observations.

    Args:
      shapes: of the quantised network (`structure`).
      variables: `params` and `batch_stats` of the float network.
      found: from `observe`.
      rules: site -> rule (`rules.resolve`).
      epsilon: of batch normalisation.
      percentile: for the estimator of that name.
      counters: "observe" and "batch_norm": the number of training passes in which ranges of
        activations move, and in which a batch is normalised by its own statistics.

    Returns:
      `params`, `batch_stats` and `quant`. A step starts at the scale of its range (Bhalgat et al.
      2020, section 3.2, do this with the range of least squared error).

    Raises:
      CalibrationError: a kernel with NaN or infinity.
    """
    kernels = folded_kernels(variables, epsilon)
    ranges: dict[str, tuple[Any, Any]] = {}
    for site, rule in rules.items():
        bits = rule.bits or 8  # bits may be raised from 0 later
        if kind(site) == WEIGHTS:
            low, high = observers.weight_range(
                kernels[site],
                bits,
                per_channel=rule.per_channel,
                symmetric=rule.symmetric,
                estimator=rule.estimator,
                percentile=percentile,
            )
            dead = int(np.sum((low == 0) & (high == 0)))
            if dead and rule.bits:
                log.warning("%s: %d of %d ranges only have zeros.", site, dead, np.size(low))
        else:
            low, high = found[site].range(
                rule.estimator, bits, symmetric=rule.symmetric, percentile=percentile
            )
            if low == high and rule.bits:
                log.warning("%s: every number is %g on the calibration images.", site, low)
        ranges[site] = low, high

    def leaf(path: Path, shape: Any) -> np.ndarray:
        site, name = "/".join(path[:-1]), path[-1]
        if name in counters:
            return np.asarray(counters[name], np.float32)
        low, high = ranges[site]
        if name in LEARNED:
            rule = rules[site]
            weights = kind(site) == WEIGHTS
            grid = numerics.make_grid(
                low,
                high,
                rule.bits or 8,
                symmetric=rule.symmetric,
                signed=weights or bool(low < 0) or not rule.symmetric,
                narrow=weights and rule.symmetric,
            )
            value = {"step": grid.scale, "offset": np.minimum(low, 0.0), "clip": high}[name]
        else:
            value = {"bits": rules[site].bits, "low": low, "high": high}[name]
        return np.broadcast_to(np.asarray(value, np.float32), shape.shape).copy()

    quant = {path: leaf(path, shape) for path, shape in shapes[QUANT].items()}
    params = flatten(variables["params"])
    for path, shape in shapes["params"].items():
        if path not in params:
            params[path] = leaf(path, shape)
    return {
        "params": nest(params),
        "batch_stats": variables["batch_stats"],
        QUANT: nest(quant),
    }


def with_bits(quant: Any, bits: Callable[[str], int | None]) -> Any:
    """The collection with other bits: `bits` of each site, or unchanged where that is None.

    The ranges do not change. If estimators depend on the bits, set the new bits before calibration.
    """
    flat = flatten(quant)
    for path in flat:
        if path[-1] == "bits":
            chosen = bits("/".join(path[:-1]))
            if chosen is not None:
                flat[path] = np.float32(chosen)
    return nest(flat)
