"""The peers compute what the project computes, from the same variables."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mobilenet import architecture, build
from mobilenet import config as config_lib
from mobilenet.benchmark import plain
from mobilenet.config import Config


def small(**model: object) -> Config:
    config = config_lib.get_config()
    config.model.blocks = ((1, 8, 1, 1), (3, 8, 2, 2))
    config.model.padding = "SYMMETRIC"
    config.data.image_size = 17
    config_lib.update(config, {f"model.{key}": value for key, value in model.items()})
    return config


def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 17, 17, 3)).astype(np.float32)


@pytest.mark.parametrize("padding", ["SAME", "SYMMETRIC"])
def test_plain_flax_is_the_same_network(padding: str):
    config = small(padding=padding)
    ours = architecture.build_model(config, 5)
    flax = ours.clone(conv=plain.conv, norm=plain.norm)
    variables = build.init_variables(config, 5)
    shapes = jax.eval_shape(
        flax.lazy_init, jax.random.key(0), jax.ShapeDtypeStruct((1, 17, 17, 3), jnp.float32)
    )
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)

    def train(model: object) -> object:
        return jax.jit(lambda v, x: model.apply(v, x, True, mutable=["batch_stats"]))(  # type: ignore[attr-defined]
            variables, images()
        )

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), train(ours), train(flax))


def test_pytorch_is_the_same_network():
    torch = pytest.importorskip("torch")
    from mobilenet.benchmark import torch_peer

    config = small(se_ratio=0.25)
    variables = build.init_variables(config, 5)
    peer = torch_peer.MobileNetV2(architecture.plan(config.model), config.model, 3, 5)
    torch_peer.load(peer, variables)
    result: Any = architecture.build_model(config, 5).apply(
        variables, images(), True, mutable=["batch_stats"]
    )
    logits, updated = result
    theirs = peer.train()(torch.from_numpy(images()).permute(0, 3, 1, 2))
    np.testing.assert_allclose(logits, theirs.detach().numpy(), atol=2e-5)
    mean = peer.state_dict()["stem.bn.running_mean"].numpy()
    np.testing.assert_allclose(updated["batch_stats"]["stem"]["bn"]["mean"], mean, atol=1e-6)
    with pytest.raises(ValueError, match="pads symmetrically"):
        torch_peer.MobileNetV2(architecture.plan(config.model), small(padding="SAME").model, 3, 5)
