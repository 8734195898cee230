"""Labels of single places in a prompt."""

from __future__ import annotations


def token_at(position: int, text: str) -> str:
    """A token that may occur more than once: "9 ' John'"."""
    return f"{position} {text!r}"
