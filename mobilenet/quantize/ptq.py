"""Post-training quantisation: from float weights and training pictures to a quantised network.

The order is that of Nagel et al. 2021 (arXiv 2106.08295, section 3.5): fold, equalise, absorb,
choose ranges, then round (AdaRound) or correct biases. Training may follow, which makes it
quantisation-aware training from these ranges.
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
from mobilenet.quantize.calibration import Path, flatten, nest
from mobilenet.quantize.equalize import Folded
from mobilenet.quantize.rules import WEIGHTS, Rule, RuleError, Rules, resolve

CORRECTIONS = ("none", "analytic", "empirical")
POSITIONS = 8192  # that AdaRound samples of a layer's output

log = logging.getLogger("mobilenet")

Batches = Callable[[], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is done to float weights before their ranges are chosen, and after.

    Attributes:
      fold: fold batch normalisation for good; training may keep it apart.
      equalize, absorb: `mobilenet.quantize.equalize`; they need folded weights.
      correct: "none"; "empirical": of each layer's mean output, measured on the pictures (Nagel et
        al. 2019, appendix D); "analytic": from batch normalisation's parameters (section 4.2).
      adaround_steps: of each layer's learned rounding; 0 rounds to nearest.
      percentile: of the estimator of that name.
      seed: of the positions that AdaRound samples.
      observe_steps, batch_norm_steps: of the training that follows.
    """

    fold: bool = True
    equalize: bool = False
    absorb: bool = False
    correct: str = "none"
    adaround_steps: int = 0
    percentile: float = 99.99
    seed: int = 0
    observe_steps: float = np.inf
    batch_norm_steps: float = np.inf


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
      network: quantised (`layers.quantize_network`), with the activation that it is to have.
      rules: of its sites, complete.
      variables: `params` and `batch_stats` of the float network, on the host.
      batches: calls give normalised training pictures, float32 [B, H, W, C], the same every time.
      image_shape: of a picture.
      settings: what to do.

    Returns:
      `params`, `batch_stats` and `quant` of the quantised network, and what was done in numbers.

    Raises:
      RuleError: rules that do not fit the network's sites.
      CalibrationError: no pictures; NaN or infinity in weights or activations.
    """
    shapes = calibration.structure(network, image_shape)
    quant = calibration.empty(shapes[layers.QUANT])
    resolved = resolve(rules, layers.sites(quant))
    epsilon = network.bn_epsilon
    float_variables: dict[str, Any] = {k: variables[k] for k in ("params", "batch_stats")}
    facts: dict[str, Any] = {}

    def see(current: Mapping[str, Any]) -> dict[str, Any]:
        """As variables of the quantised network, whose learned steps do not count yet."""
        params = flatten(current["params"])
        for path, shape in shapes["params"].items():
            params.setdefault(path, np.ones(shape.shape, np.float32))
        return {
            **current,
            "params": nest(params),
            layers.QUANT: calibration.without_bits(quant),
        }

    current = float_variables
    if settings.fold:
        folded = Folded(float_variables, epsilon)
        pairs = equalize.find_pairs(network.plan)
        if settings.equalize:
            facts.update(equalize.equalize(folded, pairs))
            if settings.absorb:
                moments = _moments(network, see(folded.variables()), batches, folded)
                facts["absorbed_channels"] = equalize.absorb_biases(folded, pairs, moments)
        current = folded.variables()
    found = calibration.observe(network, see(current), batches())
    start = functools.partial(
        calibration.start,
        shapes,
        found=found,
        rules=resolved,
        epsilon=epsilon,
        percentile=settings.percentile,
        counters={
            "observe": settings.observe_steps,
            "batch_norm": settings.batch_norm_steps,
        },
    )
    quantised = start(current)
    if settings.adaround_steps:
        quantised, errors = _round(network, quantised, see(current), batches, resolved, settings)
        facts["adaround"] = adaround.report(errors)
    if settings.correct == "empirical":
        quantised, facts["mean_shift"] = _correct(network, quantised, see(current), batches)
    elif settings.correct == "analytic":
        quantised = _correct_analytically(network, quantised, variables, resolved)
    return quantised, facts


def _add_bias(variables: Mapping[str, Any], layer: Path, change: np.ndarray) -> dict[str, Any]:
    """Variables with `change` [C] added behind a layer's normalisation, or to its bias."""
    params = flatten(variables["params"])
    path = (*layer, "bn", "bias") if (*layer, "bn", "bias") in params else (*layer, "bias")
    params[path] = np.asarray(params[path] + change, np.float32)
    return {**variables, "params": nest(params)}


def _products(network: MobileNetV2) -> Callable[[Any, jax.Array], dict[Path, Any]]:
    """Compiled: (variables, images) -> layer -> (sum, sum of squares, count) of its products."""

    @jax.jit
    def look(variables: Any, images: jax.Array) -> Any:
        _, found = network.apply(variables, images, False, mutable=[layers.PRODUCTS])

        def sums(x: jax.Array) -> tuple[jax.Array, ...]:
            axes = tuple(range(x.ndim - 1))
            return x.sum(axes), jnp.square(x).sum(axes), jnp.float32(x.size // x.shape[-1])

        return {path: sums(x) for path, x in _by_layer(found[layers.PRODUCTS]).items()}

    return look


def _by_layer(recorded: Any) -> dict[Path, Any]:
    """Layer -> what its convolution, or it itself when dense, recorded."""
    flat = flatten(recorded)
    return {
        path[:-2] if path[-2] == "conv" else path[:-1]: value
        for path, value in flat.items()
        if path[-1] == "value"
    }


def _mean_products(
    look: Callable[..., Any], variables: Any, batches: Batches
) -> dict[Path, tuple[np.ndarray, np.ndarray]]:
    """Layer -> (mean, variance) [C] of its products over all pictures and positions."""
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
    network: MobileNetV2, variables: Any, batches: Batches, folded: Folded
) -> dict[Path, tuple[np.ndarray, np.ndarray]]:
    """Layer -> (mean, standard deviation) of what its activation gets, of folded weights."""
    found = _mean_products(_products(network), variables, batches)
    return {
        layer: (mean + folded.biases[layer], np.sqrt(variance))
        for layer, (mean, variance) in found.items()
    }


def _factor(variables: Mapping[str, Any], layer: Path, epsilon: float) -> np.ndarray:
    """What normalisation multiplies a layer's products by, [C]; 1 of a dense layer."""
    factors = calibration.fold_factors(variables, epsilon)
    return factors.get((*layer, "conv", "kernel"), np.ones((), np.float32))


def _correct(
    network: MobileNetV2, quantised: dict[str, Any], reference: Any, batches: Batches
) -> tuple[dict[str, Any], dict[str, float]]:
    """Gives every layer's output the mean that it has in the float network, first layer first.

    Returns:
      Variables, and the largest shift of a channel's mean before, in deviations of the channel.
    """
    look = _products(network)
    wanted = _mean_products(look, reference, batches)
    worst = 0.0
    for layer, _ in equalize.layer_order(network.plan):
        # Layers before this one are corrected by now: measure what they hand it.
        mean, _ = _mean_products(look, quantised, batches)[layer]
        shift = (wanted[layer][0] - mean).astype(np.float32)
        worst = max(worst, float(np.max(np.abs(shift) / np.sqrt(wanted[layer][1] + 1e-12))))
        factor = _factor(quantised, layer, network.bn_epsilon)
        quantised = _add_bias(quantised, layer, shift * factor)
    return quantised, {"largest_in_deviations": worst}


def _correct_analytically(
    network: MobileNetV2,
    quantised: dict[str, Any],
    variables: Mapping[str, Any],
    rules: Mapping[str, Rule],
) -> dict[str, Any]:
    """Takes E[W_q x] - E[W x] off each bias, with E[x] from batch normalisation's parameters.

    A normalised channel is taken as normal with mean beta and deviation gamma; the activation clips
    it at 0 and 6 (Nagel et al. 2019, section 4.2.1 and appendix C).

    Raises:
      CalibrationError: the weights come folded, which leaves nothing to read.
    """
    params = flatten(variables["params"])
    scales = {path[:-2]: np.abs(x) for path, x in params.items() if path[-2:] == ("bn", "scale")}
    if all(np.allclose(scale, 1.0) for scale in scales.values()):
        raise calibration.CalibrationError(
            "quantize.correct_bias is 'analytic', which reads batch normalisation's scale and "
            "shift, but these weights come folded; use 'empirical'."
        )
    means = {layer: np.asarray(params[(*layer, "bn", "bias")]) for layer in scales}
    ceiling = {"relu6": 6.0, "relu": np.inf}.get(network.activation)
    if ceiling is None or network.bottleneck_activation != "identity":
        raise calibration.CalibrationError(
            "quantize.correct_bias is 'analytic', which knows ReLU and ReLU6 behind layers and "
            "nothing behind bottlenecks; use 'empirical'."
        )
    grids = calibration.weight_grids(quantised, rules, network.bn_epsilon)

    def clipped(layer: Path) -> np.ndarray:
        """Mean of the activation's output."""
        mean, std = means[layer], np.maximum(scales[layer], 1e-6)
        a, b = (0 - mean) / std, (ceiling - mean) / std
        inside = stats.norm.cdf(b) - stats.norm.cdf(a)
        above = stats.norm.sf(b)
        top = ceiling * above if np.isfinite(ceiling) else 0.0
        return mean * inside + std * (stats.norm.pdf(a) - stats.norm.pdf(b)) + top

    def correct(layer: Path, x: np.ndarray) -> None:
        nonlocal quantised
        site = _site(layer)
        if site not in grids:
            return
        kernel, grid = grids[site]
        error = np.asarray(numerics.from_codes(numerics.to_codes(kernel, grid), grid)) - kernel
        if kernel.ndim == 4:
            error = error.sum((0, 1))
        depthwise = kernel.ndim == 4 and kernel.shape[2] == 1 and len(x) > 1
        shift = error[0] * x if depthwise else x @ error
        quantised = _add_bias(quantised, layer, -shift)

    # The stem reads pictures, of which normalisation says nothing: it stays as it is.
    before = clipped(("stem",))
    for block in network.plan.blocks:
        x = before
        if block.expands:
            correct((block.name, "expand"), x)
            x = clipped((block.name, "expand"))
        correct((block.name, "depthwise"), x)
        correct((block.name, "project"), clipped((block.name, "depthwise")))
        after = means[(block.name, "project")]
        if block.shortcut == "identity":
            after = after + before
        elif block.shortcut == "projection":
            correct((block.name, "shortcut"), before)
            after = after + means[(block.name, "shortcut")]
        before = after
    if network.plan.head_features:
        correct(("head",), before)
        before = clipped(("head",))
    correct(("classifier",), before)
    return quantised


def _site(layer: Path) -> str:
    inner = layer if layer == ("classifier",) else (*layer, "conv")
    return "/".join((*inner, WEIGHTS))


def _round(
    network: MobileNetV2,
    quantised: dict[str, Any],
    reference: Any,
    batches: Batches,
    rules: Mapping[str, Rule],
    settings: Settings,
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Learns the rounding of every layer, first layer first; returns the errors by layer."""
    grids = calibration.weight_grids(quantised, rules, network.bn_epsilon)
    following = [site for site in grids if rules[site].ranges == "follow"]
    if following:
        raise RuleError(
            f"quantize.adaround_steps is {settings.adaround_steps}, but the range at "
            f"{following[0]} follows the weights, which would change the grid that they are "
            "rounded to; set quantize.weights.ranges='fixed'"
        )

    @jax.jit
    def look(variables: Any, images: jax.Array) -> Any:
        names = [layers.INPUTS, layers.PRODUCTS]
        _, found = network.apply(variables, images, False, mutable=names)
        return [_by_layer(found[name]) for name in names]

    count = sum(1 for _ in batches())
    dilations: dict[Path, int] = {(b.name, "depthwise"): b.dilation for b in network.plan.blocks}
    errors = {}
    for layer, role in equalize.layer_order(network.plan):
        site = _site(layer)
        if site not in grids:
            continue
        kernel, grid = grids[site]
        generator = np.random.default_rng(settings.seed)
        inputs, targets = [], []
        for images in batches():
            # What the layers before, rounded by now, hand this one; what it should make of it.
            x = np.asarray(look(quantised, images)[0][layer])
            y = np.asarray(look(reference, images)[1][layer])
            few = -(-POSITIONS // count)
            if role == "classifier":
                inputs.append(x)
                targets.append(y)
                continue
            positions = np.stack([generator.integers(0, n, few) for n in y.shape[:3]], axis=1)
            size = kernel.shape[0]
            strides = -(-x.shape[1] // y.shape[1])
            dilation = dilations.get(layer, 1)
            pads = resolve_padding(network.padding, x.shape[1:3], (size, size), strides, dilation)
            windows = adaround.sample_windows(x, size, strides, pads[0], dilation, positions)
            inputs.append(windows if role == "depthwise" else windows.reshape(few, -1))
            targets.append(y[tuple(positions.T)])
        factor = _factor(quantised, layer, network.bn_epsilon)
        problem = adaround.Problem(
            np.concatenate(inputs),
            np.concatenate(targets) * _factor(reference, layer, network.bn_epsilon),
            _bias(quantised, layer, network.bn_epsilon),
            _activation(network, layer),
        )
        learned, errors[site] = adaround.learn_rounding(
            kernel, grid, problem, steps=settings.adaround_steps, seed=settings.seed
        )
        params = flatten(quantised["params"])
        path = (*layer, "kernel") if role == "classifier" else (*layer, "conv", "kernel")
        params[path] = np.asarray(learned / factor, np.float32)
        quantised = {**quantised, "params": nest(params)}
        log.info("AdaRound at %s: squared error %s.", site, errors[site])
    return quantised, errors


def _bias(variables: Mapping[str, Any], layer: Path, epsilon: float) -> np.ndarray:
    return Folded(variables, epsilon).biases[layer]


def _activation(network: MobileNetV2, layer: Path) -> str:
    if layer[-1] == "project":
        return network.bottleneck_activation
    return "identity" if layer[-1] in ("classifier", "shortcut") else network.activation
