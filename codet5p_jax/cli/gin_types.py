"""Whether a value written in gin fits the annotation of what it is bound to.

Gin checks no types, and a frozen dataclass none either: a learning rate of '1e-4' would be noticed
by the first step, after data and model are loaded. References are judged by what they return.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from codet5p_jax.cli.gin_static import Binding, Macro, Reference

_ANYTHING = (Any, object, inspect.Parameter.empty)  # hints that every value fits


def hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a function, or of a class's constructor; {} where they cannot be evaluated."""
    is_plain_class = inspect.isclass(target) and not hasattr(target, "__dataclass_fields__")
    try:
        return typing.get_type_hints(target.__init__ if is_plain_class else target)
    except (NameError, TypeError):  # foreign code may import names for type checkers only
        return {}


def describe(hint: Any) -> str:
    """An annotation as the source spells it.

    >>> describe(tuple[int, ...] | None)
    'tuple[int, ...] | None'
    """
    text = inspect.formatannotation(hint)
    return text.replace("typing.", "").replace("collections.abc.", "")


def fits(value: Any, hint: Any, macros: Mapping[str, Binding]) -> bool:
    """Whether `value` (literals, `Reference`, `Macro`, containers of these) is a `hint`.

    An int is a float, a bool is neither, and a list is no tuple. What cannot be judged fits.
    """
    if isinstance(value, Macro):
        return value.name not in macros or fits(macros[value.name].value, hint, macros)
    if isinstance(value, Reference):
        return _reference_fits(value, hint)
    origin, args = get_origin(hint), get_args(hint)
    if hint in _ANYTHING or isinstance(hint, typing.TypeVar):
        return True
    if origin is typing.Annotated:
        return fits(value, args[0], macros)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg, macros) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if hint in (None, type(None)):
        return value is None
    if origin is tuple or hint is tuple:
        return isinstance(value, tuple) and _items_fit(value, args, macros)
    container = origin or hint
    if not inspect.isclass(container):
        return True
    if issubclass(container, Mapping):
        key, item = args or (Any, Any)
        return isinstance(value, container) and all(
            fits(k, key, macros) and fits(v, item, macros) for k, v in value.items()
        )
    if issubclass(container, collections.abc.Iterable) and container is not str:
        is_text = isinstance(value, str | bytes)
        item = args[0] if args else Any
        return isinstance(value, container) and not is_text and _all_fit(value, item, macros)
    return _literal_fits(value, container)


def _items_fit(value: tuple[Any, ...], args: tuple[Any, ...], macros: Mapping) -> bool:
    if not args:
        return True
    if args[-1] is Ellipsis:
        return _all_fit(value, args[0], macros)
    return len(value) == len(args) and all(map(lambda v, a: fits(v, a, macros), value, args))


def _all_fit(values: collections.abc.Iterable[Any], hint: Any, macros: Mapping) -> bool:
    return all(fits(value, hint, macros) for value in values)


def _literal_fits(value: Any, hint: type) -> bool:
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float)
    if getattr(hint, "_is_protocol", False):  # literals implement none of the library's protocols
        return False
    return isinstance(value, hint)


def _reference_fits(reference: Reference, hint: Any) -> bool:
    target = reference.target
    if not reference.evaluate:
        produced = type if inspect.isclass(target) else Callable
        return any(_accepts_callable(produced, option) for option in _options(hint))
    produced = target if inspect.isclass(target) else hints(target).get("return", Any)
    return any(_produces(p, h) for p in _options(produced) for h in _options(hint))


def _options(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is typing.Annotated:
        return _options(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(option for arg in get_args(hint) for option in _options(arg))
    return (hint,)


def _accepts_callable(produced: Any, hint: Any) -> bool:
    origin = get_origin(hint) or hint
    if hint in _ANYTHING or not inspect.isclass(origin):
        return True
    is_callable_protocol = getattr(origin, "_is_protocol", False) and "__call__" in vars(origin)
    return is_callable_protocol or origin in (collections.abc.Callable, produced)


def _produces(produced: Any, hint: Any) -> bool:
    if produced in _ANYTHING or hint in _ANYTHING:
        return True
    produced, hint = get_origin(produced) or produced, get_origin(hint) or hint
    if not (inspect.isclass(produced) and inspect.isclass(hint)):
        return (produced is None) == (hint is None)
    if getattr(hint, "_is_protocol", False):
        return all(_has(produced, name) for name in _members(hint))
    return issubclass(produced, hint) or (hint is float and produced is int)


def _members(protocol: type) -> set[str]:
    names: set[str] = set()
    for base in protocol.__mro__:
        if getattr(base, "_is_protocol", False) and base is not typing.Protocol:
            names |= {n for n in vars(base) if not n.startswith("_")}
            names |= set(vars(base).get("__annotations__", {}))
    return names


def _has(produced: type, name: str) -> bool:
    annotated = any(name in vars(base).get("__annotations__", {}) for base in produced.__mro__)
    return annotated or hasattr(produced, name)
