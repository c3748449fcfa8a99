"""Batch normalisation as a factor and a bias of the layer before it, and edits of such layers.

A layer is a convolution with its normalisation, at a path such as ("blocks_1_0", "expand"), or a
dense layer with a bias. A deployed model has its folded kernel and bias, and these are rounded
(Krishnamoorthi 2018, arXiv 1806.08342, section 3.2.2).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mobilenet.trees import Path, flatten, nest

Variables = Mapping[str, Any]


def is_depthwise(layer: Path) -> bool:
    """Whether the layer has one filter per channel (for one channel the shape does not show it)."""
    return layer[-1] == "depthwise"


class Folded:
    """The layers of a network as folded kernels and biases, which can be edited.

    An edit changes the variable that holds the number. Normalisation stays separate, and its
    running statistics stay those of the layer's products, so that training can continue.

    Args:
      variables: `params` and `batch_stats`, and others that are passed through; not changed.
      epsilon: of batch normalisation.
    """

    def __init__(self, variables: Variables, epsilon: float) -> None:
        self._others = dict(variables)
        self._params = flatten(variables["params"])
        self._stats = flatten(variables["batch_stats"])
        self._epsilon = np.float32(epsilon)
        self._kernels = {
            path[:-2] if self._normalised(path[:-2]) else path[:-1]: path
            for path in self._params
            if path[-1] == "kernel"
        }

    @property
    def layers(self) -> tuple[Path, ...]:
        """Paths of all layers."""
        return tuple(self._kernels)

    def _normalised(self, layer: Path) -> bool:
        return (*layer, "bn", "scale") in self._params

    def _param(self, layer: Path, *names: str) -> np.ndarray:
        return np.asarray(self._params[(*layer, *names)], np.float32)

    def _stat(self, layer: Path, name: str) -> np.ndarray:
        return np.asarray(self._stats[(*layer, "bn", name)], np.float32)

    def site(self, layer: Path) -> str:
        """Name of the site at which the layer's kernel is rounded."""
        return "/".join((*self._kernels[layer][:-1], "weights"))

    def factor(self, layer: Path) -> np.ndarray:
        """The factor of the layer's products in normalisation, [C] float32; 1 without it."""
        if not self._normalised(layer):
            return np.ones_like(self._param(layer, "bias"))
        return self._param(layer, "bn", "scale") / np.sqrt(self._stat(layer, "var") + self._epsilon)

    def raw(self, layer: Path) -> np.ndarray:
        """The kernel as the parameters hold it."""
        return np.asarray(self._params[self._kernels[layer]], np.float32)

    def kernel(self, layer: Path) -> np.ndarray:
        """The folded kernel: float32 [k, k, C_in, C], depthwise [k, k, 1, C], dense [C_in, C]."""
        return self.raw(layer) * self.factor(layer)

    def bias(self, layer: Path) -> np.ndarray:
        """The folded bias, float32 [C]."""
        if not self._normalised(layer):
            return self._param(layer, "bias")
        return self._param(layer, "bn", "bias") - self._stat(layer, "mean") * self.factor(layer)

    @property
    def kernels(self) -> dict[Path, np.ndarray]:
        """Layer -> folded kernel."""
        return {layer: self.kernel(layer) for layer in self._kernels}

    @property
    def biases(self) -> dict[Path, np.ndarray]:
        """Layer -> folded bias."""
        return {layer: self.bias(layer) for layer in self._kernels}

    def set_kernel(self, layer: Path, kernel: np.ndarray) -> None:
        """Replaces the folded kernel, except channels that normalisation multiplies by 0.

        Args:
          layer: its path.
          kernel: of the shape of `kernel`.
        """
        factor = np.broadcast_to(self.factor(layer), kernel.shape)
        live = factor != 0
        value = np.where(live, kernel / np.where(live, factor, 1), self.raw(layer))
        self._params[self._kernels[layer]] = value.astype(np.float32)

    def scale_outputs(self, layer: Path, scale: np.ndarray) -> None:
        """Multiplies the output of the layer, before its activation, by `scale` [C]."""
        names = (("bn", "scale"), ("bn", "bias")) if self._normalised(layer) else ()
        for name in names or (("kernel",), ("bias",)):
            self._params[(*layer, *name)] = self._param(layer, *name) * np.float32(scale)

    def scale_inputs(self, layer: Path, scale: np.ndarray) -> None:
        """Multiplies the weights that read each input channel by `scale` [C_in]."""
        wide = scale if is_depthwise(layer) else scale[:, None]
        self._params[self._kernels[layer]] = self.raw(layer) * np.float32(wide)

    def add_bias(self, layer: Path, change: np.ndarray) -> None:
        """Adds `change` [C] to the output of the layer, before its activation."""
        path = (*layer, "bn", "bias") if self._normalised(layer) else (*layer, "bias")
        self._params[path] = np.asarray(self._params[path] + change, np.float32)

    def move_products(self, layer: Path, change: np.ndarray) -> None:
        """Subtracts `change` [C], by which the layer's products have increased.

        If the layer is normalised, this changes the running mean. So training, where the batch has
        its own mean, is not corrected a second time.
        """
        if self._normalised(layer):
            path = (*layer, "bn", "mean")
            self._stats[path] = np.asarray(self._stats[path] + change, np.float32)
        else:
            self.add_bias(layer, -change)

    def variables(self) -> dict[str, Any]:
        """The network's variables with all edits."""
        return {**self._others, "params": nest(self._params), "batch_stats": nest(self._stats)}

    def fold(self) -> None:
        """Folds every normalisation permanently: scale 1, mean 0, variance 1 - epsilon remain."""
        for layer in self._kernels:
            if self._normalised(layer):
                kernel, bias = self.kernel(layer), self.bias(layer)
                self._params[self._kernels[layer]] = kernel
                self._params[(*layer, "bn", "scale")] = np.ones_like(bias)
                self._params[(*layer, "bn", "bias")] = bias
                self._stats[(*layer, "bn", "mean")] = np.zeros_like(bias)
                self._stats[(*layer, "bn", "var")] = np.full_like(bias, 1 - self._epsilon)


def fold(variables: Variables, epsilon: float) -> dict[str, Any]:
    """The same network with every batch normalisation folded into the convolution before it."""
    folded = Folded(variables, epsilon)
    folded.fold()
    return folded.variables()


def is_folded(variables: Variables, epsilon: float) -> bool:
    """Whether the variables come from `fold`: every normalisation only adds a bias."""
    stats = flatten(variables["batch_stats"])
    wanted = {"mean": np.float32(0), "var": np.float32(1) - np.float32(epsilon)}
    return bool(stats) and all(np.all(leaf == wanted[path[-1]]) for path, leaf in stats.items())
