"""Values of requests from what callers give: what is of a wrong type is named, before it fails somewhere inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from numbers import Real
from operator import index
from types import NoneType, UnionType
from typing import Any, NamedTuple, ParamSpec, SupportsIndex, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from dst_grpc.errors import InvalidRequest, join_path

P = ParamSpec("P")
T = TypeVar("T")

_WORDS = {int: "an integer", float: "a number", str: "a text", bool: "True or False", NoneType: "None"}


def given(path: str, cls: Callable[P, T], /, *_: P.args, **fields: P.kwargs) -> T:
    """A value of the dataclass *cls* with these *fields*, the part of a request at *path*.

    Raises:
        TypeError: If a field is of a wrong type; it is named by its path. Numbers may be numpy's.
        InvalidRequest: As *cls*, with *path* before its paths.
    """
    types = _types_of(cls)
    typed: dict[str, Any] = {name: _typed(path, name, value, types[name]) for name, value in fields.items()}
    try:
        return cls(**typed)  # type: ignore[call-arg]  # the same fields, of the right types
    except InvalidRequest as error:
        raise error.under(path) from None


def tuple_of(path: str, values: Iterable[T]) -> tuple[T, ...]:
    """*values* as a tuple; raises TypeError, naming *path*, if they are no iterable."""
    try:
        return tuple(values)
    except TypeError:
        raise TypeError(f"{path} must be an iterable, not {values!r}") from None


def integers(path: str, values: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """*values* as integers; raises TypeError, naming *path*, if they are none."""
    found: tuple[int, ...] = _typed(path, "", tuple_of(path, values), _type_of(tuple[int, ...]))
    return found


def integer(path: str, value: SupportsIndex) -> int:
    """*value*, which may be numpy's; raises TypeError, naming *path*, if it is no integer."""
    found: int = _typed(path, "", value, _type_of(int))
    return found


def text(path: str, value: str) -> str:
    """*value*; raises TypeError, naming *path*, if it is no text."""
    found: str = _typed(path, "", value, _type_of(str))
    return found


def how_many(path: str, value: SupportsIndex) -> int:
    """How many are wanted; raises TypeError if *value* is no integer, InvalidRequest if it is negative."""
    found = integer(path, value)
    if found < 0:
        raise InvalidRequest.of(path, f"must be 0 or more, not {found}")
    return found


def seconds(value: float | None, path: str = "timeout") -> float | None:
    """A time limit; raises TypeError if it is no number, InvalidRequest if it is NaN."""
    found: float | None = _typed(path, "", value, _type_of(float | None))
    if found is not None and math.isnan(found):
        raise InvalidRequest.of(path, "must be a number of seconds, not nan")
    return found


class _Type(NamedTuple):
    """The type of a field."""

    kinds: tuple[Any, ...]
    """Its alternatives."""
    exact: frozenset[Any]
    """Classes whose instances are taken as they are, without a closer look."""
    each: _Type | None
    """If a tuple is among the alternatives: what it holds."""


@cache
def _types_of(cls: Any) -> Mapping[str, _Type]:
    return {name: _type_of(hint) for name, hint in get_type_hints(cls).items()}


@cache
def _type_of(hint: Any) -> _Type:
    kinds = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    each = [get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple]
    exact = frozenset(kind for kind in kinds if get_origin(kind) is None)
    return _Type(kinds, exact, _type_of(each[0]) if each else None)


def _typed(path: str, name: str, value: Any, wanted: _Type) -> Any:
    """*value*, the field *name* of what is at *path*, as one of the *wanted* types; raises TypeError."""
    if type(value) in wanted.exact:
        return value
    if wanted.each is not None and isinstance(value, tuple):
        if wanted.each.exact.issuperset(map(type, value)):
            return value
        own = join_path(path, name)
        return tuple(_typed(f"{own}[{i}]", "", one, wanted.each) for i, one in enumerate(value))
    for kind in wanted.kinds:
        if kind is int and hasattr(value, "__index__") and not isinstance(value, np.ndarray):
            return index(value)
        if kind is float and isinstance(value, Real):
            return float(value)
        if kind is bool and isinstance(value, np.bool_):
            return bool(value)
        if isinstance(value, get_origin(kind) or kind):
            return value
    raise TypeError(f"{join_path(path, name)} must be {' or '.join(map(_word, wanted.kinds))}, not {value!r}")


def _word(kind: Any) -> str:
    """What *kind* of values is called."""
    if kind in _WORDS:
        return _WORDS[kind]
    if get_origin(kind) is tuple:
        return f"a tuple, each {_word(get_args(kind)[0])}"
    name = (get_origin(kind) or kind).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
