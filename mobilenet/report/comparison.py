"""Networks next to each other: rows from a sweep's finished runs, and committed results.

A network is a configuration without its seed. Its accuracy is of the test split with the final
weights, in percent, its speed and memory are of evaluation, and both stand in one row.

    SWEEP_DIR/comparison.csv                          one row for each network
    experiments/results/comparison.csv                committed rows, by scale
    experiments/results/logs/comparison/SCALE/        the runs of a scale, as they lay in SWEEP_DIR
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import config as config_lib
from mobilenet import rundir
from mobilenet.analysis import plots, runs, stats
from mobilenet.analysis.stats import Frame
from mobilenet.report import comparison_speeds, comparison_text, comparison_views, networks, results
from mobilenet.report import rows as table_rows
from mobilenet.report.results import ResultError
from mobilenet.report.table import Table
from mobilenet.sweep import naming

# What decides which images a run has learned from and is tested on.
DATA_KEYS = (
    *("data.name", "data.train_split", "data.test_split", "data.validation_split"),
    *("data.validation_fraction", "data.test_fraction", "data.train_examples"),
)

FIELDS = (
    *("network", "model", "width_multiplier", "image_size", "run", "differs", "data", "split"),
    *("train_examples", "epochs", "top1_mean", "top1_std", "low", "high", "seeds", "unfinished"),
    *("params", "macs", "bytes", "seconds_mean", "lanes", "device", "processor", "versions"),
    *("commit", *comparison_speeds.FIELDS),
)
COMMITTED_FIELDS = ("scale", *FIELDS, "config", "logs", "remarks")
TABLE = Table("comparison", COMMITTED_FIELDS, by="scale", page="comparison")
LOGGED = (*results.LOGGED, "point.json")
Row = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the runs of a directory say.

    Attributes:
      rows: one for each network, of FIELDS as text; ordered by family, width and resolution. A
        network without a finished run has no numbers, and says in `unfinished` why.
      runs: the `run` of a row, which is the first of its runs -> all of them, finished ones first;
        paths relative to the directory.
      notes: what a reader must know next to the rows, in sentences.
    """

    rows: list[dict[str, str]]
    runs: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


def load(directory: Path) -> Comparison:
    """Makes a row, without its speed, of every network that has runs below a directory.

    Args:
      directory: of a sweep, or any that holds run directories at some depth.

    Raises:
      ResultError: no finished run; finished runs of different data or test splits, without a test
        result, or twice the same seed of a network.
    """
    try:
        found = runs.load_runs(directory)
    except runs.NoRunsError as error:
        raise ResultError(str(error)) from error
    if found.done.empty:
        raise ResultError(
            f"{directory} has no finished run to compare: {found.describe()}. Start the command "
            "that trains them again; it continues where it was."
        )
    frame = found.frame[found.frame["group"].notna()]
    summaries = {
        str(run): results.read_summary(directory / str(run), ()) for run in found.done.index
    }
    members = {
        group: sorted(part.index, key=lambda run: run not in summaries)
        for group, part in frame.groupby("group", sort=False)
    }
    values = {group: _values(frame, members[group]) for group in members}
    groups_done = set(found.done["group"])
    names = comparison_text.names(directory)
    labels = _labels(values, names)
    _check(directory, found.done, summaries, labels)
    differing = _differences([mine for group, mine in values.items() if group in groups_done])
    rows = [
        {
            **dict.fromkeys(FIELDS, ""),
            **_described(values[group], labels[group], members[group][0], differing),
            **_measured(frame.loc[members[group]], summaries, values[group], labels[group]),
        }
        for group in members
    ]
    notes = [f"not finished: {row['network']}, {row['unfinished']}" for row in _unfinished(rows)]
    notes += [
        f"{run} ended with: {frame.loc[run, 'error']}"
        for run in frame.index
        if run not in summaries and frame.loc[run, "error"]
    ]
    unread = found.frame[found.frame["group"].isna()]
    notes += [f"cannot be read: {run}: {unread.loc[run, 'error']}" for run in unread.index]
    if differing:
        notes.append(f"not only the networks differ: {', '.join(differing)}")
    named = {name: place for place, name in enumerate(dict.fromkeys(names.values()))}
    return Comparison(
        sorted(rows, key=lambda row: (named.get(row["network"], len(named)), *_order(row))),
        {paths[0]: tuple(paths) for paths in members.values()},
        tuple(notes),
    )


def read(path: Path) -> list[dict[str, str]]:
    """The rows of SWEEP_DIR/comparison.csv; none before there are some.

    Raises:
      ResultError: it has other columns.
    """
    known = table_rows.read(path)
    if known and set(known[0]) != set(FIELDS):
        raise ResultError(
            f"{path} was written by another version, with other columns; take it away, and "
            "`mobilenet compare` makes it again."
        )
    return known


def keep_speeds(found: Comparison, known: Iterable[Row]) -> list[dict[str, str]]:
    """The rows with the speeds that were measured before.

    Args:
      found: of the directory, or of its committed logs.
      known: rows made before; a network is known again by its runs, whose configuration stays.
    """
    speeds = {
        row["run"]: {field: row[field] for field in comparison_speeds.FIELDS} for row in known
    }
    return [
        {**row, **next((speeds[run] for run in found.runs[row["run"]] if run in speeds), {})}
        for row in found.rows
    ]


def _values(frame: Frame, members: Sequence[Any]) -> dict[str, Any]:
    """The configuration of a network, without its seed and what changes no result."""
    row = frame.loc[members[0]]
    return {
        key: None if stats.is_missing(row[key]) else row[key]
        for key, _ in config_lib.flatten(config_lib.get_config())
        if key in frame.columns and key != "seed" and not key.startswith(config_lib.RUNTIME_KEYS)
    }


def _varying(values: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys whose values differ, of networks that have them."""
    found: dict[str, set[Any]] = {}
    for mine in values:
        for key, value in mine.items():
            found.setdefault(key, set()).add(value)
    return [key for key, distinct in found.items() if len(distinct) > 1]


def _labels(values: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, str]:
    """group -> the sweep's name, else network and width; and more where two would have one label.

    Args:
      values: group -> configuration.
      names: group -> name, of the groups that a sweep has named.
    """
    resolutions = {mine.get("data.image_size") for mine in values.values()} - {None}
    labels = {}
    for group, mine in values.items():
        if group in names:
            labels[group] = names[group]
            continue
        model, width = mine.get("model.name"), mine.get("model.width_multiplier")
        if model is None or width is None:
            # Of a point that has not begun only what it overrides is known.
            known = {key: value for key, value in mine.items() if value is not None}
            labels[group] = naming.describe(known) if known else f"configuration {group}"
            continue
        labels[group] = f"{networks.label(model)} {float(width)}"
        if len(resolutions) > 1 and mine.get("data.image_size") is not None:
            labels[group] += f", {mine['data.image_size']} px"
    complete = [group for group, mine in values.items() if mine.get("data.name") is not None]
    for label in set(labels.values()):
        same = [group for group in complete if labels[group] == label]
        varying = _varying(values[group] for group in same)
        for group in same if varying else ():
            differing = naming.describe({key: values[group].get(key) for key in varying})
            labels[group] += f", {differing}"
    return labels


def _differences(values: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys that vary among networks though they do not describe the network."""
    return [
        key
        for key in _varying(values)
        if not key.startswith("model.") and key != "data.image_size" and key not in DATA_KEYS
    ]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check(
    directory: Path, done: Frame, summaries: Mapping[str, Any], labels: Mapping[str, str]
) -> None:
    """Refuses finished runs that cannot stand in one table."""
    columns: dict[str, Mapping[str, Any]] = {
        key: done[key].to_dict() for key in DATA_KEYS if key in done.columns
    }
    columns["classes"] = {run: _classes(directory / run) for run in summaries}
    columns["test images"] = done["test_examples"].dropna().astype(int).to_dict()
    for name in ("train", "validation"):
        columns[f"{name} images"] = {
            run: (summary.get("examples") or {}).get(name) for run, summary in summaries.items()
        }
    differing = []
    for name, column in columns.items():
        examples: dict[Any, Any] = {}
        for run, value in column.items():
            examples.setdefault(None if stats.is_missing(value) else value, run)
        if len(examples) > 1:
            shown = ", ".join(f"{_shown(value)} in {run}" for value, run in examples.items())
            differing.append(f"{name} is {shown}")
    if differing:
        raise ResultError(
            f"The runs in {directory} have learned from or are tested on different images, so "
            f"that their accuracies cannot be compared: {'; '.join(differing)}. Give --workdir a "
            "directory whose runs share data and splits, or train the networks on the same."
        )
    for run, top1 in done["test_top1"].items():
        if stats.is_missing(top1):
            raise ResultError(f"{run} has no test metrics; its data set needs a test split.")
    for (group, seed), part in done.groupby(["group", "seed"]):
        if len(part) > 1:
            raise ResultError(
                f"{labels[group]} has seed {seed} more than once: {', '.join(part.index)}. They "
                "are the same experiment; move all but one out of the directory."
            )


def _classes(run: Path) -> tuple[str, ...] | None:
    try:
        names = (rundir.read_json(run / "data.json", dict) or {}).get("class_names")
    except rundir.RunDirectoryError as error:
        raise ResultError(str(error)) from error
    return None if names is None else tuple(names)


def _shown(value: Any) -> str:
    """A value for a message; of many names the first ones and their number."""
    if not isinstance(value, tuple):
        return repr(value)
    return f"{', '.join(value[:3])}{', ...' if len(value) > 3 else ''} ({len(value)})"


def _described(
    values: Mapping[str, Any], label: str, run: str, differing: Sequence[str]
) -> dict[str, str]:
    """The fields that the configuration gives."""
    named = {
        "model": "model.name",
        "width_multiplier": "model.width_multiplier",
        "image_size": "data.image_size",
        "data": "data.name",
        "epochs": "train.num_epochs",
    }
    return {
        "network": label,
        "run": run,
        "differs": " ".join(f"{key}={_text(values.get(key))}" for key in differing),
        **{
            field: "" if values.get(key) is None else _text(values[key])
            for field, key in named.items()
        },
    }


def _measured(
    part: Frame, summaries: Mapping[str, Any], values: Mapping[str, Any], label: str
) -> dict[str, str]:
    """The fields that the runs of a network give; without a finished one only `unfinished`."""
    others: dict[str, list[str]] = {}
    for run in part.index:
        if run not in summaries:
            seed = part.loc[run, "seed"]
            others.setdefault(part.loc[run, "status"], []).append(
                run if stats.is_missing(seed) else f"{seed:g}"
            )
    unfinished = "; ".join(
        f"seed{'s' if len(seeds) > 1 else ''} {' '.join(sorted(seeds, key=_by_number))} {status}"
        for status, seeds in others.items()
    )
    done = part[part["status"] == "done"].sort_values("seed")
    if done.empty:
        return {"unfinished": unfinished}
    mine = [summaries[run] for run in done.index]
    top1 = stats.mean_interval(100 * done["test_top1"], within=stats.PERCENT)

    def one(name: str, column: str) -> str:
        return str(int(results.one(f"{name} of {label}", done[column].tolist())))

    def several(found: Iterable[Any]) -> str:
        return "; ".join(dict.fromkeys(map(str, found)))

    params = one("parameters", "params")
    images = one("test images", "test_examples")
    return {
        "split": f"{values.get('data.test_split')}, {images} images",
        "train_examples": several((s.get("examples") or {}).get("train", "") for s in mine),
        "top1_mean": _percent(top1.mean),
        "top1_std": _percent(top1.std),
        "low": _percent(top1.low),
        "high": _percent(top1.high),
        "seeds": " ".join(f"{seed:g}" for seed in done["seed"]),
        "unfinished": unfinished,
        "params": params,
        "macs": one("MACs", "macs"),
        "bytes": str(runs.BYTES_PER_PARAMETER * int(params)),
        "seconds_mean": f"{done['wall_seconds'].mean():.1f}",
        "lanes": several(s["lanes"] for s in mine if "lanes" in s),
        "device": several(done["device"]),
        "processor": several(done["processor"]),
        "versions": several(results.versions(s.get("versions") or {}) for s in mine),
        "commit": several(done["commit"]),
    }


def _by_number(seed: str) -> tuple[int, str]:
    return len(seed), seed


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _unfinished(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["unfinished"]]


def _order(row: Row) -> tuple[Any, ...]:
    known = list(networks.NAMES)
    place = known.index(row["model"]) if row["model"] in known else len(known)
    sizes = [float(row[field] or "inf") for field in ("width_multiplier", "image_size")]
    return place, *sizes, row["network"]


# --------------------------------------------------------------------------- committed results


def logs_of(scale: str) -> str:
    """Where the logs of a scale's runs are, below experiments/results."""
    return f"logs/{TABLE.name}/{scale}"


def make_rows(
    found: Comparison, known: Iterable[Row], *, scale: str, config: str, remarks: str = ""
) -> list[dict[str, str]]:
    """The rows of a scale to commit.

    Args:
      found: of the sweep's directory, or of its committed logs.
      known: rows with the speeds, which runs do not hold.
      scale: name of this comparison among the committed ones.
      config: path of the experiment file, with its argument.
      remarks: what a reader must know next to the numbers.
    """
    more = {"scale": scale, "config": config, "logs": logs_of(scale), "remarks": remarks}
    return [
        {field: {**row, **more}[field] for field in COMMITTED_FIELDS}
        for row in keep_speeds(found, known)
    ]


def add(
    directory: Path, sweep: Path, *, scale: str, config: str, remarks: str = ""
) -> list[dict[str, str]]:
    """Copies a sweep's logs, replaces the rows of the scale, and draws its figure.

    Args:
      directory: experiments/results.
      sweep: directory of the sweep, with the speeds that `mobilenet compare` left there.
      scale, config, remarks: as `make_rows`.

    Returns:
      The rows.

    Raises:
      ResultError: as `load` and `read`, no speeds, or a scale that cannot name a folder.
    """
    results.check_name("The comparison's scale", scale)
    measured = sweep / f"{TABLE.name}.csv"
    found, known = load(sweep), read(measured)
    if not known:
        raise ResultError(
            f"{measured} does not exist; `mobilenet compare --workdir={sweep}` makes it."
        )
    made = make_rows(found, known, scale=scale, config=config, remarks=remarks)
    # Unfinished ones too: rows tell of them.
    runs = {path: sweep / path for paths in found.runs.values() for path in paths}
    results.replace_logs(directory / logs_of(scale), runs, LOGGED)
    TABLE.add(directory, made)
    figure = directory / "figures" / f"{TABLE.name}_{scale}.svg"
    plots.save(comparison_views.plot(made), figure)
    return made
