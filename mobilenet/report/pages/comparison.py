"""The page of networks next to each other at nearly equal multiply-adds."""

from collections.abc import Sequence
from pathlib import Path

from mobilenet.analysis import plots, stats
from mobilenet.report import comparison, comparison_text, comparison_views, networks
from mobilenet.report.pages import blocks, recipes
from mobilenet.report.pages.blocks import Grid, Line, Page, Row, Section

REFERENCE = "mobilenet_v2"  # model.name that the others stand next to


def page(directory: Path) -> Page:
    """The page, from the rows and logs in experiments/results."""
    rows = comparison.TABLE.rows(directory)
    done = comparison_views.finished(rows)
    apart = {
        scale: _differences(directory, [row for row in done if row["scale"] == scale])
        for scale in dict.fromkeys(row["scale"] for row in rows)
    }
    best = max(done, key=lambda row: float(row["top1_mean"]))
    base = next((row for row in done if row["model"] == REFERENCE), best)
    found = apart[best["scale"]].get(best["network"])
    reference = f", {recipes.signed(found)} points from {base['network']}" if found else ""
    data = plots.data_set(base["data"])
    return Page(
        title="Comparison: MobileNetV2 next to other networks",
        question=(
            "How accurate and how fast are MobileNetV1, V2, V3 and ResNet at nearly equal "
            "multiply-adds, trained by one recipe?"
        ),
        base=(
            f"{base['network']}, {data} at {base['image_size']} pixels, "
            f"{base['train_examples']} training images x {base['epochs']} epochs: "
            f"{blocks.value(base['top1_mean'], base['low'], base['high'])} % top-1 (95 % "
            f"t-interval over {blocks.count(base)} seeds)."
        ),
        registered="None; differences from MobileNetV2 are shown without a verdict.",
        conclusion=(
            f"{best['network']} has the highest mean accuracy, "
            f"{blocks.value(best['top1_mean'], best['low'], best['high'])} % top-1"
            f"{reference} (95 % t-intervals, n = {blocks.count(best)} seeds).",
            *_fastest(done),
        ),
        sections=tuple(
            _section(scale, [row for row in rows if row["scale"] == scale], found)
            for scale, found in apart.items()
        ),
        figures=blocks.figures(
            directory,
            {
                f"comparison_{scale}.svg": "Accuracy against multiply-adds and latency"
                for scale in apart
            },
        ),
        caution=blocks.caution(
            "These networks", [float(row["top1_mean"]) for row in done if row["data"] == "cifar10"]
        ),
        legend=(
            "Speed is of evaluation on the processor that the CSV names: the median over rounds, "
            "with the fastest and the slowest round in parentheses. Memory and training time are "
            "in the CSV."
        ),
    )


def _differences(directory: Path, rows: Sequence[Row]) -> dict[str, stats.Interval | None]:
    """Network -> its paired difference from MobileNetV2 over seeds, in points."""
    base = next((row for row in rows if row["model"] == REFERENCE), None)
    if base is None:
        return {}
    logs = directory / base["logs"]
    runs = comparison.load(logs).runs
    theirs = comparison_text.top1(logs, runs[base["run"]])
    return {
        row["network"]: networks.between(comparison_text.top1(logs, runs[row["run"]]), theirs)
        for row in rows
        if row is not base
    }


def _fastest(rows: Sequence[Row]) -> list[str]:
    timed = [row for row in rows if row["latency_ms"]]
    if not timed:
        return []
    first = min(timed, key=lambda row: float(row["latency_ms"]))
    return [
        f"{first['network']} classifies one image in the least time, "
        f"{_range(first, 'latency_ms')} ms (n = {first['rounds']} rounds)."
    ]


def _range(row: Row, field: str) -> str:
    if not row[field]:
        return "–"
    middle, low, high = (
        comparison_text.digits(float(row[f"{field}{end}"])) for end in ("", "_low", "_high")
    )
    return f"{middle} ({low}–{high})"


def _section(scale: str, rows: Sequence[Row], apart: dict[str, stats.Interval | None]) -> Section:
    head, differ = blocks.with_n("top-1 % [95 % t over seeds]", rows)
    accuracies, speeds = [], []
    for row in rows:
        name = row["network"] + (f" `{row['differs']}`" if row["differs"] else "")
        if not row["top1_mean"]:
            missing = (name, f"not finished: {row['unfinished']}", *["–"] * (3 + differ))
            accuracies.append(Line(missing, (row,)))
            continue
        note = f" ({row['unfinished']})" if row["unfinished"] else ""
        found = apart.get(row["network"])
        cells = (
            name,
            blocks.value(row["top1_mean"], row["low"], row["high"]) + note,
            recipes.signed(found),
            blocks.thousands(row["params"]),
            blocks.million(row["macs"]),
            *([str(blocks.count(row))] * differ),
        )
        accuracies.append(Line(cells, (row,)))
        times = (name, _range(row, "latency_ms"), _range(row, "images_per_second"))
        speeds.append(Line((*times, row["batch_size"] or "–", row["rounds"] or "–"), (row,)))
    heads = ("network", head, "minus MobileNetV2, points [95 % t]", "params", "MACs")
    return Section(
        heading=f"Scale `{scale}`",
        grids=(
            Grid((*heads, "n") if differ else heads, tuple(accuracies)),
            Grid(("network", "ms, one image", "images/s", "batch", "rounds"), tuple(speeds)),
        ),
        notes=blocks.remarks(rows),
        source=blocks.source(comparison.TABLE, rows[0]["logs"], rows[0]["config"]),
    )
