"""Code for texts by a model's embeddings: the nearest of a code base, for many texts at a time."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, Int32

from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.evaluation.encoder import PairEncoder, TokenIds
from codet5p_jax.evaluation.neighbours import nearest
from codet5p_jax.evaluation.progress import progress_bar


class CodeSearch:
    """A code base, embedded.

    Args:
      encoder: of texts and code.
      tokenizer: of both.
      codes: what is searched.
      said: what the bars of progress call it.
    """

    def __init__(
        self, encoder: PairEncoder, tokenizer: Tokenizer, codes: Sequence[str], said: str
    ) -> None:
        self._encoder, self._tokenizer, self._said = encoder, tokenizer, said
        self._codes_NE = self._embedded(encoder.embed_codes, codes, "code base")

    def nearest(
        self, texts: Sequence[str], k: int, said: str = "texts"
    ) -> tuple[Int32[np.ndarray, "texts k"], Float32[np.ndarray, "texts k"]]:
        """Places in the code base and cosines of the k nearest to each text, best first."""
        texts_QE = self._embedded(self._encoder.embed_texts, texts, said)
        with progress_bar(f"{self._said}: nearest to {said}", len(texts)) as advance:
            return nearest(texts_QE, self._codes_NE, k, progress=advance)

    def _embedded(
        self, embed: Callable[[Sequence[TokenIds]], np.ndarray], items: Sequence[str], said: str
    ) -> np.ndarray:
        ids = self._tokenizer.encode_batch(items)
        with progress_bar(f"{self._said}: {said}", len(ids)) as advance:
            self._encoder.progress = advance
            try:
                return embed(ids)
            finally:
                self._encoder.progress = lambda rows: None
