"""The papers' claims on this project's network: which runs answer them, and what the answers are.

`mobilenet.report.claims` has the claims and judges numbers; here are the experiments that give
those numbers, the network that claims by arithmetic are measured on, and every claim's answer from
run directories, from committed rows, or from arithmetic.

    WORKDIR/SCALE/points/KEY/    the runs of a scale, which claims share
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mobilenet import architecture, settings
from mobilenet import config as config_lib
from mobilenet.config import Config, ConfigError
from mobilenet.experiment import load_config, load_module
from mobilenet.models import cost, split
from mobilenet.models.mobilenet_v2 import BlockPlan, InvertedResidual, Plan
from mobilenet.report import analytic, claims
from mobilenet.report.analytic import Finding
from mobilenet.report.claim_list import CLAIMS, Claim
from mobilenet.report.claims import Measured, Variant
from mobilenet.report.results import ResultError
from mobilenet.sweep import points, scales
from mobilenet.sweep.points import Point
from mobilenet.train import records

IMAGENET_CLASSES = 1000  # of the networks that the papers count


def find_claim(name: str) -> Claim:
    """The claim of a name; ConfigError, with the names that there are, for another one."""
    known = {claim.name: claim for claim in CLAIMS}
    if name not in known:
        raise ConfigError(f"{name!r} is no claim; {settings.choices(name, known)}")
    return known[name]


def check_scale(scale: str) -> None:
    """Refuses what is not one of `scales.SCALES` with a ConfigError."""
    if scale not in scales.SCALES:
        raise ConfigError(f"--scale is {scale!r}; allowed are:\n{scales.explain()}")


# ----------------------------------------------------------------------------- claims with runs


@dataclasses.dataclass(frozen=True)
class Trial:
    """A claim's experiment at one scale.

    Attributes:
      points: of its sweep.
      variants: name -> variant.
      comparisons: claim -> (variant claimed to be better, variant compared with).
    """

    points: Sequence[Point]
    variants: Mapping[str, Variant]
    comparisons: Mapping[str, tuple[str, str]]

    def measure(self) -> dict[str, Measured]:
        """Name of a variant -> what its runs gave; ResultError as `claims.measure`."""
        return {name: claims.measure(variant) for name, variant in self.variants.items()}


def load_trial(
    root: Path, file: str, scale: str, runs: Path, overrides: Mapping[str, str]
) -> Trial:
    """The variants of an experiment file, and where their runs are.

    Args:
      root: the checkout.
      file: path of the experiment in it.
      scale: of `scales.SCALES`.
      runs: directory whose sub-directories are run directories, named by the points' keys.
      overrides: of every point, dotted keys with values as text.

    Raises:
      ConfigError: a file without variants, a point of no variant, or overrides that cannot be.
    """
    path = str(root / file)
    module = load_module(path)
    for name in ("variants", "comparisons", "sweep"):
        if not hasattr(module, name):
            raise ConfigError(
                f"{path} has no {name}(arg); a claim's experiment needs it, as "
                "experiments/ablations/bottleneck.py shows."
            )
    config = load_config(f"{path}:{scale}", overrides)
    named = module.variants(scale)
    planned = points.points_of(config, module.sweep(scale), variants=named)
    # A run belongs to the variant whose configuration is its own but for the seed.
    by_group = {points.make_point(config, changes).group: name for name, changes in named.items()}
    found: dict[str, dict[int, Path]] = {name: {} for name in named}
    for point in planned:
        if point.group not in by_group:
            raise ConfigError(
                f"{path}: the point with {point.label} belongs to none of its variants "
                f"({', '.join(named)}); add a variant, or take it out of sweep()."
            )
        found[by_group[point.group]][point.config.seed] = runs / point.key
    variants = {name: Variant(name, named[name], found[name]) for name in named}
    return Trial(planned, variants, module.comparisons(scale))


def collect(
    root: Path, runs: Path, scale: str, overrides: Mapping[str, str] | None = None
) -> list[tuple[Claim, Mapping[str, Measured], tuple[str, str]]]:
    """Every claim that needs runs, with its variants as measured and the two that it compares.

    A variant that no claim names stands with the first claim of its experiment.

    Args:
      root: the checkout.
      runs: directory of run directories named by their keys: WORKDIR/SCALE/points, or committed
        logs.
      scale: of `scales.SCALES`.
      overrides: as for `load_trial`.

    Raises:
      ConfigError: as `load_trial`.
      ResultError: as `claims.measure`.
    """
    found = []
    for file in dict.fromkeys(claim.experiment for claim in CLAIMS):
        if not file:
            continue
        trial = load_trial(root, file, scale, runs, overrides or {})
        variants = trial.measure()
        named = {variant for comparison in trial.comparisons.values() for variant in comparison}
        others = [name for name in variants if name not in named]
        for name, comparison in trial.comparisons.items():
            shown = {
                variant: variants[variant]
                for variant in variants
                if variant in comparison or variant in others
            }
            found.append((find_claim(name), shown, comparison))
            others = []
    return found


def add(root: Path, runs: Path, scale: str, remarks: str = "") -> list[dict[str, str]]:
    """Commits the runs of a scale: logs and rows in experiments/results, for `mobilenet report`.

    Args:
      root: the checkout.
      runs: WORKDIR/SCALE of `mobilenet reproduce`.
      scale: of `scales.SCALES`.
      remarks: what a reader must know next to the numbers.

    Returns:
      The rows.

    Raises:
      ConfigError: another scale.
      ResultError: runs that make no rows, as `claims.add`.
    """
    check_scale(scale)
    found = collect(root, runs / "points", scale)
    return claims.add(root / "experiments" / "results", scale, found, remarks)


# ------------------------------------------------------------------------ claims by arithmetic


class Measure:
    """`analytic.Measure` on this project's network."""

    @staticmethod
    def _config(resolution: int, model: Mapping[str, Any]) -> Config:
        config = config_lib.get_config()
        changes = {f"model.{key}": value for key, value in model.items()}
        config_lib.update(config, {**changes, "data.image_size": resolution})
        config_lib.validate(config)
        return config

    def network(self, resolution: int = 224, **model: Any) -> analytic.Network:
        """Blocks, layers and counts from the block table; ConfigError for keys that cannot be."""
        config = self._config(resolution, model)
        plan = architecture.plan(config.model)
        layers = architecture.layer_costs(config, IMAGENET_CLASSES)
        totals = dataclasses.asdict(cost.totals(layers))
        totals.pop("conv_output_elements")
        return analytic.Network(
            blocks=plan.blocks,
            layers=layers,
            head_features=plan.head_features,
            kernel_size=config.model.kernel_size,
            **totals,
        )

    def split_peak(self, parts: int | None, resolution: int, **model: Any) -> int:
        """Peak elements when blocks are computed in `parts` groups; None: a channel at a time."""
        config = self._config(resolution, model)
        plan, shape = architecture.plan(config.model), architecture.image_shape(config)
        peak = cost.peak_activation(plan, shape, IMAGENET_CLASSES, "block_split", splits=parts)
        return peak.elements

    @functools.cached_property
    def _block(self) -> tuple[InvertedResidual, Any, jax.Array, jax.Array]:
        """A bottleneck of the paper's network, its variables, an input, and its output."""
        model = architecture.build_model(self._config(224, {}), IMAGENET_CLASSES)
        conv, norm = model.constructors()
        block = InvertedResidual(plan=model.plan.blocks[2], conv=conv, norm=norm)
        x = jax.random.normal(jax.random.key(0), (1, 14, 14, block.plan.in_features))
        variables = jax.jit(lambda x: block.init(jax.random.key(1), x, None, False))(x)
        whole: Any = jax.jit(lambda v, x: block.apply(v, x, None, False))(variables, x)
        return block, variables, x, whole[0]

    def split_difference(self, parts: int) -> tuple[float, bool]:
        """Largest difference of a block's outputs when it is split, and whether MACs stay."""
        block, variables, x, whole = self._block
        apply = jax.jit(lambda v, x: split.apply_split(block, v, x, parts))
        difference = float(jnp.max(jnp.abs(apply(variables, x) - whole)))

        def macs(plan: BlockPlan) -> int:
            layers = cost.layer_costs(Plan(plan.in_features, 1, (plan,), 0), (14, 14, 3), 0)
            return sum(layer.macs for layer in layers if layer.role != "stem")

        groups = split.part_plans(block.plan, parts)
        return difference, sum(map(macs, groups)) == macs(block.plan)


def findings(root: Path, names: Iterable[str] = tuple(analytic.CHECKS)) -> dict[str, Finding]:
    """What claims by arithmetic come to: name -> finding.

    Args:
      root: the checkout, for its reference files.
      names: of `analytic.CHECKS`.

    Raises:
      ResultError: the reference files are missing.
    """
    measure = Measure()
    reference = root / "experiments" / "reference"
    try:
        return {name: analytic.CHECKS[name](measure, reference) for name in names}
    except analytic.MissingReference as error:
        raise ResultError(str(error)) from error


# ------------------------------------------------------------------------------------- answers


@dataclasses.dataclass(frozen=True)
class Answer:
    """What this project says to a claim.

    Attributes:
      verdict: "confirmed", "contradicted" or "inconclusive".
      reason: of the verdict.
      ours: this project's numbers in words; "" if there are none.
      provenance: where they come from: scale, seeds, commit.
    """

    verdict: str
    reason: str
    ours: str
    provenance: str


NOT_RUN = Answer(claims.INCONCLUSIVE, "not run", "", "no committed runs")


def computed(root: Path, names: Iterable[str] = tuple(analytic.CHECKS)) -> dict[str, list[Answer]]:
    """Claim -> its answer, of claims by arithmetic; arguments and errors as `findings`."""
    provenance = f"computed, commit {records.commit()}"
    answers = {}
    for name, finding in findings(root, names).items():
        reason = f"{finding.matched} of {finding.compared} values agree"
        reason += f"; {finding.remark}" if finding.remark else ""
        answers[name] = [Answer(finding.verdict, reason, finding.ours, provenance)]
    return answers


def measured(
    root: Path, workdir: Path, scale: str, overrides: Mapping[str, str]
) -> dict[str, list[Answer]]:
    """Claim -> its answer from WORKDIR/SCALE, of claims that need runs; as `collect`."""
    return {
        claim.name: [answer(claim, variants, comparison, scale, overrides)]
        for claim, variants, comparison in collect(
            root, workdir / scale / "points", scale, overrides
        )
    }


def answer(
    claim: Claim,
    variants: Mapping[str, Measured],
    comparison: tuple[str, str],
    scale: str,
    overrides: Mapping[str, str],
) -> Answer:
    """A claim's answer from what its variants gave.

    Args:
      claim: that needs runs.
      variants: name -> what was measured.
      comparison: names of the variant that is claimed to be better and of the one compared with.
      scale, overrides: that the runs were made with.
    """
    first, second = variants[comparison[0]], variants[comparison[1]]
    judged = claims.judge_variants(claim, first, second)
    where = [f"scale {scale}"]
    commits = dict.fromkeys(str(s["commit"]) for s in (*first.summaries, *second.summaries))
    if judged.seeds:
        where += [f"seeds {' '.join(map(str, judged.seeds))}", f"commit {', '.join(commits)}"]
    # Where the data lie changes no number; anything else is no longer the scale's own recipe.
    changed = [key for key in overrides if not key.startswith(config_lib.RUNTIME_KEYS)]
    where += [f"with {key}={overrides[key]}" for key in changed]
    ours = f"{comparison[0]} against {comparison[1]}: {judged.text}"
    return Answer(judged.verdict, judged.reason, ours, ", ".join(where))


def committed(root: Path, scale: str = "") -> dict[str, list[Answer]]:
    """Claim -> its answers from committed rows, one for each scale, of claims that need runs.

    Args:
      root: the checkout.
      scale: of `scales.SCALES`; "" is all of them.
    """
    answers: dict[str, list[Answer]] = {c.name: [] for c in CLAIMS if c.experiment}
    for row in claims.TABLE.rows(root / "experiments" / "results"):
        if row["role"] == "claimed" and scale in ("", row["scale"]):
            answers[row["claim"]].append(_from_row(row))
    return {name: found or [NOT_RUN] for name, found in answers.items()}


def _from_row(row: Mapping[str, str]) -> Answer:
    difference = "no seed in both variants"
    if row["difference"]:
        ends = [row[k] for k in ("difference_low", "difference_high") if row[k]]
        interval = f" [{', '.join(f'{float(end):+.2f}' for end in ends)}]" if ends else ""
        difference = (
            f"{float(row['difference']):+.2f} points{interval}, "
            f"{len(row['seeds'].split())} seeds; detectable at 80 % power: "
            f"{row['detectable'] or 'unknown'}"
        )
    against = f" against {row['baseline']}" if row["baseline"] else ""
    return Answer(
        row["verdict"],
        row["reason"],
        f"{row['variant']}{against}: {difference}",
        f"scale {row['scale']}, seeds {row['seeds']}, commit {row['commit']}",
    )
