"""The seam between gin files and the library: finds, checks and builds a configuration.

Gin notices an undefined macro or a wrong type only when the value is used, if at all. Here all of
it is checked first; every mistake is a `ConfigError` of one line, before any data is read.
"""

import argparse
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gin
from gin import config as gin_internals

from codet5p_jax.cli import gin_static
from codet5p_jax.cli.errors import ConfigError
from codet5p_jax.cli.gin_static import Binding, Macro, Reference, Statements, nearest
from codet5p_jax.cli.gin_types import describe, fits, hints

REQUIRED = "gin.REQUIRED"
# Macros that commands read themselves, so that no binding of a gin file need refer to them.
COMMAND_MACROS = frozenset({"USE_CACHED_TASKS"})
# For commands that neither read nor write what the paths of a run say.
PATHS = {name: f"({name})" for name in ("MODEL_DIR", "CACHE_DIR", "INITIAL_CHECKPOINT_PATH")}


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    Attributes:
      arguments: keyword arguments for the function configured, all objects built.
      macros: values of the macros that are literals.
      text: the operative configuration, defaults included, as a gin file.
      unused: names bound in gin files that this run has no use for.
    """

    arguments: dict[str, Any]
    macros: dict[str, Any]
    text: str
    unused: tuple[str, ...]

    def arguments_of(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Those arguments that `function` takes as well."""
        names = gin_static.parameters(function)
        return {name: value for name, value in self.arguments.items() if name in names}


def load_flags(root: Callable[..., Any], args: argparse.Namespace, **kwargs: Any) -> Config:
    """`load` with the flags of `gin_flags`."""
    folders = [folder for folder in args.gin_search_paths.split(",") if folder]
    return load(root, args.gin_file, args.gin_bindings, folders, **kwargs)


def load(
    root: Callable[..., Any],
    files: Iterable[str],
    bindings: Iterable[str] = (),
    search_paths: Iterable[str] = (),
    *,
    imports: str = "",
    placeholders: Mapping[str, Any] | None = None,
) -> Config:
    """Reads, checks and builds the arguments of `root`.

    Args:
      root: the function that is configured, for example `training.train.train`.
      files: gin files, applied in order.
      bindings: `NAME=value` or `module.function.argument=value`, applied last.
      search_paths: folders to look for files in before the package.
      imports: import statements of a gin file; the command line knows their names in any case.
      placeholders: values of macros that are referred to and not defined, where it does not matter.

    Raises:
      ConfigError: see the module's docstring.
    """
    files, bindings, search_paths = list(files), list(bindings), list(search_paths)
    statements = gin_static.read(files, bindings, search_paths, imports)
    idle = _idle_macros(statements, root)
    missing = _wanted_macros(statements).keys() - statements.macros.keys()
    values = {**dict.fromkeys(idle), **(placeholders or {})}
    fillers = [f"{name}={value!r}" for name, value in values.items() if name in missing]
    if fillers:
        bindings = [*fillers, *bindings]
        statements = gin_static.read(files, bindings, search_paths, imports)
    unused = check(statements, root, idle)
    _parse(statements, files, bindings, search_paths)
    arguments = _build(root, statements)
    macros = {
        name: binding.value
        for name, binding in statements.macros.items()
        if not any(gin_static.references(binding.value))
    }
    return Config(arguments, macros, _operative_text(root), unused)


def check(
    statements: Statements, root: Callable[..., Any], idle: Collection[str] = ()
) -> tuple[str, ...]:
    """Checks macros, types and required values; returns the names of unused bindings of files.

    Types are those of what the run uses: a macro may be of another type for a network that a later
    file replaces.

    Args:
      statements: of all files and the command line.
      root: the function that is configured.
      idle: macros whose values do not matter.

    Raises:
      ConfigError: at the first mistake. A command-line binding without effect is one.
    """
    _check_macros(statements)
    mistakes = {
        key: mistake
        for key, binding in statements.bindings.items()
        if not any(macro in idle for macro in _macros_in(binding.value, statements.macros))
        and (mistake := _type_mistake(binding, statements.macros))
    }
    try:
        used = _reach(statements, root, "", frozenset(), set())
    except ConfigError as error:  # as likely as not because of a wrong type
        raise ConfigError(next(iter(mistakes.values()), str(error))) from None
    for key, mistake in mistakes.items():
        if key in used or statements.bindings[key].where == gin_static.COMMAND_LINE:
            raise ConfigError(mistake)
    unused = [b for key, b in statements.bindings.items() if key not in used]
    for binding in unused:
        if binding.where == gin_static.COMMAND_LINE:
            raise ConfigError(
                f"command line: {binding.name} has no effect: nothing that this run builds uses it"
            )
    return tuple(binding.name for binding in unused)


def _idle_macros(statements: Statements, root: Callable[..., Any]) -> set[str]:
    """Macros that nothing defines and only bindings that this run has no use for refer to.

    `train.init_from = None` leaves `InitFrom.path = %INITIAL_CHECKPOINT_PATH` of a file unused.
    """
    missing = _wanted_macros(statements).keys() - statements.macros.keys() - {REQUIRED}
    if not missing:
        return set()
    used = _reach(statements, root, "", frozenset(), set())
    values = [statements.bindings[key].value for key in used]
    return missing.difference(*(_macros_in(value, statements.macros) for value in values))


def _macros_in(value: Any, macros: Mapping[str, Binding]) -> set[str]:
    """Macros that a value refers to, also through other macros."""
    found: set[str] = set()
    pending = [value]
    while pending:
        for ref in gin_static.references(pending.pop()):
            if isinstance(ref, Macro) and ref.name not in found:
                found.add(ref.name)
                pending += [macros[ref.name].value] if ref.name in macros else []
    return found


def _wanted_macros(statements: Statements) -> dict[str, Binding]:
    """Name of each macro that is referred to -> a binding that does."""
    return {
        ref.name: binding
        for binding in [*statements.bindings.values(), *statements.macros.values()]
        for ref in gin_static.references(binding.value)
        if isinstance(ref, Macro)
    }


def _check_macros(statements: Statements) -> None:
    wanted = _wanted_macros(statements)
    required = wanted.pop(REQUIRED, None)
    if required:
        raise ConfigError(f"{required.where}: {required.name} is required; {_how_to(required)}")
    for name, binding in wanted.items():
        if name not in statements.macros:
            hint = nearest(name, statements.macros.keys() - wanted.keys() - COMMAND_MACROS)
            raise ConfigError(
                f"{binding.where}: {binding.name} refers to %{name}, which nothing defines{hint}; "
                f"add --gin.{name}=…"
            )
    for name, binding in statements.macros.items():
        if name not in wanted and name not in COMMAND_MACROS:
            hint = nearest(name, wanted)
            raise ConfigError(f"{binding.where}: {name} is defined, but nothing refers to it{hint}")
        _check_no_cycle(binding, statements.macros, ())


def _check_no_cycle(binding: Binding, macros: Mapping[str, Binding], seen: tuple[str, ...]) -> None:
    if binding.name in seen:
        raise ConfigError(f"{binding.where}: {binding.name} is defined by itself")
    for ref in gin_static.references(binding.value):
        if isinstance(ref, Macro):
            _check_no_cycle(macros[ref.name], macros, (*seen, binding.name))


def _how_to(binding: Binding) -> str:
    return f"set it in a later gin file or with --gin.{binding.name}=…"


def _type_mistake(binding: Binding, macros: Mapping[str, Binding]) -> str | None:
    assert binding.target is not None
    hint = hints(binding.target).get(binding.arg, inspect.Parameter.empty)
    if fits(binding.value, hint, macros):
        return None
    macro = f" (%{binding.value.name})" if isinstance(binding.value, Macro) else ""
    where = macros[binding.value.name].where if macro else binding.where
    return (
        f"{where}: {binding.name}{macro} must be {describe(hint)}, "
        f"not {_spell(binding.value, macros)}"
    )


def _spell(value: Any, macros: Mapping[str, Binding]) -> str:
    """A value as gin files spell it, macros replaced by what they stand for."""
    if isinstance(value, Macro):
        return _spell(macros[value.name].value, macros)
    if isinstance(value, Reference):
        scope = f"{value.scope}/" if value.scope else ""
        return f"@{scope}{value.name}{'()' if value.evaluate else ''}"
    if isinstance(value, list | tuple) and any(gin_static.references(value)):
        return f"({', '.join(_spell(item, macros) for item in value)})"
    return repr(value)


def _reach(
    statements: Statements,
    target: Callable[..., Any],
    scope: str,
    supplied: frozenset[str],
    active: set[tuple[str, Any]],
) -> set[tuple[str, Any, str]]:
    """Follows calls from `target` as gin will make them; returns the keys of bindings used.

    Raises:
      ConfigError: a call lacks a required argument, or a function is an argument of itself.
    """
    if (scope, target) in active:
        raise ConfigError(f"{_name(target)} is, through its arguments, an argument of itself")
    active = active | {(scope, target)}
    parts = scope.split("/") if scope else []
    keys: dict[str, tuple[str, Any, str]] = {}  # the innermost scope wins, as in gin
    used = set()
    for depth in range(len(parts) + 1):
        prefix = "/".join(parts[:depth])
        for key in statements.bindings:
            if key[:2] == (prefix, target):
                keys[key[2]] = key
                used.add(key)
    for parameter in gin_static.parameters(target).values():
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if needed and parameter.name not in keys and parameter.name not in supplied:
            at = f"{scope}/" if scope else ""
            raise ConfigError(f"{at}{_name(target)}.{parameter.name} is required, but not set")
    for key in keys.values():
        for ref in _expand(statements.bindings[key].value, statements.macros):
            # A function passed uncalled gets arguments later that nobody knows here.
            later = frozenset(() if ref.evaluate else gin_static.parameters(ref.target))
            used |= _reach(statements, ref.target, ref.scope or scope, later, active)
    return used


def _expand(value: Any, macros: Mapping[str, Binding]) -> Iterable[Reference]:
    for ref in gin_static.references(value):
        if isinstance(ref, Macro):
            if ref.name in macros:
                yield from _expand(macros[ref.name].value, macros)
        else:
            yield ref


def _name(target: Callable[..., Any]) -> str:
    """`train.Phase` for a class of training/train.py: what gin files call it."""
    return f"{target.__module__.rpartition('.')[2]}.{target.__qualname__}"


def _parse(
    statements: Statements, files: list[str], bindings: list[str], search_paths: list[str]
) -> None:
    """Lets gin bind for itself what has been checked."""
    gin.clear_config()
    # Set rather than appended to, so that one load does not see the folders of another. Gin's other
    # reader, of package resources, logs an error for every folder that lacks a file.
    gin_internals._LOCATION_PREFIXES[:] = ["", *search_paths, str(gin_static.PACKAGE)]
    gin_internals._FILE_READERS[:] = [(open, os.path.isfile)]
    # The command line speaks in the names that the files import.
    imports = sorted(statements.imports.values(), key=lambda text: "__gin__" not in text)
    try:
        for file in files:
            gin.parse_config_file(file)
        gin.parse_config([*imports, *bindings])
        gin.finalize()
    except Exception as error:  # gin raises whatever the code that it calls raises
        raise ConfigError(_without_context(error)) from error


def _build(root: Callable[..., Any], statements: Statements) -> dict[str, Any]:
    try:
        return gin.get_bindings(root)
    except Exception as error:  # constructors raise what they like about their arguments
        settings = _macros_meant(str(error), statements)
        raise ConfigError(_without_context(error) + settings) from error


def _macros_meant(message: str, statements: Statements) -> str:
    """` (steps: %TRAIN_STEPS)` for the arguments that an error of gin's is about."""
    message, _, context = message.partition("\n  In call to configurable ")
    call = re.match(r"'([^']+)'[^\n]*?(?: in scope '([^']*)')?(?:\n|$)", context)
    if not call:
        return ""
    name, scope = call[1].rpartition(".")[2], call[2] or ""
    macros = {
        binding.arg: f"{binding.arg}: %{binding.value.name}"
        for binding in sorted(statements.bindings.values(), key=lambda b: len(b.scope))
        if isinstance(binding.value, Macro)
        and getattr(binding.target, "__name__", "") == name
        and f"{scope}/".startswith(f"{binding.scope}/" if binding.scope else "")
        and re.search(rf"\b{binding.arg}\b", message)
    }
    return f" ({', '.join(macros.values())})" if macros else ""


def _without_context(error: Exception) -> str:
    """Gin appends the calls that led to an error, with addresses; the innermost name is enough."""
    message, *calls = str(error).split("\n  In call to configurable ")
    return f"{calls[0].split()[0].strip(chr(39))}: {message}" if calls else message


def _operative_text(root: Callable[..., Any]) -> str:
    """What was used to build, with defaults. Gin has seen every call but that of `root` itself."""
    registered = gin_internals._inverse_lookup(root)
    assert registered is not None, "a file or the command line binds its arguments"
    defaults = {
        name: parameter.default
        for name, parameter in gin_static.parameters(root).items()
        if parameter.default is not parameter.empty
    }
    bound = gin.get_bindings(root, resolve_references=False)
    with gin_internals._OPERATIVE_CONFIG_LOCK:
        gin_internals._OPERATIVE_CONFIG["", registered.selector] = defaults | bound
    return gin.operative_config_str(max_line_length=100)
