"""Shapes and switches of the network: the only place that says what differs between families."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

DTYPES = ("float32", "bfloat16", "float16")  # of activations


@dataclass(frozen=True)
class Lora:
    """Low-rank additions to projections, `x W + scale · (x A) B` (Hu et al. 2021).

    B starts at zero, so that nothing changes at first; what trains is said by
    `freezing.Trainable`: `.*_lora_[ab]`.

    Attributes:
      rank: columns of A and rows of B.
      alpha: scale is alpha / rank.
      targets: projections that have one, of `PROJECTIONS`; q, k, v and o alone are those of
        self-attention. `layers_3/q`: those of the layers that are stored under that name only.

    Raises:
      ValueError: rank or alpha is not positive, or a target is no projection.
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")

    PROJECTIONS: ClassVar[tuple[str, ...]] = (
        *("q", "k", "v", "o", "wi", "gate", "wo"),
        *(f"cross_attention/{name}" for name in "qkvo"),
    )

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"expected a rank of 1 or more and an alpha above 0, found {self}")
        plain = [re.sub(r"^layers(_\d+)?/", "", name) for name in self.targets]
        unknown = [name for name in plain if name not in self.PROJECTIONS]
        if unknown or not self.targets:
            raise ValueError(
                f"Lora.targets has to name some of {', '.join(self.PROJECTIONS)}, found "
                f"{self.targets}"
            )

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def of_layers(self, group: str) -> "Lora | None":
        """What is in the layers stored under a name; None: nothing.

        >>> Lora(2, targets=("q", "layers_3/v")).of_layers("layers_3").targets
        ('q', 'v')
        """
        own = (name.removeprefix(f"{group}/") for name in self.targets)
        return self._only(name for name in own if not name.startswith("layers"))

    def of_cross_attention(self) -> "Lora | None":
        """What is in cross-attention, as q, k, v and o; None: nothing."""
        start = "cross_attention/"
        return self._only(n.removeprefix(start) for n in self.targets if n.startswith(start))

    def _only(self, targets: Iterable[str]) -> "Lora | None":
        kept = tuple(targets)
        return dataclasses.replace(self, targets=kept) if kept else None


@dataclass(frozen=True)
class StackConfig:
    """One tower of blocks.

    Attributes:
      num_layers, d_model, num_heads, head_dim, d_ff: sizes; heads × head_dim need not be d_model.
        A tower of 0 layers is none: the model is an encoder, or a decoder alone.
      num_kv_heads: key-value heads, a divisor of num_heads (grouped queries); None: num_heads.
      causal: whether a position sees only itself and earlier ones.
      attention_window: of a causal tower, how many positions one sees, itself among them (sliding
        window); None: all. Scores outside are masked, not saved.
      cross_attention: which layers read the encoder: "all", "none" or layer indices.
      cross_parallel: cross-attention reads what self-attention reads and adds to the same sum (as
        in CodeT5+ 2B and more); False: it reads, through a norm of its own, what self-attention
        (and, where parallel, the feed-forward network) has made. None: as `parallel`.
      cross_zero_init: its output projection starts at zero: the tower starts out as without it.
      norm: "rms" (no mean, no bias) or "layer".
      norm_eps: added to the variance.
      norm_plus_one: norms multiply by 1 + scale, and scale starts at 0 (Gemma).
      activation: of the feed-forward network; "gelu" is exact, "gelu_tanh" GPT-2's approximation.
      gated: multiply the activation by a second projection.
      parallel: attention and feed-forward read the same input and add up (GPT-J).
      shared_norm: where parallel, they read it through one norm, else each through its own
        (GPT-NeoX).
      qkv_bias, out_bias, mlp_bias: additive terms of the projections.
      position: "relative" (T5's learned bias, shared by the layers), "rotary", "learned" (GPT-2's
        vectors, added to the embedding) or "none".
      relative_buckets, relative_max_distance: of the learned bias.
      max_positions: the longest sequence, and the rows of learned positions; None: no limit.
      rotary_dim, rotary_base, rotary_interleaved: rotated features per head (None: all), frequency
        base, pairing (GPT-J's even-odd pairs, or LLaMA's halves).
      rotary_scale: positions are divided by it (linear scaling to longer contexts).
      init_stddev: of initial matrices (0.02 in GPT-2's family); None: inputs^-0.5, as T5.
      lora: low-rank additions to projections.
      int8: kernels of self-attention and the feed-forward network are int8 with an fp32 scale for
        each output, and cannot train.
      scale_attention: divide scores by sqrt(head_dim); T5 folds it into the initial values.

    Raises:
      ValueError: a size is not positive, num_kv_heads does not divide num_heads, learned positions
        have no number, rotary_dim is odd or more than head_dim, relative_max_distance is within the
        buckets of single distances, or a tower that is not causal has a window.
    """

    num_layers: int
    d_model: int
    num_heads: int
    head_dim: int
    d_ff: int
    num_kv_heads: int | None = None
    causal: bool = False
    attention_window: int | None = None
    cross_attention: Literal["all", "none"] | tuple[int, ...] = "none"
    cross_parallel: bool | None = None
    cross_zero_init: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_plus_one: bool = False
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu"
    gated: bool = False
    parallel: bool = False
    shared_norm: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    position: Literal["relative", "rotary", "learned", "none"] = "relative"
    relative_buckets: int = 32
    relative_max_distance: int = 128
    max_positions: int | None = None
    rotary_dim: int | None = None
    rotary_base: float = 10_000.0
    rotary_scale: float = 1.0
    rotary_interleaved: bool = False
    init_stddev: float | None = None
    lora: Lora | None = None
    int8: bool = False
    scale_attention: bool = False

    def __post_init__(self) -> None:
        if self.num_layers < 0:
            raise ValueError(f"num_layers has to be 0 or more, found {self.num_layers}")
        sizes = ("d_model", "num_heads", "head_dim", "d_ff", "num_kv_heads")
        more = ("relative_buckets", "relative_max_distance", "rotary_dim", "max_positions")
        _check_sizes(self, (*sizes, *more, "attention_window"))
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(
                f"num_kv_heads has to divide num_heads={self.num_heads}, found {self.num_kv_heads}"
            )
        if self.position == "learned" and self.max_positions is None:
            raise ValueError("position = 'learned' needs max_positions, the rows of its table")
        rotated = self.rotary_dim or self.head_dim
        if self.position == "rotary" and (rotated % 2 or rotated > self.head_dim):
            raise ValueError(
                f"rotary positions turn pairs of the head_dim={self.head_dim} features; expected "
                f"an even rotary_dim of at most as many, found {rotated}"
            )
        exact = self.relative_buckets // (2 if self.causal else 4)  # a sign has half of them
        relative = self.position == "relative" and self.num_layers
        if relative and not 0 < exact < self.relative_max_distance:
            raise ValueError(
                f"of relative_buckets={self.relative_buckets}, {exact} are for distances of their "
                "own and the rest grow from there to relative_max_distance; expected 1 or more, "
                f"and relative_max_distance above that, found {self.relative_max_distance}"
            )
        if self.attention_window is not None and not self.causal:
            raise ValueError("attention_window looks back only; it needs causal = True")

    @property
    def parallel_cross_attention(self) -> bool:
        """`cross_parallel`, or what follows where it is None."""
        return self.parallel if self.cross_parallel is None else self.cross_parallel

    def reads_encoder(self, layer: int) -> bool:
        """Whether `layer` has cross-attention."""
        if isinstance(self.cross_attention, str):
            return self.cross_attention == "all"
        return layer in self.cross_attention


@dataclass(frozen=True)
class ModelConfig:
    """An encoder, a decoder and the heads that join them.

    Attributes:
      vocab_size: rows of the embedding, of the decoder where the encoder has one of its own.
      encoder_vocab_size: rows of an embedding of the encoder's own, whose width and tokenizer may
        then be others than the decoder's; None: they share one.
      project_encoder: decoders read encoder states through a projection to the decoder's width (the
        `enc_to_dec_proj` of CodeT5+ 2B and more).
      encoder, decoder: the towers; one with num_layers = 0 is left out.
      tie_embeddings: the output projection is the embedding.
      scale_tied_head: decoder states are multiplied by d_model^-0.5 before a tied projection (T5
        v1.0, whose embedding has unit variance).
      head_bias: whether the output projection adds a bias (CodeGen).
      scale_embedding: embedded tokens are multiplied by d_model^0.5 (Gemma).
      embedding_stddev: of initial rows.
      embed_dim: width E of the contrastive projection; None: the model has none.
      matching_head: whether the model has the two-way text-code matching head.
      classes: of the classification head, which reads the encoder; None: the model has none.
      classify_pairs: the head reads two sequences together (are they clones?), and not one.
      prompt_to_decoder: prompts go to the encoder and, before what is generated, to the decoder as
        well (CodeT5+ 2B and more, whose decoder is a language model of its own).
      pooling: what `embed` and `classify` pool: the first token (the paper's [CLS]) or the mean of
        real tokens.
      dropout: rate, applied only where a key is passed.
      dtype: of activations and matrix products, or its name, one of `DTYPES`; parameters, softmax
        and losses stay fp32.
      attention: how whole sequences attend: "xla" writes scores to memory, "fused" is one kernel on
        a TPU, which keeps none, and the same maths elsewhere (`fused_attention`).
      remat: "none" keeps every activation, "dots" keeps matrix products, "full" recomputes a block.
      scan_layers: run a stack as one scanned body (quick to compile) or unrolled.
      loss_chunk: most target positions whose logits exist at one time in `token_losses`.
      loss_chunks: about how many parts targets are split into for that where fewer would do. More
        take less memory; each adds to the gradient of the head, and so reads and writes it.

    Raises:
      ValueError: a size is not positive, dropout is no rate below one, or dtype is another.
    """

    vocab_size: int
    encoder: StackConfig
    decoder: StackConfig
    encoder_vocab_size: int | None = None
    project_encoder: bool = False
    tie_embeddings: bool = True
    scale_tied_head: bool = True
    head_bias: bool = False
    scale_embedding: bool = False
    embedding_stddev: float = 1.0
    embed_dim: int | None = None
    matching_head: bool = False
    classes: int | None = None
    classify_pairs: bool = False
    prompt_to_decoder: bool = False
    pooling: Literal["first", "mean"] = "first"
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32
    attention: Literal["xla", "fused"] = "xla"
    remat: Literal["none", "dots", "full"] = "none"
    scan_layers: bool = True
    loss_chunk: int = 128
    # With 16 rows of 128 targets and a vocabulary of 32,128 on two CPU cores, one, two, four and
    # eight chunks take the same time, and 528, 305, 169 and 103 MB.
    loss_chunks: int = 4

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "encoder_vocab_size", "embed_dim", "classes")
        _check_sizes(self, (*sizes, "loss_chunk", "loss_chunks"))
        if not (self.encoder.num_layers or self.decoder.num_layers):
            raise ValueError("encoder.num_layers and decoder.num_layers are both 0")
        if not self.encoder.num_layers and self.decoder.cross_attention not in ("none", ()):
            raise ValueError(
                f"decoder.cross_attention = {self.decoder.cross_attention!r} reads the encoder, "
                "which has num_layers = 0"
            )
        both = self.encoder.num_layers and self.decoder.num_layers
        if not both and (self.encoder_vocab_size is not None or self.project_encoder):
            raise ValueError(
                "encoder_vocab_size and project_encoder are for an encoder beside a decoder; one "
                "of them has num_layers = 0"
            )
        widths = self.encoder.d_model, self.decoder.d_model
        if both and self.encoder_vocab_size is None and widths[0] != widths[1]:
            raise ValueError(
                f"one embedding has one width, found d_model {widths[0]} of the encoder and "
                f"{widths[1]} of the decoder; set encoder_vocab_size for an embedding each"
            )
        if not both and self.prompt_to_decoder:
            raise ValueError(
                "prompt_to_decoder is for an encoder beside a decoder; one of them has "
                "num_layers = 0"
            )
        if self.embed_dim is not None and not self.encoder.num_layers:
            raise ValueError("embed_dim projects the encoder, which has num_layers = 0")
        if self.classes is not None and not self.encoder.num_layers:
            raise ValueError("the head of classes reads the encoder, which has num_layers = 0")
        if self.classify_pairs and self.classes is None:
            raise ValueError(
                "classify_pairs is for a model with classes; set classes, or this False"
            )
        if self.matching_head and not self.decoder.num_layers:
            raise ValueError("matching_head reads the decoder, which has num_layers = 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout has to be at least 0 and below 1, found {self.dropout}")
        if _dtype_name(self.dtype) not in DTYPES:
            raise ValueError(f"dtype has to be one of {', '.join(DTYPES)}, found {self.dtype!r}")


def _check_sizes(config: Any, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} has to be 1 or more, found {value}")


def _dtype_name(dtype: DTypeLike) -> str | None:
    """Its name, or None where it is no dtype."""
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return None


def t5(
    *,
    vocab_size: int,
    d_model: int,
    num_heads: int,
    head_dim: int,
    d_ff: int,
    num_encoder_layers: int,
    num_decoder_layers: int,
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu",
    gated: bool = False,
    relative_buckets: int = 32,
    relative_max_distance: int = 128,
    tie_embeddings: bool = True,
    scale_tied_head: bool = True,
    embed_dim: int | None = None,
    matching_head: bool = False,
    classes: int | None = None,
    classify_pairs: bool = False,
    pooling: Literal["first", "mean"] = "first",
    dropout: float = 0.1,
    dtype: DTypeLike = jnp.float32,
    attention: Literal["xla", "fused"] = "xla",
    remat: Literal["none", "dots", "full"] = "none",
    scan_layers: bool = True,
    loss_chunk: int = 128,
    loss_chunks: int = 4,
) -> ModelConfig:
    """A T5 of version 1.0 (the defaults: CodeT5, CodeT5+ 220M and 770M) or 1.1 (gated, untied)."""

    def stack(num_layers: int, causal: bool) -> StackConfig:
        return StackConfig(
            num_layers=num_layers,
            d_model=d_model,
            num_heads=num_heads,
            head_dim=head_dim,
            d_ff=d_ff,
            causal=causal,
            cross_attention="all" if causal else "none",
            activation=activation,
            gated=gated,
            relative_buckets=relative_buckets,
            relative_max_distance=relative_max_distance,
        )

    return ModelConfig(
        vocab_size=vocab_size,
        encoder=stack(num_encoder_layers, causal=False),
        decoder=stack(num_decoder_layers, causal=True),
        tie_embeddings=tie_embeddings,
        scale_tied_head=scale_tied_head,
        embed_dim=embed_dim,
        matching_head=matching_head,
        classes=classes,
        classify_pairs=classify_pairs,
        pooling=pooling,
        dropout=dropout,
        dtype=dtype,
        attention=attention,
        remat=remat,
        scan_layers=scan_layers,
        loss_chunk=loss_chunk,
        loss_chunks=loss_chunks,
    )


def codegen_stack(
    *,
    num_layers: int,
    d_model: int,
    num_heads: int,
    rotary_dim: int,
    causal: bool,
    cross_attention: Literal["all", "none"] | tuple[int, ...] = "none",
) -> StackConfig:
    """A tower of CodeGen (the frozen decoders of CodeT5+ 2B, 6B and 16B), or, where not causal, the
    encoder that CodeT5+ makes of one."""
    return StackConfig(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        head_dim=d_model // num_heads,
        d_ff=4 * d_model,
        causal=causal,
        cross_attention=cross_attention,
        norm="layer",
        norm_eps=1e-5,
        activation="gelu_tanh",
        parallel=True,
        mlp_bias=True,
        position="rotary",
        max_positions=2_048,
        rotary_dim=rotary_dim,
        rotary_interleaved=True,
        init_stddev=0.02,
        scale_attention=True,
    )


def codet5p_codegen(
    *,
    num_decoder_layers: int,
    d_model: int,
    num_heads: int,
    num_encoder_layers: int = 20,
    encoder_d_model: int = 1_024,
    encoder_num_heads: int = 16,
    encoder_rotary_dim: int = 32,
    rotary_dim: int = 64,
    vocab_size: int = 51_200,
    dtype: DTypeLike = jnp.float32,
    attention: Literal["xla", "fused"] = "xla",
    remat: Literal["none", "dots", "full"] = "none",
    scan_layers: bool = True,
    loss_chunk: int = 128,
    loss_chunks: int = 4,
) -> ModelConfig:
    """CodeT5+ 2B, 6B and 16B: a CodeGen decoder whose last layer reads an encoder made of CodeGen
    350M, through a projection where their widths differ; both are given the prompt. Dropout is 0.
    """
    return ModelConfig(
        vocab_size=vocab_size,
        encoder=codegen_stack(
            num_layers=num_encoder_layers,
            d_model=encoder_d_model,
            num_heads=encoder_num_heads,
            rotary_dim=encoder_rotary_dim,
            causal=False,
        ),
        decoder=codegen_stack(
            num_layers=num_decoder_layers,
            d_model=d_model,
            num_heads=num_heads,
            rotary_dim=rotary_dim,
            causal=True,
            cross_attention=(num_decoder_layers - 1,),
        ),
        encoder_vocab_size=vocab_size,
        project_encoder=encoder_d_model != d_model,
        tie_embeddings=False,
        head_bias=True,
        embedding_stddev=0.02,
        prompt_to_decoder=True,
        dropout=0.0,
        dtype=dtype,
        attention=attention,
        remat=remat,
        scan_layers=scan_layers,
        loss_chunk=loss_chunk,
        loss_chunks=loss_chunks,
    )
