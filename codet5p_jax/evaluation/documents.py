"""What can be found in source code: functions of Python, and runs of lines of all else; and what of
them goes to the model and to BM25."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from codet5p_jax.data.corpora.python_functions import first_paragraph, functions
from codet5p_jax.evaluation.search import Document

Count = Callable[[Sequence[str]], Sequence[int]]  # tokens of each text

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
    return _different(
        function for module in modules for function in _functions(module["module"], module["code"])
    )


def source_documents(
    files: Iterable[Mapping[str, str]], count: Count, room: int
) -> Iterator[Indexed]:
    """Of source files (`path`, `code`, `language`) the functions, where it is Python that has some
    and that the running interpreter can parse; of others `windows`. A copy of an earlier one is
    left out."""

    def found() -> Iterator[Indexed]:
        for file in files:
            path, code = file["path"], file["code"]
            own = _functions(path, code) if file["language"] == "python" else []
            yield from own or _windows(path, code, count, room)

    return _different(found())


def windows(code: str, count: Count, room: int) -> Iterator[tuple[int, str]]:
    """(line from 1, text) of runs of whole lines that are `room` tokens at most; a longer line is a
    run by itself. A run ends before a blank line of its second half, where there is one.

    Of lines of two tokens each, and a room of 6:
    list(windows("a\\n\\nb\\nc\\n", count, 6)) == [(1, "a\\n\\nb"), (4, "c")]
    """
    lines = code.split("\n")
    sizes = count([line + "\n" for line in lines])
    first = 0
    while first < len(lines):
        if not lines[first].strip():
            first += 1
            continue
        end, total = first + 1, sizes[first]
        while end < len(lines) and total + sizes[end] <= room:
            total += sizes[end]
            end += 1
        if end < len(lines):
            half = range(max(first + 1, (first + end + 1) // 2), end)
            end = max((line for line in half if not lines[line].strip()), default=end)
        yield first + 1, "\n".join(lines[first:end]).rstrip()
        first = end


def _different(documents: Iterable[Indexed]) -> Iterator[Indexed]:
    seen: set[str] = set()
    for each in documents:
        if each.document.code not in seen:
            seen.add(each.document.code)
            yield each


def _functions(module: str, code: str) -> list[Indexed]:
    """None where the running interpreter cannot parse the module."""
    try:
        found = list(functions(code))
    except (SyntaxError, ValueError, RecursionError):
        return []
    return [
        Indexed(
            Document(
                module=module,
                name=function.qualname,
                line=function.line,
                signature=signature(function.code),
                summary=first_paragraph(function.docstring or ""),
                code=function.code,
            ),
            function.docstring or "",
        )
        for function in found
    ]


def _windows(path: str, code: str, count: Count, room: int) -> Iterator[Indexed]:
    for line, text in windows(code, count, room):
        shown = " ".join(text.split("\n", 1)[0].split())[:100]
        yield Indexed(Document(path, "", line, shown, "", text), "")


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
