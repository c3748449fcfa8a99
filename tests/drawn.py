"""Frames that figures are drawn from, and what a figure's axes hold."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SUMMARY = pd.DataFrame(
    {
        "width": [1.0, 0.5, 0.75, 0.25],
        "macs": [90e6, 30e6, 60e6, 10e6],
        "mean": [0.76, 0.71, 0.70, 0.60],
        "low": [0.75, 0.68, 0.68, np.nan],
        "high": [0.77, 0.73, 0.72, np.nan],
    }
)
REFERENCE = pd.DataFrame({"width": [0.5], "macs": [28e6], "mean": [0.73]})
BITS = pd.DataFrame(
    {
        "bits": [8, 4, 2, 8, 4],
        "method": ["QAT", "QAT", "QAT", "PTQ", "PTQ"],
        "mean": [0.71, 0.69, 0.50, 0.70, 0.55],
        "low": [0.70, 0.68, np.nan, 0.69, 0.54],
        "high": [0.72, 0.70, np.nan, 0.71, 0.56],
    }
)
PUBLISHED = pd.DataFrame(
    {
        "width": [1.0, 1.0, 0.5],
        "resolution": [224, 96, 224],
        "macs_m": [300, 56, 97],
        "top1": [71.8, 60.3, 65.4],
    }
)
OURS = pd.DataFrame(
    {
        "width": [1.4, 1.0],
        "resolution": [224, 224],
        "macs_m": [582.0, 300.8],
        "top1": [74.0, 71.0],
        "low": [73.5, 70.0],
        "high": [74.5, 72.0],
    }
)
VARIANTS = pd.DataFrame(
    {
        "variant": ["identity", "relu6", "none"],
        "mean": [0.71, 0.69, 0.66],
        "low": [0.70, 0.67, np.nan],
        "high": [0.72, 0.71, np.nan],
        "n": [3, 3, 1],
        "baseline": [True, False, False],
    }
)
COMPARISONS = pd.DataFrame(
    {
        "comparison": ["linear against relu6", "t = 10 against t = 6", "SE against none"],
        "mean": [0.05, -0.01, 0.02],
        "low": [0.03, -0.015, np.nan],
        "high": [0.07, -0.005, np.nan],
        "margin": [np.nan, 0.01, np.nan],
        "n": [3, 3, 1],
    }
)
LAYERS = pd.DataFrame(
    {
        "layer": [
            "stem",
            *(f"blocks_{k}_0/{role}" for k in range(4) for role in ("expand", "project")),
        ],
        "kind": ["outside", *4 * ["inside", "between"]],
        "size": [5, 4, 1, 3, 1, 4, 1, 2, 1],
    }
)
SENSITIVITY = pd.DataFrame(
    [
        (f"{name}/conv/weights", bits, 10.0**-bits * place)
        for place, name in enumerate(LAYERS["layer"], 1)
        for bits in (4, 8)
    ],
    columns=pd.Index(["site", "bits", "divergence"]),
)
BUDGETS = SUMMARY.rename(columns={"width": "label"}).assign(
    kind=["dense", "sparse", "dense", "dense"], latency_ms=[3.0, np.nan, 2.0, 1.0]
)
COUNTS = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])


def axes_of(figure: Figure) -> Axes:
    return figure.axes[0]


def lines(axes: Axes) -> dict[str, np.ndarray]:
    """Label -> points of every labelled line and every labelled row of error bars."""
    found: dict[str, Any] = {str(line.get_label()): line.get_xydata() for line in axes.lines}
    for container in axes.containers:
        found[str(container.get_label())] = container[0].get_xydata()
    return found


def bars(axes: Axes) -> np.ndarray:
    """Ends of all error bars, [bars, 2 ends, 2 coordinates], without those that are not drawn."""
    segments: Any = [s for c in axes.collections for s in getattr(c, "get_segments", list)()]
    return np.array([s for s in segments if len(s) == 2 and np.isfinite(s).all()])
