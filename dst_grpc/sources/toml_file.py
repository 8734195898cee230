"""TOML files that an operator wrote, and tables of them, with everything that is wrong by its path in the file."""

from __future__ import annotations

import difflib
import tomllib
from typing import TYPE_CHECKING, Any

from dst_grpc.errors import InvalidRequest
from dst_grpc.sources.specs import toml_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dst_grpc.errors import Violations

_KIND_NAMES: dict[type, str] = {str: "text", bool: "true or false", float: "a number", dict: "a table", list: "a list"}
_EXACT = 2**53
"""Whole numbers below it are numbers with a fraction too."""


def read_toml(file: Path) -> dict[str, Any]:
    """The content of *file*.

    Raises:
        InvalidRequest: It cannot be read, or is no TOML. Names the file without its folder: callers may be told.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # editors put a byte order mark before it
    except OSError as error:
        raise InvalidRequest.of("", f"{file.name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest.of("", f"{file.name} cannot be read: it is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise InvalidRequest.of("", f"{file.name} is no TOML for us: it is nested too deeply") from None
    except ValueError as error:  # tomllib's own error, or that of a number with too many digits
        raise InvalidRequest.of("", f"{file.name} is no TOML: {error}") from None


class Table:
    """A table of the file; notes wrong values, and unknown keys."""

    def __init__(self, content: dict[str, Any], path: str, problems: Violations) -> None:
        """Read *content*, which is at *path* in the file, noting *problems*."""
        self._content, self.path, self.problems = content, path, problems
        self._asked: list[str] = []
        self._wrong: set[str] = set()

    def take(self, key: str, kind: type[Any], default: Any) -> Any:
        """The value of *key*; *default* if it is absent, or not of its *kind*, which is noted."""
        self._asked.append(key)
        value = self._content.get(key, default)
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < _EXACT else None
        if key not in self._content or (type(value) is kind and value != ""):
            return value
        self.problem(key, "must not be empty" if value == "" else f"must be {_KIND_NAMES[kind]}")
        return default

    def check(self, condition: bool, key: str, description: str) -> None:
        """Note that something is wrong with *key* unless *condition* holds."""
        if not condition:
            self.problem(key, description)

    def problem(self, key: str, description: str) -> None:
        """Note that something is wrong with *key*."""
        self._wrong.add(key)
        self.problems.add(f"{self.path}.{key}" if self.path else key, description)

    def has_problem(self, key: str) -> bool:
        """Whether something is wrong with *key*."""
        return key in self._wrong

    def finish(self) -> None:
        """Note the keys that were not taken."""
        for key in self._content:
            if key not in self._asked:
                self.problem(toml_key(key), f"there is no such key{near(key, self._asked)}")


def near(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that says that there is no *name*: the *known* one that is near, if any is."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
