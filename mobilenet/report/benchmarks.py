"""Benchmark rows as README tables and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LABELS = {
    "ours": "this project",
    "flax": "plain Flax",
    "grouped": "grouped",
    "shifted": "shifted",
    "remat": "with remat",
    "qat": "with quantisers (w8a8)",
    "pruned": "with masks",
    "pillow": "Pillow",
    "tf_data": "tf.data",
    "torch": "PyTorch eager",
    "torch_compile": "torch.compile",
}
VARIANTS = ("remat", "qat", "pruned")  # of this project, and no peers
Row = Mapping[str, Any]


def _by_case(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(case, processor) -> its rows: a ratio is of one machine."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row["case"], row["processor"]), []).append(row)
    return cases


def _memory(row: Row) -> str:
    """Peak of the process, and what the compiler sets aside for one step."""
    temporary = f" ({int(row['temp_mb']):,} a step)" if row["temp_mb"] else ""
    return f"{int(row['peak_mb']):,}{temporary}"


def _milliseconds(row: Row) -> str:
    value = 1e3 * float(row["seconds"])
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def markdown(rows: Sequence[Row]) -> str:
    """README tables: steps against their peers, memory for time, and block by block."""
    lines = [
        "| step | model | batch | this project | images/s | peer | peer's time | ratio (range) "
        "| first step, ours / peer | peak MB, ours / peer | processor |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    blocks: list[str] = []
    for group in _by_case(rows).values():
        ours, peers = group[0], group[1:]
        if ours["work"] == "block":
            blocks += [
                f"| {ours['model'].split(': ')[-1]} | {_milliseconds(ours)} | {_milliseconds(p)} "
                f"| {float(p['ratio']):.2f} ({float(p['ratio_low']):.2f}–"
                f"{float(p['ratio_high']):.2f}) |"
                for p in peers
            ]
            continue
        note = "" if ours["memory"] == "kept" else ", memory not kept"
        for peer in peers:
            lines.append(
                f"| {ours['work']}, {ours['image_size']} px{note} | {ours['model']} | "
                f"{ours['batch_size']} | {_milliseconds(ours)} | "
                f"{float(ours['images_per_second']):,.4g} | "
                f"{LABELS[peer['implementation']]} | {_milliseconds(peer)} | "
                f"**{float(peer['ratio']):.2f}** ({float(peer['ratio_low']):.2f}–"
                f"{float(peer['ratio_high']):.2f}) | {float(ours['first_step_seconds']):.1f} / "
                f"{float(peer['first_step_seconds']):.1f} s | "
                f"{_memory(ours)} / {_memory(peer)} | {ours['processor']} |"
            )
    if blocks:
        lines += [
            "",
            "Forward and backward of single blocks (224 px, batch 16, training):",
            "",
            "| block | this project | PyTorch eager | ratio (range) |",
            "|---|---|---|---|",
            *blocks,
        ]
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws `plots.steps` of benchmark rows.

    Args:
      rows: of `mobilenet benchmark`; of several machines, those of the first one's are drawn.
      path: of the figure; .svg or .png.
    """
    from mobilenet.analysis import plots

    peers = {name: label for name, label in LABELS.items() if name not in VARIANTS}
    names = {**peers, **{name: f"this project {LABELS[name]}" for name in VARIANTS}}
    plots.save(plots.steps(rows, names), path)
