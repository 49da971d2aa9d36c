"""The T5 networks that the benchmarks beside `transformers` compare, for either side."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Network:
    """A network but for its vocabulary.

    Attributes:
      width, heads, head_dim, hidden, layers: sizes; layers of each tower.
      gated: GELU with a gate, else ReLU.
      dtype: of activations.
    """

    width: int
    heads: int
    head_dim: int
    hidden: int
    layers: int
    gated: bool
    dtype: str

    @property
    def projection(self) -> int:
        """Weights of one of q, k, v and o."""
        return self.width * self.heads * self.head_dim

    @property
    def feed_forward(self) -> int:
        """Weights of a layer's feed-forward network."""
        return (3 if self.gated else 2) * self.width * self.hidden

    def ours(self, vocabulary: int, dropout: float = 0.0) -> Any:
        """As a `ModelConfig`, unrolled."""
        from codet5p_jax.models import t5

        return t5(
            vocab_size=vocabulary, d_model=self.width, num_heads=self.heads, head_dim=self.head_dim,
            d_ff=self.hidden, num_encoder_layers=self.layers, num_decoder_layers=self.layers,
            gated=self.gated, activation="gelu_tanh" if self.gated else "relu", dropout=dropout,
            dtype=self.dtype, scan_layers=False,
        )  # fmt: skip

    def theirs(self, vocabulary: int, dropout: float = 0.1) -> Any:
        """As a `transformers.T5Config`."""
        from transformers import T5Config

        return T5Config(
            vocab_size=vocabulary, d_model=self.width, num_heads=self.heads, d_kv=self.head_dim,
            d_ff=self.hidden, num_layers=self.layers, num_decoder_layers=self.layers,
            dropout_rate=dropout, feed_forward_proj="gated-gelu" if self.gated else "relu",
            decoder_start_token_id=0,
        )  # fmt: skip


NETWORKS = {
    "small": Network(256, 4, 64, 1024, 4, gated=True, dtype="float32"),
    "220m": Network(768, 12, 64, 3072, 12, gated=False, dtype="bfloat16"),
}
