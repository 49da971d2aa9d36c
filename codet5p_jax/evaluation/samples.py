"""What a model writes: the rest of functions, and docstrings of functions."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.decoding.generate import Sampling, compiled
from codet5p_jax.evaluation.documents import head
from codet5p_jax.evaluation.encoder import pad
from codet5p_jax.objectives.rows import wrap


def is_presentable(code: str) -> bool:
    """Whether a function is short enough to read and has a body below its signature."""
    rest = code[len(head(code)) :]
    return rest.startswith("\n") and 4 <= code.count("\n") + 1 <= 16


def split_function(pair: Mapping[str, str]) -> tuple[str, str]:
    """A function's beginning (signature and docstring) and the rest, of `code` and `text`.

    The beginning stops before the line break: tokens join it with the indentation that follows.
    """
    signature = head(pair["code"])
    rest = pair["code"][len(signature) :].lstrip("\n")
    indent = rest[: len(rest) - len(rest.lstrip())].rpartition("\n")[2]
    return f'{signature}\n{indent}"""{pair["text"]}"""', rest


def cut_to_body(continuation: str) -> str:
    """What a continuation of such a beginning says of the function: the rest of the line, and the
    lines below it down to one that is not indented."""
    lines = continuation.split("\n")
    outside = (i for i, line in enumerate(lines) if i and line[:1].strip())
    return "\n".join(lines[: next(outside, len(lines))]).strip("\n")


def completions(
    model: Any,
    params: Any,
    tokenizer: Tokenizer,
    beginnings: Sequence[str],
    *,
    inputs_length: int,
    sampling: Sampling,
    key: jax.Array,
) -> list[str]:
    """Continues beginnings as the seq2seq causal LM does: encoder input `[CLM] beginning`.

    A beginning that is too long keeps its end, as in training.
    """
    room = inputs_length - 1
    rows = [
        np.array([tokenizer.special.unk, *tokenizer.encode(text)[-room:]], np.int32)
        for text in beginnings
    ]
    return _write(model, params, tokenizer, rows, None, inputs_length, sampling, key)


def docstrings(
    model: Any,
    params: Any,
    tokenizer: Tokenizer,
    codes: Sequence[str],
    *,
    inputs_length: int,
    sampling: Sampling,
    key: jax.Array,
) -> list[str]:
    """Describes functions as the code-to-text LM does: `<s> code </s>`, decoder prefix [TDEC]."""
    special = tokenizer.special
    if special.tdec is None:
        raise ValueError("writing docstrings needs a vocabulary with [TDEC] (stage 2)")
    rows = [wrap(np.array(tokenizer.encode(c), np.int32), inputs_length, special) for c in codes]
    return _write(model, params, tokenizer, rows, special.tdec, inputs_length, sampling, key)


def _write(
    model: Any,
    params: Any,
    tokenizer: Tokenizer,
    rows: list[np.ndarray],
    first: int | None,
    inputs_length: int,
    sampling: Sampling,
    key: jax.Array,
) -> list[str]:
    tokens, segments = pad(rows, inputs_length, tokenizer.special.pad)
    width = 0 if first is None else 1
    prefix = np.full((len(rows), width), first or 0, np.int32)
    lengths = np.full(len(rows), width, np.int32)
    run = compiled(model, tokenizer.special, sampling)
    made = run(params, tokens, segments, prefix, lengths, key)
    return [tokenizer.decode(row) for row in np.asarray(made.tokens)]
