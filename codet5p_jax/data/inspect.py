"""Shows a cached mixture as the model sees it: rows, lengths, padding, examples in words."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codet5p_jax.data.cache import CachedMixture, MixtureTask
from codet5p_jax.data.loader import HostHalf, Loader
from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.data.tokens import SpecialTokens

Decode = Callable[[Sequence[int]], str]

_BATCHES = 4  # to measure lengths on
_COUNTED = 100_000  # examples of a task to count cuts in; a few seconds


def inspect(
    mixture: CachedMixture,
    objectives: Mapping[str, HostHalf],
    batch_size: int,
    *,
    seed: int = 0,
    examples: int = 2,
    characters: int = 600,
) -> Iterator[str]:
    """Lines of text about a mixture.

    Args:
      mixture: of any split.
      objectives: by name, with the lengths that training uses.
      batch_size: rows of a batch, as in training.
      seed: which batches are looked at.
      examples: shown for each objective.
      characters: shown of each array.

    Yields:
      Lines; special tokens are written out, line breaks of the data are kept. Of text-code pairs
      that are matched, also what the matching decoder reads: `[ENC] code </s>`. Of objectives that
      can say what they cut (`Seq2Seq`), in how many examples of each task they do.

    Raises:
      DataError: as `Loader`.
    """
    loader = Loader(mixture, objectives, batch_size, seed)
    decode = decoder_of(mixture)
    batches = [loader.batch_at(step) for step in range(_BATCHES)]
    yield f"{mixture.name}/{mixture.split}: vocabulary {mixture.vocab_size:,}, batch {batch_size}"
    for name in mixture.objectives:
        yield ""
        yield f"== {name}: {loader.rows[name]} rows of each batch"
        for task in mixture.tasks_of(name):
            m = task.examples.manifest
            yield f"   task {task.name}, rate {task.rate:g}, {m.records:,} examples"
            yield from _cuts(task, objectives[name], mixture.special)
        arrays = {
            key: np.concatenate([batch[name][key] for batch in batches]) for key in batches[0][name]
        }
        yield from _lengths(arrays)
        for row in range(min(examples, loader.rows[name])):
            yield from _example(arrays, row, decode, characters)


def decoder_of(mixture: CachedMixture) -> Decode:
    """Ids to text with special tokens written out, from the tokenizer kept in the cache."""
    folder = Path(mixture.tokenizer)
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.load(folder)
        return lambda ids: tokenizer.decode(ids, skip_special=False)
    if (folder / "sentencepiece.model").exists():
        # SeqIO's, which a task from elsewhere brings along; nothing else here uses the library.
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(str(folder / "sentencepiece.model"))
        return lambda ids: _decode_pieces(model, ids)
    return lambda ids: " ".join(map(str, ids))


def used(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    """Which positions of an array of ids are not padding, bool [rows, length]; None: not ids."""
    side, _, kind = name.rpartition("_")
    if kind not in ("tokens", "targets"):
        return None
    mask = arrays.get(f"{side}_weights" if kind == "targets" else f"{side}_segments")
    return None if mask is None else mask > 0


def _cuts(task: MixtureTask, objective: Any, special: SpecialTokens) -> Iterator[str]:
    if not hasattr(objective, "cut"):
        return
    number = min(len(task.examples), _COUNTED)
    counts: Counter[str] = Counter()
    for i in range(number):
        counts.update(objective.cut(task.examples[i], special))
    first = "the first " if number < len(task.examples) else ""
    yield (
        f"   of {first}{number:,}: inputs cut in {counts['inputs']:,}, targets in "
        f"{counts['targets']:,}; {counts['no loss']:,} without a loss"
    )


def _lengths(arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    for name, values in sorted(arrays.items()):
        mask = used(arrays, name)
        if mask is None:
            yield f"   {name:17} {values.dtype} {list(values.shape[1:])}"
            continue
        n = mask.sum(axis=1)
        p50, p95 = np.percentile(n, (50, 95)).astype(int)
        yield (
            f"   {name:17} {values.dtype} {list(values.shape[1:])}, used: "
            f"p50 {p50}, p95 {p95}, max {n.max()}, full {(n == mask.shape[1]).mean():.0%}, "
            f"padding {1 - mask.mean():.1%}"
        )


def _example(
    arrays: Mapping[str, np.ndarray], row: int, decode: Decode, characters: int
) -> Iterator[str]:
    yield f"-- example {row}"
    for name, values in arrays.items():
        mask = used(arrays, name)
        # Decoder inputs are the targets, shifted: once is enough.
        if mask is None or (name == "decoder_tokens" and "decoder_targets" in arrays):
            continue
        ids = values[row][mask[row]].tolist()
        yield _array(name, ids, decode, characters)
        if name == "code_tokens" and "enc_token" in arrays:
            # What the matching decoder reads is made on the device: [ENC] in the place of <s>.
            ids[0] = int(arrays["enc_token"][row])
            yield _array("matching decoder", ids, decode, characters)


def _array(name: str, ids: Sequence[int], decode: Decode, characters: int) -> str:
    text = decode(ids)
    more = f" … {len(text) - characters:,} characters more" if len(text) > characters else ""
    return f"[{name}, {len(ids)} tokens] {text[:characters]}{more}"


def _decode_pieces(model: Any, ids: Sequence[int]) -> str:
    """Pieces as the model has them, `<extra_id_n>` above them, as SeqIO numbers those."""
    size, text = model.vocab_size(), ""
    for i in ids:
        text += model.id_to_piece(i) if i < size else f"<{i}>"
    return text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
