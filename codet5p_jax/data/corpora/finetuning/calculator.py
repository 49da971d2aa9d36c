"""Programs out of solutions of GSM8K: their calculator's marks, `<<48/2=24>>`, a line each."""

import ast
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_MARK = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
_FINAL = re.compile(r"####\s*(\S.*)")
_NUMBER = re.compile(r"\d[\d,]*\.?\d*|\.\d+")
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


class NotAProgramError(ValueError):
    """The marks of a solution do not amount to a program that gives its answer."""


def final_answer(solution: str) -> float:
    """The number after `####`.

    >>> final_answer("2 + 2 = <<2+2=4>>4\\n#### 1,004")
    1004.0

    Raises:
      ValueError: there is none.
    """
    try:
        return float("".join(_FINAL.findall(solution)).replace(",", "").strip("$ "))
    except ValueError:
        raise ValueError(
            f"expected an answer that ends in '#### number', got {solution[-40:]!r}"
        ) from None


def program(solution: str) -> str:
    """The marks of a solution as a program in the form of the paper's: `nK` are numbers of the
    question, `tK` results, and the last result is the `answer`.

    >>> print(program("<<48/2=24>>24 in May, 48 + 24 = <<48+24=72>>72 in all.\\n#### 72"))
    n0 = 48
    n1 = 2
    t0 = n0 / n1
    answer = n0 + t0

    A number that equals an earlier result is that result, the latest of them; one that occurred
    before is its name. A result that a solution rounds is carried on as it is.

    Raises:
      NotAProgramError: there are no marks, one is no arithmetic or is off by more than rounding, or
        the last result is not the answer.
    """
    marks = _MARK.findall(solution)
    if not marks:
        raise NotAProgramError("there are no marks")
    written = _Written()
    for count, (expression, stated) in enumerate(marks):
        name = "answer" if count == len(marks) - 1 else f"t{count}"
        written.add(name, expression, stated)
    if not math.isclose(written.values["answer"], final_answer(solution), rel_tol=1e-6):
        raise NotAProgramError(f"the last result is {written.values['answer']}, not the answer")
    return "\n".join(written.lines)


@dataclass
class _Written:
    """A program so far: its lines, the values of its names, and the names of numbers and results by
    the value that the solution states."""

    lines: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    numbers: dict[float, str] = field(default_factory=dict)
    results: dict[float, str] = field(default_factory=dict)

    def add(self, name: str, expression: str, stated: str) -> None:
        """Adds the line of a mark, after those of the numbers that are new in it."""
        expression = re.sub(r"(\d)\s*%", r"\1/100", expression.replace("$", ""))
        code, value = _line(_NUMBER.sub(self._name_of, expression), self.values)
        if not math.isclose(value, _stated(stated), rel_tol=0.01, abs_tol=0.01):
            raise NotAProgramError(f"{expression} is {value}, not {stated}")
        self.lines.append(f"{name} = {code}")
        self.values[name] = value
        self.results[_stated(stated)] = name

    def _name_of(self, match: re.Match[str]) -> str:
        text = match[0].replace(",", "")
        value = float(text)
        if value not in self.results and value not in self.numbers:
            name = self.numbers[value] = f"n{len(self.numbers)}"
            self.values[name] = value
            self.lines.append(f"{name} = {_literal(text)}")
        return self.results.get(value) or self.numbers[value]


def _literal(text: str) -> str:
    """A number as Python writes it: `007` is 7, `.5` is 0.5."""
    return repr(float(text)) if "." in text else str(int(text))


def _stated(text: str) -> float:
    try:
        return float(text.replace(",", "").replace("$", "").replace("%", "").strip())
    except ValueError as error:
        raise NotAProgramError(f"expected a number, got {text!r}") from error


def _line(expression: str, values: dict[str, float]) -> tuple[str, float]:
    """An expression of names as Python writes it, and its value."""
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        return ast.unparse(tree), _value(tree, values)
    except (SyntaxError, ArithmeticError) as error:
        raise NotAProgramError(f"{expression!r}: {error}") from error


def _value(node: ast.expr, values: dict[str, float]) -> float:
    if isinstance(node, ast.Name) and node.id in values:
        return values[node.id]
    operation = _OPERATORS.get(type(getattr(node, "op", None)))
    if operation is not None and isinstance(node, ast.BinOp):
        return operation(_value(node.left, values), _value(node.right, values))
    if operation is not None and isinstance(node, ast.UnaryOp):
        return operation(_value(node.operand, values))
    raise NotAProgramError(f"{ast.unparse(node)!r} is no arithmetic")
