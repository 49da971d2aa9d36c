"""Which tensor of theirs is which parameter of ours: one table per architecture, for both ways.

PyTorch's linear kernels are [out, in], ours [in, out] with heads as an axis of their own; layers
are one tensor each there, and stacked along a leading axis here.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from codet5p_jax.models.configs import ModelConfig, StackConfig

LAYER = "{layer}"


@dataclass(frozen=True)
class Piece:
    """The steps from `start` to `stop` of `total` along axis N of a tensor that holds several
    parameters, such as the queries, keys and values of one fused projection."""

    start: int
    stop: int
    total: int


@dataclass(frozen=True)
class Entry:
    """One parameter.

    Attributes:
      ours: path of the parameter.
      theirs: name of the tensor; with `{layer}` there is one for each layer, and the first axis of
        our parameter counts them.
      axes: of one tensor, theirs then ours: `(H K) D -> D H K` splits the first axis and moves the
        last one to the front. Groups on the right are axes of ours that they have apart.
      aliases: other names under which files hold the same tensor, instead or as well.
      piece: which part of the tensor's axis N is the parameter; None: all of the tensor.
      first: number of the first layer, where the parameter has some of the layers only.
    """

    ours: str
    theirs: str
    axes: str
    aliases: tuple[str, ...] = ()
    piece: Piece | None = None
    first: int = 0

    @property
    def layered(self) -> bool:
        """Whether each layer is a tensor of its own."""
        return LAYER in self.theirs

    def names(self, shape: tuple[int, ...]) -> list[str]:
        """Names of their tensors, for our parameter of `shape`."""
        if not self.layered:
            return [self.theirs]
        return [self.theirs.replace(LAYER, str(self.first + i)) for i in range(shape[0])]

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each of their tensors, for our parameter of `shape`.

        >>> Entry("q", "q.weight", "(H K) D -> D H K").their_shape((512, 8, 64))
        (512, 512)
        """
        left, _, sizes = self._layout(shape[1:] if self.layered else shape)
        return tuple(math.prod(sizes[c] for c in group) for group in left)

    def to_ours(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """One of their tensors as our parameter (one layer of it where layered): a view, or a copy
        where ours has groups."""
        mine = shape[1:] if self.layered else shape
        return self._apart(array, mine).reshape(mine)

    def put(self, array: np.ndarray, theirs: np.ndarray) -> None:
        """The inverse of `to_ours`: writes our parameter (one layer of it where layered) to its
        place in their tensor, which is contiguous."""
        place = self._apart(theirs, array.shape)
        place[...] = array.reshape(place.shape)

    def _apart(self, theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A view of their tensor with each letter an axis of its own, in our order."""
        left, right, sizes = self._layout(shape)
        letters = [c for group in left for c in group]
        view = theirs.reshape([sizes[c] for c in letters])
        if self.piece is not None:
            own = slice(self.piece.start, self.piece.stop)
            view = view[tuple(own if c == "N" else slice(None) for c in letters)]
        return view.transpose([letters.index(c) for group in right for c in group])

    def _layout(
        self, shape: tuple[int, ...]
    ) -> tuple[list[list[str]], list[list[str]], dict[str, int]]:
        """Groups of their axes, groups of ours, and the size of each axis of theirs."""
        left, right = (_groups(side) for side in self.axes.split("->"))
        sizes: dict[str, int] = {}
        for group, size in zip(right, shape, strict=True):
            # The letter that nothing else says takes what is left.
            own = self.piece.stop - self.piece.start if self.piece and "N" in group else 1
            rest = [c for c in group if c != "N"] if self.piece else group
            sizes |= dict.fromkeys(rest, size // own)
        if self.piece is not None:
            sizes["N"] = self.piece.total
        return left, right, sizes


def _groups(side: str) -> list[list[str]]:
    """`(H K) D` as [[H, K], [D]]."""
    groups: list[list[str]] = []
    inside = False
    for token in side.replace("(", " ( ").replace(")", " ) ").split():
        if token in "()":
            inside = token == "("
            if inside:
                groups.append([])
        elif inside:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


Table = tuple[Entry, ...]

_KERNEL = "O I -> I O"
_HEADS_OUT = "(H K) D -> D H K"
_HEADS_IN = "D (H K) -> H K D"
_EMBEDDING = Entry(
    "embedding",
    "shared.weight",
    "V D -> V D",
    ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
)


def _feed_forward(cfg: StackConfig) -> dict[str, str]:
    """Our kernel -> theirs. The activated projection is their wi (wi_0), and gated is our gate."""
    return {"gate": "wi_0", "wi": "wi_1"} if cfg.gated else {"wi": "wi"}


def _t5_tower(tower: str, cfg: StackConfig) -> Table:
    def attention(ours: str, number: int, theirs: str) -> Table:
        prefix = f"{tower}.block.{LAYER}.layer.{number}"
        return (
            *(
                Entry(
                    f"{tower}/layers/{ours}/{x}",
                    f"{prefix}.{theirs}.{x}.weight",
                    _HEADS_IN if x == "o" else _HEADS_OUT,
                )
                for x in "qkvo"
            ),
            norm(ours, number),
        )

    def norm(ours: str, number: int) -> Entry:
        name = f"{tower}.block.{LAYER}.layer.{number}.layer_norm.weight"
        return Entry(f"{tower}/layers/{ours}_norm/scale", name, "D -> D")

    last = 2 if cfg.causal else 1
    bias = f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return (
        *attention("attention", 0, "SelfAttention"),
        *(attention("cross_attention", 1, "EncDecAttention") if cfg.causal else ()),
        *(
            Entry(
                f"{tower}/layers/feed_forward/{ours}",
                f"{tower}.block.{LAYER}.layer.{last}.DenseReluDense.{theirs}.weight",
                _KERNEL,
            )
            for ours, theirs in {**_feed_forward(cfg), "wo": "wo"}.items()
        ),
        norm("feed_forward", last),
        Entry(f"{tower}/relative_bias", bias, "B H -> B H"),
        Entry(f"{tower}/final_norm/scale", f"{tower}.final_layer_norm.weight", "D -> D"),
    )


def dense(ours: str, theirs: str) -> Table:
    """Kernel and bias of `torch.nn.Linear`."""
    return (
        Entry(f"{ours}/kernel", f"{theirs}.weight", _KERNEL),
        Entry(f"{ours}/bias", f"{theirs}.bias", "O -> O"),
    )


def hugging_face(config: ModelConfig) -> Table:
    """T5 of `transformers`, with the heads of CodeT5+ where the model has them.

    T5's encoder alone, and CodeT5+ 110M embedding, are what is left without a decoder.
    """
    table = _t5_tower("encoder", config.encoder)
    embedding = _EMBEDDING
    if config.decoder.num_layers:
        table += _t5_tower("decoder", config.decoder)
        if config.tie_embeddings:
            aliases = (*_EMBEDDING.aliases, "lm_head.weight")
            embedding = Entry(_EMBEDDING.ours, _EMBEDDING.theirs, _EMBEDDING.axes, aliases)
        else:
            table += (Entry("lm_head", "lm_head.weight", "V D -> V D"),)
    if config.embed_dim is not None:
        table += dense("projection", "proj")
    if config.matching_head:
        table += dense("matching_head", "itm_head")
    return (embedding, *table)


IGNORED = re.compile(
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
    r"|.*\.(attn|attention|crossattention)\.(bias|masked_bias|causal_mask)"
    r"|.*\.rotary_emb\.inv_freq"
)
"""Tensors that no version of PyTorch's classes reads, and buffers that follow from the
configuration."""
