"""A family of checkpoints: one row of facts, and a table from its tensors to our weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Sequence

    import torch

    from dst_grpc.engine.decoder import DecoderConfig
    from dst_grpc.engine.families.config_values import ConfigValues

MAX_LAYERS = 1000
"""Most layers that a checkpoint may claim."""
MAX_WIDTH = 1 << 20
"""Most channels of the residual, or of a head, that it may claim."""
_CHANGES_EVERY_FAMILY: Mapping[str, tuple[Any, ...]] = {"per_layer_config": (None, {})}
"""Keys that change what any family computes, with the values that change nothing."""


@dataclass(frozen=True, slots=True)
class Source:
    """The source of one of our weights: one tensor, or several that are concatenated."""

    names: tuple[str, ...]
    """Names in the checkpoint, `{i}` standing for the layer."""
    is_transposed: bool = False
    """Whether the file stores matrices with the output axis first, [n_out, n_in]; ours have it last."""
    widths: Callable[[DecoderConfig], Sequence[int]] | None = None
    """How many entries of the output axis each of several tensors fills, in the order of their names."""
    in_file_order: Callable[[torch.Tensor, DecoderConfig], torch.Tensor] | None = None
    """A view of a weight, in the file's layout, whose elements are in the file's order; None if they are in that order
    already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of checkpoints."""

    name: str
    """Its name in the catalogue."""
    model_types: tuple[str, ...]
    """Values of `model_type` in `config.json`."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of keys of `config.json`, by that name; as in the reference implementation, these win."""
    defaults: Mapping[str, Any]
    """The reference implementation's values of absent keys. Null is a value of its own."""
    read_config: Callable[[ConfigValues], DecoderConfig]
    """The architecture of complete values; raises DataLoss for one that the decoder does not implement."""
    prefixes: tuple[str, ...]
    """Prefixes that a checkpoint's names may have; the first that fits any name applies to all."""
    once: Mapping[str, Source]
    """Weights that exist once, by our name; those of the unembedding are in `unembedding`."""
    per_layer: Mapping[str, Source]
    """Weights of each layer, by our name without `layers.{i}.`."""
    unembeddings: tuple[str, ...]
    """Names that the unembedding [V, d] may have, the usual one first; never prefixed, and absent where it is tied."""
    skipped: re.Pattern[str]
    """Names of tensors that are not weights, such as masks."""

    def complete(self, values: ConfigValues) -> ConfigValues:
        """*values* of a `config.json` under the family's own names, with its defaults; raises DataLoss as `require`."""
        for key, harmless in _CHANGES_EVERY_FAMILY.items():
            values.require(key, harmless)
        return values.renamed(self.aliases).over(self.defaults)


def plain(name: str) -> Source:
    """One tensor that has our layout."""
    return Source((name,))


def transposed(name: str) -> Source:
    """One matrix that is stored [n_out, n_in]."""
    return Source((name,), is_transposed=True)


def query_key_value(queries: str, keys: str, values: str) -> Source:
    """Three matrices stored [n_out, n_in], or three biases, that are concatenated."""
    return Source((queries, keys, values), is_transposed=True, widths=lambda config: config.qkv_widths)
