"""The frame of all networks: what is put in place of its layers, dense layers and points."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from mobilenet.models import mobilenet_v1, mobilenet_v2, mobilenet_v3, resnet
from mobilenet.models.layers import ConvBNAct, Exact

IMAGES = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
V1_TABLE = (mobilenet_v1.BlockSpec(8, 1, 1), mobilenet_v1.BlockSpec(16, 1, 2))
V2_TABLE = (mobilenet_v2.BlockSpec(1, 8, 1, 1), mobilenet_v2.BlockSpec(3, 16, 3, 1))
V2_BLOCKS = ("blocks_0_0", "blocks_1_0", "blocks_1_1", "blocks_1_2")
SE_POINTS = ("pooled", "hidden", "scores", "gate", "product")
V3_TABLE = (
    mobilenet_v3.StageSpec(1, (mobilenet_v3.BlockSpec(3, 32, 16, True, "relu"),)),
    mobilenet_v3.StageSpec(2, (mobilenet_v3.BlockSpec(5, 32, 16, False, "hard_swish"),)),
)
RESNET_TABLE = (resnet.BlockSpec(8, 1, 1), resnet.BlockSpec(8, 1, 2))


def v2(**settings: Any) -> mobilenet_v2.MobileNetV2:
    plan = mobilenet_v2.plan_blocks(blocks=V2_TABLE, stem_features=8, head_features=24, **settings)
    return mobilenet_v2.MobileNetV2(plan, 5)


NETWORKS: dict[str, tuple[Any, set[str]]] = {
    "shortcuts": (
        v2(shortcut_projection=True),
        {f"{block}/sum" for block in V2_BLOCKS},
    ),
    "expansion": (v2(shortcut="expansion"), {"blocks_1_2/expanded_sum"}),
    "squeeze": (
        v2(shortcut="none", se_ratio=0.5).clone(remat=True),
        {f"{block}/se/{point}" for block in V2_BLOCKS for point in SE_POINTS},
    ),
    "mobilenet_v1": (
        mobilenet_v1.MobileNetV1(mobilenet_v1.plan_blocks(blocks=V1_TABLE, stem_features=8), 5),
        set(),
    ),
    "mobilenet_v3": (
        mobilenet_v3.MobileNetV3(mobilenet_v3.plan_blocks(V3_TABLE, 32), 5),
        {
            "activated",
            "blocks_0_0/sum",
            *(f"blocks_0_0/se/{point}" for point in SE_POINTS),
        },
    ),
    "resnet": (
        resnet.ResNet(resnet.plan_blocks(RESNET_TABLE), 5),
        {"blocks_0_0/sum", "blocks_1_0/sum"},
    ),
}


DIVIDED = {
    "mobilenet_v1": NETWORKS["mobilenet_v1"][0],
    "mobilenet_v2": v2(stage_strides=(2, 2)),
    "expansion": v2(stage_strides=(1, 2), shortcut="expansion"),
    "atrous": v2(stage_strides=(2, 2), stem_strides=4, output_stride=8).clone(num_classes=0),
    "mobilenet_v3": NETWORKS["mobilenet_v3"][0],
    "resnet": NETWORKS["resnet"][0],
}


def recorder(kind: Any, calls: dict[str, Any]) -> Any:
    """`kind`, which notes its paths and what it is told of training."""

    class Recorder(kind):
        def __call__(self, x: Any, *train: bool) -> Any:
            calls["/".join(self.path)] = train
            return super().__call__(x, *train)

    return Recorder


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_is_built_by_what_is_put_in(name: str):
    network, points = NETWORKS[name]
    found: dict[str, dict[str, Any]] = {"layer": {}, "dense": {}, "point": {}}
    kinds = {"layer": ConvBNAct, "dense": nn.Dense, "point": Exact}
    parts = {part: recorder(kind, found[part]) for part, kind in kinds.items()}
    frozen = ("stem", "blocks_0_0")
    run: Callable[..., Any] = network.clone(frozen=frozen, **parts).init
    variables = jax.eval_shape(lambda key, x: run(key, x, True), jax.random.key(0), IMAGES)

    plain = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, plain)
    params: dict[str, Any] = traverse_util.flatten_dict(variables["params"], sep="/")
    kernels = {
        path.removesuffix("/kernel"): leaf for path, leaf in params.items() if "kernel" in path
    }
    convolutions = {path.removesuffix("/conv") for path, leaf in kernels.items() if leaf.ndim == 4}
    assert set(found["layer"]) == convolutions
    assert set(found["dense"]) == {path for path, leaf in kernels.items() if leaf.ndim == 2}
    assert set(found["point"]) == {"input", "pooled", "logits", *points}
    for part in ("layer", "point"):
        for path, (train,) in found[part].items():
            assert train == (path.split("/")[0] not in frozen), path


def test_points_change_what_the_network_computes():
    class Doubled(nn.Module):
        def __call__(self, x: Any, train: bool) -> Any:
            return x if train else 2 * x

    network = v2().clone(num_classes=0)
    images = jnp.ones(IMAGES.shape)
    variables: Any = jax.jit(network.init)(jax.random.key(0), images)

    def features(point: Any, image: Any) -> Any:
        result: Any = network.clone(point=point).apply(variables, image, endpoints=True)
        return result[1]

    exact, doubled = jax.jit(lambda x: (features(Exact, 2 * x), features(Doubled, x)))(images)
    assert jnp.array_equal(doubled["stem"], exact["stem"])  # after the input
    assert jnp.array_equal(doubled["stage_0"], 2 * exact["stage_0"])  # after the sum


@pytest.mark.parametrize("name", DIVIDED)
def test_parts_one_after_the_other_are_the_network(name: str):
    network = DIVIDED[name]
    strided = sum(plan.strides > 1 for plan in network.plan.blocks)
    assert len(network.parts) == strided + 1 > 1 and sum(network.parts, ()) == network.modules
    images = jax.random.normal(jax.random.key(1), IMAGES.shape)
    variables: Any = jax.jit(network.init)(jax.random.key(0), images)

    @jax.jit
    def outputs(variables: Any, x: Any) -> tuple[Any, Any]:
        whole = network.apply(variables, x)
        for part in network.parts:
            x = network.apply(variables, x, part=part)
        return whole, x

    whole, last = outputs(variables, images)
    assert jnp.abs(whole).max() > 0
    assert jnp.allclose(whole, last, rtol=1e-5, atol=1e-6)


def test_a_part_that_is_none_of_the_networks_is_refused():
    network = DIVIDED["mobilenet_v2"]
    variables = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    apply = functools.partial(network.apply, part=("stem",))
    with pytest.raises(
        ValueError, match=r"part is \('stem',\); allowed are \('stem', 'blocks_0_0'"
    ):
        jax.eval_shape(apply, variables, IMAGES)
