"""A Hugging Face T5 as our parameters: the reference side of the parity tests."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def params_from_t5(model: Any, cfg: Any) -> dict[str, Any]:
    """Our parameter tree with the weights of a `transformers` T5 (any head but T5's is ours)."""
    state = {k: v.detach().numpy() for k, v in model.state_dict().items()}

    def layers(stack: str, layer: int, sub: str, shape: tuple[int, ...], n: int) -> np.ndarray:
        """Linear kernels, [out, in] in PyTorch, stacked as [L, *shape]."""
        names = [f"{stack}.block.{i}.layer.{layer}.{sub}.weight" for i in range(n)]
        return np.stack([state[name].T.reshape(shape) for name in names])

    def attention(stack: str, layer: int, kind: str, c: Any) -> dict[str, np.ndarray]:
        D, H, K, n = c.d_model, c.num_heads, c.head_dim, c.num_layers
        tree = {x: layers(stack, layer, f"{kind}.{x}", (D, H, K), n) for x in ("q", "k", "v")}
        return tree | {"o": layers(stack, layer, f"{kind}.o", (H, K, D), n)}

    def norm(stack: str, layer: int, n: int) -> dict[str, np.ndarray]:
        names = [f"{stack}.block.{i}.layer.{layer}.layer_norm.weight" for i in range(n)]
        return {"scale": np.stack([state[name] for name in names])}

    def tower(stack: str, c: Any) -> dict[str, Any]:
        D, F, n = c.d_model, c.d_ff, c.num_layers
        last = 2 if c.causal else 1
        # T5 calls the activated projection wi (or wi_0) and the gating factor wi_1
        names = {"wi": "wi_1", "gate": "wi_0"} if c.gated else {"wi": "wi"}
        ff = {
            ours: layers(stack, last, f"DenseReluDense.{theirs}", (D, F), n)
            for ours, theirs in names.items()
        }
        ff["wo"] = layers(stack, last, "DenseReluDense.wo", (F, D), n)
        tree = {
            "attention": attention(stack, 0, "SelfAttention", c),
            "attention_norm": norm(stack, 0, n),
            "feed_forward": ff,
            "feed_forward_norm": norm(stack, last, n),
        }
        if c.causal:
            tree["cross_attention"] = attention(stack, 1, "EncDecAttention", c)
            tree["cross_attention_norm"] = norm(stack, 1, n)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return {
            "layers": tree,
            "relative_bias": state[bias],
            "final_norm": {"scale": state[f"{stack}.final_layer_norm.weight"]},
        }

    params = {
        "embedding": state["shared.weight"],
        "encoder": tower("encoder", cfg.encoder),
        "decoder": tower("decoder", cfg.decoder),
    }
    if not cfg.tie_embeddings:
        params["lm_head"] = state["lm_head.weight"]
    return _to_jax(params)


def _to_jax(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _to_jax(v) for k, v in tree.items()}
    return jnp.asarray(tree)
