"""Reading a checkpoint's `config.json`: typed values, and refusals that name the key.

A value that would change the arithmetic and that the decoder does not implement must be refused, never ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dst_grpc.engine.files import corrupt, read_small

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from dst_grpc.errors import DataLoss

FILE_NAME = "config.json"
_MAX_SIZE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ConfigValues:
    """The values of one `config.json`."""

    path: Path
    """Where it was read."""
    values: Mapping[str, Any]
    """What it holds."""

    @classmethod
    def read(cls, folder: Path, name: str = FILE_NAME) -> ConfigValues:
        """Read the file *name* in *folder*; raises DataLoss if it is missing or no JSON object."""
        path = folder / name
        try:
            values = json.loads(read_small(path))
        except (ValueError, RecursionError) as error:
            raise corrupt(path, f"is no sound JSON: {error}") from error
        if not isinstance(values, dict):
            raise corrupt(path, "is no JSON object")
        return cls(path, values)

    def refusal(self, key: str, problem: str) -> DataLoss:
        """The error for the value of *key*."""
        error = corrupt(self.path, f"{key} {problem}")
        error.metadata["key"] = key
        return error

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

    def positive(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.refusal(key, f"must be a positive number, not {value!r}")
        return float(value)

    def text(self, key: str) -> str:
        """A text."""
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.refusal(key, "is missing" if value is None else f"must be a text, not {value!r}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """A boolean."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, f"must be true or false, not {value!r}")
        return value

    def require(self, key: str, supported: Collection[Any]) -> None:
        """Raise DataLoss unless *key* is absent or holds one of the *supported* values."""
        if key in self.values and not any(self.values[key] is v or self.values[key] == v for v in supported):
            wanted = " or ".join(json.dumps(value) for value in supported)
            raise self.refusal(key, f"is {self.values[key]!r}, which is not supported: it must be {wanted}")
