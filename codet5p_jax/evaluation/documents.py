"""Python functions as documents to search, and what of them goes to the model and to BM25."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from codet5p_jax.data.corpora.python_functions import first_paragraph, functions
from codet5p_jax.evaluation.search import Document

_DEFINITION = re.compile(r"^(?:async\s+)?def\s", re.MULTILINE)


@dataclass(frozen=True)
class Indexed:
    """A document and its docstring, which words can be looked up in but the model does not read."""

    document: Document
    docstring: str

    @property
    def words(self) -> str:
        """What BM25 indexes: where it is, its code, its docstring."""
        d = self.document
        return f"{d.module} {d.name}\n{d.code}\n{self.docstring}"


def python_documents(modules: Iterable[Mapping[str, str]]) -> Iterator[Indexed]:
    """Every function of modules (`module`, `code`); a copy of an earlier one is left out.

    Modules that the running interpreter cannot parse are passed over.
    """
    seen: set[str] = set()
    for module in modules:
        try:
            found = list(functions(module["code"]))
        except (SyntaxError, ValueError, RecursionError):
            continue
        for function in found:
            if function.code in seen:
                continue
            seen.add(function.code)
            document = Document(
                module=module["module"],
                name=function.qualname,
                line=function.line,
                signature=signature(function.code),
                summary=first_paragraph(function.docstring or ""),
                code=function.code,
            )
            yield Indexed(document, function.docstring or "")


def head(code: str) -> str:
    """The function up to the colon that ends its signature, decorators included.

    head("@cache\\ndef f(a={1: 2}):\\n    return a") == "@cache\\ndef f(a={1: 2}):"
    """
    start = _DEFINITION.search(code)
    depth, quote = 0, ""
    for i in range(start.start() if start else 0, len(code)):
        char = code[i]
        if quote:
            quote = "" if char == quote and code[i - 1] != "\\" else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == ":" and depth == 0:
            return code[: i + 1]
    return code


def signature(code: str) -> str:
    """The `def` of a function on one line, without decorators and colon."""
    text = head(code)
    start = _DEFINITION.search(text)
    return " ".join(text[start.start() if start else 0 :].split()).removesuffix(":")
