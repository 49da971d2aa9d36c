"""Which tensor of theirs is which parameter of ours: one table per architecture, for both ways.

PyTorch's linear kernels are [out, in], ours [in, out] with heads as an axis of their own; layers
are one tensor each there, and stacked along a leading axis here.
"""

import math
from dataclasses import dataclass

import numpy as np

from codet5p_jax.models.configs import ModelConfig, StackConfig

LAYER = "{layer}"


@dataclass(frozen=True)
class Entry:
    """One parameter.

    Attributes:
      ours: path of the parameter.
      theirs: name of the tensor; with `{layer}` there is one for each layer, and the first axis of
        our parameter counts them.
      axes: of one tensor, theirs then ours: `(H K) D -> D H K` splits the first axis and moves the
        last one to the front.
      aliases: other names under which files hold the same tensor, instead or as well.
    """

    ours: str
    theirs: str
    axes: str
    aliases: tuple[str, ...] = ()

    @property
    def layered(self) -> bool:
        """Whether each layer is a tensor of its own."""
        return LAYER in self.theirs

    def names(self, shape: tuple[int, ...]) -> list[str]:
        """Names of their tensors, for our parameter of `shape`."""
        if not self.layered:
            return [self.theirs]
        return [self.theirs.replace(LAYER, str(i)) for i in range(shape[0])]

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each of their tensors, for our parameter of `shape`.

        >>> Entry("q", "q.weight", "(H K) D -> D H K").their_shape((512, 8, 64))
        (512, 512)
        """
        groups, sizes, _ = self._layout(shape)
        return tuple(math.prod(sizes[c] for c in group) for group in groups)

    def to_ours(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A view of one of their tensors as our parameter (one layer of it where layered)."""
        groups, sizes, order = self._layout(shape)
        letters = [c for group in groups for c in group]
        return array.reshape([sizes[c] for c in letters]).transpose(
            [letters.index(c) for c in order]
        )

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        groups, sizes, order = self._layout(array.shape, whole=True)
        moved = array.transpose([order.index(c) for group in groups for c in group])
        return moved.reshape([math.prod(sizes[c] for c in group) for group in groups])

    def _layout(
        self, shape: tuple[int, ...], whole: bool = False
    ) -> tuple[list[list[str]], dict[str, int], list[str]]:
        """Groups of their axes, size of each axis, order of our axes."""
        left, _, right = self.axes.partition("->")
        order = right.split()
        groups: list[list[str]] = []
        inside = False
        for token in left.replace("(", " ( ").replace(")", " ) ").split():
            if token in "()":
                inside = token == "("
                if inside:
                    groups.append([])
            elif inside:
                groups[-1].append(token)
            else:
                groups.append([token])
        mine = shape[1:] if self.layered and not whole else shape
        return groups, dict(zip(order, mine, strict=True)), order


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


IGNORED = frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"})
"""Tensors of old files that no version of T5 reads."""
