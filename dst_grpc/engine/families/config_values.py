"""Reading a checkpoint's `config.json`: typed values, and refusals that name the key.

A value that would change the arithmetic and that the decoder does not implement must be refused, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dst_grpc.domain.architecture import ActivationFunction
from dst_grpc.engine.files import corrupt, read_small

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from dst_grpc.engine.files import File
    from dst_grpc.errors import DataLoss

UNKNOWN = "is not known here, and might change what is computed: if it does not, take it out"
"""The problem of a key or tensor that has no meaning here."""
_MAX_SIZE = 2**31 - 1
_SMALLEST, _LARGEST = 2.0**-126, 2.0**128
"""Positive numbers of float32: what is computed from them stays within float64."""

_ACTIVATIONS = {
    "gelu": ActivationFunction.GELU,
    "gelu_fast": ActivationFunction.GELU_TANH,
    "gelu_new": ActivationFunction.GELU_TANH,
    "gelu_pytorch_tanh": ActivationFunction.GELU_TANH,
    "relu": ActivationFunction.RELU,
    "silu": ActivationFunction.SILU,
    "swish": ActivationFunction.SILU,
}
"""Activation functions by the names that configs give them; gelu's tanh form has three."""


@dataclass(frozen=True, slots=True)
class ConfigValues:
    """The values of one `config.json`, or of an object within it."""

    path: Path
    """Where it was read."""
    values: Mapping[str, Any]
    """What it holds."""
    within: str = ""
    """Prefix of keys in messages: the keys of the enclosing objects, each with a dot."""

    @classmethod
    def read(cls, file: File) -> ConfigValues:
        """Read *file*; raises DataLoss if it is missing or not a JSON object."""
        path = file.path
        try:
            values = json.loads(read_small(file))
        except (ValueError, RecursionError) as error:
            raise corrupt(path, f"is no sound JSON: {error}") from error
        if not isinstance(values, dict):
            raise corrupt(path, "is no JSON object")
        return cls(path, values)

    def refusal(self, key: str, problem: str) -> DataLoss:
        """The error for the value of *key*."""
        error = corrupt(self.path, f"{self.within}{key} {problem}")
        error.metadata["key"] = self.within + key
        return error

    def renamed(self, aliases: Mapping[str, str]) -> ConfigValues:
        """These values with every alias replaced by its key, whose own value it overrides."""
        own = {key: value for key, value in self.values.items() if key not in aliases}
        return replace(self, values=own | {aliases[key]: self.values[key] for key in self.values if key in aliases})

    def over(self, defaults: Mapping[str, Any]) -> ConfigValues:
        """These values, with *defaults* for absent keys; a key that holds null is not absent."""
        return replace(self, values={**defaults, **self.values})

    def nested(self, key: str) -> ConfigValues | None:
        """The object under *key*, or None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refusal(key, f"must be an object, not {value!r}")
        return replace(self, values=value, within=f"{self.within}{key}.")

    def size(self, key: str, *others: str, default: int | None = None, at_most: int = _MAX_SIZE) -> int:
        """A positive integer under *key* or one of its *others*; null counts as absent."""
        for name in (key, *others):
            value = self.values.get(name)
            if value is None:
                continue
            if type(value) is not int or not 0 < value <= at_most:
                raise self.refusal(name, f"must be an integer between 1 and {at_most}, not {value!r}")
            return value
        if default is None:
            raise self.refusal(key, "is missing")
        return default

    def positive(self, key: str, default: float | None = None) -> float:
        """A positive number; it may only be absent if there is a *default*, and may not be null."""
        if default is None and key not in self.values:
            raise self.refusal(key, "is missing")
        value = self.positive_or_none(key) if key in self.values else default
        if value is None:
            raise self.refusal(key, "must be a positive number, not None")
        return value

    def positive_or_none(self, key: str) -> float | None:
        """A positive number, or None if it is null or absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.refusal(key, f"must be a positive number, not {value!r}")
        if not _SMALLEST <= value <= _LARGEST:
            raise self.refusal(key, f"must be within float32's range, not {value!r}")
        return float(value)

    def list_of(self, key: str, length: int, allowed: Collection[Any], *, or_longer: bool = False) -> list[Any] | None:
        """A list of *length* of the *allowed* values, cut to it if it may be longer; None if null or absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < length or (len(value) > length and not or_longer):
            raise self.refusal(key, f"must be a list of {length} values, one per layer, not {value!r}")
        for one in value:
            if not isinstance(one, Hashable) or one not in allowed:
                raise self.refusal(key, f"holds {one!r}, which is not supported: {_either(allowed)}")
        return value[:length]

    def activation(self, key: str) -> ActivationFunction:
        """The function under *key*."""
        name = self.text(key)
        if name not in _ACTIVATIONS:
            raise self.refusal(key, f"is {name!r}, which is not supported: it must be {_either(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def text(self, key: str) -> str:
        """A string."""
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.refusal(key, "is missing" if value is None else f"must be a text, not {value!r}")
        return value

    def flag(self, key: str, *, default: bool | None = None) -> bool:
        """A boolean; it may only be absent if there is a *default*."""
        if default is None and key not in self.values:
            raise self.refusal(key, "is missing")
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, f"must be true or false, not {value!r}")
        return value

    def require(self, key: str, supported: Collection[Any]) -> None:
        """Raise DataLoss unless *key* is absent or holds one of the *supported* values."""
        if problem := self.unsupported(key, supported):
            raise self.refusal(key, problem)

    def unsupported(self, key: str, supported: Collection[Any]) -> str:
        """What is wrong with *key*; empty if it is absent or holds one of the *supported* values."""
        if key not in self.values or any(self.values[key] is v or self.values[key] == v for v in supported):
            return ""
        return f"is {self.values[key]!r}, which is not supported: it must be {_either(supported)}"

    def unknown(self, known: Collection[str]) -> list[str]:
        """The keys that are not *known* and hold anything but null."""
        return [key for key in sorted(self.values.keys() - set(known)) if self.values[key] is not None]

    def refuse_others(self, known: Collection[str]) -> None:
        """Raise DataLoss if a key that is not *known* holds anything but null."""
        for key in self.unknown(known):
            raise self.refusal(key, UNKNOWN)


def _either(values: Collection[Any]) -> str:
    return " or ".join(json.dumps(value) for value in values)
