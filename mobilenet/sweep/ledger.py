"""Names of the variants in a sweep's directory, for those who read its runs.

    WORKDIR/variants.json    of each variant its group, its name and the group of its baseline

A group is the hash of a configuration without its seed (`points.Point.group`), so experiments that
share a directory share the file, too.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from mobilenet import rundir

FILE = "variants.json"


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a group of runs is called.

    Attributes:
      name: of the variant.
      baseline: group of the variant that it is compared with; "" for none.
    """

    name: str
    baseline: str


def write(workdir: Path, variants: Mapping[str, Variant]) -> None:
    """Adds variants by their group; a group that is in the file already takes the new name.

    Raises:
      RunDirectoryError: the file cannot be written. A damaged one is replaced: names are no result.
    """
    known: dict[str, Variant] = {}
    with contextlib.suppress(rundir.FileError):
        known = read(workdir)
    both = {**known, **variants}
    if both != known:
        rundir.write_json(
            workdir / FILE,
            [{"group": group, **dataclasses.asdict(each)} for group, each in both.items()],
        )


def read(workdir: Path) -> dict[str, Variant]:
    """Group -> variant, in the order of the sweeps; empty if no sweep has written the file.

    Raises:
      FileError: the file is damaged.
    """
    path = workdir / FILE
    advice = "delete it, and the sweep's command writes it again"
    try:
        found = rundir.read_json(path, list) or ()
        return {each["group"]: Variant(each["name"], each["baseline"]) for each in found}
    except rundir.FileError as error:
        raise rundir.FileError(path, error.what, advice) from error
    except (KeyError, TypeError) as error:
        raise rundir.FileError(path, "does not name variants", advice) from error
