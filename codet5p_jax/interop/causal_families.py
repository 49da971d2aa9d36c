"""The decoder-only architectures that convert, one description each."""

import dataclasses
from typing import Any

from codet5p_jax.interop.causal_lms import Family, Fused, Rope, Values
from codet5p_jax.interop.tables import LAYER, Piece
from codet5p_jax.models.configs import StackConfig


def _switch(*fields: str) -> dict[Any, dict[str, Any]]:
    return {value: dict.fromkeys(fields, value) for value in (False, True)}


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

_LLAMA_KEYS = {
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "activation": "hidden_act",
    "norm_eps": "rms_norm_eps",
    "init_stddev": "initializer_range",
}
_LLAMA_NAMES = {
    "embedding": "embed_tokens",
    "layer": f"layers.{LAYER}",
    "attention_norm": "input_layernorm",
    **{part: f"self_attn.{part}_proj" for part in "qkvo"},
    "feed_forward_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "wi": "mlp.up_proj",
    "wo": "mlp.down_proj",
    "final_norm": "norm",
    "head": "lm_head",
}
_LLAMA_DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2_048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}

LLAMA = Family(
    model_type="llama",
    cls="LlamaForCausalLM",
    keys=_LLAMA_KEYS,
    fixed={"norm": "rms", "gated": True, "position": "rotary", "scale_attention": True},
    base="model.",
    names=_LLAMA_NAMES,
    defaults={
        **_LLAMA_DEFAULTS,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    switches={
        "attention_bias": _switch("qkv_bias", "out_bias"),
        "mlp_bias": _switch("mlp_bias"),
    },
    dropouts=("attention_dropout",),
    rope=Rope(),
)


def _read_qwen2_window(found: Values, layers: int) -> int | None:
    """One window for all layers, or none; the first `max_window_layers` have none."""
    key, kinds = "max_window_layers", found.get("layer_types")
    if not found.choice("use_sliding_window", (True, False)) or not found.get("sliding_window"):
        return None
    windowed = layers - found.number(key)
    if kinds is not None:  # transformers 5
        key = "layer_types"
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise found.error(key, f"a list of {layers}", kinds)
        windowed = layers - kinds.count("full_attention")
    window = found.number("sliding_window")
    if windowed <= 0 or window >= found.number("max_position_embeddings"):
        return None
    if windowed < layers:
        raise found.error(key, "one sliding window for all layers, or none", found.get(key))
    return window


def _write_qwen2_window(cfg: StackConfig) -> dict[str, Any]:
    if cfg.attention_window is None:
        return {"use_sliding_window": False, "max_window_layers": cfg.num_layers}
    return {
        "use_sliding_window": True,
        "sliding_window": cfg.attention_window,
        "max_window_layers": 0,
    }


QWEN2 = Family(
    model_type="qwen2",
    cls="Qwen2ForCausalLM",
    keys=_LLAMA_KEYS,
    fixed={**LLAMA.fixed, "qkv_bias": True},
    base="model.",
    names=_LLAMA_NAMES,
    defaults={
        **_LLAMA_DEFAULTS,
        "max_position_embeddings": 32_768,
        "use_sliding_window": False,
        "sliding_window": 4_096,
        "max_window_layers": 28,
    },
    dropouts=("attention_dropout",),
    rope=Rope(),
    read_window=_read_qwen2_window,
    write_window=_write_qwen2_window,
)


def _gpt2_fused(cfg: StackConfig) -> Fused:
    """All queries, then all keys, then all values."""
    H = cfg.num_heads
    G = cfg.num_kv_heads or H
    pieces = {"q": (0, H), "k": (H, H + G), "v": (H + G, H + 2 * G)}
    return Fused(
        "D (N K) -> D N K",
        "(N K) -> N K",
        {part: Piece(*piece, H + 2 * G) for part, piece in pieces.items()},
    )


_GPT2_KEYS = {name: key for name, key in CODEGEN.keys.items() if name != "rotary_dim"}

GPT2 = Family(
    model_type="gpt2",
    cls="GPT2LMHeadModel",
    keys=_GPT2_KEYS,
    fixed={
        "norm": "layer",
        **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), True),
        "position": "learned",
    },
    base="transformer.",
    names={
        "embedding": "wte",
        "positions": "wpe",
        "layer": f"h.{LAYER}",
        "attention_norm": "ln_1",
        "qkv": "attn.c_attn",
        "o": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "wi": "mlp.c_fc",
        "wo": "mlp.c_proj",
        "final_norm": "ln_f",
        "head": "lm_head",
    },
    defaults={
        **CODEGEN.defaults,
        **dict.fromkeys(CODEGEN.dropouts, 0.1),
        "n_positions": 1_024,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    switches={"scale_attn_weights": _switch("scale_attention")},
    required={"scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
    dropouts=CODEGEN.dropouts,
    fused=_gpt2_fused,
    conv1d=True,
)


def _by_head_fused(_: StackConfig) -> Fused:
    """Head by head: its query, its key, its value."""
    pieces = {part: Piece(i, i + 1, 3) for i, part in enumerate("qkv")}
    return Fused("(H N K) D -> D (H N) K", "(H N K) -> (H N) K", pieces)


def _bigcode_fused(cfg: StackConfig) -> Fused:
    """All queries, then the one key and the one value; else head by head."""
    if cfg.num_kv_heads != 1:
        return _by_head_fused(cfg)
    return dataclasses.replace(_gpt2_fused(cfg), axes="(N K) D -> D N K")


GPT_BIGCODE = Family(
    model_type="gpt_bigcode",
    cls="GPTBigCodeForCausalLM",
    keys=_GPT2_KEYS,
    fixed=GPT2.fixed,
    base="transformer.",
    names=GPT2.names,
    defaults={
        **GPT2.defaults,
        "activation_function": "gelu_pytorch_tanh",
        "multi_query": True,
    },
    switches={
        **GPT2.switches,
        "multi_query": {True: {"num_kv_heads": 1}, False: {"num_kv_heads": None}},
    },
    required={"add_cross_attention": (False,)},
    dropouts=GPT2.dropouts,
    fused=_bigcode_fused,
)


def _santacoder_fused(_: StackConfig) -> Fused:
    """The one key, then the one value; queries are a tensor of their own."""
    pieces = {part: Piece(i, i + 1, 2) for i, part in enumerate("kv")}
    return Fused("D (N K) -> D N K", "(N K) -> N K", pieces)


SANTACODER = dataclasses.replace(
    GPT2,
    cls=None,  # its code lies beside its weights
    marks={"attention_head_type": "multiquery"},
    fixed={**GPT2.fixed, "num_kv_heads": 1},
    names={**GPT2.names, "q": "attn.q_attn", "qkv": "attn.kv_attn"},
    fused=_santacoder_fused,
)
"""SantaCoder as first published; since, as GPT-BigCode as well, which is the same network."""

GPT_NEOX = Family(
    model_type="gpt_neox",
    cls="GPTNeoXForCausalLM",
    keys={
        "num_layers": "num_hidden_layers",
        "d_model": "hidden_size",
        "num_heads": "num_attention_heads",
        "d_ff": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "activation": "hidden_act",
        "norm_eps": "layer_norm_eps",
        "init_stddev": "initializer_range",
    },
    fixed={
        "norm": "layer",
        "shared_norm": False,
        "mlp_bias": True,
        "position": "rotary",
        "scale_attention": True,
    },
    base="gpt_neox.",
    names={
        "embedding": "embed_in",
        "layer": f"layers.{LAYER}",
        "attention_norm": "input_layernorm",
        "qkv": "attention.query_key_value",
        "o": "attention.dense",
        "feed_forward_norm": "post_attention_layernorm",
        "wi": "mlp.dense_h_to_4h",
        "wo": "mlp.dense_4h_to_h",
        "final_norm": "final_layer_norm",
        "head": "embed_out",
    },
    defaults={
        "max_position_embeddings": 2_048,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "use_parallel_residual": True,
        "attention_bias": True,
        "rotary_pct": 0.25,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    switches={
        "use_parallel_residual": _switch("parallel"),
        "attention_bias": _switch("qkv_bias", "out_bias"),
    },
    dropouts=("attention_dropout", "hidden_dropout"),
    fused=_by_head_fused,
    rope=Rope(theta="rotary_emb_base", fraction="rotary_pct"),
)

STARCODER2 = Family(
    model_type="starcoder2",
    cls="Starcoder2ForCausalLM",
    keys={**_LLAMA_KEYS, "norm_eps": "norm_epsilon", "attention_window": "sliding_window"},
    fixed={"norm": "layer", "position": "rotary", "scale_attention": True},
    base="model.",
    names={**_LLAMA_NAMES, "wi": "mlp.c_fc", "wo": "mlp.c_proj"},
    defaults={
        "num_key_value_heads": 2,
        "head_dim": None,
        "max_position_embeddings": 4_096,
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": 1e-5,
        "initializer_range": 0.018042,
        "sliding_window": None,
        "use_bias": True,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": 50_256,
        "eos_token_id": 50_256,
    },
    switches={"use_bias": _switch("qkv_bias", "out_bias", "mlp_bias")},
    dropouts=("attention_dropout", "residual_dropout", "embedding_dropout"),
    rope=Rope(),
)

GEMMA = Family(
    model_type="gemma",
    cls="GemmaForCausalLM",
    keys=_LLAMA_KEYS,
    fixed={**LLAMA.fixed, "norm_plus_one": True},
    base="model.",
    names=_LLAMA_NAMES,
    defaults={
        **_LLAMA_DEFAULTS,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8_192,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": None,
        "attention_bias": False,
        "use_bidirectional_attention": None,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    },
    switches={"attention_bias": _switch("qkv_bias", "out_bias")},
    required={
        "hidden_activation": ("gelu_pytorch_tanh", None),
        "use_bidirectional_attention": (None, False),
    },
    dropouts=("attention_dropout",),
    # What the first configurations call gelu is the approximation as well.
    activations={"gelu": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"},
    rope=Rope(),
    scale_embedding=True,
)

FAMILIES = {
    "codegen": CODEGEN,
    "llama": LLAMA,
    "qwen2": QWEN2,
    "gpt2": GPT2,
    "gpt_bigcode": GPT_BIGCODE,
    "santacoder": SANTACODER,
    "gpt_neox": GPT_NEOX,
    "starcoder2": STARCODER2,
    "gemma": GEMMA,
}
"""By the name of the architecture."""
