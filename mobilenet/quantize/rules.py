"""How each tensor is quantised: defaults for weights and activations, and rules by name.

A site is a place where numbers are rounded, named by its path in the network:
`stem/conv/weights`, `blocks_3_0/depthwise/output`, `blocks_3_1/sum`, `pooled`. A rule consists of a
regular expression that must match a site's whole name, and the changes for that site.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

# These words are defined here, because configurations import only this module of the package.
WEIGHT_BITS = (2, 8)
ACTIVATION_BITS = (4, 16)
ESTIMATORS = ("min_max", "moving_average", "percentile", "mse", "kl")
WEIGHT_ESTIMATORS = ("min_max", "percentile", "mse")
WEIGHTS, ACTIVATIONS = "weights", "activations"
# How ranges move in training. Weights: `follow` (the extremes of the weights at every step),
# `fixed` from the start, `lsq`. Activations: `observe` (a moving average of extremes), `fixed`,
# `lsq`, `lsq_plus` (affine), `pact`.
WEIGHT_RANGES = ("follow", "fixed", "lsq")
ACTIVATION_RANGES = ("observe", "fixed", "lsq", "lsq_plus", "pact")


class RuleError(ValueError):
    """A rule is not valid; the message says which and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one site is quantised.

    Attributes:
      bits: 2 to 8 for weights, 4 to 16 for activations; 0 keeps float.
      symmetric: zero point 0 (weights: narrow range; activations: unsigned if nothing is below 0),
        or affine.
      per_channel: a grid for each output channel; only for weights.
      estimator: chooses the range at calibration (`mobilenet.quantize.observers`). With ranges
        "follow" it must be "min_max", because the range follows the extremes.
      ranges: one of WEIGHT_RANGES or ACTIVATION_RANGES.
    """

    bits: int
    symmetric: bool
    per_channel: bool
    estimator: str
    ranges: str


@dataclasses.dataclass(frozen=True)
class Rules:
    """Defaults for the two kinds of sites, and rows (pattern, changes); the first match applies.

    Changes are pairs of an attribute of `Rule` and its value. Hashable, so modules can hold it.
    """

    weights: Rule
    activations: Rule
    rows: tuple[tuple[str, tuple[tuple[str, bool | int | str], ...]], ...] = ()

    def find(self, site: str) -> Rule:
        """The rule of a site."""
        rule = self.weights if kind(site) == WEIGHTS else self.activations
        for pattern, changes in self.rows:
            if re.fullmatch(pattern, site):
                return dataclasses.replace(rule, **dict(changes))
        return rule

    @property
    def structure(self) -> "Rules":
        """The rules without variables: rules that differ in bits and estimators share a program."""

        def bare(rule: Rule) -> Rule:
            return dataclasses.replace(rule, bits=0, estimator="min_max")

        rows = [
            (pattern, tuple(pair for pair in changes if pair[0] not in ("bits", "estimator")))
            for pattern, changes in self.rows
        ]
        # A row without effect still hides later rows, if there are any.
        while rows and not rows[-1][1]:
            rows.pop()
        return Rules(bare(self.weights), bare(self.activations), tuple(rows))

    @property
    def texts(self) -> tuple[tuple[str, str], ...]:
        """The rows in the form that `parse` reads; "bits=0" replaces an empty list of changes."""
        return tuple(
            (pattern, ", ".join(f"{name}={value}" for name, value in changes) or "bits=0")
            for pattern, changes in self.rows
        )


def kind(site: str) -> str:
    """WEIGHTS or ACTIVATIONS."""
    return WEIGHTS if site.endswith("/weights") else ACTIVATIONS


def parse(
    weights: Mapping[str, object],
    activations: Mapping[str, object],
    rows: Iterable[Sequence[str]],
) -> Rules:
    """Rules from plain values.

    Args:
      weights, activations: values of every attribute of `Rule`; `per_channel` only for weights.
      rows: (pattern, changes) with changes such as "bits=8, symmetric=False".

    Raises:
      RuleError: a value is not allowed; the message is one sentence.
    """
    parsed = []
    for row in rows:
        if (
            not isinstance(row, tuple | list)
            or len(row) != 2
            or not all(isinstance(part, str) for part in row)
        ):
            raise RuleError(
                f"a rule is {row!r}; it must be a pattern of site names and the changes, as in "
                "('stem/.*', 'bits=8')"
            )
        pattern, text = row
        try:
            re.compile(pattern)
        except re.error as error:
            raise RuleError(f"the rule {pattern!r} is not a regular expression: {error}") from error
        changes = tuple(_change(pattern, part) for part in text.split(","))
        names = [name for name, _ in changes]
        if len(set(names)) < len(names):
            raise RuleError(f"the rule {pattern!r} says {text!r}; each attribute may be given once")
        parsed.append((pattern, changes))
    defaults = Rules(
        Rule(**weights),  # pyright: ignore[reportArgumentType]
        Rule(**activations, per_channel=False),  # pyright: ignore[reportArgumentType]
        tuple(parsed),
    )
    _check(WEIGHTS, defaults.weights)
    _check(ACTIVATIONS, defaults.activations)
    return defaults


def _change(pattern: str, text: str) -> tuple[str, bool | int | str]:
    known = [field.name for field in dataclasses.fields(Rule)]
    name, _, value = (part.strip() for part in text.partition("="))
    if name not in known or not value:
        raise RuleError(
            f"the rule {pattern!r} says {text.strip()!r}; it must be one of {', '.join(known)} and "
            "a value, as in 'bits=8'"
        )
    if name == "bits":
        if not value.isdecimal():
            raise RuleError(f"the rule {pattern!r} says bits={value}; it must be a whole number")
        return name, int(value)
    if name in ("symmetric", "per_channel"):
        if value not in ("True", "False"):
            raise RuleError(f"the rule {pattern!r} says {name}={value}; it must be True or False")
        return name, value == "True"
    return name, value


def _check(kind: str, rule: Rule, where: str = "") -> None:
    where = where or f"quantize.{kind}"
    low, high = WEIGHT_BITS if kind == WEIGHTS else ACTIVATION_BITS
    if rule.bits and not low <= rule.bits <= high:
        raise RuleError(
            f"{where}: bits is {rule.bits}; it must be in {low}..{high} for {kind}, or 0 to keep "
            "float"
        )
    for name, allowed in (
        ("estimator", WEIGHT_ESTIMATORS if kind == WEIGHTS else ESTIMATORS),
        ("ranges", WEIGHT_RANGES if kind == WEIGHTS else ACTIVATION_RANGES),
    ):
        value = getattr(rule, name)
        if value not in allowed:
            raise RuleError(
                f"{where}: {name} is {value!r}; allowed for {kind} are {', '.join(allowed)}"
            )
    if kind == ACTIVATIONS and rule.per_channel:
        raise RuleError(
            f"{where}: per_channel is for weights; activations have one grid per tensor"
        )
    if rule.ranges == "follow" and rule.estimator != "min_max":
        raise RuleError(
            f"{where}: estimator is {rule.estimator!r}, but ranges='follow' takes the extremes of "
            "the weights at every step; set ranges to 'fixed' or 'lsq', or estimator='min_max'"
        )
    if rule.ranges in ("lsq", "pact") and not rule.symmetric:
        instead = "'lsq_plus'" if kind == ACTIVATIONS else "'follow' or 'fixed'"
        raise RuleError(
            f"{where}: ranges is {rule.ranges!r}, which learns a symmetric grid; set "
            f"symmetric=True, or ranges to {instead}"
        )
    if rule.ranges == "lsq_plus" and rule.symmetric:
        raise RuleError(
            f"{where}: ranges is 'lsq_plus', which learns an affine grid; set symmetric=False, or "
            "ranges to 'lsq'"
        )


def with_bits(
    rules: Rules, bits: Mapping[str, int], sites: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """Rows, in the form that `parse` reads, that only change the bits of some sites.

    Args:
      rules: the current ones.
      bits: site -> its bits; sites that already have them need no row.
      sites: all sites of the network.
    """
    made = []
    for site, count in bits.items():
        if rules.find(site).bits != count:
            first = (changes for pattern, changes in rules.rows if re.fullmatch(pattern, site))
            changes = {**dict(next(first, ())), "bits": count}
            made.append((re.escape(site), tuple(changes.items())))
    taken = {site for site, count in bits.items() if rules.find(site).bits != count}
    followed = {
        next((pattern for pattern, _ in rules.rows if re.fullmatch(pattern, site)), None)
        for site in sites
        if site not in taken
    }
    kept = [row for row in rules.rows if row[0] in followed]
    return dataclasses.replace(rules, rows=(*made, *kept)).texts


def resolve(rules: Rules, sites: Sequence[str]) -> dict[str, Rule]:
    """Site -> its rule, checked.

    Raises:
      RuleError: a value is not allowed for the kind of the site, or a rule applies to no site.
    """
    unused = [pattern for pattern, _ in rules.rows]
    found = {}
    for site in sites:
        found[site] = rules.find(site)
        used = next((p for p, _ in rules.rows if re.fullmatch(p, site)), None)
        if used is not None:
            _check(kind(site), found[site], f"the rule {used!r} at {site}")
            unused = [pattern for pattern in unused if pattern != used]
    if unused:
        some = ", ".join(list(sites)[:3])
        raise RuleError(
            f"the rule {unused[0]!r} applies to no site: none matches, or an earlier rule matches "
            f"all of them first; sites are {some}, ... ({len(sites)})"
        )
    return found
