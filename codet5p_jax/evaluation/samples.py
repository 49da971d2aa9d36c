"""What a model writes: the rest of functions, and docstrings of functions."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.decoding.generate import compiled
from codet5p_jax.decoding.sampling import Sampling
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

    A beginning that is too long keeps its end, as in training. It goes to the decoder as well where
    the model has `prompt_to_decoder`.
    """
    room = inputs_length - 1
    prompts = [np.array(tokenizer.encode(text)[-room:], np.int32) for text in beginnings]
    rows = [np.append(tokenizer.special.unk, prompt).astype(np.int32) for prompt in prompts]
    prefixes = prompts if model.config.prompt_to_decoder else [prompt[:0] for prompt in prompts]
    return _write(model, params, tokenizer, rows, prefixes, inputs_length, sampling, key)


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
    prefixes = [np.array([special.tdec], np.int32)] * len(rows)
    return _write(model, params, tokenizer, rows, prefixes, inputs_length, sampling, key)


def _write(
    model: Any,
    params: Any,
    tokenizer: Tokenizer,
    rows: list[np.ndarray],
    prefixes: list[np.ndarray],
    inputs_length: int,
    sampling: Sampling,
    key: jax.Array,
) -> list[str]:
    """What is written after the prefixes."""
    tokens, segments = pad(rows, inputs_length, tokenizer.special.pad)
    lengths = np.array([len(prefix) for prefix in prefixes], np.int32)
    forced, _ = pad(prefixes, int(lengths.max()), tokenizer.special.pad)
    made = compiled(model, tokenizer.special, sampling)(
        params, tokens, segments, forced, lengths, key
    )
    return [tokenizer.decode(row) for row in np.asarray(made.tokens)]
