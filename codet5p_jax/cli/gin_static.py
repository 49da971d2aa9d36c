"""Reads gin files without binding anything: every statement with its names resolved and its place.

Gin itself reports an unknown name without the right one, and checks no types. This pass resolves
each name to the Python object it means, so that mistakes are found here, at `file:line`.
"""

import difflib
import importlib
import inspect
import io
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from gin import config_parser

from codet5p_jax.cli.errors import ConfigError

PACKAGE = Path(str(resources.files("codet5p_jax.gin_configs")))
COMMAND_LINE = "command line"
_DYNAMIC = "__gin__.dynamic_registration"


@dataclass(frozen=True)
class Reference:
    """`@scope/module.name` or, evaluated, `@scope/module.name()`."""

    target: Callable[..., Any]
    name: str
    scope: str
    evaluate: bool


@dataclass(frozen=True)
class Macro:
    """`%NAME`."""

    name: str


@dataclass(frozen=True)
class Binding:
    """`scope/module.name.arg = value`, or `NAME = value` with neither target nor arg."""

    value: Any
    where: str  # "runs/stage1_220m.gin:12" or "command line"
    name: str  # as written: "train.train.seed"
    target: Callable[..., Any] | None = None
    scope: str = ""
    arg: str = ""


@dataclass
class Statements:
    """What files and command line say; a later binding replaces an earlier one.

    Attributes:
      bindings: (scope, target, argument) -> binding.
      macros: name -> definition.
      symbols: name bound by an import -> module.
      imports: the import statements as text; the command line sees the same names as the files.
    """

    bindings: dict[tuple[str, Any, str], Binding] = field(default_factory=dict)
    macros: dict[str, Binding] = field(default_factory=dict)
    symbols: dict[str, Any] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, else a listing when it is short, else nothing.

    >>> nearest("droput", ["dropout", "dtype"])
    '; did you mean dropout?'
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 12 else ""


def references(value: Any) -> Iterator[Reference | Macro]:
    """Yields what a (nested) value refers to."""
    if isinstance(value, Reference | Macro):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from references(key)
            yield from references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from references(item)


def find_file(name: str, folders: Iterable[str], where: str = COMMAND_LINE) -> Path:
    """Finds a gin file by path, in `folders`, or by its name inside the package.

    Raises:
      ConfigError: there is none; says where it was looked for, and the nearest name.
    """
    places = [Path(), *map(Path, folders), PACKAGE]
    for place in places:
        if (place / name).is_file():
            return place / name
    known = {str(p.relative_to(root)) for root in places[1:] for p in root.rglob("*.gin")}
    raise ConfigError(
        f"{where}: no gin file {name!r} here, in --gin_search_paths or in the package"
        + nearest(name, known)
    )


def read(
    files: Iterable[str], bindings: Iterable[str], folders: Iterable[str], imports: str = ""
) -> Statements:
    """Reads gin files, then `NAME=value` bindings, in the order in which gin applies them.

    The bindings know the names that the files or `imports`, import statements as in a file, import.

    Raises:
      ConfigError: a file is missing, a line does not parse, or a name means nothing.
    """
    folders = list(folders)
    out = Statements()
    _read_text(imports, None, COMMAND_LINE, folders, out, {}, ())
    for name in files:
        _read_file(name, find_file(name, folders), folders, out, ())
    for binding in bindings:
        _read_text(binding, None, COMMAND_LINE, folders, out, dict(out.symbols), ())
    return out


def _read_file(
    name: str, path: Path, folders: list[str], out: Statements, parents: tuple[Path, ...]
) -> None:
    if path in parents:
        raise ConfigError(f"{name} includes itself, through {parents[-1]}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    _read_text(text, path, name, folders, out, {}, (*parents, path))


def _read_text(
    text: str,
    path: Path | None,
    label: str,
    folders: list[str],
    out: Statements,
    symbols: dict[str, Any],
    parents: tuple[Path, ...],
) -> None:
    """Adds the statements of one file or command-line binding to `out`."""

    def where(line: int) -> str:
        return f"{label}:{line}" if path else label

    def here() -> str:
        token = parser.current_token
        return where(token.start[0] if token else 1)

    delegate = _Delegate(symbols, here)
    parser = config_parser.ConfigParser(text, delegate)
    try:
        for statement in parser:
            place = where(statement.location.line_num)
            if isinstance(statement, config_parser.ImportStatement):
                _import(statement, symbols, out, place)
            elif isinstance(statement, config_parser.IncludeStatement):
                found = find_file(statement.filename, folders, place)
                _read_file(statement.filename, found, folders, out, parents)
            elif isinstance(statement, config_parser.BlockDeclaration):
                resolve(statement.selector, symbols, place)
            else:
                _bind(statement, symbols, out, place)
    except ConfigError as error:
        # Gin appends the line and a caret to what the delegate raises.
        raise ConfigError(str(error).partition("\n")[0]) from error
    except (SyntaxError, tokenize.TokenError) as error:
        raise ConfigError(_syntax_message(error, text, path, where)) from error


class _Delegate(config_parser.ParserDelegate):
    """Makes this module's references out of gin's `@` and `%`."""

    def __init__(self, symbols: dict[str, Any], where: Callable[[], str]):
        self.symbols = symbols
        self.where = where

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return Reference(resolve(name, self.symbols, self.where()), name, scope, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def resolve(name: str, symbols: Mapping[str, Any], where: str) -> Callable[..., Any]:
    """The function or class that `module.name` means under the imports of a file."""
    first, *rest = name.split(".")
    if first not in symbols:
        holders = [f"{s}.{first}" for s, module in symbols.items() if hasattr(module, first)]
        hint = f"; did you mean {holders[0]}?" if holders else nearest(first, symbols)
        raise ConfigError(f"{where}: {name!r}: no import binds {first!r}{hint}")
    value = symbols[first]
    for attribute in rest:
        if not hasattr(value, attribute):
            module = getattr(value, "__name__", "")
            own = [n for n, v in vars(value).items() if getattr(v, "__module__", "") == module]
            hint = nearest(attribute, (n for n in own if not n.startswith("_")))
            raise ConfigError(f"{where}: {name!r}: no {attribute!r} in it{hint}")
        value = getattr(value, attribute)
    if inspect.ismodule(value):
        same = name.rpartition(".")[2]  # train.train
        hint = f"; did you mean {name}.{same}?" if hasattr(value, same) else ""
        raise ConfigError(f"{where}: {name!r} is a module, not a function or a class in it{hint}")
    if not callable(value):
        raise ConfigError(f"{where}: {name!r} is neither a function nor a class")
    return value


def parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a function, or of the constructor of a class."""
    return inspect.signature(target).parameters


def _import(
    statement: config_parser.ImportStatement, symbols: dict[str, Any], out: Statements, where: str
) -> None:
    out.imports[statement.bound_name()] = statement.format()
    if statement.module == _DYNAMIC:
        return
    if _DYNAMIC.rpartition(".")[2] not in out.imports:
        raise ConfigError(f"{where}: the file must begin: from __gin__ import dynamic_registration")
    try:
        module = importlib.import_module(statement.module)
    except ImportError as error:
        raise ConfigError(f"{where}: {statement.format()}: {error}") from error
    if not (statement.is_from or statement.alias):
        module = importlib.import_module(statement.module.split(".")[0])
    symbols[statement.bound_name()] = out.symbols[statement.bound_name()] = module


def _bind(
    statement: config_parser.BindingStatement, symbols: dict[str, Any], out: Statements, where: str
) -> None:
    scope, selector, arg, value, _ = statement
    prefix = f"{scope}/" if scope else ""
    if not arg:
        name = prefix + selector
        out.macros[name] = Binding(value, where, name)
        return
    target = resolve(selector, symbols, where)
    known = parameters(target)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    if arg not in known and not takes_any:
        raise ConfigError(f"{where}: {selector} has no parameter {arg!r}{nearest(arg, known)}")
    binding = Binding(value, where, f"{prefix}{selector}.{arg}", target, scope, arg)
    out.bindings[scope, target, arg] = binding


def _syntax_message(
    error: Exception, text: str, path: Path | None, where: Callable[[int], str]
) -> str:
    if path is None:
        name, _, value = text.partition("=")
        return (
            f"command line: --gin.{name.strip()}={value.strip()} is not a gin binding; strings "
            f"need quotes that the shell leaves in place: --gin.{name.strip()}=\"'…'\""
        )
    if isinstance(error, tokenize.TokenError):  # knows where the file ends, not what is unfinished
        line, opening = _left_open(text)
        return f"{where(line)}: {opening} opens here and is not closed before the end of the file"
    line = getattr(error, "lineno", None) or 1
    return f"{where(line)}: {getattr(error, 'msg', None) or error}"


def _left_open(text: str) -> tuple[int, str]:
    """Line and name of the innermost bracket, or the string, that the end of `text` cuts off."""
    brackets: list[tuple[int, str]] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.OP and token.string in "([{":
                brackets.append((token.start[0], token.string))
            elif token.type == tokenize.OP and token.string in ")]}" and brackets:
                brackets.pop()
    except tokenize.TokenError as error:
        what, (line, _) = error.args
        if "string" in what:  # of a string, Python says where it begins
            return line, "a string"
        return brackets[-1] if brackets else (line, "a line")
    return 1, "a bracket or string"
