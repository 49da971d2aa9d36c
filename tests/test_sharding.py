"""The rules table, meshes, and sharded runs against single-device ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from codet5p_jax import sharding
from codet5p_jax.models import CodeT5p, init_params, logical_axes, t5
from codet5p_jax.sharding import RULES, MeshConfig, make_mesh, partition_spec, ways

SIZES = {
    "vocab_size": 64, "d_model": 16, "num_heads": 2, "head_dim": 8, "d_ff": 32,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "dropout": 0.0, "loss_chunk": 4,
}  # fmt: skip
TINY = t5(**SIZES)


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
    rules = {**RULES, "embed": "tensor"}
    sizes = dict.fromkeys(("replica", "fsdp", "sequence", "tensor"), 2)
    with pytest.raises(ValueError, match=r"w of shape \(8, 12\): logical axes 'embed' and 'mlp'"):
        ways("w", (8, 12), ("embed", "mlp"), sizes, rules)


def test_unknown_axis():
    with pytest.raises(KeyError, match="no sharding rule for logical axis 'colour'"):
        partition_spec(("colour",))


def test_indivisible_dimension_names_array_axis_and_sizes():
    mesh = make_mesh(MeshConfig(fsdp=8))
    with pytest.raises(ValueError, match=r"a/b: axis 'embed' of size 12 does not divide"):
        sharding.param_shardings(
            {"a": {"b": ("embed",)}}, {"a": {"b": jax.ShapeDtypeStruct((12,), jnp.float32)}}, mesh
        )


class Device:
    """What a mesh asks of a device."""

    device_kind = "made up"

    def __init__(self, platform, number, **attributes):
        self.platform, self.id = platform, number
        vars(self).update(attributes)


def made_up(platform, groups, each, attribute):
    """Devices of several slices or processes, not in order."""
    return [
        Device(platform, group * each + n, **{attribute: group})
        for n in range(each)
        for group in range(groups)
    ]


@pytest.mark.parametrize("attribute", ["slice_index", "process_index"])
@pytest.mark.parametrize(
    ("config", "slow"),
    [
        (MeshConfig(replica=4, fsdp=2), "replica"),
        (MeshConfig(replica=-1, fsdp=2, tensor=2), "replica"),
        (MeshConfig(replica=8, fsdp=1), "replica"),
        (MeshConfig(fsdp=4, tensor=2), "fsdp"),
    ],
)
def test_only_the_first_axes_go_over_slow_links(config, slow, attribute):
    """Two hosts of four GPUs: neighbours along every other axis are on the same one."""
    devices = make_mesh(config, made_up("gpu", 2, 4, attribute)).devices
    assert sorted(d.id for d in devices.flat) == list(range(8))
    host = np.vectorize(lambda d: getattr(d, attribute))(devices)
    for axis, name in enumerate(sharding.AXES):
        crosses = np.any(np.diff(host, axis=axis))
        assert crosses == (name == slow), name
    assert np.all(np.diff(host, axis=sharding.AXES.index(slow)) >= 0)


def test_processes_of_one_gpu_each_share_a_host():
    devices = made_up("gpu", 2, 4, "slice_index")
    for device in devices:
        device.process_index = device.id
    rows = make_mesh(MeshConfig(replica=2), devices).devices[:, :, 0, 0]
    hosts = [[device.slice_index for device in row] for row in rows]
    assert hosts == [[0] * 4, [1] * 4]


def test_unequal_slices_are_refused():
    devices = made_up("gpu", 2, 4, "slice_index")
    devices[0].slice_index = 1
    with pytest.raises(ValueError, match=r"every slice_index, found \{0: 3, 1: 5\}"):
        make_mesh(MeshConfig(), devices)


def explicit(config, attention="xla"):
    """A forward pass of everything on an Explicit mesh: the function, the mesh, its arguments."""
    changes = {"num_heads": 4, "embed_dim": 8, "matching_head": True, "dropout": 0.1}
    changes |= {"classes": 2, "classify_pairs": True, "attention": attention}
    changes |= {"head_dim": 64} if attention == "fused" else {}  # so that projections are folded
    model = CodeT5p(t5(**{**SIZES, **changes}))
    params = init_params(model.specs, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 64, (8, 8)).astype(np.int32)
    ones = np.ones_like(tokens)

    def everything(params, tokens, ones, key):
        bound, weights = model.bind(params), ones.astype(jnp.float32)
        encoded = bound.encode(tokens, ones, key=key)
        states = bound.decode(tokens, ones, encoded, ones, key=key)
        loss = bound.token_losses(states, tokens, weights).loss
        pair = ((encoded, ones), (states, ones))
        return loss, bound.embed(encoded, ones), bound.match(states, ones), bound.classify(*pair)

    mesh = make_mesh(config, axis_type=AxisType.Explicit)
    shardings = sharding.param_shardings(logical_axes(model.specs), params, mesh)
    rows = sharding.batch_sharding(mesh)
    key = jax.random.key(1)
    whole = (params, tokens, ones, key)
    placed = (*jax.device_put((params, tokens, ones), (shardings, rows, rows)), key)
    return everything, mesh, whole, placed


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(replica=8, fsdp=1),
        MeshConfig(fsdp=8),
        MeshConfig(fsdp=4, tensor=2),
        MeshConfig(fsdp=2, sequence=2, tensor=2),
        MeshConfig(replica=2, fsdp=2, tensor=2),
    ],
)
@pytest.mark.parametrize("attention", ["xla", "fused"])
def test_nothing_moves_unannounced(config, attention):
    """With Explicit axes, an operation that would have to move data is an error of types."""
    everything, mesh, _, placed = explicit(config, attention)
    with jax.set_mesh(mesh):
        loss, *rows = jax.eval_shape(everything, *placed)
    assert loss.sharding.spec == PartitionSpec()
    assert [x.sharding.spec[0] for x in rows] == [("replica", "fsdp")] * 3


@pytest.mark.parametrize("attention", ["xla", "fused"])
def test_explicit_axes_change_no_number(attention):
    everything, mesh, whole, placed = explicit(MeshConfig(fsdp=2, sequence=2, tensor=2), attention)
    expected = jax.jit(everything)(*whole)
    with jax.set_mesh(mesh):
        found = jax.jit(everything)(*placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )


def test_a_sharding_that_is_not_the_rules_shows_on_explicit_axes():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), axis_type=AxisType.Explicit)
    states = jax.device_put(jnp.ones((8, 8, 16)), sharding.replicated(mesh))
    with jax.set_mesh(mesh), pytest.raises(AssertionError, match="acts as an assert"):
        jax.eval_shape(lambda x: sharding.constrain(x, "batch", "length", "features"), states)


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
