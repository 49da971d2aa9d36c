"""Functions of a Python module: code without the docstring, and the docstring."""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r|\Z)")  # str.splitlines also cuts at form feeds
_HOLDS_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


@dataclass(frozen=True)
class Function:
    """One function.

    Attributes:
      qualname: dotted name within the module, as `__qualname__` without `<locals>`.
      line: of its first line, decorators included, from 1.
      code: source from the first decorator to the last statement without the docstring, shifted
        left to column 0; inside multi-line strings nothing moves. A function of nothing but a
        docstring has `pass` instead.
      docstring: cleaned as by `inspect.getdoc`; None where there is none.
    """

    qualname: str
    line: int
    code: str
    docstring: str | None


def parse(source: str) -> ast.Module:
    """`ast.parse` without the warnings that old code would print.

    Raises:
      SyntaxError, ValueError, RecursionError: not parsable by the running interpreter.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like are the corpus's affair
        return ast.parse(source)


def functions(source: str) -> Iterator[Function]:
    """Functions and methods of a module in source order, nested ones after what holds them.

    Raises:
      SyntaxError, ValueError, RecursionError: as `parse`.
    """
    lines = _LINE.findall(source)
    tree = parse(source)
    fixed = _lines_inside_strings(tree)
    pending: list[tuple[ast.AST, str]] = [(tree, "")]
    while pending:
        node, prefix = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _function(node, prefix + node.name, lines, fixed)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            prefix = f"{prefix}{node.name}."
        children = [c for c in ast.iter_child_nodes(node) if isinstance(c, _HOLDS_STATEMENTS)]
        pending += [(child, prefix) for child in reversed(children)]


def first_paragraph(docstring: str) -> str:
    """First paragraph on one line: `"Add.\\n  Both.\\n\\nMore."` -> `"Add. Both."`."""
    return " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())


def without_docstring(source: str) -> str:
    """The first function of `source` without its docstring (CodeSearchNet keeps it inside).

    Raises:
      SyntaxError, ValueError, RecursionError: as `parse`; also when there is no function.
    """
    for function in functions(textwrap.dedent(source)):
        return function.code
    raise ValueError("expected a function definition, found none")


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, qualname: str, lines: list[str], fixed: set[int]
) -> Function:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    last, offset = _end(node)
    own = dict(enumerate(lines[first - 1 : last], start=first))
    own[last] = _cut(own[last], offset)[0]
    docstring = ast.get_docstring(node)
    if docstring is not None:
        _remove(own, node.body[0], alone=len(node.body) == 1)
    indent = own[first][: len(own[first]) - len(own[first].lstrip(" \t"))]
    shifted = (
        line.removeprefix(indent) if number not in fixed else line for number, line in own.items()
    )
    return Function(qualname, first, "".join(shifted).rstrip(), docstring)


def _lines_inside_strings(tree: ast.AST) -> set[int]:
    """Lines that begin inside a string literal, where a shift would change its value."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            inside.update(range(node.lineno + 1, _end(node)[0] + 1))
    return inside


def _remove(own: dict[int, str], statement: ast.stmt, alone: bool) -> None:
    """Takes the docstring out of `own`, line number -> line."""
    start, (end, offset) = statement.lineno, _end(statement)
    before = _cut(own[start], statement.col_offset)[0]
    after = _cut(own[end], offset)[1]
    for number in range(start, end + 1):
        del own[number]
    if alone:
        rest = before + "pass" + after
    elif after.lstrip().startswith(";"):
        rest = before + after.lstrip()[1:].lstrip(" \t")
    else:
        rest = before + after
    if rest.strip():
        own[start] = rest
        # Keep line order: a dict remembers insertion, and `start` was deleted above.
        for number in sorted(own):
            own[number] = own.pop(number)


def _end(node: ast.stmt | ast.expr) -> tuple[int, int]:
    """Line and UTF-8 offset at which a node of parsed source ends."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset


def _cut(line: str, utf8_offset: int) -> tuple[str, str]:
    """Splits a line at one of `ast`'s offsets, which count UTF-8 bytes."""
    data = line.encode()
    return data[:utf8_offset].decode(), data[utf8_offset:].decode()
