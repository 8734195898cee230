"""Dead latents: how many latents of a set can be left out when it is loaded.

Deviates from the reference on purpose, which cuts off the last latents, dead or not, and forgets pre-bias and
activation. Which latents of a file are left out is up to its format; here only their number is decided.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dst_grpc.engine.files import corrupt

if TYPE_CHECKING:
    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.engine.formats.weights import AutoencoderFile

_DEAD_BELOW = 1e-8


def without_dead_latents(entry: AutoencoderEntry) -> AutoencoderEntry:
    """*entry* with dead latents left out: at every layer as many as the layer with the fewest.

    Reads the statistics of its files, and no weights.

    Raises:
        DataLoss: if the frequencies of a layer are all 0, or are no frequencies.
    """
    n = min(map(_n_spare, entry.by_layer.values()))
    if not n:
        return entry
    return replace(entry, by_layer={layer: file.without(n) for layer, file in entry.by_layer.items()})


def _n_spare(file: AutoencoderFile) -> int:
    """Number of dead latents to leave out; with TopK at least k latents are kept, else at least one."""
    header, frequencies = file.header, file.frequencies()
    if frequencies is None:
        return 0
    if not frequencies.any():
        raise corrupt(file.path, "says that no latent is ever active, so nothing tells which ones are dead")
    return min(int((frequencies < _DEAD_BELOW).sum()), header.n_latents - (header.k or 1))
