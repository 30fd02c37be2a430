"""Gin at the edge: files and `--gin.NAME=value` overrides -> one call of one library function.

Nothing else in the package knows gin. Gin files import the modules they bind (dynamic
registration), so library code carries no decorators.
"""

import contextlib
import copy
import inspect
import io
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config as gin_config
from t5scaling import storage, values
from t5scaling.errors import UserError, first_line, in_one_line, nearest

REQUIRED = gin.REQUIRED
_PACKAGE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(_PACKAGE)
# What holds `gin/`: the clone, or where the package was installed without one.
_SHIPPED = os.path.join(_PACKAGE, "files")
SHIPPED = _SHIPPED if os.path.isdir(_SHIPPED) else REPOSITORY


def _open(address: str) -> io.StringIO:
    """The text of a gin file. Raises UserError if it includes itself or is not UTF-8."""
    if address in _being_read:
        raise UserError(f"{' includes '.join([*_being_read, address])}, which never ends")
    try:
        content = storage.content_of(address)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise UserError(f"cannot read {address}: {error.strerror}") from None
    if "\0" in text:
        raise UserError(f"{address} is not UTF-8 text; is it a gin file?")
    _being_read.append(address)
    return _GinFile(text)


_being_read: list[str] = []


class _GinFile(io.StringIO):
    def __exit__(self, *_) -> None:
        _being_read.pop()


# Ours alone: gin's own readers know no byte order mark and no bucket, and log what they don't find.
# A list of Any, as gin's own list is inferred to hold `open` and nothing else.
_READERS: list[Any] = [(_open, lambda address: storage.path(address).is_file())]
gin_config._FILE_READERS[:] = _READERS


def gin_literal(value: str) -> str:
    """Returns `value` as gin text: a plain string that is not a gin value is put in quotes."""
    # A reference is a value whether or not there is what it names: `load` says so where not.
    looked_at = re.sub(r"@[\w./]+(\(\))?", "0", value)
    try:
        with _quiet():
            # Alone, gin would stop after the 1 of "1%". Of "1,2" these are two, and no gin value.
            one = len(gin_config.parse_value(f"({looked_at},)")) == 1
        return value if one and "\n" not in value.strip() else repr(value)
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError):
        return repr(value)


def load(
    gin_files: Sequence[str], bindings: Mapping[str, Any], optional: Sequence[str] = ()
) -> str:
    """Parses `gin_files`, then `bindings` over them: name -> Python value, or a string as typed
    on the command line (gin text, or a plain string without quotes).

    Macros that are `optional` are None where nothing sets them.

    Returns the whole parsed configuration as gin text, which can be parsed again. Raises UserError
    for a missing file, a syntax error, a name that nothing binds, or a value that does not match
    the parameter's annotation.
    """
    if not gin_files:
        raise UserError(
            "no --gin_file given; t5scaling comes with gin/models, gin/runs and gin/studies"
        )
    gin.clear_config()
    _being_read.clear()
    # Gin files are looked for beside the user first, then among ours.
    gin_config._LOCATION_PREFIXES[:] = ["", SHIPPED + os.sep]
    if REPOSITORY not in sys.path:
        sys.path.insert(0, REPOSITORY)
    for path in gin_files:
        if not storage.path(path).is_file() and not os.path.isfile(os.path.join(SHIPPED, path)):
            raise UserError(f"gin file not found: {path}{nearest(path, _known_gin_files())}")
        with _one_line_errors(path):
            gin.parse_config_file(path)
    for name in sorted(set(optional) & _referenced_macros() - _macros()):
        gin.parse_config(f"{name} = None")
    known = _macros()
    for name, value in bindings.items():
        if "." not in name and name not in known:
            raise UserError(f"--gin.{name}: no such parameter{nearest(name, known)}")
        literal = gin_literal(value) if isinstance(value, str) else repr(value)
        with _one_line_errors(f"--gin.{name}={literal}"):
            gin.parse_config([*_imports(), f"{name} = {literal}"])
    _refuse_circles()
    used = _referenced_macros()
    for name in sorted(used - _macros()):
        hint = (
            "a gin file of gin/models sets it" if name == "MODEL" else f"--gin.{name}=... sets it"
        )
        raise UserError(f"gin: {name} is read but not set; {hint}")
    for name in sorted(_macros()):
        if name not in used:
            raise UserError(f"gin: {name} is set but nothing reads it{nearest(name, used)}")
    _check_values()
    return text()


def text() -> str:
    """The whole parsed configuration, as `load` returned it."""
    return gin.config_str(max_line_length=100)


def call(function: Callable, **arguments: Any) -> Any:
    """Calls `function` with what gin binds for it; `arguments` go over that.

    Raises UserError as `require`.
    """
    require(function, *arguments)
    return function(**{**bindings_of(function), **arguments})


def require(function: Callable, *given: str) -> None:
    """Raises UserError naming the parameters of `function` that still need a value.

    `given`: parameters that the caller sets.
    """
    bound = bindings_of(function)
    missing = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and name not in bound and name not in given
    ]
    missing += [name for name in sorted(_macros()) if macro(name) is REQUIRED]
    if missing:
        raise UserError(f"{function.__name__} needs {', '.join(missing)}; set by --gin.NAME=value")


def bindings_of(function: Callable) -> dict[str, Any]:
    """The arguments that gin binds for `function`, with references and macros resolved.

    Empty if no gin file mentions it.
    """
    try:
        gin.get_configurable(function)
    except ValueError:
        return {}
    with _one_line_errors(function.__name__):
        return gin.get_bindings(function)


def macro(name: str) -> Any:
    """The value of macro `name` after `load`, or None when it is not set."""
    try:
        value = gin.query_parameter(f"{name}/gin.macro.value")
    except ValueError:
        return None
    return copy.deepcopy(value)  # a copy of one of gin's references is what it refers to


def _check_values() -> None:
    """Checks every bound value against its parameter's annotation, so that a mistake is reported
    before anything runs. Replaces spellings of true and false, and ~ in paths, by their values."""
    for key, parameters in list(gin_config._CONFIG.items()):
        scope, selector = key
        if selector in ("gin.macro", "gin.constant"):
            continue
        hints = values.hints_of(gin_config._REGISTRY[selector].wrapped)
        for name in list(parameters):
            annotation = hints.get(name, Any)
            place = (key, name)
            shown = ".".join([*selector.split(".")[-2:], name])
            if scope:
                shown = f"{scope}/{shown}"
            while isinstance(found := _at(place), gin_config.ConfigurableReference) and (
                found.config_key[1] == "gin.macro"
            ):
                shown = found.config_key[0]
                place = ((shown, "gin.macro"), "value")
            gin_config._CONFIG[place[0]][place[1]] = values.converted(found, annotation)
            with contextlib.suppress(_Unset):
                values.check(shown, _plain(_at(place), ()), annotation, _name_of)


def _name_of(kind: type) -> str:
    """The name of a class in a gin file: it begins with the module that the file imports, which
    need not be the one that defines the class."""
    for selector, configurable in gin_config._REGISTRY.items():
        if configurable.wrapped is kind:
            return ".".join(selector.split(".")[-2:])
    return kind.__name__


def _at(place: tuple[tuple[str, str], str]) -> Any:
    return gin_config._CONFIG[place[0]][place[1]]


class _Unset(Exception):
    """A required value that has not been set."""


def _plain(value: Any, inside: tuple[str, ...]) -> Any:
    """The value with macros resolved, and gin's other references as those of `values`.

    `inside`: the macros whose values it is part of.
    """
    if value is REQUIRED:
        raise _Unset
    if isinstance(value, Mapping):
        return {_plain(k, inside): _plain(v, inside) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, inside) for item in value)
    if not isinstance(value, gin_config.ConfigurableReference):
        return value
    name, selector = value.config_key
    if selector == "gin.macro":
        return _plain(_at(((name, selector), "value")), (*inside, name))
    target = gin_config._REGISTRY[selector].wrapped
    if target is gin_config._retrieve_constant:
        return _plain(copy.deepcopy(value), inside)  # REQUIRED, or another of gin's constants
    return values.Reference(repr(value)[1:].removesuffix("()"), target, value.evaluate)


def _refuse_circles() -> None:
    """Raises UserError for a macro whose value names the macro itself, in however many steps."""
    named = {
        scope: {
            reference.config_key[0]
            for reference in gin_config.iterate_references(parameters)
            if reference.config_key[1] == "gin.macro"
        }
        for (scope, selector), parameters in gin_config._CONFIG.items()
        if selector == "gin.macro"
    }
    for start in named:
        left, seen = list(named[start]), set()
        while left:
            name = left.pop()
            if name == start:
                raise UserError(f"gin: the value of {start} names {start} itself")
            if name not in seen:
                seen.add(name)
                left += named.get(name, ())


def _imports() -> list[str]:
    """The imports of all files, whose modules a reference on the command line may name."""
    lines = {statement.format() for statement in gin_config._IMPORTS}
    return sorted(lines, key=lambda line: ("__gin__" not in line, line))


def _macros() -> set[str]:
    return {scope for scope, selector in gin_config._CONFIG if selector == "gin.macro"}


def _referenced_macros() -> set[str]:
    return {
        reference.config_key[0]
        for _, _, value in _bindings()
        for reference in gin_config.iterate_references(value)
        if reference.config_key[1] == "gin.macro"
    }


def _bindings() -> Iterator[tuple[str, str, Any]]:
    for (_, selector), parameters in gin_config._CONFIG.items():
        for name, value in parameters.items():
            yield selector, name, value


def _known_gin_files() -> list[str]:
    found = []
    for folder, _, names in os.walk(os.path.join(SHIPPED, "gin")):
        found += [os.path.relpath(os.path.join(folder, n), SHIPPED) for n in names]
    return [path for path in found if path.endswith(".gin")]


def _reference_to(module: str, message: str) -> str:
    """The name in `module` that a message of gin, which quotes the binding, is about:
    "loop.train"."""
    quoted = re.search(rf"(@?)\b({module}\.[\w.]+)", message)
    if not quoted:
        return module
    at, name = quoted.groups()
    return name if at else name.rpartition(".")[0]  # of a binding without its parameter


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def _one_line_errors(where: str) -> Iterator[None]:
    """Turns gin's own complaints into one line with the nearest name."""
    try:
        yield
    except UserError as error:  # from a constructor; gin has added lines of its own
        raise UserError(first_line(error, 1000)) from error
    except tokenize.TokenError as error:
        reason, (line, _) = error.args
        raise UserError(f"{where}: {reason} before line {line}; is a bracket open?") from None
    except (RecursionError, MemoryError):
        raise UserError(f"{where}: too many brackets inside one another") from None
    except (
        SyntaxError, NameError, ValueError, AttributeError, ImportError, TypeError, OSError,
    ) as error:  # fmt: skip
        line = getattr(error, "lineno", None)
        place = f", line {line}" if line and not where.startswith("--gin.") else ""
        raise UserError(f"{where}{place}: {_explain(str(error))}") from error
    except Exception as error:  # of a constructor or a module of somebody else's
        raise UserError(f"{where}: {in_one_line(error)}") from error


def _explain(message: str) -> str:
    """The first line of gin's message, with the nearest existing name where the message is about an
    unknown name."""
    first = next((line.strip() for line in message.splitlines() if line.strip()), message)
    unknown_parameter = re.search(
        r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'", message
    )
    if unknown_parameter:
        selector, name = unknown_parameter.groups()
        with contextlib.suppress(ValueError):
            wrapped = gin.get_configurable(selector)
            return f"{selector} has no parameter {name!r}" + nearest(
                name, inspect.signature(wrapped).parameters
            )
    unknown_attribute = re.search(r"<module '([^']+)'.* has no attribute (\w+)", message)
    if unknown_attribute:
        module, name = unknown_attribute.groups()
        known = [n for n in vars(sys.modules[module]) if not n.startswith("_")]
        return f"{module} has nothing called {name!r}{nearest(name, known)}"
    unknown_function = re.search(
        r"No configurable matching (?:'([^']+)'|reference '@([^'(]+))", message
    )
    unknown_module = re.search(r"'(\w+)' was not provided by an import statement", message)
    name = None
    if unknown_function:
        name = unknown_function.group(1) or unknown_function.group(2)
    elif unknown_module:
        name = _reference_to(unknown_module.group(1), message)
    if name is not None:
        known = {
            ".".join(selector.split(".")[-2:]) for selector in gin_config._REGISTRY._selector_map
        }
        return f"nothing is called {name!r}{nearest(name, known)}"
    return first if " (line " not in first else first.rpartition(" (line ")[0]
