r"""Prints what the papers claim, and what this project's runs say about it.

    mobilenet reproduce                               # every claim with its verdict
    mobilenet reproduce fig6a --scale=smoke --workdir=runs/reproduce     # trains it, small
    mobilenet reproduce fig6a --scale=cifar --workdir=runs/reproduce \
        --config.data.data_dir=DIR
    mobilenet reproduce --scale=cifar --workdir=runs/reproduce    # all claims, from these runs

The list has a row for each claim; --details adds each in full. Claims about structure, cost and
memory are computed at once. Claims about accuracy train the variants and seeds of an experiment in
WORKDIR/SCALE, where claims share runs. They are judged by the 95 % interval of the difference over
seeds. The exit code is 0 when a claim is contradicted; it is 1 when runs did not finish.
"""

import collections
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mobilenet.cli import columns, common, following
from mobilenet.cli.main import FAILED

if TYPE_CHECKING:  # they import JAX, which flags need not wait for
    from mobilenet.report.claim_list import Claim
    from mobilenet.report.claims import Measured
    from mobilenet.report.reproduction import Answer


ARGUMENTS = "[CLAIM]"
OVERRIDES = "set a key in every variant"


def define(values: flags.FlagValues) -> None:
    """Declares the verb's flags."""
    flags.DEFINE_string(
        "scale",
        "",
        "smoke (seconds; shows only that it works), cifar (minutes per run on a CPU core), full "
        "(CIFAR-10, for a GPU) or imagenet",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", "", "where the runs of all scales are", flag_values=values)
    flags.DEFINE_boolean("details", False, "print each claim in full", flag_values=values)
    flags.DEFINE_integer("jobs", 1, "processes that train", flag_values=values)
    flags.DEFINE_integer("lanes", 1, "runs of one shape in one program", flag_values=values)
    flags.DEFINE_boolean(
        "retry_failed", False, "train runs again that failed before", flag_values=values
    )
    common.define_threads(values)
    flags.DEFINE_string("root", ".", "the checkout", flag_values=values)


def main(values: flags.FlagValues, overrides: dict[str, str], rest: list[str]) -> int:
    """Runs the verb."""
    from mobilenet.report import reproduction
    from mobilenet.sweep import scales

    root, scale = Path(common.flag(values, "root")), common.flag(values, "scale")
    if scale:
        reproduction.check_scale(scale)
    if not (root / "experiments" / "reference").is_dir():
        raise common.UsageError(
            f"{root / 'experiments' / 'reference'} does not exist; run in the checkout or give "
            "--root."
        )
    if len(rest) > 1:
        raise common.UsageError(f"{rest[1]!r} is one claim too many; give one, or none for a list.")
    if not rest:
        return show_all(
            root,
            scale,
            common.flag(values, "workdir"),
            overrides,
            details=common.flag(values, "details"),
        )
    claim = reproduction.find_claim(rest[0])
    if claim.check == "analytic":
        (answer,) = reproduction.computed(root, [claim.name])[claim.name]
        print(block(claim, answer))
        return 0
    if not scale:
        raise common.UsageError(
            f"--scale is missing; {claim.name} needs runs, for example --scale=smoke. Allowed "
            f"are:\n{scales.explain()}"
        )
    common.require(values, "workdir", "runs/reproduce")
    common.require_at_least(values, jobs=1, lanes=1)
    return reproduce(values, claim, overrides)


def reproduce(values: flags.FlagValues, claim: "Claim", overrides: Mapping[str, str]) -> int:
    """Trains what is missing of a claim's experiment and prints its answers."""
    from mobilenet import runtime
    from mobilenet.report import reproduction
    from mobilenet.sweep import listing, runner

    root, scale = Path(common.flag(values, "root")), common.flag(values, "scale")
    directory = Path(common.flag(values, "workdir")) / scale
    runs = directory / "points"
    trial = reproduction.load_trial(root, claim.experiment, scale, runs, overrides)
    runtime.prepare_compiler()
    outcome = runner.run(
        trial.points,
        directory,
        jobs=common.flag(values, "jobs"),
        lanes=common.flag(values, "lanes"),
        retry_failed=common.flag(values, "retry_failed"),
    )
    print(listing.summary(trial.points, outcome.statuses, directory))
    variants = trial.measure()
    print(f"\n{table(variants)}")
    for name, comparison in trial.comparisons.items():
        answered = reproduction.find_claim(name)
        answer = reproduction.answer(answered, variants, comparison, scale, overrides)
        print(f"\n{block(answered, answer)}")
    return 0 if len(outcome.done) == len(outcome.statuses) else FAILED


def show_all(
    root: Path, scale: str, workdir: str, overrides: Mapping[str, str], *, details: bool
) -> int:
    """Prints a table of all claims, and each in full with details.

    Claims that need runs are answered from those of a workdir, or else from committed rows.
    """
    from mobilenet.report import reproduction
    from mobilenet.report.claim_list import CLAIMS

    if workdir and not scale:
        raise common.UsageError("--scale is missing: --workdir holds a directory for each scale.")
    answers = reproduction.computed(root)
    if workdir:
        answers |= reproduction.measured(root, Path(workdir), scale, overrides)
    else:
        answers |= reproduction.committed(root, scale)
    print(overview(answers, columns.width()))
    for claim in CLAIMS:
        command: list[str] = []
        if claim.experiment:
            command = following.command(
                "reproduce",
                claim.name,
                scale=scale or "cifar",
                workdir=workdir or "runs/reproduce",
            )
        for answer in answers[claim.name] if details else ():
            print(f"\n{block(claim, answer, command)}")
    if not details:
        print("`mobilenet reproduce --details` has each claim in full, and how to run it.")
    return 0


def overview(answers: "Mapping[str, Sequence[Answer]]", width: int) -> str:
    """A row for each answer to each claim, and how many there are of each verdict.

    Args:
      answers: claim -> its answers.
      width: columns that the table may take.
    """
    from mobilenet.report import claims

    rows = [("claim", "scale", "verdict", "ours, points [95 %]", "paper's")]
    for claim in claims.CLAIMS:
        published = claim.published.partition(";")[0]
        for answer in answers[claim.name]:
            scale = re.match(r"scale (\w+)", answer.provenance)
            found = scale[1] if scale else "-"
            rows.append((claim.name, found, answer.verdict, _brief(answer), published))
    sizes = [max(len(row[i]) for row in rows) for i in range(4)]
    sizes.append(max(8, width - sum(sizes) - 2 * len(sizes)))
    lines = ["  ".join(map(columns.fit, row, sizes)).rstrip() for row in rows]
    counts = collections.Counter(each.verdict for found in answers.values() for each in found)
    total = ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts))
    return "\n".join([*lines, "", total])


def _brief(answer: "Answer") -> str:
    """This project's numbers in a few characters: a difference with its interval, or a count."""
    found = re.search(r"([+-][\d.]+) points( \[[^]]*\])?", answer.ours)
    return (
        f"{found[1]}{found[2] or ''}"
        if found
        else answer.reason.partition(";")[0].removesuffix(" agree")
    )


def table(variants: "Mapping[str, Measured]") -> str:
    """Variants with mean and interval over seeds; runs that did not finish stand below."""
    width = max(map(len, variants))
    lines = [
        f"{'variant':<{width}}  {'top-1 %':>7}  {'95 % interval':>16}  seeds      params  M MACs"
    ]
    unfinished = []
    for name, variant in variants.items():
        interval = variant.interval
        unfinished += variant.unfinished
        if interval is None:
            lines.append(f"{name:<{width}}  {'-':>7}  {'-':>16}  none")
            continue
        ends = f"[{interval.low:.2f}, {interval.high:.2f}]" if interval.n > 1 else "-"
        seeds = " ".join(map(str, variant.top1))
        lines.append(
            f"{name:<{width}}  {interval.mean:>7.2f}  {ends:>16}  {seeds:<8}"
            f"{variant.summaries[0]['params']:>9,}  {variant.summaries[0]['macs'] / 1e6:>7,.1f}"
        )
    return "\n".join([*lines, *(f"not finished: {text}" for text in unfinished)])


def block(claim: "Claim", answer: "Answer", command: Sequence[str] = ()) -> str:
    """A claim and its answer in lines that fit the terminal."""
    width = min(100, columns.width())
    published = claim.published + (" (recalled, not read in the source)" * claim.recalled)
    ours = f"{answer.ours} ({answer.provenance})" if answer.ours else answer.provenance
    fields = [
        ("", f"{claim.statement} ({claim.source})"),
        ("published", published),
        ("ours", ours),
        ("verdict", f"{answer.verdict}: {answer.reason}"),
    ]
    lines = [claim.name]
    for label, text in fields:
        head = f"  {label:<11}" if label else "  "
        if text:
            lines += textwrap.wrap(
                text,
                width,
                initial_indent=head,
                subsequent_indent=" " * len(head),
                break_on_hyphens=False,
                break_long_words=False,
            )
    return "\n".join([*lines, *([following.shown(list(command), first="  ")] if command else [])])
