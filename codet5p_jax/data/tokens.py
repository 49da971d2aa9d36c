"""The roles that token ids play: padding, sentinels, the task prefixes of CodeT5+."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that objectives and decoding treat specially.

    `other_eos` end a text as `eos` does, where a model's own files name several; a tokenizer
    knows of none.

    `unk` doubles as the paper's [CLM] (paper §3.2). `sentinels[0]` is `<extra_id_0>`. `enc`, `tdec`
    and `cdec` are `[ENC]`, `[TDEC]`, `[CDEC]`, or None in vocabularies that have none of them.
    """

    pad: int
    bos: int
    eos: int
    unk: int
    sentinels: tuple[int, ...]
    decoder_start: int
    enc: int | None = None
    tdec: int | None = None
    cdec: int | None = None
    other_eos: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return (self.eos, *self.other_eos)
