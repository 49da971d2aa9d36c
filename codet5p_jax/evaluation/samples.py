"""What a model writes: the rest of functions, and docstrings of functions."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from codet5p_jax.data.buckets import pad
from codet5p_jax.data.tokenizer import Tokenizer
from codet5p_jax.decoding.generate import compiled
from codet5p_jax.decoding.prompts import Prompt, make_prompt
from codet5p_jax.decoding.sampling import Sampling
from codet5p_jax.evaluation.documents import head


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
    make = partial(make_prompt, kind="completion", tokenizer=tokenizer, config=model.config)
    prompts = [make(text, length=inputs_length) for text in beginnings]
    return _write(model, params, tokenizer, prompts, inputs_length, sampling, key)


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
    make = partial(make_prompt, kind="description", tokenizer=tokenizer, config=model.config)
    prompts = [make(code, length=inputs_length) for code in codes]
    return _write(model, params, tokenizer, prompts, inputs_length, sampling, key)


def _write(
    model: Any,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    inputs_length: int,
    sampling: Sampling,
    key: jax.Array,
) -> list[str]:
    """What is written after the prefixes."""
    tokens, segments = pad([p.encoder for p in prompts], inputs_length, tokenizer.special.pad)
    lengths = np.array([len(p.prefix) for p in prompts], np.int32)
    forced, _ = pad([p.prefix for p in prompts], int(lengths.max()), tokenizer.special.pad)
    made = compiled(model, tokenizer.special, sampling)(
        params, tokens, segments, forced, lengths, key
    )
    return [tokenizer.decode(row) for row in np.asarray(made.tokens)]
