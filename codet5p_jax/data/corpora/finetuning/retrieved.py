"""Retrieval-augmented generation (REDCODER's setting): code to write, and code found for its text.

What is found for the texts of a split is a file of its own, which `codet5p retrieve` writes and
REDCODER's retriever as well: a record for each text,

    {"question": text, "answers": code, "ctxs": [{"id": …, "text": code, "score": …}, …]}

with the nearest code first. The code to write may be among `ctxs`; readers leave it out.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from codet5p_jax.data.corpora.codesearchnet import SPLITS as NAMES
from codet5p_jax.data.corpora.finetuning.files import (
    Record,
    converted,
    find_file,
    find_optional,
    full,
    joined,
    split_name,
    words,
)
from codet5p_jax.data.corpora.jsonl import check_fields
from codet5p_jax.data.corpora.malformed import Malformed

LANGUAGES = ("java", "python")
CODES = (1, 5, 10)  # of the paper's table; the first is its main result
SEPARATOR_VARIABLE = "CODET5P_CODE_SEPARATOR"
"""Environment variable with what [SEP] is; `--code_separator` sets it."""
EOS = "</s>"
_COMMENT = "_NL_"  # REDCODER-EXT's candidates have their text after it


def retrieved(
    folder: str | Path,
    split: str,
    *,
    codes: int = CODES[0],
    malformed: Malformed | None = None,
    setting: str = "folder",
) -> Iterator[dict[str, str]]:
    """Texts with the code found for them, and code to write: `source`, `target`, `place`.

    A source has a line for the text and one for each code, see `encode_source`. Code that is the
    target is left out of it, in every split: the paper says so of training, and of the test that
    the nearest code never equals the target.

    Args:
      folder: holds `{train,valid,test}.jsonl`, or `.json` with a list, of records as above.
      split: "train", "validation" or "test".
      codes: how many of them.
      malformed: counts and reports records of another form, or with fewer codes.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: at once, if the file is missing.
    """
    path = find_file(folder, *_names(split), setting=setting)
    return converted(path, partial(_with_codes, codes=codes), malformed)


def code_base(folder: str | Path, language: str, *, setting: str = "folder") -> dict[str, str]:
    """Code to search, each different one once, by a name: `file_number`, as REDCODER names it.

    Args:
      folder: holds `<language>/codebase.jsonl`, or else the code to search is that of
        `<language>/train.jsonl`. Records have `code_tokens` (or `function_tokens`).
      language: of the code.
      setting: how errors call `folder`.

    Raises:
      FileNotFoundError: there is neither.
      ValueError: a record has another form.
    """
    names = (f"{language}/codebase.jsonl", f"{language}/train.jsonl")
    path = find_file(folder, *names, setting=setting)
    found: dict[str, str] = {}
    for number, record in enumerate(converted(path, _code, None)):
        found.setdefault(record["code"], f"{path.name.removesuffix('.gz')}_{number}")
    return {said: code for code, said in found.items()}


def existing(folder: Path, split: str) -> Path | None:
    """The file of a split, if there is one."""
    return find_optional(folder, *_names(split))


def name(language: str, codes: int = CODES[0]) -> str:
    """Of tasks and benchmarks.

    >>> name("java", 5)
    'retrieve_generate_java_5'
    """
    return f"retrieve_generate_{language}" + (f"_{codes}" if codes != CODES[0] else "")


def without(target: str, codes: Sequence[str], count: int) -> list[str]:
    """The first `count` of `codes` that are not the target."""
    return [code for code in codes if code != target][:count]


def separator() -> str:
    """What [SEP] is: `</s>`, or a text. The paper names the token and no vocabulary has it."""
    return os.environ.get(SEPARATOR_VARIABLE) or EOS


def encode_source(
    source: str, encode: Callable[[str], list[int]], eos: int, between: str
) -> list[int]:
    """Ids of the lines of a source, with `between` (see `separator`) between them.

    encode_source("add\\nf()", encode, 2, "</s>") == [*encode("add"), 2, *encode("f()")]
    """
    middle = [eos] if between == EOS else encode(f" {between} ")
    first, *others = map(encode, source.split("\n"))
    return first + [token for line in others for token in (*middle, *line)]


def _names(split: str) -> tuple[str, str]:
    stem = split_name(split, NAMES)
    return f"{stem}.jsonl", f"{stem}.json"


def _with_codes(record: Record, codes: int) -> Record:
    check_fields(record, {"question": str, "answers": str, "ctxs": list})
    text, target = words(record["question"]), words(record["answers"])
    full(question=text, answers=target)
    for context in record["ctxs"]:
        check_fields(context, {"text": str})
    found = [words(context["text"].split(_COMMENT)[0]) for context in record["ctxs"]]
    kept = without(target, found, codes)
    if len(kept) < codes:
        raise ValueError(
            f"expected {codes} of `ctxs` besides the answer, got {len(kept)}; retrieve more "
            "(`codet5p retrieve --codes`)"
        )
    return {"source": "\n".join([text, *kept]), "target": target}


def _code(record: Record) -> Record:
    code = joined(record, "code_tokens", "function_tokens")
    return full(code=code)
