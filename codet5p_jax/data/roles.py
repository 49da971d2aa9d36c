"""Which token plays which role: the small configuration beside a vocabulary, and known layouts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from codet5p_jax.data.tokens import SpecialTokens

PREFIXES = ("[ENC]", "[TDEC]", "[CDEC]")


@dataclass(frozen=True)
class Roles:
    """Token strings by role. `roles.json` beside `tokenizer.json` holds one as JSON.

    Attributes:
      pad, bos, eos, unk, decoder_start: required; several roles may share one token.
      sentinels: `<extra_id_0>` first; empty in vocabularies that have none.
      enc, tdec, cdec: stage-2 prefixes. A vocabulary may lack them: the role is then None.
      others: further strings that are special, thus never made from text, without a role here.
      append: tokens that are added at the end of a vocabulary that lacks them, in this order.
      ids: token -> id that loading asserts, for the tokens that the vocabulary has.
    """

    pad: str
    bos: str
    eos: str
    unk: str
    decoder_start: str
    sentinels: tuple[str, ...] = ()
    enc: str | None = None
    tdec: str | None = None
    cdec: str | None = None
    others: tuple[str, ...] = ()
    append: tuple[str, ...] = ()
    ids: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def required(self) -> tuple[str, ...]:
        """Tokens without which a vocabulary does not fit these roles."""
        return (self.pad, self.bos, self.eos, self.unk, self.decoder_start, *self.sentinels)

    @property
    def strings(self) -> tuple[str, ...]:
        """Every special string, without repeats."""
        prefixes = (t for t in (self.enc, self.tdec, self.cdec) if t is not None)
        return tuple(dict.fromkeys([*self.required, *prefixes, *self.others]))

    def resolve(self, vocab: Mapping[str, int], where: str) -> SpecialTokens:
        """Ids of the roles in `vocab`.

        Raises:
          ValueError: a required token is missing, or a token of `ids` has another id.
        """
        missing = [token for token in self.required if token not in vocab]
        if missing:
            raise ValueError(
                f"{where}: the vocabulary has no {', '.join(map(repr, missing[:5]))}"
                f"{' and more' if len(missing) > 5 else ''}, which its roles name; "
                "check roles.json, or pass other `roles`"
            )
        wrong = [
            f"{token!r} is {vocab[token]}, expected {expected}"
            for token, expected in self.ids.items()
            if token in vocab and vocab[token] != expected
        ]
        if wrong:
            raise ValueError(
                f"{where}: the vocabulary does not have the layout its roles assert: "
                f"{'; '.join(wrong[:5])}{' and more' if len(wrong) > 5 else ''}; "
                "check that these are the files of the right model, or pass other `roles`"
            )
        return SpecialTokens(
            pad=vocab[self.pad],
            bos=vocab[self.bos],
            eos=vocab[self.eos],
            unk=vocab[self.unk],
            sentinels=tuple(vocab[token] for token in self.sentinels),
            decoder_start=vocab[self.decoder_start],
            enc=None if self.enc is None else vocab.get(self.enc),
            tdec=None if self.tdec is None else vocab.get(self.tdec),
            cdec=None if self.cdec is None else vocab.get(self.cdec),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads."""
        return {**asdict(self), "ids": dict(self.ids)}

    @classmethod
    def from_file(cls, path: Path) -> "Roles":
        """Reads `roles.json`."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            lists = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
            return cls(**{**fields, **lists})
        except (ValueError, TypeError, AttributeError) as error:
            names = ", ".join(cls.__dataclass_fields__)
            raise ValueError(
                f"{path}: expected a JSON object with fields among {names}; {error}"
            ) from error


def codet5_roles(num_sentinels: int = 100) -> Roles:
    """Roles by the token strings of CodeT5, whatever their ids. `<unk>` is the paper's [CLM]."""
    sentinels = tuple(f"<extra_id_{i}>" for i in range(num_sentinels))
    return Roles(
        pad="<pad>",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        decoder_start="<pad>",
        sentinels=sentinels,
        enc=PREFIXES[0],
        tdec=PREFIXES[1],
        cdec=PREFIXES[2],
        others=("<mask>",),
        # The highest sentinel comes first, so `<extra_id_0>` has the highest id of them.
        append=sentinels[::-1],
    )


def _codet5() -> Roles:
    roles = codet5_roles()
    special = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
    ids = dict(zip(special, range(5), strict=True))
    ids |= {token: 32_099 - i for i, token in enumerate(roles.sentinels)}
    ids |= dict(zip(PREFIXES, range(32_100, 32_103), strict=True))
    return replace(roles, ids=ids)


CODET5 = _codet5()
"""CodeT5's vocabulary: 32,100 ids, or 32,103 in the files of the stage-2 checkpoints. The files of
the original repository have the first 32,000 only; loading them appends the sentinels."""

_END = "<|endoftext|>"
CODEGEN = Roles(pad=_END, bos=_END, eos=_END, unk=_END, decoder_start=_END, ids={_END: 50_256})
"""CodeGen's vocabulary: one token for every role. No sentinels: what CodeT5+ denoised with on this
vocabulary is not published; give `sentinels` and `append` to choose."""

PRESETS = {"codet5": CODET5, "codegen": CODEGEN}
