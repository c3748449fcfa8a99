"""Which points of a sweep may train together, as lanes of one program."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mobilenet import build
from mobilenet.sweep.points import Point
from mobilenet.train.checkpoints import Checkpoints
from mobilenet.train.lanes import trained_together


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far a point has come.

    Attributes:
      step: of its newest checkpoint; None without one.
      together: names of the points that trained in one program with it until then.
    """

    step: int | None
    together: tuple[str, ...]

    def fits(self, other: "Standing") -> bool:
        """Whether both can continue in one program: at one step, or one save apart after a kill."""
        if self.step == other.step:
            return True
        return bool(self.together) and self.together == other.together


def standing(point: Point, workdir: Path) -> Standing:
    """How far a point has come; the content of its checkpoints is not verified.

    Args:
      point: of the sweep.
      workdir: of the sweep.
    """
    directory = point.directory(workdir)
    steps = Checkpoints(directory / "checkpoints", read_only=True).steps()
    return Standing(steps[-1] if steps else None, trained_together(directory))


def shapes(points: Sequence[Point]) -> list[list[Point]]:
    """Points of one shape together, in order."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(build.lane_key(point.config), []).append(point)
    return list(found.values())


def chunks(points: Sequence[Point], workdir: Path, size: int) -> list[list[Point]]:
    """Points that can train together, at most `size` in each list."""
    found = []
    for left in shapes(points):
        where = {point.key: standing(point, workdir) for point in left}
        while left:
            chunk: list[Point] = []
            rest: list[Point] = []
            for point in left:
                fits = all(where[point.key].fits(where[other.key]) for other in chunk)
                (chunk if fits and len(chunk) < size else rest).append(point)
            found.append(chunk)
            left = rest
    return found
