"""Which kernels are pruned, how much and when: names, targets and schedules, as plain numbers.

A module is named by its path in the network, such as `blocks_3_0/expand`. Its role is the last part
of that name: `stem`, `expand`, `depthwise`, `project`, `head`, `classifier` in MobileNetV2, `se`
for both layers of a squeeze-and-excitation. Only kernels are pruned, not biases or normalisation.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

# These words are defined here, because configurations import only this module of the package.
METHODS = ("none", "magnitude", "random", "saliency", "rigl", "set", "zeros")
REGROWING = ("rigl", "set")  # methods that exchange weights and keep their number
DISTRIBUTIONS = ("uniform", "erk", "global")
SCHEDULES = ("one_shot", "cubic")
# Modules with few but important weights: a depthwise channel has nine; the stem reads the image.
SPARED = ("stem", "depthwise", "se")
PRUNE, SPARE = "prune", "spare"

Path = tuple[str, ...]


class RuleError(ValueError):
    """A rule or pattern is not valid; the message says which and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which weights are kept or removed together.

    Attributes:
      kind: "weights": each on its own. "n_of_m": of each `group` consecutive input channels of an
        output channel, `kept` stay (Zhou et al. 2021, arXiv 2102.04010; NVIDIA's sparse tensor
        cores support 2:4). "blocks": `rows` input by `columns` output channels.
    """

    kind: str = "weights"
    kept: int = 0
    group: int = 0
    rows: int = 1
    columns: int = 1

    @property
    def unit(self) -> int:
        """Number of weights that are kept or removed together."""
        return self.rows * self.columns


def parse_pattern(text: str) -> Pattern:
    """A pattern from "weights", "N:M" or "RxC".

    Raises:
      RuleError: the text is something else, or its numbers are not allowed.
    """
    if text == "weights":
        return Pattern()
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        kept, group = map(int, match.groups())
        if 0 < kept < group:
            return Pattern("n_of_m", kept=kept, group=group)
    if match := re.fullmatch(r"(\d+)x(\d+)", text):
        rows, columns = map(int, match.groups())
        if rows > 0 and columns > 0:
            return Pattern("blocks", rows=rows, columns=columns)
    raise RuleError(
        f"the pattern is {text!r}; allowed are weights, N:M with 0 < N < M such as 2:4, and RxC, "
        "blocks of R input by C output channels such as 4x1"
    )


@dataclasses.dataclass(frozen=True)
class Rules:
    """Rows (pattern of names, action); the first row that matches a module applies.

    The pattern is a regular expression for a module's whole name, or for its role. The action is
    PRUNE, SPARE, or a sparsity in [0, 1) for this module.
    """

    rows: tuple[tuple[str, str | float], ...] = ()

    def find(self, module: str, role: str) -> tuple[str | None, str | float]:
        """The row that applies to a module (None for the default), and its action."""
        for pattern, action in self.rows:
            if re.fullmatch(pattern, module) or re.fullmatch(pattern, role):
                return pattern, action
        return None, SPARE if role in SPARED else PRUNE


def parse_rules(rows: Iterable[Sequence[str]]) -> Rules:
    """Rules from rows of text, such as ("depthwise", "prune") or ("blocks_6_.*", "0.5").

    Raises:
      RuleError: a row is not a rule.
    """
    parsed: list[tuple[str, str | float]] = []
    for row in rows:
        if len(row) != 2 or not all(isinstance(part, str) for part in row):
            raise RuleError(
                f"a rule is {tuple(row)!r}; it must be a pattern of module names or a role, and "
                "an action, as in ('depthwise', 'prune')"
            )
        pattern, text = row
        try:
            re.compile(pattern)
        except re.error as error:
            raise RuleError(f"the rule {pattern!r} is not a regular expression: {error}") from error
        action: str | float = text
        if text not in (PRUNE, SPARE):
            try:
                action = float(text)
            except ValueError:
                action = math.nan
            if not 0 <= action < 1:
                raise RuleError(
                    f"the rule {pattern!r} says {text!r}; it must be prune, spare, or a sparsity "
                    "in [0, 1)"
                )
        parsed.append((pattern, action))
    return Rules(tuple(parsed))


def module_of(path: Path) -> tuple[str, str]:
    """(module, role) of a kernel's path among the parameters."""
    names = [name for name in path[:-1] if name != "conv"]
    return "/".join(names), "se" if "se" in names[:-1] else names[-1]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A kernel that is pruned.

    Attributes:
      path: among the parameters.
      shape: of the kernel, [k, k, C_in, C_out] or [C_in, C_out].
      sparsity: from a rule for this kernel only; None means the common target.
    """

    path: Path
    shape: tuple[int, ...]
    sparsity: float | None = None

    @property
    def name(self) -> str:
        """The module's path."""
        return module_of(self.path)[0]

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def choose(
    shapes: Mapping[Path, tuple[int, ...]], rules: Rules, pattern: Pattern
) -> tuple[Tensor, ...]:
    """The kernels that are pruned, sorted by path.

    Args:
      shapes: of all parameters, by path.
      rules: select the kernels.
      pattern: must divide their channels.

    Raises:
      RuleError: a rule applies to no module, no kernel is left to prune, or the pattern does not
        fit a kernel.
    """
    unused = [row for row, _ in rules.rows]
    chosen, modules = [], []
    for path in sorted(shapes):
        if path[-1] != "kernel":
            continue
        module, role = module_of(path)
        modules.append(module)
        row, action = rules.find(module, role)
        unused = [r for r in unused if r != row]
        if action == SPARE:
            continue
        shape = tuple(shapes[path])
        _check_fit(module, shape, pattern)
        chosen.append(Tensor(path, shape, None if isinstance(action, str) else action))
    if unused:
        some = ", ".join(modules[:3])
        raise RuleError(
            f"the rule {unused[0]!r} applies to no module: none matches, or an earlier rule "
            f"matches all of them first; modules are {some}, ... ({len(modules)})"
        )
    if not chosen:
        raise RuleError("the rules spare every module; leave one to prune, or set method='none'")
    return tuple(chosen)


def _check_fit(module: str, shape: tuple[int, ...], pattern: Pattern) -> None:
    rows, columns = shape[-2:]
    group = pattern.group or pattern.rows
    if rows % group or columns % pattern.columns:
        text = (
            f"{pattern.kept}:{pattern.group}"
            if pattern.group
            else f"{pattern.rows}x{pattern.columns}"
        )
        raise RuleError(
            f"the pattern {text} does not divide {module}, which has {rows} input and {columns} "
            f"output channels; spare it with the rule ({module!r}, 'spare')"
        )


def _zeros(sparsity: float, count: int) -> int:
    """How many of `count` are removed: rounded to the nearest, halves up."""
    return min(count, math.floor(sparsity * count + 0.5))


def keep_counts(
    tensors: Sequence[Tensor], sparsity: float, distribution: str, pattern: Pattern
) -> np.ndarray:
    """Number of units to keep at a sparsity: exact counts, so that the device only has to rank.

    Args:
      tensors: from `choose`.
      sparsity: fraction of the weights in `tensors` that is zero, in [0, 1).
      distribution: "uniform": every tensor has this sparsity. "erk": density in proportion to the
        sum of a kernel's sides over their product (Erdos-Renyi kernel, Evci et al. 2020, arXiv
        1911.11134, section 3), at most 1. "global": one ranking of all weights.
      pattern: units are weights or blocks. With n_of_m the count is for each group.

    Returns:
      int32, one count per tensor; [1] for all tensors together with "global".
    """
    if pattern.kind == "n_of_m":
        kept = pattern.group - _zeros(sparsity, pattern.group)
        return np.full(len(tensors), kept, np.int32)
    units = np.array([tensor.size // pattern.unit for tensor in tensors], np.int64)
    if distribution == "global":
        total = int(units.sum())
        return np.array([total - _zeros(sparsity, total)], np.int32)
    if distribution == "erk":
        densities = erk_densities([tensor.shape for tensor in tensors], 1 - sparsity)
        return _apportion(units * densities, units, int(units.sum()), sparsity)
    own = [sparsity if tensor.sparsity is None else tensor.sparsity for tensor in tensors]
    counts = [n - _zeros(s, n) for n, s in zip(units.tolist(), own, strict=True)]
    return np.array(counts, np.int32)


def _apportion(quotas: np.ndarray, units: np.ndarray, total: int, sparsity: float) -> np.ndarray:
    """Integers near `quotas` with an exact sum: the largest remainders are rounded up."""
    counts = np.floor(quotas + 1e-9).astype(np.int64)
    left = total - _zeros(sparsity, total) - int(counts.sum())
    room = np.argsort(-(quotas - counts), kind="stable")
    for index in [i for i in room if counts[i] < units[i]][: max(0, left)]:
        counts[index] += 1
    return counts.astype(np.int32)


def erk_densities(shapes: Sequence[tuple[int, ...]], density: float) -> np.ndarray:
    """Density of each kernel under the Erdos-Renyi kernel distribution, float64.

    Args:
      shapes: of the kernels.
      density: of all kernels together, in (0, 1].
    """
    sizes = np.array([math.prod(shape) for shape in shapes], np.float64)
    raw = np.array([sum(shape) for shape in shapes], np.float64) / sizes
    dense = np.zeros(len(shapes), bool)
    # Kernels that would need more than all their weights stay dense; the others share the rest.
    while True:
        left = density * sizes.sum() - sizes[dense].sum()
        scale = left / (raw * sizes)[~dense].sum() if not dense.all() else 0.0
        over = ~dense & (scale * raw > 1)
        if not over.any():
            return np.where(dense, 1.0, np.minimum(1.0, scale * raw))
        dense |= over


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When masks change, and to which sparsity; steps count completed updates.

    Attributes:
      kind: "one_shot": at `start`. "cubic": from `initial` at `start` to `final` at `end`, every
        `every` steps and at `end` (Zhu & Gupta 2017, arXiv 1710.01878, equation 1).
      regrows: the sparsity is `final` from `start` on, and weights are exchanged every `every`
        steps before `end` (Evci et al. 2020, section 3).
      drop: fraction of the weights exchanged at first; it falls to 0 at `end` along a cosine.
      rewind: the step to whose weights the network returns at every change, or None.
    """

    kind: str
    start: int
    end: int
    every: int
    final: float
    initial: float = 0.0
    regrows: bool = False
    drop: float = 0.0
    rewind: int | None = None

    def changes(self, step: int) -> bool:
        """Whether masks change in the update that follows `step` completed ones."""
        if step == self.start:
            return True
        if self.kind == "one_shot" and not self.regrows:
            return False
        last = step < self.end if self.regrows else step <= self.end
        on_grid = (step - self.start) % self.every == 0
        return self.start < step and last and (on_grid or (step == self.end and not self.regrows))

    def sparsity(self, step: int) -> float:
        """The target at a step."""
        if step < self.start:
            return 0.0
        if self.kind == "one_shot" or self.regrows or step >= self.end:
            return self.final
        left = 1 - (step - self.start) / (self.end - self.start)
        return self.final + (self.initial - self.final) * left**3

    def exchanged(self, step: int) -> float:
        """Fraction of the kept weights that a change at this step may exchange; 1 at the first."""
        if step <= self.start:
            return 1.0
        progress = (step - self.start) / max(1, self.end - self.start)
        return self.drop / 2 * (1 + math.cos(math.pi * min(1.0, progress)))

    @property
    def last_change(self) -> int:
        """The step of the last change."""
        step = max(self.start, self.end - 1 if self.regrows else self.end)
        if self.kind == "one_shot" and not self.regrows:
            return self.start
        while not self.changes(step):
            step -= 1
        return step

    def effective(self, step: int) -> int:
        """The step that sets the learning rate: with `rewind` it goes back with the weights."""
        if self.rewind is None or step <= self.start:
            return step
        before = min(step - 1, self.last_change)
        while not self.changes(before):
            before -= 1
        return self.rewind + step - before - 1
