"""What the papers claim, and what this project's runs say about it.

    mobilenet reproduce                              # every claim with its verdict
    mobilenet reproduce fig6a --scale=cifar --workdir=runs/reproduce \
        --config.data.data_dir=DIR                   # trains what is missing, then judges
    mobilenet reproduce --scale=cifar --workdir=runs/reproduce    # every claim, from those runs

Claims about structure, cost and memory are computed at once. Claims about accuracy train arms and
seeds of an experiment in WORKDIR/SCALE, which claims share, and are judged by the 95 % interval of
the difference over seeds. Scales: smoke (seconds; says only that it works), cifar (minutes a run on
a CPU core), full (CIFAR-10, for a GPU), imagenet. --config.KEY=VALUE changes every arm alike.

A contradiction is a finding and the exit code 0; it is 1 when runs did not finish.
"""

import dataclasses
import functools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mobilenet import config as config_lib
from mobilenet import rows
from mobilenet.analysis import analytic, claims
from mobilenet.analysis.claims import Arm, Claim, Measured
from mobilenet.analysis.results import ResultError
from mobilenet.cli import common
from mobilenet.cli.main import FAILED
from mobilenet.sweep import scales

WIDTH = 100  # columns


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string("root", ".", "the checkout", flag_values=values)
    flags.DEFINE_string("scale", "", "smoke, cifar, full or imagenet", flag_values=values)
    flags.DEFINE_string("workdir", "", "where the runs of all scales are", flag_values=values)
    flags.DEFINE_integer("jobs", 1, "processes that train", flag_values=values)
    flags.DEFINE_integer("lanes", 1, "runs of one shape in one program", flag_values=values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    root = Path(common.flag(values, "root"))
    scale = common.flag(values, "scale")
    if scale:
        _check_scale(scale)
    if not (root / "experiments" / "reference").is_dir():
        raise common.UsageError(
            f"{root / 'experiments' / 'reference'} does not exist; run in the checkout or give "
            "--root."
        )
    if not rest:
        _list(values, root, scale, overrides)
        return 0
    if len(rest) > 1:
        raise common.UsageError(f"{rest[1]!r} is one claim too many; give one, or none for a list.")
    claim = _find(rest[0])
    if claim.check == "analytic":
        print(_block(claim, *_analytic(claim, root)))
        return 0
    if not scale:
        raise common.UsageError(
            f"--scale is missing; {claim.name} needs runs, for example --scale=smoke (allowed are "
            f"{', '.join(scales.SCALES)})."
        )
    workdir = Path(common.require(values, "workdir", "runs/reproduce"))
    for name in ("jobs", "lanes"):
        if common.flag(values, name) < 1:
            raise common.UsageError(
                f"--{name} is {common.flag(values, name)}; it must be 1 or more."
            )
    return _reproduce(
        claim,
        root,
        workdir,
        scale,
        overrides,
        jobs=common.flag(values, "jobs"),
        lanes=common.flag(values, "lanes"),
    )


def _check_scale(scale: str) -> None:
    if scale not in scales.SCALES:
        raise common.UsageError(f"--scale is {scale!r}; allowed are {', '.join(scales.SCALES)}.")


def _find(name: str) -> Claim:
    found = {claim.name: claim for claim in claims.CLAIMS}
    if name not in found:
        raise common.UsageError(f"{name!r} is no claim; there are {', '.join(found)}.")
    return found[name]


# ----------------------------------------------------------------------------- claims with runs


@dataclasses.dataclass(frozen=True)
class Trial:
    """An experiment at one scale.

    Attributes:
      points: of its sweep.
      arms: name -> arm.
      contrasts: claim -> (arm claimed to be better, arm compared with).
    """

    points: Sequence[Any]
    arms: Mapping[str, Arm]
    contrasts: Mapping[str, tuple[str, str]]


def load_trial(
    root: Path, experiment: str, scale: str, runs: Path, overrides: Mapping[str, str]
) -> Trial:
    """The arms of an experiment file, and where their runs are.

    Args:
      root: the checkout.
      experiment: path of the file in it.
      scale: of `scales.SCALES`.
      runs: directory whose sub-directories are run directories, named by the points' keys.
      overrides: `--config.KEY=VALUE`, of every point.

    Raises:
      UsageError, ConfigError: a file without arms, or overrides that cannot be.
    """
    from mobilenet.sweep import points

    path = str(root / experiment)
    module = common.load_module(path)
    config = common.load_config(f"{path}:{scale}", dict(overrides))
    named = module.arms(scale)
    planned = points.points_of(config, module.sweep(scale))
    # A run belongs to the arm whose configuration is its own but for the seed.
    by_group = {points.make_point(config, changes).group: name for name, changes in named.items()}
    found: dict[str, dict[int, Path]] = {name: {} for name in named}
    for point in planned:
        found[by_group[point.group]][point.config.seed] = runs / point.key
    arms = {name: Arm(name, named[name], found[name]) for name in named}
    return Trial(planned, arms, module.contrasts(scale))


def _reproduce(
    claim: Claim,
    root: Path,
    workdir: Path,
    scale: str,
    overrides: dict[str, str],
    *,
    jobs: int,
    lanes: int,
) -> int:
    from mobilenet import runtime
    from mobilenet.sweep import listing, runner

    directory = workdir / scale
    trial = load_trial(root, claim.experiment, scale, directory / "points", overrides)
    runtime.cache_compilations()
    outcome = runner.run(trial.points, directory, jobs=jobs, lanes=lanes)
    print(listing.summary(trial.points, outcome.statuses, directory))
    measured = {name: claims.measure(arm) for name, arm in trial.arms.items()}
    print()
    print(_arms_table(measured))
    for name, contrast in trial.contrasts.items():
        print()
        shown = _measured(_find(name), measured, contrast, scale, overrides)
        print(_block(_find(name), *shown))
    unfinished = [key for key in outcome.statuses if key not in outcome.done]
    return FAILED if unfinished else 0


def _arms_table(arms: Mapping[str, Measured]) -> str:
    """Arms with mean and interval over seeds; runs that did not finish stand below."""
    width = max(map(len, arms))
    lines = [f"{'arm':<{width}}  {'top-1 %':>7}  {'95 % interval':>16}  seeds      params    MMACs"]
    unfinished = []
    for name, arm in arms.items():
        interval = arm.interval
        unfinished += arm.unfinished
        if interval is None:
            lines.append(f"{name:<{width}}  {'-':>7}  {'-':>16}  none")
            continue
        ends = f"[{interval.low:.2f}, {interval.high:.2f}]" if interval.n > 1 else "-"
        seeds = " ".join(map(str, arm.top1))
        lines.append(
            f"{name:<{width}}  {interval.mean:>7.2f}  {ends:>16}  {seeds:<8}"
            f"{arm.summaries[0]['params']:>9,}  {arm.summaries[0]['macs'] / 1e6:>7,.1f}"
        )
    return "\n".join([*lines, *(f"not finished: {text}" for text in unfinished)])


def _measured(
    claim: Claim,
    arms: Mapping[str, Measured],
    contrast: tuple[str, str],
    scale: str,
    overrides: Mapping[str, str],
) -> tuple[str, str, str]:
    """(verdict with its reason, ours, provenance) of a claim from runs."""
    first, second = arms[contrast[0]], arms[contrast[1]]
    judged = claims.judge_arms(claim, first, second)
    where = [f"scale {scale}"]
    commits = dict.fromkeys(str(s["commit"]) for s in (*first.summaries, *second.summaries))
    if judged.seeds:
        where += [f"seeds {' '.join(map(str, judged.seeds))}", f"commit {', '.join(commits)}"]
    # Where the data lie changes no number; anything else is no longer the scale's own recipe.
    changed = [key for key in overrides if not key.startswith(config_lib.RUNTIME_KEYS)]
    where += [f"with {key}={overrides[key]}" for key in changed]
    return (
        f"{judged.verdict}: {judged.reason}",
        f"{contrast[0]} against {contrast[1]}: {judged.text}",
        ", ".join(where),
    )


def _committed(claim: Claim, found: Sequence[Mapping[str, str]]) -> list[tuple[str, str, str]]:
    """(verdict with its reason, ours, provenance) of a claim from committed rows, one a scale."""
    shown = []
    for row in found:
        if row["claim"] != claim.name or row["role"] != "claimed":
            continue
        difference = "no seed in both arms"
        if row["difference"]:
            ends = [row[k] for k in ("difference_low", "difference_high") if row[k]]
            interval = f" [{', '.join(f'{float(end):+.2f}' for end in ends)}]" if ends else ""
            detectable = row["detectable"] or "unknown"
            difference = (
                f"{float(row['difference']):+.2f} points{interval}, "
                f"{len(row['seeds'].split())} seeds; detectable at 80 % power: {detectable}"
            )
        against = f" against {row['versus']}" if row["versus"] else ""
        shown.append(
            (
                f"{row['verdict']}: {row['reason']}",
                f"{row['arm']}{against}: {difference}",
                f"scale {row['scale']}, seeds {row['seeds']}, commit {row['commit']}",
            )
        )
    return shown


def add(root: Path, runs: Path, scale: str, remarks: str = "") -> list[dict[str, str]]:
    """Commits the runs of a scale: logs and rows in experiments/results, for `mobilenet report`.

    Args:
      root: the checkout.
      runs: WORKDIR/SCALE of `mobilenet reproduce`.
      scale: of `scales.SCALES`.
      remarks: what a reader must know beside the numbers.

    Returns:
      The rows.

    Raises:
      UsageError: another scale, or runs that make no rows.
    """
    _check_scale(scale)
    try:
        found = collect(root, runs / "points", scale)
        return claims.add(root / "experiments" / "results", scale, found, remarks)
    except ResultError as error:
        raise common.UsageError(str(error)) from error


def collect(
    root: Path, runs: Path, scale: str, overrides: Mapping[str, str] | None = None
) -> list[tuple[Claim, Mapping[str, Measured], tuple[str, str]]]:
    """Every claim that needs runs, with its arms as measured and the two that it compares.

    An arm that no claim names stands with the first claim of its experiment.

    Args:
      root: the checkout.
      runs: directory of run directories named by their keys: WORKDIR/SCALE/points, or committed
        logs.
      scale: of `scales.SCALES`.
      overrides: as for `load_trial`.
    """
    found = []
    for experiment in dict.fromkeys(claim.experiment for claim in claims.CLAIMS):
        if not experiment:
            continue
        trial = load_trial(root, experiment, scale, runs, overrides or {})
        measured = {name: claims.measure(arm) for name, arm in trial.arms.items()}
        named = {arm for contrast in trial.contrasts.values() for arm in contrast}
        others = [name for name in measured if name not in named]
        for name, contrast in trial.contrasts.items():
            shown = [arm for arm in measured if arm in contrast or arm in others]
            found.append((_find(name), {arm: measured[arm] for arm in shown}, contrast))
            others = []
    return found


# ------------------------------------------------------------------------ claims by arithmetic


class Measure:
    """`analytic.Measure` on this project's network."""

    @staticmethod
    def _config(resolution: int, model: Mapping[str, Any]) -> Any:
        config = config_lib.get_config()
        changes = {f"model.{key}": value for key, value in model.items()}
        config_lib.update(config, {**changes, "data.image_size": resolution})
        config_lib.validate(config)
        return config

    def network(self, resolution: int = 224, **model: Any) -> analytic.Network:
        from mobilenet import build
        from mobilenet.models import cost

        config = self._config(resolution, model)
        plan = build.plan(config.model)
        layers = build.layer_costs(config, 1000)
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
        from mobilenet import build
        from mobilenet.models import cost

        config = self._config(resolution, model)
        plan = build.plan(config.model)
        shape = build.image_shape(config)
        return cost.peak_activation(plan, shape, 1000, "block_split", splits=parts).elements

    @functools.cached_property
    def _block(self) -> tuple[Any, Any, Any, Any]:
        """A bottleneck of the paper's network, its variables, an input, and its output."""
        import jax

        from mobilenet import build
        from mobilenet.models.mobilenet_v2 import InvertedResidual

        config = self._config(224, {})
        model = build.build_model(config, 1000)
        conv, norm = model.constructors()
        block = InvertedResidual(plan=model.plan.blocks[2], conv=conv, norm=norm)
        x = jax.random.normal(jax.random.key(0), (1, 14, 14, block.plan.in_features))
        variables = jax.jit(lambda x: block.init(jax.random.key(1), x, None, False))(x)
        whole: Any = jax.jit(lambda v, x: block.apply(v, x, None, False))(variables, x)
        return block, variables, x, whole[0]

    def split_difference(self, parts: int) -> tuple[float, bool]:
        import jax
        import jax.numpy as jnp

        from mobilenet.models import cost, split
        from mobilenet.models.mobilenet_v2 import Plan

        block, variables, x, whole = self._block
        apply = jax.jit(lambda v, x: split.apply_split(block, v, x, parts))
        difference = float(jnp.max(jnp.abs(apply(variables, x) - whole)))

        def macs(plan: Any) -> int:
            layers = cost.layer_costs(Plan(plan.in_features, 1, (plan,), 0), (14, 14, 3), 0)
            return sum(layer.macs for layer in layers if layer.role != "stem")

        groups = split.part_plans(block.plan, parts)
        return difference, sum(map(macs, groups)) == macs(block.plan)


def findings(root: Path) -> dict[str, analytic.Finding]:
    """What every claim by arithmetic comes to: name -> finding.

    Raises:
      UsageError: the checkout's reference files are missing.
    """
    measure = Measure()
    try:
        return {
            name: check(measure, root / "experiments" / "reference")
            for name, check in analytic.CHECKS.items()
        }
    except analytic.MissingReference as error:
        raise common.UsageError(str(error)) from error


def _analytic(claim: Claim, root: Path) -> tuple[str, str, str]:
    check = analytic.CHECKS[claim.name]
    try:
        return _found(check(Measure(), root / "experiments" / "reference"))
    except analytic.MissingReference as error:
        raise common.UsageError(str(error)) from error


def _found(finding: analytic.Finding) -> tuple[str, str, str]:
    agree = f"{finding.matched} of {finding.compared} values agree"
    remark = f"; {finding.remark}" if finding.remark else ""
    return f"{finding.verdict}: {agree}{remark}", finding.ours, f"computed, commit {_commit()}"


@functools.cache
def _commit() -> str:
    from mobilenet.train import records

    return records.commit()


# --------------------------------------------------------------------------------------- shown


def _block(claim: Claim, verdict: str, ours: str, provenance: str, command: str = "") -> str:
    """A claim in lines of at most WIDTH columns."""
    published = claim.published + (" (recalled, not read in the source)" * claim.recalled)
    fields = [
        ("", f"{claim.statement} ({claim.source})"),
        ("published", published),
        ("ours", f"{ours} ({provenance})" if ours else provenance),
        ("verdict", verdict),
        ("run", command),
    ]
    lines = [claim.name]
    for label, text in fields:
        head = f"  {label:<11}" if label else "  "
        if text:
            lines += textwrap.wrap(
                text,
                WIDTH,
                initial_indent=head,
                subsequent_indent=" " * len(head),
                break_on_hyphens=False,
                break_long_words=False,
            )
    return "\n".join(lines)


def _list(values: flags.FlagValues, root: Path, scale: str, overrides: Mapping[str, str]) -> None:
    """Prints every claim; those that need runs from a workdir, or from committed rows."""
    workdir = common.flag(values, "workdir")
    if workdir and not scale:
        raise common.UsageError("--scale is missing: --workdir holds a directory a scale.")
    computed = findings(root)
    shown: dict[str, list[tuple[str, str, str]]] = {
        name: [_found(finding)] for name, finding in computed.items()
    }
    if workdir:
        for claim, arms, contrast in collect(
            root, Path(workdir) / scale / "points", scale, overrides
        ):
            shown[claim.name] = [_measured(claim, arms, contrast, scale, overrides)]
    else:
        table = rows.read(root / "experiments" / "results" / f"{claims.TABLE}.csv")
        table = [row for row in table if scale in ("", row["scale"])]
        for claim in claims.CLAIMS:
            if claim.experiment:
                shown[claim.name] = _committed(claim, table)
    counts: dict[str, int] = {}
    blocks = []
    for claim in claims.CLAIMS:
        command = ""
        if claim.experiment:
            command = (
                f"mobilenet reproduce {claim.name} --scale={scale or 'cifar'} "
                f"--workdir={workdir or 'runs/reproduce'}"
            )
        found = shown[claim.name] or [("inconclusive: not run", "", "no committed runs")]
        for verdict, ours, provenance in found:
            kind = verdict.split(":")[0]
            counts[kind] = counts.get(kind, 0) + 1
            blocks.append(_block(claim, verdict, ours, provenance, command))
    print("\n\n".join(blocks))
    print("\n" + ", ".join(f"{counts[name]} {name}" for name in sorted(counts)))
