"""The rules table, meshes, and sharded runs against single-device ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax import sharding
from codet5p_jax.models import CodeT5p, init_params, logical_axes, t5
from codet5p_jax.sharding import MeshConfig, make_mesh, partition_spec

TINY = t5(
    vocab_size=64, d_model=16, num_heads=2, head_dim=8, d_ff=32,
    num_encoder_layers=2, num_decoder_layers=2, dropout=0.0, loss_chunk=4,
)  # fmt: skip


def test_minus_one_takes_what_is_left():
    assert MeshConfig(tensor=2).shape(8) == (1, 4, 1, 2)
    assert MeshConfig(replica=2, fsdp=1, sequence=-1).shape(8) == (2, 1, 4, 1)


@pytest.mark.parametrize("sizes", [{"fsdp": 0}, {"tensor": -2}, {"replica": -1}])
def test_sizes_that_fill_no_machine_are_refused_at_once(sizes):
    """Before there are devices to count."""
    with pytest.raises(ValueError, match="mesh sizes are positive and at most one is -1; found"):
        MeshConfig(**sizes)


@pytest.mark.parametrize("config", [MeshConfig(fsdp=3), MeshConfig(tensor=3)])
def test_sizes_that_do_not_fill_the_devices(config):
    with pytest.raises(ValueError, match="mesh"):
        config.shape(8)


def test_two_axes_on_one_mesh_axis_name_both():
    with pytest.raises(ValueError, match=r"w: logical axes 'heads' and 'mlp' both map.*'tensor'"):
        partition_spec(("heads", "mlp"), name="w")


def test_unknown_axis():
    with pytest.raises(KeyError, match="no sharding rule for logical axis 'colour'"):
        partition_spec(("colour",))


def test_indivisible_dimension_names_array_axis_and_sizes():
    mesh = make_mesh(MeshConfig(fsdp=8))
    with pytest.raises(ValueError, match=r"a/b: axis 'embed' of size 12 does not divide"):
        sharding.param_shardings(
            {"a": {"b": ("embed",)}}, {"a": {"b": jax.ShapeDtypeStruct((12,), jnp.float32)}}, mesh
        )


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(fsdp=2, tensor=2, replica=2),
                                    MeshConfig(fsdp=2, sequence=2, tensor=2)])  # fmt: skip
def test_gradients_on_eight_devices_equal_those_on_one(config):
    model = CodeT5p(TINY)
    params = init_params(model.specs, jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 64, (8, 8)), jnp.int32)
    ones, weights = jnp.ones_like(tokens), jnp.ones(tokens.shape)

    def loss(params, tokens):
        bound = model.bind(params)
        states = bound.decode(tokens, ones, bound.encode(tokens, ones), ones)
        return bound.token_losses(states, tokens, weights).loss / weights.sum()

    expected = jax.jit(jax.value_and_grad(loss))(params, tokens)
    mesh = make_mesh(config)
    shardings = sharding.param_shardings(logical_axes(model.specs), params, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        batch = jax.device_put(tokens, sharding.batch_sharding(mesh))
        got = jax.jit(jax.value_and_grad(loss), out_shardings=(None, shardings))(placed, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)
