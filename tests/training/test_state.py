import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from codet5p_jax.models import CodeT5p, init_params
from codet5p_jax.objectives import SpanDenoising, TextCodePairs
from codet5p_jax.sharding import MeshConfig, make_mesh
from codet5p_jax.training.optimizers import Adafactor, AdamW, Muon
from codet5p_jax.training.schedules import Constant
from codet5p_jax.training.state import abstract_state, compiler_options, init_state
from tests.training.linear import Linear, Regression
from tests.training.synthetic import tiny_config

MESH = MeshConfig(replica=2, fsdp=2, tensor=2)
RATE = Constant(0.1).make(10)


def test_what_looks_like_a_parameter_is_sharded_like_it():
    model = CodeT5p(tiny_config(embed_dim=8, matching_head=True))
    objectives = [
        SpanDenoising(inputs_length=8, targets_length=8),
        TextCodePairs(text_length=4, code_length=8, queue_size=16),
    ]
    rule = AdamW().make(RATE, model.specs)
    state = abstract_state(model, objectives, rule, make_mesh(MESH), ema=True)

    def spec(tree, *path):
        for name in path:
            tree = tree[name]
        return tree.sharding.spec

    wi = ("encoder", "layers", "feed_forward", "wi")
    assert spec(state.params, *wi) == P(None, "fsdp", "tensor")
    assert spec(state.ema, *wi) == P(None, "fsdp", "tensor")
    adam = state.opt_state[1]
    assert spec(adam.mu, *wi) == spec(adam.nu, *wi) == P(None, "fsdp", "tensor")
    assert adam.count.sharding.spec == P()
    pairs = state.objective_state["text_code_pairs"]
    sharded = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(pairs)
    }
    momentum = [s for path, s in sharded.items() if path.endswith("/".join(wi))]
    assert momentum == [P(None, "fsdp", "tensor")]
    assert state.objective_state["span_denoising"] == {}


@pytest.mark.parametrize("optimizer", [Adafactor(), Muon()], ids=lambda o: type(o).__name__)
def test_every_optimizer_has_a_sharded_state(optimizer):
    model = CodeT5p(tiny_config())
    rule = optimizer.make(RATE, model.specs)
    state = abstract_state(model, [], rule, make_mesh(MESH))
    assert all(leaf.sharding is not None for leaf in jax.tree.leaves(state))
    if isinstance(optimizer, Muon):
        sharded = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.opt_state)}
        assert str(P(None, "fsdp", "tensor")) in sharded


def test_initial_values_do_not_depend_on_the_mesh_and_can_be_loaded():
    model = Linear()
    rule = AdamW().make(RATE, model.specs)
    drawn = jax.tree.map(np.asarray, init_params(model.specs, jax.random.key(3)))
    w = jnp.arange(32, dtype=jnp.float32).reshape(4, 8)
    for loaded, expected in (({}, drawn["w"]), ({"w": w}, w)):
        state = init_state(
            model, [Regression()], rule, make_mesh(MESH), seed=3, loaded=loaded, ema=True
        )
        assert state.params["w"].sharding.spec == P("fsdp", None)
        np.testing.assert_allclose(state.params["w"], expected, rtol=1e-6)
        np.testing.assert_array_equal(state.params["b"], drawn["b"])
        np.testing.assert_array_equal(state.ema["w"], state.params["w"])
        momentum = state.objective_state["regression"]["momentum"]["w"]
        np.testing.assert_array_equal(momentum, state.params["w"])
        # Donating the state must not give one buffer away twice.
        pointers = [
            s.data.unsafe_buffer_pointer()
            for x in (state.params["w"], state.ema["w"], momentum)
            for s in x.addressable_shards[:1]
        ]
        assert len(set(pointers)) == 3


def test_a_level_in_xla_flags_stands(monkeypatch):
    level, mesh = "xla_backend_optimization_level", make_mesh(MESH)
    monkeypatch.setenv("XLA_FLAGS", "")
    assert compiler_options(mesh)[level] == 1
    monkeypatch.setenv("XLA_FLAGS", f"--{level}=2")
    assert level not in compiler_options(mesh)
