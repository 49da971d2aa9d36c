"""The decoder-only architectures that convert, one description each."""

from codet5p_jax.interop.causal_lms import Family, Fused
from codet5p_jax.interop.tables import LAYER, Piece
from codet5p_jax.models.configs import StackConfig


def _codegen_fused(cfg: StackConfig) -> Fused:
    """Four shards (P), each with its quarter of the heads: of the queries, then of the values, then
    of the keys. It was trained on as many cores, and the layout stayed."""
    own = cfg.num_heads // 4
    pieces = {part: Piece(i * own, (i + 1) * own, 3 * own) for i, part in enumerate("qvk")}
    return Fused("(P N K) D -> D (P N) K", "(P N K) -> (P N) K", pieces)


CODEGEN = Family(
    model_type="codegen",
    cls="CodeGenForCausalLM",
    keys={
        "num_layers": "n_layer",
        "d_model": "n_embd",
        "num_heads": "n_head",
        "d_ff": "n_inner",
        "max_positions": "n_positions",
        "rotary_dim": "rotary_dim",
        "activation": "activation_function",
        "norm_eps": "layer_norm_epsilon",
        "init_stddev": "initializer_range",
    },
    fixed={
        "norm": "layer",
        "parallel": True,
        "mlp_bias": True,
        "position": "rotary",
        "rotary_interleaved": True,
        "scale_attention": True,
    },
    base="transformer.",
    names={
        "embedding": "wte",
        "layer": f"h.{LAYER}",
        "attention_norm": "ln_1",
        "qkv": "attn.qkv_proj",
        "o": "attn.out_proj",
        "wi": "mlp.fc_in",
        "wo": "mlp.fc_out",
        "final_norm": "ln_f",
        "head": "lm_head",
    },
    defaults={
        "n_inner": None,
        "n_positions": 2_048,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 50_256,
        "eos_token_id": 50_256,
    },
    dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    fused=_codegen_fused,
    head_bias=True,
    heads_multiple=4,
)

FAMILIES = {"codegen": CODEGEN}
"""By the name of the architecture."""
