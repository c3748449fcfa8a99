"""The loss from quantisation, layer by layer, and the best bits within a budget of size."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet import architecture, build
from mobilenet.config import Config, ConfigError, is_quantized, quantization_rules
from mobilenet.models.network import Network
from mobilenet.quantize import calibration, layers, precision
from mobilenet.quantize.rules import (
    ACTIVATION_BITS,
    ACTIVATIONS,
    WEIGHT_BITS,
    WEIGHTS,
    kind,
    with_bits,
)

KINDS = (WEIGHTS, ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of a network when only one site is rounded.

    Attributes:
      site: see `mobilenet.quantize.rules`.
      bits: of the site.
      numbers: in its kernel; 0 for an activation.
      divergence: mean over images of the Kullback-Leibler divergence, in nats, of the rounded
        network's class probabilities from the float network's (Cai et al. 2020, arXiv 2001.00281,
        equation 2). It changes long before a class changes, so a few hundred images distinguish
        layers that top-1 does not distinguish.
      agreement: fraction of images whose class is the float network's, in [0, 1].
      drop: top-1 of the float network minus this one's, in [-1, 1].
    """

    site: str
    bits: int
    numbers: int
    divergence: float
    agreement: float
    drop: float


FIELDS = tuple(field.name for field in dataclasses.fields(Loss))


def in_order(sites: Sequence[str], network: Network) -> list[str]:
    """Sites in the order in which the network computes them."""
    modules = ("input", *network.modules[:-1], "pooled", network.modules[-1], "logits")
    inner = ("expand", "expanded_sum", "depthwise", "se", "project", "shortcut", "sum")

    def rank(site: str) -> tuple[int, int, str]:
        first, second, *_ = (*site.split("/"), "")
        return modules.index(first), inner.index(second) if second in inner else 0, site

    return sorted(sites, key=rank)


def sensitivity(
    config: Config,
    data: build.Data,
    variables: Mapping[str, Any],
    *,
    bits: Sequence[int],
    which: str = WEIGHTS,
    split: str = "validation",
    examples: int = 512,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Loss]:
    """Rounds each site alone, with all others in float, and measures the loss in the outputs.

    One compiled program serves all sites and bits. The ranges of estimators that depend on bits
    ("mse", "kl") were chosen for the run's own bits.

    Args:
      config: of a quantised run.
      data: its data set.
      variables: its `params`, `batch_stats` and `quant`.
      bits: to try at each site.
      which: WEIGHTS or ACTIVATIONS.
      split: whose images are used; not "test", because they decide on the bits.
      examples: number of images, from the start of the split.
      progress: gets a line for each site.

    Raises:
      ConfigError: the run is not quantised, or bits are not allowed at a site.
    """
    if not is_quantized(config):
        raise ConfigError("The run is not quantised; make one with mobilenet quantize --to=RUN.")
    low, high = WEIGHT_BITS if which == WEIGHTS else ACTIVATION_BITS
    wrong = [b for b in bits if not low <= b <= high]
    if wrong or not bits:
        given = ", ".join(map(str, wrong)) or "none"
        raise ConfigError(f"The bits to try are {given}; they must be in {low}..{high}.")
    parts = list(data.evaluated(split, examples))
    images = [jnp.asarray(part) for part, _ in parts]
    labels = np.concatenate([part for _, part in parts])
    num_classes = build.resolve_classes(config, len(data.class_names))
    model = architecture.build_model(config, num_classes)
    forward = jax.jit(build.build_forward(model, data.mean, data.std))
    variables = jax.tree.map(jnp.asarray, dict(variables))
    quant = calibration.without_bits(variables[layers.QUANT])

    def probabilities(quant: Any) -> np.ndarray:
        given = {**variables, layers.QUANT: quant}
        logits = [np.asarray(forward(given, part), np.float64) for part in images]
        return np.asarray(jax.nn.log_softmax(np.concatenate(logits)), np.float64)

    wanted = probabilities(quant)
    found = []
    numbers = precision.kernel_sizes(variables)
    sites = [site for site in in_order(layers.sites(quant), model) if kind(site) == which]
    for index, site in enumerate(sites):
        for count in bits:
            chosen = {site: count}
            given = probabilities(calibration.with_bits(quant, chosen.get))
            found.append(_loss(site, count, numbers.get(site, 0), wanted, given, labels))
        line = ", ".join(f"{loss.bits} bits {loss.divergence:.2g}" for loss in found[-len(bits) :])
        progress(f"{index + 1}/{len(sites)} {site}: {line}")
    return found


def _loss(
    site: str,
    bits: int,
    numbers: int,
    wanted: np.ndarray,
    given: np.ndarray,
    labels: np.ndarray,
) -> Loss:
    right, now = wanted.argmax(-1), given.argmax(-1)
    return Loss(
        site=site,
        bits=bits,
        numbers=numbers,
        divergence=float(np.sum(np.exp(wanted) * (wanted - given), -1).mean()),
        agreement=float(np.mean(right == now)),
        drop=float(np.mean(right == labels) - np.mean(now == labels)),
    )


def choose_bits(
    losses: Sequence[Loss], config: Config, variables: Mapping[str, Any], budget: float
) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Bits of every kernel within a budget, and the `quantize.rules` that set them.

    Args:
      losses: of weights, from `sensitivity`.
      config: of the quantised run.
      variables: its `quant` names the sites.
      budget: mean bits per weight.

    Raises:
      ConfigError: no choice of the tried bits meets the budget.
    """
    by_site: dict[str, dict[int, float]] = {}
    numbers = {}
    for loss in losses:
        by_site.setdefault(loss.site, {})[loss.bits] = loss.divergence
        numbers[loss.site] = loss.numbers
    total = sum(numbers.values())
    try:
        bits = precision.allocate(by_site, numbers, budget * total)
    except precision.BudgetError:
        fewest = min(bits for choices in by_site.values() for bits in choices)
        raise ConfigError(
            f"The budget is {budget:g} bits per weight; with {fewest} as the fewest bits tried it "
            f"must be at least {fewest}."
        ) from None
    return bits, with_bits(quantization_rules(config), bits, layers.sites(variables[layers.QUANT]))
