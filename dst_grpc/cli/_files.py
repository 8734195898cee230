"""Files that options name, read and written whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dst_grpc.errors import InvalidRequest


def read_text(path: Path, option: str) -> str:
    """The text of the file that *option* names; raises InvalidRequest if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest.of(option, f"cannot read {path}: {error}") from None


def read_json(path: Path, option: str) -> Any:
    """The JSON value in the file that *option* names; raises InvalidRequest if it cannot be read, or is none."""
    try:
        return json.loads(read_text(path, option))
    except ValueError as error:
        raise InvalidRequest.of(option, f"{path} is no JSON: {error}") from None


def write_text(path: Path, text: str, option: str) -> None:
    """Write *text* to the file that *option* names; raises InvalidRequest if it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidRequest.of(option, f"cannot write {path}: {error.strerror}") from None
