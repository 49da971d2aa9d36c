"""Logits, loss and gradients against `transformers`' T5 on random weights at fp32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codet5p_jax.models import CodeT5p, t5

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.models.torch_t5 import params_from_t5  # noqa: E402

VARIANTS = {
    "v1.0 (CodeT5+)": {"gated": False, "activation": "relu", "tie_embeddings": True},
    "v1.1 (Flan-T5)": {"gated": True, "activation": "gelu_tanh", "tie_embeddings": False},
}


@functools.cache
def pair(variant: str):
    """A random PyTorch T5, our configuration of it, and its weights as our parameters."""
    v = VARIANTS[variant]
    cfg = t5(
        vocab_size=97, d_model=48, num_heads=3, head_dim=8, d_ff=80,
        num_encoder_layers=3, num_decoder_layers=2, dropout=0.0, loss_chunk=5, **v,
    )  # fmt: skip
    torch.manual_seed(0)
    hf_cfg = transformers.T5Config(
        vocab_size=97, d_model=48, num_heads=3, d_kv=8, d_ff=80, num_layers=3,
        num_decoder_layers=2, dropout_rate=0.0, tie_word_embeddings=v["tie_embeddings"],
        feed_forward_proj="gated-gelu" if v["gated"] else "relu",
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
        relative_attention_num_buckets=32, relative_attention_max_distance=128,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(hf_cfg).eval()
    if not v["tie_embeddings"]:
        # transformers v5 ties a fresh model whatever the config says, and honours it in the scale
        model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn(97, 48))
    with torch.no_grad():
        for p in model.parameters():  # norms away from one, so that a lost scale shows
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model, cfg, params_from_t5(model, cfg)


@functools.cache
def rows():
    """Two rows of different length; 200 positions reach the logarithmic buckets."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 97, (2, 200)).astype(np.int32)
    targets = rng.integers(3, 97, (2, 17)).astype(np.int32)
    segments = np.ones_like(tokens)
    segments[1, 150:] = 0
    tokens[1, 150:] = 0
    weights = np.ones(targets.shape, np.float32)
    weights[1, 11:] = 0.0
    shifted = np.concatenate([np.zeros((2, 1), np.int32), targets[:, :-1]], axis=1)
    return tuple(map(jnp.asarray, (tokens, segments, shifted, targets, weights)))


def ours(cfg, params):
    tokens, segments, shifted, targets, weights = rows()
    bound = CodeT5p(cfg).bind(params)
    encoded = bound.encode(tokens, segments)
    states = bound.decode(shifted, jnp.ones_like(shifted), encoded, segments)
    loss = bound.token_losses(states, targets, weights)
    return loss.loss / loss.weight, (encoded, bound.logits(states))


def theirs(model):
    tokens, segments, shifted, targets, weights = (torch.tensor(np.asarray(x)) for x in rows())
    labels = torch.where(weights > 0, targets.long(), -100)
    return model(
        input_ids=tokens, attention_mask=segments, decoder_input_ids=shifted, labels=labels
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scan_layers", [True, False])
def test_logits_and_loss(variant, scan_layers):
    model, cfg, params = pair(variant)
    cfg = dataclasses.replace(cfg, scan_layers=scan_layers)
    with torch.no_grad():
        reference = theirs(model)
    loss, (encoded, logits) = jax.jit(functools.partial(ours, cfg))(params)
    real = rows()[1] > 0
    np.testing.assert_allclose(
        encoded[real], reference.encoder_last_hidden_state.numpy()[real], atol=1e-5
    )
    np.testing.assert_allclose(logits, reference.logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(loss, reference.loss.numpy(), atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_gradients(variant, remat):
    model, cfg, params = pair(variant)
    model.zero_grad()
    theirs(model).loss.backward()
    torch_gradients = {n: p.grad for n, p in model.named_parameters()}

    class WithGradients:
        """The same table, read from the gradients instead of the weights."""

        @staticmethod
        def state_dict():
            return torch_gradients

    expected = params_from_t5(WithGradients, cfg)
    cfg = dataclasses.replace(cfg, remat=remat)
    grads = jax.jit(jax.grad(lambda p: ours(cfg, p)[0]))(params)
    for (path, g), e in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(g, e, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_cache_equals_whole_sequence():
    _, cfg, params = pair("v1.0 (CodeT5+)")
    tokens, segments, shifted, _, _ = rows()
    bound = CodeT5p(cfg).bind(params)
    encoded = bound.encode(tokens, segments)
    whole = bound.decode(shifted, jnp.ones_like(shifted), encoded, segments)

    def body(cache, token_B):
        states, cache = bound.decode_step(token_B[:, None], cache)
        return cache, states[:, 0]

    cache = bound.init_cache(encoded, segments, max_length=20)
    _, stepped = jax.lax.scan(body, cache, shifted.T)
    np.testing.assert_allclose(jnp.moveaxis(stepped, 0, 1), whole, atol=2e-5)
