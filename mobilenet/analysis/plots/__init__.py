"""Figures of runs and results, as `matplotlib.figure.Figure` objects in one style.

Accuracies come as fractions and are drawn in percent; `figure5` alone takes percent, the unit of
published tables. `save` writes files that are the same bytes each time.
"""

from mobilenet.analysis.plots.bits import accuracy_against_bits
from mobilenet.analysis.plots.costs import budgets, figure5, pareto
from mobilenet.analysis.plots.forest import differences, intervals
from mobilenet.analysis.plots.layers import sensitivity, shares, tensor_sizes
from mobilenet.analysis.plots.overview import overview
from mobilenet.analysis.plots.speed import steps
from mobilenet.analysis.plots.style import FIGURES_VARIABLE, data_set, keep, network, save
from mobilenet.analysis.plots.training import confusion_matrix, learning_curves

__all__ = [
    "FIGURES_VARIABLE",
    "accuracy_against_bits",
    "budgets",
    "confusion_matrix",
    "data_set",
    "differences",
    "figure5",
    "intervals",
    "keep",
    "learning_curves",
    "network",
    "overview",
    "pareto",
    "save",
    "sensitivity",
    "shares",
    "steps",
    "tensor_sizes",
]
