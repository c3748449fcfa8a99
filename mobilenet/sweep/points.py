"""Points of a sweep: each is a complete configuration, known by a hash of what it computes."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import config as config_lib
from mobilenet import identity, rundir
from mobilenet.config import Config, ConfigError, ExperimentError
from mobilenet.sweep import naming, space
from mobilenet.sweep.space import Range


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      key: hash of what the run computes (`identity.fingerprint`), which names its directory.
      group: the same without the seed, and with "{seed}" where texts name it: replicates have one
        group.
      overrides: dotted keys that the sweep sets.
      config: complete and validated.
      variant: name that replicates share (`naming.name_points`).
      label: name of this run: the variant, with the seed where the sweep has several.
      baseline: the variant that this one is compared with; "" for none.
    """

    key: str
    group: str
    overrides: Mapping[str, Any]
    config: Config
    variant: str
    label: str
    baseline: str = ""

    def directory(self, workdir: Path) -> Path:
        """The run directory in a sweep's directory."""
        return workdir / "points" / self.key


def make_point(base: Config, overrides: Mapping[str, Any], workdir: Path | None = None) -> Point:
    """A point from a configuration and what it changes in it; it is named by all its overrides.

    Args:
      base: the experiment's configuration; it is not changed.
      overrides: dotted keys and their values.
      workdir: of the sweep. If what a point started from is gone, its run directory there tells
        what it was.

    Raises:
      ConfigError: a key that does not exist, or values that cannot run.
    """
    config = base.copy_and_resolve_references()
    open_ranges = [key for key, value in overrides.items() if isinstance(value, Range)]
    if open_ranges:
        raise ConfigError(
            f"{open_ranges[0]} is a range; a sweep with ranges needs --search=random or tpe, with "
            "--trials."
        )
    try:
        config_lib.update(config, overrides)
        config_lib.update(config, space.filled(overrides, config.seed))
        known = identity.identify(config)
        begun = None
        if workdir is not None and known.keys() < identity.paths(config).keys():
            begun = _begun(workdir, overrides, config)
        rundir.inherit(config, begun)
        config_lib.validate(config)
    except ConfigError as error:
        raise ExperimentError(f"The point with {naming.describe(overrides)}: {error}") from error
    if begun is not None:
        known = identity.read(begun) | known
    named = space.naming_seed(overrides)
    key = identity.fingerprint(config, known)
    group = identity.fingerprint(config, known, without=("seed",), instead=named)
    name = naming.describe(overrides)
    return Point(key, group, dict(overrides), config, variant=name, label=name)


def _begun(workdir: Path, overrides: Mapping[str, Any], config: Config) -> Path | None:
    """The run directory of a sweep that has begun with these overrides and paths, or None."""
    for path in sorted((workdir / "points").glob("*/point.json")):
        with contextlib.suppress(rundir.RunDirectoryError, ConfigError, ValueError):
            point = rundir.read_object(path, "overrides")
            same = json.loads(json.dumps(dict(overrides))) == point["overrides"]
            if same and identity.paths(rundir.read_config(path.parent)) == identity.paths(config):
                return path.parent
    return None


def require_sources(points: Iterable[Point], workdir: Path) -> None:
    """Refuses points whose weights or teacher are missing, before anything is trained.

    A point with a checkpoint needs no weights to start from.

    Raises:
      ConfigError: names the key, the path and the point.
    """
    complete: dict[str, bool] = {}
    for point in points:
        saved = any((point.directory(workdir) / "checkpoints").glob("[0-9]*"))
        for key, path in identity.paths(point.config).items():
            if saved and key != identity.TEACHER:
                continue
            if path not in complete:
                complete[path] = key in identity.identify(point.config)
            if not complete[path]:
                what = "a complete run" if key in identity.RUNS else "a folder"
                raise ConfigError(
                    f"The point with {point.label}: {key} is {path!r}, which is not {what}."
                )


def points_of(
    base: Config,
    overrides: Iterable[Mapping[str, Any]],
    workdir: Path | None = None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    baselines: Mapping[str, str] | None = None,
) -> list[Point]:
    """All points of a sweep, validated and named before the first one starts.

    Args:
      base: the experiment's configuration; it is not changed.
      overrides: of its `sweep()`.
      workdir: of the sweep, as `make_point` has it.
      variants: of the experiment's `variants()`, which names the points.
      baselines: of its `baselines()`: variant -> the one that it is compared with.

    Raises:
      ConfigError: no points, one that cannot run, two that compute the same, or a baseline that is
        no variant.
    """
    for name in (each for pair in (baselines or {}).items() for each in pair):
        if name not in (variants or {}):
            raise ConfigError(
                f"baselines() names {name!r}, which is no variant; variants() has "
                f"{', '.join(variants or {}) or 'none'}."
            )
    points = [make_point(base, changes, workdir) for changes in overrides]
    if not points:
        raise ConfigError("The sweep has no points; its sweep() must return some overrides.")
    seen: dict[str, Point] = {}
    for point in points:
        if point.key in seen:
            raise ConfigError(
                f"Two points compute the same: {seen[point.key].label}, and {point.label}; leave "
                "one out."
            )
        seen[point.key] = point
    return _named(points, variants or {}, baselines or {})


def _named(
    points: Sequence[Point],
    variants: Mapping[str, Mapping[str, Any]],
    baselines: Mapping[str, str],
) -> list[Point]:
    names = naming.name_points([point.overrides for point in points], variants)
    several = len({point.config.seed for point in points}) > 1
    return [
        dataclasses.replace(
            point,
            variant=name,
            label=naming.label(name, point.config.seed, several),
            baseline=baselines.get(name, ""),
        )
        for point, name in zip(points, names, strict=True)
    ]


def write_plan(points: Sequence[Point], workdir: Path) -> Path:
    """Writes points for the processes that train them; the file's name is a hash of its content.

    Two sweeps in one directory have two plans, and share the points that are in both.
    """
    plan = [
        {
            "key": point.key,
            "group": point.group,
            "overrides": point.overrides,
            "variant": point.variant,
            "label": point.label,
            "baseline": point.baseline,
            "config": json.loads(config_lib.to_json(point.config)),
        }
        for point in points
    ]
    name = hashlib.sha256(" ".join(point.key for point in points).encode()).hexdigest()[:16]
    path = workdir / "plans" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rundir.write_json(path, plan)
    return path


def read_plan(path: Path) -> list[Point]:
    """The points of `write_plan`, as they were: what they start from may be gone by now.

    Raises:
      FileError: the file is damaged.
    """
    points = []
    for entry in rundir.read_json(path, list) or ():
        if not isinstance(entry, dict) or not entry.keys() >= set(PLANNED):
            raise rundir.FileError(path, "does not list the points of a sweep", "delete it")
        config = config_lib.from_json(json.dumps(entry["config"]))
        points.append(Point(config=config, **{name: entry[name] for name in NAMED}))
    return points


NAMED = ("key", "group", "overrides", "variant", "label", "baseline")  # of a point in a plan
PLANNED = (*NAMED, "config")
