"""Numbers, texts, and any value of a dataclass by the types of its fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

kept = lru_cache(maxsize=1024)
"""Of functions that make strategies: Hypothesis checks each that is new to it, which takes longer than an example."""

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
counts = st.integers(1, 2**32 - 1)
int32 = st.integers(-(2**31) + 1, 2**31 - 1)
layers = st.integers(0, 40) | uint32
doubles = st.floats(allow_nan=False)
floats32 = st.floats(width=32, allow_nan=False)
finite_floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
seconds = st.integers(0, 10**12).map(lambda micros: micros / 10**6)
"""Times that are whole nanoseconds, as those that travel exactly are."""
timeouts = st.integers(1, 10**15).map(lambda nanoseconds: nanoseconds / 10**9)
moments = st.integers(0, 10**16).map(lambda micros: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ascii_characters = st.characters(codec="ascii")
"""For expressions that match no others: of all characters, the first use takes seconds."""
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,12}", fullmatch=True, alphabet=ascii_characters)
pairs_by_key = st.dictionaries(texts, texts, max_size=3).map(lambda pairs: tuple(sorted(pairs.items())))


@kept
def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@kept
def tuples(values: st.SearchStrategy[Any], max_size: int = 3, **kwargs: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=max_size, **kwargs).map(tuple)


V = TypeVar("V")
_OWN: dict[type, st.SearchStrategy[Any]] = {}


def own(cls: type[V], values: st.SearchStrategy[V]) -> st.SearchStrategy[V]:
    """Make *values* those of *cls*, which has rules that the types of its fields do not tell."""
    _OWN[cls] = values
    return values


def values_of(cls: type[V]) -> st.SearchStrategy[V]:
    """Any value of a dataclass."""
    return _OWN[cls] if cls in _OWN else own(cls, built(cls))


def built(cls: type[V], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[V]:
    """*cls* of any fields but those *given*."""
    hints, chosen = get_type_hints(cls), dict(given)
    for field in fields(cls):  # type: ignore[arg-type]  # a dataclass
        if field.init and field.name not in given:
            chosen[field.name] = _of_type(hints[field.name], field.name)
    return st.builds(cls, **chosen)


def _of_type(hint: Any, name: str) -> st.SearchStrategy[Any]:
    """Of a field called *name*; numbers are as wide as the protos have them."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return st.one_of([_of_type(one, name) for one in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return tuples(_of_type(arguments[0], name))
    if origin is tuple:
        return st.tuples(*(_of_type(one, name) for one in arguments))
    if hint in _OWN or is_dataclass(hint):
        return st.deferred(lambda: values_of(hint))
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    return _SCALARS[hint](name)


_SCALARS: dict[type, Callable[[str], st.SearchStrategy[Any]]] = {
    NoneType: lambda _: st.none(),
    bool: lambda _: st.booleans(),
    int: lambda name: uint64 if "byte" in name or name in {"hits", "floating_point_operations"} else uint32,
    float: lambda name: seconds if name.endswith(("duration", "ttl", "wait", "patience")) else doubles,
    str: lambda _: texts,
    datetime: lambda _: moments,
}
