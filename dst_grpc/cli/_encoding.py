"""Which characters an output can show. Imports nothing: it is asked before all else of the command line is imported."""

from __future__ import annotations


def has_every_character(encoding: str) -> bool:
    """Whether an *encoding* of output, by its name, has every character: one of UTF."""
    return encoding.lower().startswith("utf")
