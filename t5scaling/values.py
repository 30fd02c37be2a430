"""What a value may be, as an annotation says it: compared, described, and the nearest that fits.

Bounds stand in the annotations themselves, `batch_size: Positive`, so that a setting is described
where it is used, and `config` compares every value that gin binds, in one place, before anything
is called.
"""

import ast
import collections.abc
import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from t5scaling import storage
from t5scaling.errors import UserError

TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
LONGEST = 1 << 16  # tokens of a row: beyond it attention alone takes the memory of any device


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Numbers from `low` to `high`; without `low` itself if `above`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def allows(self, value: Any) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def words(self) -> str:
        low = f" above {_number(self.low)}" if self.above else f" from {_number(self.low)}"
        high = "" if self.high == math.inf else f" to {_number(self.high)}"
        if self.above:
            return f"{low}{high and ' and up' + high}"
        return f"{low}{high or ' up'}"

    def near(self, value: Any) -> Iterator[Any]:
        if isinstance(value, int | float) and not isinstance(value, bool):
            bounds = [b for b in (self.low, self.high) if math.isfinite(b)]
            yield from (type(value)(b) for b in sorted(bounds, key=lambda b: abs(b - value)))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


@dataclasses.dataclass(frozen=True)
class Keys:
    """Maps with these keys, `needed` or some of them."""

    keys: tuple[str, ...]
    needed: bool = True

    def allows(self, value: Any) -> bool:
        return set(value) <= set(self.keys) and (not self.needed or set(value) == set(self.keys))

    def words(self) -> str:
        return f" with {'the keys' if self.needed else 'keys of'} {', '.join(self.keys)}"

    def near(self, value: Any) -> Iterator[Any]:
        if isinstance(value, Mapping):
            yield {key: value[key] if key in value else next(iter(value.values()), 1)
                   for key in self.keys}  # fmt: skip
        elif isinstance(value, list | tuple) and len(value) == len(self.keys):
            yield dict(zip(self.keys, value, strict=True))
        else:
            yield dict.fromkeys(self.keys, value)
            yield {self.keys[0]: value}


@dataclasses.dataclass(frozen=True)
class Text:
    """Text that is not empty; a path's ~ is the home folder."""

    is_path: bool = False

    def allows(self, value: Any) -> bool:
        return bool(value.strip()) and "\0" not in value

    def words(self) -> str:
        return " that is not empty"

    def near(self, value: Any) -> Iterator[Any]:
        yield from ()


Positive = Annotated[int, Bounds(1)]
NonNegative = Annotated[int, Bounds(0)]
Seed = Annotated[int, Bounds(0, 2**32 - 1)]
Length = Annotated[int, Bounds(1, LONGEST)]
Lengths = Annotated[Mapping[str, Length], Keys(("inputs", "targets"))]
MeshShape = Annotated[Mapping[str, int], Keys(("data", "fsdp", "model"), needed=False)]
PositiveNumber = Annotated[float, Bounds(0, above=True)]
NonNegativeNumber = Annotated[float, Bounds(0)]
Name = Annotated[str, Text()]
Path = Annotated[str, Text(is_path=True)]

Constraint = Bounds | Keys | Text


@dataclasses.dataclass(frozen=True)
class Reference:
    """Gin's @name, or @name() if `called`: a function or class, or what it returns."""

    name: str
    target: Callable
    called: bool

    def __repr__(self) -> str:
        return f"@{self.name}{'()' if self.called else ''}"


def hints_of(target: Callable) -> dict[str, Any]:
    """Parameter -> annotation, of a function or a class; {} if they cannot be resolved."""
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def converted(value: Any, annotation: Any) -> Any:
    """The value as its annotation means it: true and false as spelled elsewhere, ~ in a path."""
    if not isinstance(value, str):
        return value
    if bool in _choices(annotation) and value.strip().lower() in TRUTH:
        return TRUTH[value.strip().lower()]
    if any(c.is_path for c in _constraints(annotation) if isinstance(c, Text)):
        return storage.expanded(value)
    return value


def _named(kind: type) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def check(name: str, value: Any, annotation: Any, named: Callable[[type], str] = _named) -> None:
    """Raises UserError if the value is none that the annotation describes.

    `named`: what a user calls a class.
    """
    if fits(value, annotation):
        return
    near = next((v for v in _nearby(value, annotation) if fits(v, annotation)), None)
    hint = "" if near is None else f"; did you mean {near!r}?"
    shown = repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:100]}..."
    raise UserError(f"{name} is {shown}; expected {describe(annotation, named)}{hint}")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is what the annotation describes; a Reference counts as what it refers to."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (Any, inspect.Parameter.empty) or isinstance(annotation, typing.TypeVar):
        return True
    if origin is Annotated:
        return fits(value, arguments[0]) and all(
            constraint.allows(value)
            for constraint in arguments[1:]
            if isinstance(constraint, Constraint)
        )
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if annotation in (None, types.NoneType):
        return value is None
    if annotation is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if isinstance(value, Reference):
        return _refers(value, annotation, origin)
    if origin is tuple and arguments[-1:] != (...,):
        return isinstance(value, list | tuple) and len(value) == len(arguments) and all(
            fits(v, a) for v, a in zip(value, arguments, strict=True)
        )  # fmt: skip
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, arguments[0]) and fits(item, arguments[1]) for key, item in value.items()
        )
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(fits(v, arguments[0]) for v in value)
    if origin is collections.abc.Callable or annotation is Callable:
        return callable(value)
    if isinstance(annotation, type):
        return getattr(annotation, "_is_protocol", False) or isinstance(value, annotation)
    return True


def _refers(value: Reference, annotation: Any, origin: Any) -> bool:
    is_function = origin is collections.abc.Callable or annotation is Callable
    if not value.called:
        return is_function
    made = value.target
    if not isinstance(made, type):
        made = hints_of(made).get("return", Any)
    if made is Any or typing.get_origin(made) in (Union, types.UnionType):
        return True
    made = typing.get_origin(made) or made
    if is_function:
        return made is collections.abc.Callable or "__call__" in dir(made)
    wanted = origin or annotation
    if not isinstance(made, type) or not isinstance(wanted, type):
        return True
    return getattr(wanted, "_is_protocol", False) or issubclass(made, wanted)


def describe(annotation: Any, named: Callable[[type], str] = _named) -> str:
    """The annotation in words: "a whole number from 1 up or None"."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        if Text(is_path=True) in arguments:
            return "a path"
        limits = "".join(c.words() for c in arguments[1:] if isinstance(c, Constraint))
        return describe(arguments[0], named) + limits
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(argument, named) for argument in arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if annotation in (None, types.NoneType):
        return "None"
    plain = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
    if annotation in plain:
        return plain[annotation]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a map of {_several(arguments[0], named)} to {_several(arguments[1], named)}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {_several(arguments[0], named)}"
    if origin is collections.abc.Callable or annotation is Callable:
        return "a function, by gin's @"
    if isinstance(annotation, type):
        return f"@{named(annotation)}()"
    return str(annotation)


def _several(annotation: Any, named: Callable[[type], str]) -> str:
    one = describe(annotation, named)
    for singular, plural in (
        ("a whole number", "whole numbers"),
        ("a number", "numbers"),
        ("a function", "functions"),
        ("a map of", "maps of"),
        ("text that is", "texts that are"),
        ("text", "texts"),
    ):
        if one.startswith(singular):
            return plural + one.removeprefix(singular)
    return one


def _choices(annotation: Any) -> list[Any]:
    """The members of a union, without what is annotated to them."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _choices(arguments[0])
    if origin in (Union, types.UnionType):
        return [choice for argument in arguments for choice in _choices(argument)]
    return [annotation]


def _constraints(annotation: Any) -> Iterator[Constraint]:
    """Those of the annotation itself and of a union's members, not of a list's."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from (c for c in arguments[1:] if isinstance(c, Constraint))
        yield from _constraints(arguments[0])
    if origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _constraints(argument)


def _nearby(value: Any, annotation: Any) -> Iterator[Any]:
    """Values like this one, the likeliest meant first."""
    for like in (value, *_read_as(value)):
        if like is not value:
            yield like
        yield (like,)
        for constraint in _constraints(annotation):
            yield from constraint.near(like)
    if isinstance(value, Reference):
        for called in (True, False):
            other = dataclasses.replace(value, called=called)
            yield from (other, (other,))
    if isinstance(value, list | tuple) and len(value) == 1:
        yield value[0]
    yield str(value)


def _read_as(value: Any) -> Iterator[Any]:
    """A text as the number or list that it spells, a number as a whole one, their absolute."""
    read = [value]
    if isinstance(value, str):
        for text in (value, value.replace(",", "")):
            try:
                read.append(ast.literal_eval(text.strip()))
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
        if value.strip().lower() == "none":
            read.append(None)
    for like in read:
        if like is not value:
            yield like
        if isinstance(like, bool):
            yield int(like)
        elif isinstance(like, int) and like in (0, 1):
            yield bool(like)
        elif isinstance(like, float) and math.isfinite(like):
            yield from (int(like), round(like))
        if isinstance(like, list | tuple):
            whole = [int(v) if isinstance(v, float) and math.isfinite(v) else v for v in like]
            yield tuple(whole)
