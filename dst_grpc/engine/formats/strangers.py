"""Weights that are published in formats of other programs: what they are, and what to do with them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_KINDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"(.+/)?(optimizer|lr_scheduler)(_\d+)?\.pt|(.+/)?(state|rank_\d+_state|trainer_state)\.pt"),
        "are states of a training run, and no autoencoder lies beside them",
    ),
)
"""Patterns of names below a set's folder, and what such files are, as the predicate of a sentence."""


def what_they_are(names: Iterable[str]) -> str:
    """What files called *names* are, as the predicate of a sentence about them; empty if that is not known."""
    found = {next((text for pattern, text in _KINDS if pattern.fullmatch(name)), "") for name in names}
    return found.pop() if len(found) == 1 else ""
