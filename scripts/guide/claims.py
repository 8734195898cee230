"""Pages whose prose names parts of the model and claims things about it: the names are found, the claims checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dst_grpc.client import Client


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that a page says about the model."""

    sentence: str
    """What it says."""
    holds: bool
    """Whether it is so."""


@dataclass(frozen=True, slots=True)
class Guide:
    """A page, and how it is made."""

    page: str
    """Its path below the root."""
    template: Path
    """Its prose, with names left open and outputs out of date."""
    names_and_claims: Callable[[Client], tuple[dict[str, str], list[Claim]]]
    """Asks a server for the names that the prose leaves open, and for what it claims."""

    def filled(self, names: dict[str, str]) -> str:
        """The page with its names, and without outputs."""
        text = self.template.read_text(encoding="utf-8")
        for name, value in names.items():
            text = text.replace(f"{{{name}}}", value)
        return text
