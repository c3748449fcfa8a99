"""Post-training quantisation: from float weights and training images to a quantised network.

The order is that of Nagel et al. 2021 (arXiv 2106.08295, section 3.5): equalise, absorb, choose
ranges, then round (AdaRound) or correct biases. Normalisation is folded permanently at the end,
which does not change any rounded number. Alternatively, quantisation-aware training follows from
these ranges: all earlier steps leave normalisation usable for training.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from mobilenet.models.depthwise import resolve_padding
from mobilenet.models.mobilenet_v2 import MobileNetV2
from mobilenet.quantize import adaround, calibration, equalize, layers, numerics
from mobilenet.quantize.fold import Folded, fold, is_depthwise, is_folded
from mobilenet.quantize.rules import WEIGHTS, Rule, RuleError, Rules, kind, resolve
from mobilenet.trees import Path, flatten, nest

POSITIONS = 8192  # positions of a layer's output that AdaRound samples

log = logging.getLogger("mobilenet")

Batches = Callable[[], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Changes of float weights before their ranges are chosen, and after.

    Attributes:
      fold: fold batch normalisation permanently; training needs it separate.
      equalize: equalise ranges across layers; absorb: absorb the biases that this makes large
        (`mobilenet.quantize.equalize`).
      correct: "none"; "empirical": correct each layer's mean output, measured on the images (Nagel
        et al. 2019, appendix D); "analytic": from batch normalisation's parameters (section 4.2).
      adaround_steps: for each layer's learned rounding; 0 rounds to nearest.
      percentile: for the estimator of that name.
      seed: for the positions that AdaRound samples.
      observe_passes, batch_norm_passes: counters of the training that follows.
    """

    fold: bool = True
    equalize: bool = False
    absorb: bool = False
    correct: str = "none"
    adaround_steps: int = 0
    percentile: float = 99.99
    seed: int = 0
    observe_passes: float = np.inf
    batch_norm_passes: float = np.inf


def check(network: MobileNetV2, rules: Rules, settings: Settings, quant: Any) -> dict[str, Rule]:
    """Site -> its rule, after a check that the network supports rules and settings.

    Args:
      network, rules, settings: as in `prepare`.
      quant: the network's `quant` collection, or its shapes.

    Raises:
      RuleError: the rules do not fit the network's sites, or the settings do not fit the network.
    """
    resolved = resolve(rules, layers.sites(quant))
    following = [
        site
        for site, rule in resolved.items()
        if kind(site) == WEIGHTS and rule.bits and rule.ranges == "follow"
    ]
    if settings.adaround_steps and following:
        raise RuleError(
            f"adaround_steps is {settings.adaround_steps}, but the range at {following[0]} follows "
            "the weights, so rounding them would change their grid; set "
            "quantize.weights.ranges='fixed'"
        )
    if settings.correct == "analytic":
        gated = any(block.squeeze_features for block in network.plan.blocks)
        known = network.activation in ("relu", "relu6")
        if gated or not known or network.bottleneck_activation != "identity":
            raise RuleError(
                "correct_bias is 'analytic', which needs ReLU or ReLU6, linear bottlenecks and no "
                "squeeze-and-excitation; set it to 'empirical'"
            )
    return resolved


def prepare(
    network: MobileNetV2,
    rules: Rules,
    variables: Mapping[str, Any],
    batches: Batches,
    image_shape: tuple[int, int, int],
    settings: Settings,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Quantises a float network.

    Args:
      network: quantised (`layers.quantize_network`), with its final activation.
      rules: of its sites, complete.
      variables: `params` and `batch_stats` of the float network, on the host.
      batches: each call gives the same normalised training images, float32 [B, H, W, C].
      image_shape: of an image.
      settings: what to do.

    Returns:
      `params`, `batch_stats` and `quant` of the quantised network, and numbers that describe the
      changes.

    Raises:
      RuleError: as `check`.
      CalibrationError: there are no images; weights or activations have NaN or infinity; or the
        weights lack the parameters that analytic correction reads.
    """
    shapes = calibration.structure(network, image_shape)
    quant = calibration.empty(shapes[layers.QUANT])
    resolved = check(network, rules, settings, quant)
    epsilon = network.bn_epsilon
    current: dict[str, Any] = {k: variables[k] for k in ("params", "batch_stats")}
    calibration.folded_kernels(current, epsilon)  # refuses damaged weights before anything runs
    if settings.correct == "analytic" and is_folded(current, epsilon):
        raise calibration.CalibrationError(
            "quantize.correct_bias is 'analytic', which reads batch normalisation's scale and "
            "shift, but these weights are already folded; use 'empirical'."
        )
    facts: dict[str, Any] = {}

    def see(current: Mapping[str, Any]) -> dict[str, Any]:
        """Variables of the quantised network in float, with unused learned steps."""
        params = flatten(current["params"])
        for path, shape in shapes["params"].items():
            params.setdefault(path, np.ones(shape.shape, np.float32))
        return {**current, "params": nest(params), layers.QUANT: quant}

    if settings.equalize:
        folded, pairs = Folded(current, epsilon), equalize.find_pairs(network.plan)
        reach = largest_inputs(network, see(current), batches)
        facts.update(equalize.equalize(folded, pairs, reach=reach))
        if settings.absorb:
            moments = _moments(network, see(folded.variables()), batches)
            facts["absorbed_channels"] = equalize.absorb_biases(folded, pairs, moments)
        current = folded.variables()
    found = calibration.observe(network, see(current), batches())
    quantised = calibration.start(
        shapes,
        current,
        found,
        resolved,
        epsilon=epsilon,
        percentile=settings.percentile,
        counters={
            "observe": settings.observe_passes,
            "batch_norm": settings.batch_norm_passes,
        },
    )
    if settings.adaround_steps:
        quantised, errors = _round(network, quantised, see(current), batches, resolved, settings)
        facts["adaround"] = adaround.report(errors)
    if settings.correct == "empirical":
        quantised, facts["mean_shift"] = _correct(network, quantised, see(current), batches)
    elif settings.correct == "analytic":
        quantised = _correct_analytically(network, quantised, resolved)
    return fold(quantised, epsilon) if settings.fold else quantised, facts


def _look(
    network: MobileNetV2, measure: Callable[[jax.Array], Any]
) -> Callable[[Any, np.ndarray], dict[Path, Any]]:
    """Compiled: (variables, images) -> layer -> `measure` of its products."""

    @jax.jit
    def look(variables: Any, images: jax.Array) -> Any:
        _, found = network.apply(variables, images, False, mutable=[layers.PRODUCTS])
        return {path: measure(x) for path, x in _by_layer(found[layers.PRODUCTS]).items()}

    return look


def _sums(x: jax.Array) -> tuple[jax.Array, ...]:
    """Sum and sum of squares of each channel, [C], and their count."""
    axes = tuple(range(x.ndim - 1))
    return x.sum(axes), jnp.square(x).sum(axes), jnp.float32(x.size // x.shape[-1])


def _ends(x: jax.Array) -> tuple[jax.Array, ...]:
    """Smallest and largest value of each channel, [C]."""
    axes = tuple(range(x.ndim - 1))
    return x.min(axes), x.max(axes)


def _by_layer(recorded: Any) -> dict[Path, Any]:
    """Layer -> the value recorded by its convolution, or by itself if it is dense."""
    flat = flatten(recorded)
    return {
        path[:-2] if path[-2] == "conv" else path[:-1]: value
        for path, value in flat.items()
        if path[-1] == "value"
    }


def _mean_products(
    look: Callable[..., Any], variables: Any, batches: Batches
) -> dict[Path, tuple[np.ndarray, np.ndarray]]:
    """Layer -> (mean, variance) [C] of its products over all images and positions."""
    totals: dict[Path, Any] = {}
    for images in batches():
        for path, sums in jax.device_get(look(variables, images)).items():
            new = [np.asarray(x, np.float64) for x in sums]
            totals[path] = [a + b for a, b in zip(totals.get(path, [0, 0, 0]), new, strict=True)]
    found = {}
    for path, (total, squares, count) in totals.items():
        mean = total / count
        found[path] = mean, np.maximum(squares / count - mean**2, 0)
    return found


def _moments(
    network: MobileNetV2, variables: Any, batches: Batches
) -> dict[Path, tuple[np.ndarray, np.ndarray]]:
    """Layer -> (mean, standard deviation) [C] of the input of its activation."""
    folded = Folded(variables, network.bn_epsilon)
    moments = {}
    found = _mean_products(_look(network, _sums), variables, batches)
    for layer, (mean, variance) in found.items():
        factor = folded.factor(layer)
        moments[layer] = mean * factor + folded.bias(layer), np.sqrt(variance) * np.abs(factor)
    return moments


def largest_inputs(
    network: MobileNetV2, variables: Any, batches: Batches
) -> dict[Path, np.ndarray]:
    """Layer that ReLU6 follows -> its largest input [C] on these images.

    Args:
      network: quantised, or the float one.
      variables: its variables; without bits.
      batches: as in `prepare`.
    """
    if "relu6" not in (network.activation, network.bottleneck_activation):
        return {}  # no layer has a limit, so the images are not needed
    look, folded = _look(network, _ends), Folded(variables, network.bn_epsilon)
    reach: dict[Path, np.ndarray] = {}
    for images in batches():
        for path, ends in jax.device_get(look(variables, images)).items():
            if _activation(network, path) != "relu6":
                continue
            factor, bias = folded.factor(path), folded.bias(path)
            largest = np.maximum(*(end * factor for end in ends)) + bias
            reach[path] = np.maximum(largest, reach[path]) if path in reach else largest
    return reach


def _correct(
    network: MobileNetV2, quantised: dict[str, Any], reference: Any, batches: Batches
) -> tuple[dict[str, Any], dict[str, float]]:
    """Gives every layer's output the mean that it has in the float network, in order of layers.

    Returns:
      Variables, and the largest shift of a channel's mean before, in deviations of the channel.
    """
    look = _look(network, _sums)
    wanted = _mean_products(look, reference, batches)
    worst = 0.0
    for layer, _ in equalize.layer_order(network.plan):
        # The layers before this one are already corrected, so measure with their outputs.
        mean, _ = _mean_products(look, quantised, batches)[layer]
        shift, deviation = mean - wanted[layer][0], np.sqrt(wanted[layer][1])
        varies = deviation > 1e-6 * np.abs(wanted[layer][0])
        if varies.any():
            worst = max(worst, float(np.max(np.abs(shift[varies]) / deviation[varies])))
        folded = Folded(quantised, network.bn_epsilon)
        folded.move_products(layer, shift)
        quantised = folded.variables()
    return quantised, {"largest_in_deviations": worst}


def clipped_mean(mean: np.ndarray, std: np.ndarray, ceiling: float) -> np.ndarray:
    """Mean of a normal variable that is clipped to [0, ceiling], which may be infinite.

    Nagel et al. 2019, appendix C.
    """
    std = np.maximum(std, 1e-6)
    low, high = (0 - mean) / std, (ceiling - mean) / std
    inside = stats.norm.cdf(high) - stats.norm.cdf(low)
    above = ceiling * stats.norm.sf(high) if np.isfinite(ceiling) else 0.0
    return mean * inside + std * (stats.norm.pdf(low) - stats.norm.pdf(high)) + above


def _correct_analytically(
    network: MobileNetV2, quantised: dict[str, Any], rules: Mapping[str, Rule]
) -> dict[str, Any]:
    """Subtracts E[W_q x] - E[W x] from each layer, with E[x] from batch normalisation's parameters.

    A normalised channel is assumed to be normal with mean beta and deviation gamma; the activation
    clips it at 0 and 6 (Nagel et al. 2019, section 4.2.1 and appendix C).
    """
    epsilon = network.bn_epsilon
    params = flatten(quantised["params"])
    means = {path[:-2]: np.asarray(x) for path, x in params.items() if path[-2:] == ("bn", "bias")}
    ceiling = 6.0 if network.activation == "relu6" else np.inf
    grids = calibration.weight_grids(quantised, rules, epsilon)
    folded = Folded(quantised, epsilon)

    def clipped(layer: Path) -> np.ndarray:
        """Mean of the activation's output."""
        return clipped_mean(means[layer], np.abs(params[(*layer, "bn", "scale")]), ceiling)

    def correct(layer: Path, x: np.ndarray) -> None:
        site = folded.site(layer)
        if site not in grids:
            return
        kernel, grid = grids[site]
        error = np.asarray(numerics.from_codes(numerics.to_codes(kernel, grid), grid)) - kernel
        if kernel.ndim == 4:
            error = error.sum((0, 1))
        shift = error[0] * x if is_depthwise(layer) else x @ error
        factor = folded.factor(layer)
        folded.move_products(layer, shift / np.where(factor, factor, 1))

    # The stem reads images, about which normalisation says nothing, so it is not corrected.
    x, before = clipped(("stem",)), np.zeros(())
    for block in network.plan.blocks:
        expanded = x
        if block.expands:
            correct((block.name, "expand"), x)
            expanded = clipped((block.name, "expand"))
        if block.shortcut == "expansion":
            expanded = expanded + before
        correct((block.name, "depthwise"), expanded)
        correct((block.name, "project"), clipped((block.name, "depthwise")))
        y = means[(block.name, "project")]
        if block.shortcut == "identity":
            y = y + x
        elif block.shortcut == "projection":
            correct((block.name, "shortcut"), x)
            y = y + means[(block.name, "shortcut")]
        x, before = y, expanded
    if network.plan.head_features:
        correct(("head",), x)
        x = clipped(("head",))
    correct(("classifier",), x)
    return folded.variables()


def _round(
    network: MobileNetV2,
    quantised: dict[str, Any],
    reference: Any,
    batches: Batches,
    rules: Mapping[str, Rule],
    settings: Settings,
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Learns the rounding of every layer, in order of layers; returns the errors by layer."""
    epsilon = network.bn_epsilon
    grids = calibration.weight_grids(quantised, rules, epsilon)
    folded = Folded(reference, epsilon)  # the reference stays in float
    order = {
        layer: role
        for layer, role in equalize.layer_order(network.plan)
        if folded.site(layer) in grids
    }

    @functools.partial(jax.jit, static_argnames="collection")
    def look(variables: Any, images: jax.Array, collection: str) -> dict[Path, jax.Array]:
        _, found = network.apply(variables, images, False, mutable=[collection])
        return _by_layer(found[collection])

    generator = np.random.default_rng(settings.seed)
    few = -(-POSITIONS // sum(1 for _ in batches()))
    positions: dict[Path, list[Any]] = {layer: [] for layer in order}
    targets: dict[Path, list[np.ndarray]] = {layer: [] for layer in order}
    for images in batches():
        products = look(reference, images, layers.PRODUCTS)
        for layer, role in order.items():
            y = np.asarray(products[layer])
            chosen: Any = slice(None)  # a dense layer has one position per image
            if role != "linear":
                chosen = np.stack([generator.integers(0, n, few) for n in y.shape[:3]], axis=1)
            positions[layer].append(chosen)
            targets[layer].append(y[chosen] if role == "linear" else y[tuple(chosen.T)])

    errors = {}
    for layer, role in order.items():
        kernel, grid = grids[folded.site(layer)]
        inputs = []
        for images, chosen in zip(batches(), positions[layer], strict=True):
            # The inputs of this layer, from layers that are already rounded.
            x = np.asarray(look(quantised, images, layers.INPUTS)[layer])
            if role != "linear":
                x = _windows(network, layer, x, chosen)
            inputs.append(x)
        problem = adaround.Problem(
            np.concatenate(inputs),
            np.concatenate(targets[layer]) * folded.factor(layer),
            folded.bias(layer),
            _activation(network, layer),
        )
        site = folded.site(layer)
        learned, errors[site] = adaround.learn_rounding(
            kernel, grid, problem, steps=settings.adaround_steps, seed=settings.seed
        )
        rounded = Folded(quantised, epsilon)
        rounded.set_kernel(layer, learned)
        quantised = rounded.variables()
        log.info("AdaRound at %s: squared error %s.", site, errors[site])
    return quantised, errors


def _windows(network: MobileNetV2, layer: Path, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Inputs for `adaround.Problem`: x [B, H, W, C] under the layer's windows."""
    plan = network.plan
    if layer == ("stem",):
        size, strides, dilation = 3, plan.stem_strides, 1
    elif is_depthwise(layer):
        block = next(block for block in plan.blocks if block.name == layer[0])
        size, strides, dilation = network.kernel_size, block.strides, block.dilation
    else:
        size, strides, dilation = 1, 1, 1
    pads = resolve_padding(network.padding, x.shape[1:3], (size, size), strides, dilation)
    windows = adaround.sample_windows(x, size, strides, pads, dilation, positions)
    return windows if is_depthwise(layer) else windows.reshape(len(positions), -1)


def _activation(network: MobileNetV2, layer: Path) -> str:
    """The activation after the layer; the gate of squeeze-and-excitation is a separate site."""
    if layer[-2:] == ("se", "reduce"):
        return "relu"
    if layer[-1] == "project":
        return network.bottleneck_activation
    linear = layer[-1] in ("classifier", "shortcut") or layer[-2:] == ("se", "expand")
    return "identity" if linear else network.activation
