"""What the units of a graph are, from names to loaded weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.graph import GraphSource
from dst_grpc.errors import Reason, require
from dst_grpc.graphs.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.pipeline.lookup import Lookup


def latent_sets(
    lookup: Lookup, refs: Sequence[str], sources: Collection[GraphSource], findings: Findings
) -> tuple[AutoencoderEntry, ...]:
    """The sets of autoencoders that *refs* name at `autoencoders`; notes those whose latents cannot be units beside
    other *sources*."""
    found = lookup.sets(refs, "autoencoders")
    for path, entry in found.items():
        if entry.output is not None:
            problem = f"{entry.name} is a set of transcoders, whose latents are features: name it in transcoders"
            findings.add(path, problem, Reason.IMPOSSIBLE_COMBINATION)
        elif not entry.spliceable:
            problem = f"{entry.name} cannot be spliced into a run: its latents stand for nothing that acts on others"
            findings.add(path, problem, Reason.IMPOSSIBLE_COMBINATION)
        for source, is_same, what in (
            (GraphSource.FEATURES, entry.input.is_of_mlp, "what MLPs write"),
            (GraphSource.NEURONS, entry.input.is_of_mlp, "what MLPs write"),
            (GraphSource.HEADS, entry.input.is_of_attention_write, "what attention writes"),
        ):
            if is_same and source in sources:
                findings.add(path, f"{entry.name} stands for {what}, and so do {source}", Reason.IMPOSSIBLE_COMBINATION)
    return tuple(found.values())


def loaded_sources(
    sources: Collection[GraphSource],
    transcoders: AutoencoderEntry | None,
    autoencoders: Sequence[AutoencoderEntry],
    sets: Mapping[str, AutoencoderContext],
) -> Sources:
    """The weights of *sources*, from *sets* that are loaded."""
    contexts = [sets[entry.name] for entry in autoencoders]
    return Sources(
        None if transcoders is None else require(sets[transcoders.name].transcoders),
        GraphSource.NEURONS in sources,
        GraphSource.HEADS in sources,
        {one.dst: {layer: weights for layer, weights in one.by_layer.items() if layer is not None} for one in contexts},
    )
