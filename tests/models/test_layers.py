"""Where the normalisation after a convolution computes it, and that nothing else changes."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet.benchmark import plain
from mobilenet.models.layers import Conv, ConvBNAct
from mobilenet.models.mobilenet_v2 import MobileNetV2, plan_blocks
from mobilenet.models.normalization import BatchNorm, Product

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def deferred(network: nn.Module, train: Any = True) -> set[str]:
    """Paths of the normalisations that are given a `Product`."""
    found = set()

    def watch(following, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, BatchNorm):
            if any(isinstance(arg, Product) for arg in args):
                found.add("/".join(context.module.path))
        return following(*args, **kwargs)

    variables = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), IMAGES)
    with nn.intercept_methods(watch):
        jax.eval_shape(partial(network.apply, train=train, mutable=True), variables, IMAGES)
    return found


def test_narrow_inputs_of_expansions_are_left_to_normalisation():
    network = MobileNetV2(plan_blocks(), 5, conv_form="shifted")
    blocks = ("1_0", "1_1", "2_0", "2_1", "2_2", "3_0", "3_1", "3_2", "3_3", "4_0")
    # From there on 96 and 160 channels come in.
    narrow = {f"blocks_{block}/expand/bn" for block in blocks}
    assert deferred(network) == narrow
    assert deferred(network, train=False) == set()
    assert deferred(network.clone(frozen=("stem", "blocks_1_0"))) == narrow - {
        "blocks_1_0/expand/bn"
    }


@pytest.mark.parametrize(
    "settings",
    [{"conv_form": "grouped"}, {"conv": plain.conv}, {"norm": plain.norm}],
    ids=lambda settings: next(iter(settings)),
)
def test_no_other_form_and_no_other_layer_is(settings: dict[str, Any]):
    assert deferred(MobileNetV2(plan_blocks(), 5, **{"conv_form": "shifted", **settings})) == set()


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"strides": 2},
        {"use_bias": True},
        {"features": 5, "depthwise": True},
        {"form": "grouped"},
        {"features": 2},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_only_products_that_widen_are(settings: dict[str, Any]):
    options: dict[str, Any] = {"features": 64, "form": "shifted", **settings}
    assert Conv(features=64, form="shifted").widens(5)
    assert not Conv(**options).widens(5)


@pytest.mark.parametrize("activation", ["identity", "relu6", "hard_swish"])
def test_a_layer_equals_the_grouped_form(activation: str):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((3, 5, 4, 4)) + 1

        def run(form: str):
            conv = partial(Conv, form=form, dtype=jnp.float64)
            layer = ConvBNAct(
                conv=conv,
                norm=partial(BatchNorm, dtype=jnp.float64),
                features=24,
                activation=activation,
            )
            variables = layer.init(jax.random.key(0), x, False)

            def loss(params, x):
                y, updated = layer.apply(
                    {**variables, "params": params}, x, True, mutable=["batch_stats"]
                )
                return jnp.sum(jnp.sin(y + jnp.arange(y.size).reshape(y.shape))), updated

            return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables["params"], x)

        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
            run("shifted"),
            run("grouped"),
        )
