"""An encoder, a decoder-only language model and cross-attention between them, for `transformers` 5.

    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    model.generate(input_ids, attention_mask=mask)
    model(decoder_input_ids=ids).logits  # without an encoder: the language model alone

Two layouts of folders, one block:

- `codet5p`, that of CodeT5+ 2B, 6B and 16B: `encoder` and `decoder` have CodeGen's keys, queries,
  keys and values are one tensor, and the decoder's last layer reads the encoder.
- `codet5p_composed`: each key of `CodeT5pTowerConfig` is a choice, and each projection a tensor.

Both are padded on the right; a decoder whose mask says so may be padded on the left.
Where config.json has prompt_to_decoder, `generate` starts the decoder from the prompt as well.
Dropout is where training with codet5p_jax has it, at one rate.
Written by codet5p_jax, which never imports it.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    Seq2SeqLMOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import can_return_tuple

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    **dict.fromkeys(("gelu_tanh", "gelu_new"), lambda x: F.gelu(x, approximate="tanh")),
    "silu": F.silu,
}


# ------------------------------------------------------------------------------- configurations


class CodeT5pTowerConfig(PreTrainedConfig):
    """One tower: how many blocks, and what a block is.

    heads: num_heads of head_dim; num_kv_heads of keys and values (None: as many).
    causal: each position sees itself and earlier ones, the last attention_window of them.
    cross_attention: layers that read the encoder; cross_parallel: what self-attention reads, into
      the same sum, else after it, through a norm of its own.
    norm: "layer" or "rms"; norm_plus_one: it multiplies by 1 + weight.
    gated: the activated projection is multiplied by a second one.
    parallel: attention and feed-forward add up, having read one norm (shared_norm) or one each.
    position: "rotary", "learned", "relative" (T5) or "none".
    rotary_dim: features of each head that turn (None: all), in pairs (0, 1), (2, 3) … where
      rotary_interleaved, else (0, n / 2), (1, n / 2 + 1) …; positions are divided by rotary_scale.
    scale_attention: scores are divided by sqrt(head_dim).
    """

    model_type = "codet5p_tower"
    attribute_map = {  # noqa: RUF012
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "hidden_size": "d_model",
    }
    fused = False  # queries, keys and values are tensors of their own

    vocab_size: int = 32
    num_layers: int = 1
    d_model: int = 16
    num_heads: int = 2
    head_dim: int = 8
    d_ff: int = 64
    num_kv_heads: int | None = None
    causal: bool = False
    attention_window: int | None = None
    cross_attention: list[int] | None = None
    cross_parallel: bool = False
    norm: str = "rms"
    norm_eps: float = 1e-6
    norm_plus_one: bool = False
    activation: str = "relu"
    gated: bool = False
    parallel: bool = False
    shared_norm: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    position: str = "relative"
    relative_buckets: int = 32
    relative_max_distance: int = 128
    max_positions: int | None = None
    rotary_dim: int | None = None
    rotary_base: float = 10_000.0
    rotary_scale: float = 1.0
    rotary_interleaved: bool = False
    scale_attention: bool = False
    dropout: float = 0.0


class CodeT5pModuleConfig(PreTrainedConfig):
    """One tower of CodeGen, with CodeGen's keys, and what they mean as `CodeT5pTowerConfig`."""

    model_type = "codet5p_module"
    attribute_map = {  # noqa: RUF012
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "d_model": "n_embd",
        "max_positions": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "activation": "activation_function",
        "causal": "is_decoder",
    }
    fused = True
    num_kv_heads = attention_window = None
    norm, norm_plus_one, gated = "layer", False, False
    parallel = shared_norm = cross_parallel = True
    qkv_bias, out_bias, mlp_bias = False, False, True
    position, rotary_interleaved, rotary_base, rotary_scale = "rotary", True, 10_000.0, 1.0
    scale_attention = True

    vocab_size: int = 51_200
    n_positions: int = 2_048
    n_embd: int = 1_024
    n_layer: int = 20
    n_head: int = 16
    n_inner: int | None = None
    rotary_dim: int = 32
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    is_decoder: bool = False
    add_cross_attention: bool = False

    @property
    def head_dim(self):
        """Features of a head."""
        return self.n_embd // self.n_head

    @property
    def d_ff(self):
        """Width between the two products of a feed-forward network."""
        return self.n_inner or 4 * self.n_embd

    @property
    def cross_attention(self):
        """Layers that read the encoder: the last."""
        return [self.n_layer - 1] if self.add_cross_attention else []

    @property
    def dropout(self):
        """One rate for all places."""
        return max(self.resid_pdrop, self.embd_pdrop, self.attn_pdrop)


class _EncoderDecoderConfig(PreTrainedConfig):
    tower = PreTrainedConfig  # class of both towers' configurations

    encoder: Any = None  # configurations; keys of one in `config.json`
    decoder: Any = None
    is_encoder_decoder: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    prompt_to_decoder: bool = False  # whether prompts are given to the decoder as well

    def __post_init__(self, **kwargs):
        for name in ("encoder", "decoder"):
            part = getattr(self, name)
            if not isinstance(part, PreTrainedConfig):
                setattr(self, name, self.tower(**(part or {})))
        kwargs.pop("tie_word_embeddings", None)  # follows from others
        super().__post_init__(**kwargs)

    @property
    def tie_word_embeddings(self):
        """Whether any two tensors are one; which, says the model."""
        return self.tie_embeddings or self.share_embeddings


class CodeT5pConfig(_EncoderDecoderConfig):
    """CodeT5+ 2B, 6B and 16B."""

    model_type = "codet5p"
    tower = CodeT5pModuleConfig
    prompt_to_decoder: bool = True
    share_embeddings = tie_embeddings = scale_tied_head = scale_embedding = False
    head_bias = True

    @property
    def project_encoder(self):
        """Whether encoder states have to be brought to the decoder's width."""
        return self.encoder.n_embd != self.decoder.n_embd


class CodeT5pComposedConfig(_EncoderDecoderConfig):
    """Any two towers.

    share_embeddings: encoder and decoder have one embedding.
    project_encoder: the decoder reads encoder states through a projection to its width.
    tie_embeddings: the output projection is the decoder's embedding; scale_tied_head: it reads
      states times d_model^-0.5.
    head_bias: the output projection has a bias.
    scale_embedding: embedded tokens are multiplied by d_model^0.5.
    """

    model_type = "codet5p_composed"
    tower = CodeT5pTowerConfig

    share_embeddings: bool = False
    project_encoder: bool = False
    tie_embeddings: bool = False
    scale_tied_head: bool = False
    head_bias: bool = False
    scale_embedding: bool = False


# ------------------------------------------------------------------------------------ positions


def _positions(mask, at):
    """Positions [batch or 1, length] of the tokens at these places of a row; padding on the left
    does not count."""
    if mask is None:
        return at[None]
    return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, at]


def _rotate(x, positions, cfg):
    """x [batch, heads, length, head_dim] with features turned by angles that grow with position."""
    if cfg.position != "rotary":
        return x
    size = cfg.rotary_dim or cfg.head_dim
    steps = torch.arange(0, size, 2, device=x.device, dtype=torch.float32)
    angles = positions[:, None, :, None] / cfg.rotary_scale * cfg.rotary_base ** (-steps / size)
    turning, rest = x[..., :size].float(), x[..., size:]
    pairs = (-1, 2) if cfg.rotary_interleaved else (2, -1)
    axis = -1 if cfg.rotary_interleaved else -2
    a, b = turning.unflatten(-1, pairs).unbind(axis)
    turned = (a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos())
    return torch.cat((torch.stack(turned, axis).flatten(-2).to(x.dtype), rest), -1)


def _relative_buckets(distance, cfg):
    """T5's bucket of each distance (key minus query): small ones have one each, larger ones share
    theirs with more and more others."""
    number, offset = cfg.relative_buckets, 0
    if cfg.causal:
        distance = (-distance).clamp(min=0)
    else:  # half of the buckets for keys ahead
        number //= 2
        offset = (distance > 0) * number
        distance = distance.abs()
    exact = number // 2
    growth = math.log(cfg.relative_max_distance / exact)
    far = exact + ((distance.clamp(min=1).float() / exact).log() / growth * (number - exact)).long()
    return offset + torch.where(distance < exact, distance, far.clamp(max=number - 1))


# ---------------------------------------------------------------------------------------- block


class Context(NamedTuple):
    """What every layer is told. Positions are [batch or 1, length], biases [batch or 1, heads or 1,
    length, what is read]; encoded [batch, source, width] is None where there is nothing to read;
    attention is the name of its implementation."""

    attention: str
    positions: Any
    bias: Any
    encoded: Any = None
    encoded_positions: Any = None
    encoded_bias: Any = None


class Norm(nn.Module):
    """LayerNorm, or RMSNorm, which has neither mean nor bias."""

    def __init__(self, cfg):
        super().__init__()
        self.eps, self.plus_one = cfg.norm_eps, cfg.norm_plus_one
        self.weight = nn.Parameter(torch.empty(cfg.d_model))
        self.bias = nn.Parameter(torch.empty(cfg.d_model)) if cfg.norm == "layer" else None
        self.reset_parameters()

    def reset_parameters(self):
        """A norm that only normalises."""
        nn.init.constant_(self.weight, 0.0 if self.plus_one else 1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x):
        """Normalises the last axis."""
        weight = self.weight.float() + self.plus_one
        if self.bias is None:
            y = F.rms_norm(x.float(), weight.shape, weight, self.eps)
        else:
            y = F.layer_norm(x.float(), weight.shape, weight, self.bias.float(), self.eps)
        return y.to(x.dtype)


def _shards(y, number):
    """The parts [batch, length, width] of a fused projection [batch, length, number * width].

    CodeGen was trained on four devices, each of which had its quarter of the heads of every part.
    """
    return [part.flatten(-2) for part in y.unflatten(-1, (4, number, -1)).unbind(-2)]


def eager_attention(module, q, k, v, bias, scaling, dropout=0.0, **_):
    """softmax(q kᵀ scaling + bias) v with fp32 weights: [batch, length, heads, head_dim], and the
    weights [batch, heads, length, what is read]."""
    k, v = (y.repeat_interleave(module.num_key_value_groups, 1) for y in (k, v))
    scores = q.float() @ k.float().transpose(-1, -2) * scaling
    weights = F.dropout(torch.softmax(scores + bias, -1).to(v.dtype), dropout, module.training)
    return (weights @ v).transpose(1, 2), weights


class Attention(nn.Module):
    """What self-attention and cross-attention have in common; `width` is that of what is read."""

    def __init__(self, cfg, layer, width):
        super().__init__()
        self.cfg, self.layer = cfg, layer
        inner = cfg.num_heads * cfg.head_dim
        kept = (cfg.num_kv_heads or cfg.num_heads) * cfg.head_dim
        if not cfg.fused:
            self.q_proj = nn.Linear(cfg.d_model, inner, bias=cfg.qkv_bias)
            self.k_proj = nn.Linear(width, kept, bias=cfg.qkv_bias)
            self.v_proj = nn.Linear(width, kept, bias=cfg.qkv_bias)
        self.out_proj = nn.Linear(inner, cfg.d_model, bias=cfg.out_bias)
        self.num_key_value_groups = inner // kept  # queries that share a key

    def heads(self, x):
        """[batch, length, heads * head_dim] -> [batch, heads, length, head_dim]."""
        return x.unflatten(-1, (-1, self.cfg.head_dim)).transpose(1, 2)

    def attend(self, q, k, v, bias, implementation):
        """Attention, and the output projection: [batch, length, d_model]; and the weights [batch,
        heads, length, what is read], None where the implementation gives none."""
        cfg = self.cfg
        if bias.dtype != q.dtype and implementation != "eager":
            bias = bias.clamp(min=torch.finfo(q.dtype).min).to(q.dtype)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        y, weights = attention(
            *(self, q, k, v, bias),
            scaling=cfg.head_dim**-0.5 if cfg.scale_attention else 1.0,
            dropout=cfg.dropout if self.training else 0.0,
            is_causal=False,  # the bias says what is seen
        )
        return self.out_proj(y.flatten(-2)), weights


class SelfAttention(Attention):
    """Attention to the same sequence, and to what the cache has of its earlier positions."""

    def __init__(self, cfg, layer):
        super().__init__(cfg, layer, cfg.d_model)
        if cfg.fused:
            self.qkv_proj = nn.Linear(cfg.d_model, 3 * cfg.d_model, bias=False)

    def forward(self, x, context, cache):
        """[batch, length, d_model] -> the same, and attention weights."""
        if self.cfg.fused:
            q, v, k = _shards(self.qkv_proj(x), 3)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k = (_rotate(self.heads(y), context.positions, self.cfg) for y in (q, k))
        v = self.heads(v)
        if cache is not None:
            k, v = cache.self_attention_cache.update(k, v, self.layer)
        return self.attend(q, k, v, context.bias, context.attention)


class CrossAttention(Attention):
    """Attention to the encoder, whose positions count from 0 and turn keys like any others."""

    def __init__(self, cfg, layer, width):
        super().__init__(cfg, layer, width)
        if cfg.fused:
            self.q_attn = nn.Linear(cfg.d_model, cfg.d_model, bias=False)
            self.qkv_proj = nn.Linear(width, 2 * cfg.d_model, bias=False)

    def forward(self, x, context, cache):
        """[batch, length, d_model] -> the same, and attention weights."""
        q = self.heads(self.q_attn(x) if self.cfg.fused else self.q_proj(x))
        q = _rotate(q, context.positions, self.cfg)
        k, v = self.keys_values(context, cache)
        return self.attend(q, k, v, context.encoded_bias, context.attention)

    def keys_values(self, context, cache):
        """Of the encoder, [batch, heads, source, head_dim] each: computed once where a cache is."""
        if cache is not None and cache.is_updated.get(self.layer):
            kept = cache.cross_attention_cache.layers[self.layer]
            return kept.keys, kept.values
        if self.cfg.fused:
            v, k = _shards(self.qkv_proj(context.encoded), 2)
        else:
            k, v = self.k_proj(context.encoded), self.v_proj(context.encoded)
        k, v = _rotate(self.heads(k), context.encoded_positions, self.cfg), self.heads(v)
        if cache is not None:
            k, v = cache.cross_attention_cache.update(k, v, self.layer)
            cache.is_updated[self.layer] = True
        return k, v


class FeedForward(nn.Module):
    """Two products with an activation and dropout between them."""

    def __init__(self, cfg):
        super().__init__()
        self.activation = ACTIVATIONS[cfg.activation]
        self.fc_in = nn.Linear(cfg.d_model, cfg.d_ff, bias=cfg.mlp_bias)
        self.fc_gate = nn.Linear(cfg.d_model, cfg.d_ff, bias=cfg.mlp_bias) if cfg.gated else None
        self.fc_out = nn.Linear(cfg.d_ff, cfg.d_model, bias=cfg.mlp_bias)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x):
        """[batch, length, d_model] -> the same."""
        if self.fc_gate is None:
            y = self.activation(self.fc_in(x))
        else:
            y = self.activation(self.fc_gate(x)) * self.fc_in(x)
        return self.fc_out(self.dropout(y))


class Block(GradientCheckpointingLayer):
    """Self-attention, cross-attention in some layers, and feed-forward; `width` is that of what
    cross-attention reads."""

    def __init__(self, cfg, layer, width):
        super().__init__()
        self.cfg, self.reads_encoder = cfg, layer in (cfg.cross_attention or ())
        self.ln_1 = Norm(cfg)
        self.attn = SelfAttention(cfg, layer)
        if self.reads_encoder:
            self.crossattention = CrossAttention(cfg, layer, width)
            if not cfg.cross_parallel:
                self.ln_cross = Norm(cfg)
        if not (cfg.parallel and cfg.shared_norm):
            self.ln_2 = Norm(cfg)
        self.mlp = FeedForward(cfg)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x, *context, past_key_values=None):
        """[batch, length, d_model] -> the same, and the weights of both attentions.

        The fields of a `Context` come one by one: checkpointing sees tensors among arguments only.
        """
        cfg, drop, context = self.cfg, self.dropout, Context(*context)
        cross_weights = None
        u = self.ln_1(x)
        read, weights = self.attn(u, context, past_key_values)
        y = x + drop(read)
        if cfg.parallel:
            y = y + drop(self.mlp(u if cfg.shared_norm else self.ln_2(x)))
        if self.reads_encoder and context.encoded_bias is not None:
            v = u if cfg.cross_parallel else self.ln_cross(y)
            read, cross_weights = self.crossattention(v, context, past_key_values)
            y = y + drop(read)
        if not cfg.parallel:
            y = y + drop(self.mlp(self.ln_2(y)))
        return y, weights, cross_weights


# --------------------------------------------------------------------------------------- models


def _as_bias(seen):
    """0 where a position is seen, else the lowest number there is, which leaves softmax finite."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(
        ~seen, torch.finfo(torch.float32).min
    )


def _fixed_size(cache):
    """Positions of a static cache, all of which attention reads; None of a cache that grows."""
    layers = [] if cache is None else cache.self_attention_cache.layers
    return getattr(layers[0], "max_cache_len", None) if layers else None


def _filled(mask, size):
    """A mask [batch, size] of a cache of this size; what is to come is not seen yet."""
    return mask if size is None else F.pad(mask, (0, size - mask.shape[1]))


def _refuse(others):
    """`generate` and others switch off, by name, what other models have. On, it is an error."""
    others.pop("return_dict", None)
    unknown = [name for name, value in others.items() if value not in (None, False)]
    if unknown:
        raise ValueError(f"CodeT5+ has no {', '.join(unknown)}")


class CodeT5pModel(nn.Module):
    """A tower: embedding, blocks, norm. `config` is that of the whole model, `cfg` its own."""

    main_input_name = "input_ids"  # `generate` asks

    def __init__(self, config, cfg, width=None):
        super().__init__()
        self.config, self.cfg = config, cfg
        self.scale = cfg.d_model**0.5 if config.scale_embedding else 1.0
        self.wte = nn.Embedding(cfg.vocab_size, cfg.d_model)
        if cfg.position == "learned":
            self.wpe = nn.Embedding(cfg.max_positions, cfg.d_model)
        if cfg.position == "relative":
            self.relative_bias = nn.Embedding(cfg.relative_buckets, cfg.num_heads)
        self.drop = nn.Dropout(cfg.dropout)
        self.h = nn.ModuleList(Block(cfg, layer, width) for layer in range(cfg.num_layers))
        self.ln_f = Norm(cfg)

    def get_input_embeddings(self):
        """The embedding."""
        return self.wte

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        inputs_embeds=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        past_key_values=None,
        output_attentions=None,
        output_hidden_states=None,
        **others,
    ):
        """States [batch, length, d_model] after the last norm.

        Masks are [batch, length], 0 for padding; with a cache, length is that of all positions.
        inputs_embeds [batch, length, d_model] are rows of the embedding, in place of input_ids.
        hidden_states are the embedded input and what each layer gives, the last after the norm;
        attentions are those of each layer, and cross_attentions of each that reads the encoder.
        """
        _refuse(others)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected token ids or embeddings, found both or neither")
        x = (self.wte(input_ids) if inputs_embeds is None else inputs_embeds) * self.scale
        length, device = x.shape[1], x.device
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        at = past + torch.arange(length, device=device)
        size = _fixed_size(past_key_values)
        places = past + length if size is None else size
        if attention_mask is not None:
            attention_mask = _filled(attention_mask, size)
            if attention_mask.shape[1] != places:
                raise ValueError(
                    f"expected a mask of {places} positions, those in the cache among them, found "
                    f"{attention_mask.shape[1]}"
                )
        context = Context(
            attention="eager" if output_attentions else self.config._attn_implementation,
            positions=_positions(attention_mask, at),
            bias=self._bias(attention_mask, at, places),
        )
        if encoder_hidden_states is not None:
            source = encoder_hidden_states.shape[1]
            seen = encoder_attention_mask
            if seen is None:
                seen = torch.ones(1, source, device=device)
            context = context._replace(
                encoded=encoder_hidden_states,
                encoded_positions=_positions(
                    encoder_attention_mask, torch.arange(source, device=device)
                ),
                encoded_bias=_as_bias(seen.bool()[:, None, None]),
            )
        if self.cfg.position == "learned":
            self._check_positions(context.positions, places)
            x = x + self.wpe(context.positions)
        x = self.drop(x)
        states, attentions, cross_attentions = [], [], []
        for block in self.h:
            if output_hidden_states:
                states.append(x)
            x, weights, cross_weights = block(x, *context, past_key_values=past_key_values)
            if output_attentions:
                attentions.append(weights)
                cross_attentions += [] if cross_weights is None else [cross_weights]
        x = self.drop(self.ln_f(x))
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=x,
            hidden_states=(*states, x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if cross_attentions else None,
        )

    def _check_positions(self, positions, places):
        """Fails where a position has no row; under `torch.compile`, which cannot, indexing does."""
        limit = self.cfg.max_positions
        if places <= limit or torch.compiler.is_compiling():
            return
        length = int(positions.max()) + 1
        if length > limit:
            tower = "encoder" if self.cfg is self.config.encoder else "decoder"
            raise ValueError(
                f"a sequence of {length:,} tokens does not fit the {limit:,} learned positions of "
                f"the {tower} (max_positions in config.json); shorten what it reads or generate "
                "fewer tokens"
            )

    def _bias(self, mask, at, places):
        """[batch or 1, heads or 1, length, places], added to scores of self-attention; distances
        are between positions, so padding on the left does not count."""
        keys = torch.arange(places, device=at.device)
        distance = _positions(mask, keys)[:, None] - _positions(mask, at)[..., None]
        seen = (keys <= (at if self.cfg.causal else at[-1:])[:, None])[None]
        if self.cfg.attention_window is not None:
            seen = seen & (distance > -self.cfg.attention_window)
        if mask is not None:
            seen = seen & mask.bool()[:, None]
        bias = _as_bias(seen[:, None])
        if self.cfg.position == "relative":
            buckets = _relative_buckets(distance, self.cfg)
            bias = bias + self.relative_bias(buckets).float().permute(0, 3, 1, 2)
        return bias


class CodeT5pForCausalLM(nn.Module):
    """A tower and the output projection."""

    def __init__(self, config, width):
        super().__init__()
        cfg = config.decoder
        self.transformer = CodeT5pModel(config, cfg, width)
        self.lm_head = nn.Linear(cfg.d_model, cfg.vocab_size, bias=config.head_bias)
        self.scale = cfg.d_model**-0.5 if config.tie_embeddings and config.scale_tied_head else 1.0

    def forward(self, **inputs):
        """fp32 logits [batch, length, vocab_size]; arguments are those of `CodeT5pModel`."""
        out = self.transformer(**inputs)
        return CausalLMOutputWithCrossAttentions(
            logits=self.lm_head(out.last_hidden_state * self.scale).float(),
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            cross_attentions=out.cross_attentions,
        )


class CodeT5pEncoderDecoderModel(PreTrainedModel, GenerationMixin):
    """An encoder and a decoder with an output projection."""

    config_class = CodeT5pConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _can_compile_fullgraph = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    # Published files hold them; they follow from the configuration.
    _keys_to_ignore_on_load_unexpected = [r"\.causal_mask$"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        width = (config.decoder if config.project_encoder else config.encoder).d_model
        self.encoder = CodeT5pModel(config, config.encoder)
        self.decoder = CodeT5pForCausalLM(config, width)
        if config.project_encoder:
            self.enc_to_dec_proj = nn.Linear(config.encoder.d_model, width)
        self._tied_weights_keys = {}
        if config.tie_embeddings:
            self._tied_weights_keys["decoder.lm_head.weight"] = "decoder.transformer.wte.weight"
        if config.share_embeddings:
            self._tied_weights_keys["encoder.wte.weight"] = "decoder.transformer.wte.weight"
        self.post_init()

    def _init_weights(self, module):
        """Values of what a folder lacks; `transformers` knows its own norms alone."""
        super()._init_weights(module)
        if isinstance(module, Norm):
            module.reset_parameters()

    def get_input_embeddings(self):
        """The decoder's embedding, whose rows are those of the output projection."""
        return self.decoder.transformer.wte

    def set_input_embeddings(self, value: Any):
        """Replaces it."""
        self.decoder.transformer.wte = value

    def get_output_embeddings(self):
        """The output projection."""
        return self.decoder.lm_head

    def set_output_embeddings(self, value):
        """Replaces it."""
        self.decoder.lm_head = value

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        encoder_outputs=None,
        past_key_values=None,
        inputs_embeds=None,
        decoder_inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        num_items_in_batch=None,
        **others,
    ):
        """Logits, and the mean loss of labels other than -100, which are not shifted.

        Args:
          input_ids, attention_mask: [batch, source], what the encoder reads; without them (and
            encoder_outputs) the decoder is a language model alone.
          decoder_input_ids, decoder_attention_mask: [batch, length]; of labels alone, they are
            the start token and all labels but the last.
          past_key_values: an `EncoderDecoderCache`; decoder_input_ids are what comes after it, and
            decoder_attention_mask is of all positions.
          inputs_embeds, decoder_inputs_embeds: rows of the embeddings in place of ids.
          output_attentions, output_hidden_states: whether to return those of every layer, as
            `CodeT5pModel` does; weights of attention are of eager attention whatever is chosen.
          num_items_in_batch: what the sum of losses is divided by (Trainer).
        """
        _refuse(others)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        wanted = dict(
            output_attentions=output_attentions, output_hidden_states=output_hidden_states
        )
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ValueError("decoder_input_ids, decoder_inputs_embeds or labels are needed")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if encoder_outputs is None and (input_ids is not None or inputs_embeds is not None):
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds, **wanted)
        if encoder_outputs is None:
            encoder_outputs = BaseModelOutput()
        elif isinstance(encoder_outputs, (tuple, list)):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if past_key_values is None and use_cache:
            parts = (DynamicCache(config=self.config.decoder) for _ in range(2))
            past_key_values = EncoderDecoderCache(*parts)
        encoded = read = encoder_outputs.last_hidden_state
        # Where the cache has keys and values of the encoder, nothing but its length is read.
        cached = past_key_values is not None and any(past_key_values.is_updated.values())
        if self.config.project_encoder and encoded is not None and not cached:
            read = self.enc_to_dec_proj(encoded)
        decoded = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            encoder_hidden_states=read,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            **wanted,
        )
        loss, logits = None, decoded.logits
        if labels is not None:
            mean = num_items_in_batch is None
            args = (logits.flatten(0, 1), labels.flatten().to(logits.device))
            loss = F.cross_entropy(*args, reduction="mean" if mean else "sum")
            loss = loss if mean else loss / num_items_in_batch
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )

    def generate(self, inputs=None, generation_config=None, *args, **kwargs):
        """As any model of `transformers`. Where the decoder is given prompts as well (config.json:
        prompt_to_decoder) and no decoder_input_ids are, it starts from what the encoder reads."""
        if self.config.prompt_to_decoder and kwargs.get("decoder_input_ids") is None:
            own = self.generation_config
            said = kwargs, vars(generation_config or own), vars(own)
            names = ("decoder_start_token_id", "bos_token_id")
            start = next((x for n in names for s in said if (x := s.get(n)) is not None), None)
            ids = kwargs.get("input_ids") if inputs is None else inputs
            kwargs |= self._prompts(ids, kwargs.get("attention_mask"), start)
        return super().generate(  # pyright: ignore[reportAttributeAccessIssue]
            inputs, generation_config, *args, **kwargs
        )

    def _prompts(self, ids, mask, start):
        """What the decoder reads before it generates: the start token and what the encoder reads,
        without an end token; padded on the left."""
        if start is None:
            raise ValueError("generate needs a decoder_start_token_id in generation_config.json")
        if ids is None:
            raise ValueError(
                "the decoder is given the prompt as well (config.json: prompt_to_decoder); "
                "expected input_ids, or decoder_input_ids beside what the encoder reads"
            )
        rows = self.config.encoder.vocab_size, self.config.decoder.vocab_size
        if rows[0] != rows[1]:
            raise ValueError(
                "the decoder is given the prompt as well (config.json: prompt_to_decoder), but it "
                f"has {rows[1]:,} tokens and the encoder {rows[0]:,}; expected decoder_input_ids, "
                "the prompt in tokens of the decoder"
            )
        mask = torch.ones_like(ids) if mask is None else mask
        prompts = []
        for row, real in zip(ids, mask.bool(), strict=True):
            prompt = row[real]
            if prompt[-1:].tolist() == [self.config.eos_token_id]:
                prompt = prompt[:-1]
            prompts.append(F.pad(prompt, (1, 0), value=start))
        pad = functools.partial(pad_sequence, batch_first=True, padding_side="left")
        return {
            "decoder_input_ids": pad(prompts, padding_value=self.config.pad_token_id),
            "decoder_attention_mask": pad([torch.ones_like(row) for row in prompts]),
        }

    @staticmethod
    def create_masks_for_generate(attention_mask, past_key_values, **_):
        """The mask of padding alone, as each tower adds causality; its shape never changes where a
        cache is static."""
        if attention_mask is None:
            return None
        return _filled(attention_mask, _fixed_size(past_key_values))

    def prepare_decoder_input_ids_from_labels(self, labels):
        """What the decoder reads to predict labels [batch, length]: they, one to the right."""
        start = torch.full_like(labels[:, :1], self.config.decoder_start_token_id)
        read = torch.cat((start, labels[:, :-1]), 1)
        return read.masked_fill(read == -100, self.config.pad_token_id)


class CodeT5pComposedModel(CodeT5pEncoderDecoderModel):
    """The same, of the layout in which each key is a choice."""

    config_class = CodeT5pComposedConfig
