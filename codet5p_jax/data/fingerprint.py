"""Fingerprints of what makes a cache: data, functions, tokenizers; equal means equal output.

A function counts by its code without comments, docstrings and layout, its defaults, the values it
closes over, and the functions and constants of the user's own modules that it mentions; a function
of an installed library counts by its name. So editing a helper of a preprocessor makes a cache
stale, while moving it or explaining it better does not.
"""

import ast
import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import linecache
import re
import site
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Set
from pathlib import PurePath
from typing import Any

import numpy as np

_CONSTANT = (str, bytes, int, float, complex, bool, type(None), re.Pattern, enum.Enum, PurePath)
_CACHED = type(functools.cache(lambda: None))  # what decorated functions are
_CONTAINER = (list, tuple, Set, Mapping)


def digest(value: Any) -> str:
    """A short hexadecimal digest of a value, stable between processes and machines.

    >>> digest(lambda x: x + 1) == digest(lambda x: x + 1)  # not where it stands, nor how
    True
    >>> digest(lambda x: x + 1) == digest(lambda x: x + 2)
    False
    """
    text = json.dumps(_describe(value, frozenset()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def name_of(value: Any) -> str:
    """The name a person would give a callable: `clean` for `partial(clean, 3)`."""
    if isinstance(value, functools.partial):
        return name_of(value.func)
    return getattr(value, "__name__", None) or type(value).__name__


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Which parts of two fingerprints differ, in words; empty when they agree.

    >>> changes({"source": "a", "tokenizer": "b"}, {"source": "a", "tokenizer": "c"})
    ['tokenizer changed']
    """
    words = []
    for part in [*old, *(p for p in new if p not in old)]:
        if part not in new:
            words.append(f"{part} removed")
        elif part not in old:
            words.append(f"{part} added")
        elif old[part] != new[part]:
            words.append(f"{part} changed")
    return words


def _describe(value: Any, seen: frozenset[int]) -> Any:
    """A JSON value that is equal for equal values; `seen` are the objects being described."""
    if id(value) in seen:
        return ["recursion", name_of(value)]
    inner = functools.partial(_describe, seen=seen | {id(value)})
    match value:
        case re.Pattern():
            return ["pattern", str(value.pattern), value.flags]
        case bytes() | bytearray():
            return ["bytes", hashlib.sha256(value).hexdigest()]
        case np.ndarray() | np.generic():
            content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return ["array", str(value.dtype), list(value.shape), content]
        case enum.Enum():
            return ["enum", type(value).__qualname__, value.name]
        case str() | bool() | int() | float() | complex() | None | PurePath():
            return [type(value).__name__, str(value)]
        case Mapping():
            return ["map", sorted(([inner(k), inner(v)] for k, v in value.items()), key=json.dumps)]
        case Set():
            return ["set", sorted(map(inner, value), key=json.dumps)]
        case list() | tuple():
            return ["sequence", [inner(item) for item in value]]
        case functools.partial():
            return ["partial", inner(value.func), inner(value.args), inner(value.keywords)]
        case _ if isinstance(value, _CACHED):
            return inner(value.__wrapped__)
        case types.MethodType():
            return ["method", inner(value.__func__), inner(value.__self__)]
        case types.FunctionType():
            return _describe_function(value, inner)
        case type():
            return ["class", _qualified_name(value), _class_source(value)]
        case types.BuiltinFunctionType() | types.ModuleType():
            return ["name", _qualified_name(value)]
    return _describe_object(value, inner)


def _describe_object(value: Any, inner: Any) -> Any:
    own = getattr(value, "fingerprint", None)
    if isinstance(own, str):
        return ["fingerprint", _qualified_name(type(value)), own]
    if dataclasses.is_dataclass(value):
        state = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    else:
        # None may be a cache that is not filled yet, and then stands for nothing.
        attributes = getattr(value, "__dict__", {}).items()
        state = {k: v for k, v in attributes if v is not None and _is_plain(v)}
    return ["object", inner(type(value)), inner(state)]


def _describe_function(function: types.FunctionType, inner: Any) -> Any:
    closure = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            closure[name] = cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            closure[name] = None
    bound = [inner(function.__defaults__), inner(function.__kwdefaults__), inner(closure)]
    if _is_library(function):
        return ["library", _qualified_name(function), bound]
    mentioned = {name: inner(v) for name, v in sorted(_mentions(function))}
    return ["function", _code(function.__code__), bound, mentioned]


def _mentions(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Globals of the user's own that a function mentions: helpers, classes, constants."""
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType):
            if not _is_library(value):
                found = ((n, getattr(value, n, None)) for n in names)
                yield from ((f"{name}.{n}", v) for n, v in found if _is_plain(v) and v is not None)
        elif _is_plain(value):
            yield name, value


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_plain(value: Any) -> bool:
    """Whether a value has a content of its own: not a handle, a cache, a library's object."""
    if isinstance(value, _CONTAINER):
        items = [*value, *value.values()] if isinstance(value, Mapping) else value
        return all(_is_plain(item) for item in items)
    callables = (types.FunctionType, functools.partial, type, types.MethodType, _CACHED)
    data = (*_CONSTANT, np.ndarray, np.generic)
    if isinstance(value, (*data, *callables)):
        return True
    return dataclasses.is_dataclass(value) and all(
        _is_plain(getattr(value, field.name)) for field in dataclasses.fields(value)
    )


def _qualified_name(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    return f"{getattr(value, '__module__', None) or ''}.{name}"


@functools.cache
def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    # An environment may see the packages of another one, as with --system-site-packages.
    folders |= {p for p in sys.path if PurePath(p).name in ("site-packages", "dist-packages")}
    return (*sorted(folders | {site.getusersitepackages()}), "<frozen")


def _is_library(value: Any) -> bool:
    """Whether a function, class or module belongs to an installed library."""
    module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    if (module or "").partition(".")[0] == "codet5p_jax":  # also where it is itself installed
        return False
    code = getattr(value, "__code__", None)
    file = code.co_filename if code else getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module in sys.builtin_module_names or module == "builtins"
    return file.startswith(_library_folders())


def _class_source(cls: type) -> str:
    if _is_library(cls):
        return ""
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return ""  # its name has to do
    return ast.unparse(_without_docstrings(tree))


def _code(code: types.CodeType) -> Any:
    """Source of a function without comments, docstring and layout; bytecode where there is none."""
    nodes = [node for node in _functions_of_file(code.co_filename) if _is_node_of(node, code)]
    if not nodes:
        constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
        return ["bytecode", code.co_code.hex(), constants, list(code.co_names)]
    # Of nested lambdas on one line, all of which contain the positions, the innermost is meant.
    return ast.unparse(min(nodes, key=_extent))


@functools.lru_cache(maxsize=32)
def _functions_of_file(filename: str) -> tuple[ast.AST, ...]:
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return ()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return tuple(node for node in ast.walk(_without_docstrings(tree)) if isinstance(node, kinds))


def _is_node_of(node: Any, code: types.CodeType) -> bool:
    if not isinstance(node, ast.Lambda):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        return node.name == code.co_name and first == code.co_firstlineno
    if code.co_name != "<lambda>" or node.lineno != code.co_firstlineno:
        return False
    start = node.body.lineno, node.body.col_offset
    end = node.body.end_lineno, node.body.end_col_offset
    # The first instructions of a function (RESUME, COPY_FREE_VARS) stand for no expression.
    spans = [p for p in code.co_positions() if None not in p and p[2:] != (0, 0)]
    return bool(spans) and all(start <= (a, c) and (b, d) <= end for a, b, c, d in spans)


def _extent(node: Any) -> tuple[int, int]:
    return node.end_lineno - node.lineno, node.end_col_offset - node.col_offset


def _without_docstrings(tree: ast.AST) -> ast.AST:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree
