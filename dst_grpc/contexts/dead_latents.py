"""Dead latents: how many latents of a set can be left out when it is loaded.

Deviates on purpose from the reference implementation, which removes the last latents, dead or not, and loses pre-bias
and activation. The format decides which latents are left out; here only their number is decided.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats.stored_file import StoredTranscoderFile
from dst_grpc.engine.formats.weights import AutoencoderFile

if TYPE_CHECKING:
    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.engine.formats.stored_file import LayerFile

_DEAD_BELOW = 1e-8


def without_dead_latents(entry: AutoencoderEntry) -> AutoencoderEntry:
    """*entry* without dead latents: at every layer, as many are left out as the layer with the fewest has.

    Reads the statistics of its files, and no weights.

    Raises:
        DataLoss: if the frequencies of a layer are all 0, or are not frequencies.
    """
    n = min(map(_n_spare, entry.by_layer.values()))
    if not n:
        return entry
    by_layer = {layer: file.without(n) for layer, file in entry.by_layer.items() if isinstance(file, AutoencoderFile)}
    return replace(entry, by_layer=by_layer)


def _n_spare(file: LayerFile) -> int:
    """Number of dead latents to leave out; with TopK at least k latents are kept, else at least one.

    None of a transcoder that stays in its file, whose latents are read as they are needed.
    """
    if isinstance(file, StoredTranscoderFile):
        return 0
    header, frequencies = file.header, file.frequencies()
    if frequencies is None:
        return 0
    if not frequencies.any():
        raise corrupt(file.path, "says that no latent is ever active, so nothing tells which ones are dead")
    return min(int((frequencies < _DEAD_BELOW).sum()), header.n_latents - (header.k or 1))
