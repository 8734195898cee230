"""What a family of checkpoints is: one row of facts, and a table from its tensors to our weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Mapping

    import torch

    from dst_grpc.engine.decoder import DecoderConfig
    from dst_grpc.engine.families.config_values import ConfigValues


@dataclass(frozen=True, slots=True)
class Source:
    """Where one of our weights comes from."""

    names: tuple[str, ...]
    """Names in the checkpoint, `{i}` standing for the layer."""
    convert: Callable[[list[torch.Tensor], DecoderConfig], torch.Tensor]
    """From those tensors, as they lie in the file, to our weight; a view where it can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of checkpoints."""

    name: str
    """What the catalogue calls it."""
    model_types: tuple[str, ...]
    """Values of `model_type` in `config.json`."""
    read_config: Callable[[ConfigValues], DecoderConfig]
    """The architecture; raises DataLoss for a value that the decoder does not implement."""
    prefixes: tuple[str, ...]
    """What the checkpoint's names may begin with; the first that fits any name holds for all."""
    once: Mapping[str, Source]
    """Weights that exist once, by our name; those of the unembedding are in `unembedding`."""
    per_layer: Mapping[str, Source]
    """Weights of each layer, by our name without `layers.{i}.`."""
    unembedding: str
    """The checkpoint's name of the unembedding [V, d]; never prefixed, and absent where it is tied to the embedding."""
    is_tied: Callable[[ConfigValues], bool]
    """Whether the unembedding is the embedding."""
    skipped: re.Pattern[str]
    """Names that hold no weights: masks and the like."""


def as_is(tensors: list[torch.Tensor], _config: DecoderConfig) -> torch.Tensor:
    """The only tensor, unchanged."""
    return tensors[0]


def plain(name: str) -> Source:
    """One tensor that already has our layout."""
    return Source((name,), as_is)
