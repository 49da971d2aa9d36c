"""Relative positions, rotary positions and the block variants against `transformers`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codet5p_jax.models.attention import (
    laid_out,
    relative_bias_row,
    relative_bucket,
    relative_values,
    segment_mask,
)
from codet5p_jax.models.configs import ModelConfig, StackConfig
from codet5p_jax.models.params import init_params
from codet5p_jax.models.stack import Stack
from codet5p_jax.sharding import MeshConfig, batch_sharding, make_mesh, replicated
from codet5p_jax.training.hlo import read_work


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_those_of_transformers(bidirectional):
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    distance = np.arange(-2500, 2500)
    for buckets, longest in [(32, 128), (16, 64), (32, 20)]:
        expected = t5.T5Attention._relative_position_bucket(
            torch.as_tensor(distance), bidirectional, buckets, longest
        )
        got = relative_bucket(
            distance, bidirectional=bidirectional, num_buckets=buckets, max_distance=longest
        )
        np.testing.assert_array_equal(got, expected.numpy())


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (7, 7), (5, 12), (12, 5)])
def test_bias_is_the_table_looked_up_at_every_pair(bidirectional, T, S):
    table = jax.random.normal(jax.random.key(0), (32, 3))
    kw = {"bidirectional": bidirectional, "max_distance": 128}
    got = laid_out(relative_values(table, T, S, **kw), T)
    distance = np.arange(S)[None] - np.arange(T)[:, None]
    buckets = relative_bucket(distance, num_buckets=32, **kw)
    expected = np.moveaxis(np.asarray(table)[buckets], -1, 0)
    np.testing.assert_array_equal(got, expected[None])
    parts = laid_out(relative_values(table, T, S, parts=4, **kw), T)
    np.testing.assert_array_equal(parts, np.stack([expected] * 4))
    if T <= S:
        row = relative_bias_row(table, jnp.int32(T - 1), S, **kw)
        np.testing.assert_array_equal(row[..., 0, :], got[..., -1, :])


def test_devices_reduce_the_gradient_of_the_table_not_of_every_pair():
    """Gradients of two scanned layers over 8 devices: those of one device, and few bytes moved."""
    T, layers = 64, 2
    cfg = StackConfig(num_layers=layers, d_model=8, num_heads=2, head_dim=4, d_ff=8)
    stack = Stack(cfg, ModelConfig(vocab_size=8, encoder=cfg, decoder=cfg, dropout=0.0))
    graphdef, specs = nnx.split(stack)
    params = init_params(nnx.to_pure_dict(specs), jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (16, T, 8))

    def loss(params, x):
        state = nnx.State(jax.tree.map(nnx.Param, params))
        return jnp.mean(jnp.sin(nnx.merge(graphdef, state)(x, jnp.ones((16, T), jnp.int32))))

    expected = jax.grad(loss)(params, x)
    mesh = make_mesh(MeshConfig(replica=4, fsdp=2))
    params = jax.device_put(params, replicated(mesh))
    x = jax.device_put(x, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss)).lower(params, x).compile()
        got = compiled(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), got, expected)
    received = sum(kind.num_bytes for kind in read_work(compiled.as_text()).collectives.values())
    gradients = 4 * sum(p.size for p in jax.tree.leaves(params))
    assert gradients < received < 2 * gradients < 4 * 2 * T * T  # bytes of heads x T x T of a layer


def test_a_window_ends_behind_a_position():
    segments = jnp.ones((1, 5), jnp.int32)
    seen = segment_mask(segments, segments, causal=True, window=2)[0, 0] == 0
    np.testing.assert_array_equal(seen, np.eye(5) + np.eye(5, k=-1))


def test_a_cache_sees_what_a_window_lets_through():
    stack, _ = causal_stack(d_ff=16, attention_window=3, max_positions=7)
    x = jax.random.normal(jax.random.key(0), (2, 7, 32))
    whole = stack(x, jnp.ones((2, 7), jnp.int32))
    cache, steps = stack.init_cache(None, None, 2, 7), []
    for t in range(7):
        y, cache = stack.step(x[:, t : t + 1], cache)
        steps.append(y)
    np.testing.assert_allclose(jnp.concatenate(steps, 1), whole, atol=1e-5)
    far = stack(x.at[:, 0].add(1.0), jnp.ones((2, 7), jnp.int32))
    # Two layers of 3 positions each reach 4 positions back.
    np.testing.assert_array_equal(far[:, 5:], whole[:, 5:])
    with pytest.raises(ValueError, match=r"8 tokens does not fit the 7 positions of the network"):
        stack.init_cache(None, None, 2, 8)


def causal_stack(**kw) -> tuple[Stack, dict]:
    """A decoder-only stack with random parameters away from their initial values."""
    cfg = StackConfig(num_layers=2, d_model=32, num_heads=4, head_dim=8, causal=True,
                      scale_attention=True, position="rotary", **kw)  # fmt: skip
    stack = Stack(cfg, ModelConfig(vocab_size=1, encoder=cfg, decoder=cfg, dropout=0.0))
    graphdef, state = nnx.split(stack)
    params = init_params(nnx.to_pure_dict(state), jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state), params


def load(torch_module, tensors: dict) -> None:
    """Fills a torch module; what is missing or left over is an error, buffers aside."""
    import torch

    state = {k: torch.as_tensor(np.asarray(v).copy()) for k, v in tensors.items()}
    missing, unexpected = torch_module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("embed" in m or "wte" in m or "bias" in m.split(".")[-1] for m in missing), missing


def test_llama_like_block():
    """RMSNorm, gated SiLU, grouped queries, half-split rotary: LlamaModel without its embedding."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    stack, p = causal_stack(d_ff=48, num_kv_heads=2, activation="silu", gated=True)
    hf = transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=3, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6,
        )
    ).eval()  # fmt: skip
    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}
    tensors = {"norm.weight": p["final_norm"]["scale"]}
    for i in range(2):
        layer = jax.tree.map(lambda x, i=i: x[i], p["layers"])
        a, f = layer["attention"], layer["feed_forward"]
        tensors |= {f"layers.{i}.{n}.weight": a[x].reshape(32, -1).T for x, n in names.items()}
        tensors |= {
            f"layers.{i}.self_attn.o_proj.weight": a["o"].reshape(-1, 32).T,
            f"layers.{i}.mlp.gate_proj.weight": f["gate"].T,
            f"layers.{i}.mlp.up_proj.weight": f["wi"].T,
            f"layers.{i}.mlp.down_proj.weight": f["wo"].T,
            f"layers.{i}.input_layernorm.weight": layer["attention_norm"]["scale"],
            f"layers.{i}.post_attention_layernorm.weight": layer["feed_forward_norm"]["scale"],
        }
    load(hf, tensors)
    x = np.random.default_rng(0).normal(size=(2, 9, 32)).astype(np.float32)
    with torch.no_grad():
        expected = hf(inputs_embeds=torch.tensor(x)).last_hidden_state.numpy()
    got = stack(jnp.asarray(x), jnp.ones((2, 9), jnp.int32))
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_gptj_like_block():
    """Parallel residual, LayerNorm, interleaved partial rotary, biases: GPTJModel."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    stack, p = causal_stack(
        d_ff=48, norm="layer", norm_eps=1e-5, activation="gelu_tanh", parallel=True,
        mlp_bias=True, rotary_dim=4, rotary_interleaved=True,
    )  # fmt: skip
    hf = transformers.GPTJModel(
        transformers.GPTJConfig(
            vocab_size=3, n_positions=16, n_embd=32, n_inner=48, n_layer=2, n_head=4,
            rotary_dim=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    ).eval()  # fmt: skip
    tensors = {"ln_f.weight": p["final_norm"]["scale"], "ln_f.bias": p["final_norm"]["bias"]}
    for i in range(2):
        layer = jax.tree.map(lambda x, i=i: x[i], p["layers"])
        a, f, n = layer["attention"], layer["feed_forward"], layer["attention_norm"]
        tensors |= {f"h.{i}.attn.{x}_proj.weight": a[x].reshape(32, -1).T for x in "qkv"}
        tensors |= {
            f"h.{i}.attn.out_proj.weight": a["o"].reshape(-1, 32).T,
            f"h.{i}.mlp.fc_in.weight": f["wi"].T,
            f"h.{i}.mlp.fc_in.bias": f["wi_bias"],
            f"h.{i}.mlp.fc_out.weight": f["wo"].T,
            f"h.{i}.mlp.fc_out.bias": f["wo_bias"],
            f"h.{i}.ln_1.weight": n["scale"],
            f"h.{i}.ln_1.bias": n["bias"],
        }
    load(hf, tensors)
    x = np.random.default_rng(0).normal(size=(2, 9, 32)).astype(np.float32)
    with torch.no_grad():
        expected = hf(inputs_embeds=torch.tensor(x)).last_hidden_state.numpy()
    got = stack(jnp.asarray(x), jnp.ones((2, 9), jnp.int32))
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_cross_attention_in_chosen_layers_only():
    """Only the last layer reads the encoder (CodeT5+ 2B and larger): parameters are there alone."""
    from flax import nnx

    cfg = StackConfig(num_layers=3, d_model=16, num_heads=2, head_dim=8, d_ff=16, causal=True,
                      cross_attention=(2,), position="none")  # fmt: skip
    stack = Stack(cfg, ModelConfig(vocab_size=1, encoder=cfg, decoder=cfg, dropout=0.0))
    specs = nnx.to_pure_dict(nnx.split(stack)[1])
    assert specs["layers_0"]["attention"]["q"].shape == (2, 16, 2, 8)
    assert "cross_attention" not in specs["layers_0"]
    assert specs["layers_2"]["cross_attention"]["q"].shape == (1, 16, 2, 8)
