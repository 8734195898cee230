"""Which keys a format's config may hold: those that are read, those that change nothing, those that must not be set.

A key in none of these might change what an autoencoder computes, so it is refused by name rather than ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dst_grpc.engine.families.config_values import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.engine.families.config_values import ConfigValues


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKeys:
    """The keys of one object in a config."""

    read: frozenset[str]
    """Keys that the format's code reads."""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys that change what is computed, with the supported values; they may be absent."""
    harmless: frozenset[str] = frozenset()
    """Keys that do not change what the autoencoder computes: about its training, or for other programs."""

    def check(self, config: ConfigValues) -> None:
        """Raise DataLoss, naming every one, if a key of *config* is not known or has a value that is not supported."""
        problems = {
            key: problem for key, supported in self.only.items() if (problem := config.unsupported(key, supported))
        }
        problems |= dict.fromkeys(config.unknown({*self.read, *self.only, *self.harmless}), UNKNOWN)
        if problems:
            (first, problem), *others = problems.items()
            raise config.refusal(first, "; ".join([problem, *(f"{key} {text}" for key, text in others)]))
