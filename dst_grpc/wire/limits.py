"""How much requests may hold: entries of each of their lists, bytes of each of their texts. Counted before parsing.

A message of 2 bytes becomes a hundred bytes of objects, and reading a list takes far longer than sending it. So lists
are counted, and texts measured, in the bytes that came; what is beyond a limit is refused unparsed. The limits are
stated in the comments of the protos; each is at least ten times what any request of the tests, benchmarks and examples
holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_FIELDS = 250_000
"""Fields of a message, with those of all messages within it, whatever lists they are in."""
MAX_ENTRIES: Mapping[str, int] = {
    "dst.v1.ActivationIndex.tensor_indices": 100,
    "dst.v1.AttributeRequest.autoencoders": 100,
    "dst.v1.AttributeRequest.nodes": 100,
    "dst.v1.AttributeRequest.pairs": 1000,
    "dst.v1.AutoencoderConfig.autoencoder_path_by_layer_index": 1000,
    "dst.v1.CircuitCurve.fractions": 1000,
    "dst.v1.CircuitRequest.ablation_specs": 10_000,
    "dst.v1.CircuitRequest.autoencoders": 100,
    "dst.v1.CircuitRequest.circuits": 1000,
    "dst.v1.CircuitRequest.pairs": 1000,
    "dst.v1.CircuitRequest.reference": 10_000,
    "dst.v1.DeriveRequest.ablation_specs": 10_000,
    "dst.v1.DeriveRequest.autoencoders": 100,
    "dst.v1.DeriveRequest.derived_scalars": 5000,
    "dst.v1.DeriveRequest.interventions": 10_000,
    "dst.v1.DeriveRequest.source_runs": 1000,
    "dst.v1.DetokenizeRequest.token_ids": 500_000,
    "dst.v1.DifferenceOfMeans.minus_runs": 1000,
    "dst.v1.DifferenceOfMeans.runs": 1000,
    "dst.v1.EdgeList.edges": 100_000,
    "dst.v1.ExplainRequest.autoencoders": 100,
    "dst.v1.ExplainRequest.groups": 64,
    "dst.v1.ExplainRequest.parts": 100,
    "dst.v1.ExplainRequest.runs": 64,
    "dst.v1.ExplainRun.ablation_specs": 10_000,
    "dst.v1.ExplainRun.interventions": 10_000,
    "dst.v1.ExplainRun.node_ablations": 10_000,
    "dst.v1.ExplainRun.source_runs": 1000,
    "dst.v1.GraphFeatureSetting.nodes": 10_000,
    "dst.v1.GraphFeatureTokens.nodes": 10_000,
    "dst.v1.GraphIntervention.settings": 1000,
    "dst.v1.GraphInterventions.interventions": 1000,
    "dst.v1.GraphNodeFilter.kinds": 1000,
    "dst.v1.GraphNodeFilter.layers": 1000,
    "dst.v1.GraphNodeFilter.tokens": 100_000,
    "dst.v1.GraphRequest.autoencoders": 100,
    "dst.v1.GraphRequest.sources": 100,
    "dst.v1.GraphRequest.targets": 1000,
    "dst.v1.KeptCircuit.edges": 200_000,
    "dst.v1.KeptCircuit.nodes": 10_000,
    "dst.v1.LayerIndices.layer_indices": 1000,
    "dst.v1.LossFnConfig.distractor_token_ids": 10_000,
    "dst.v1.LossFnConfig.distractor_tokens": 1000,
    "dst.v1.LossFnConfig.target_token_ids": 10_000,
    "dst.v1.LossFnConfig.target_tokens": 1000,
    "dst.v1.MeanOverRuns.runs": 1000,
    "dst.v1.MultiAutoencoderContext.autoencoder_contexts": 100,
    "dst.v1.NodeIndex.tensor_indices": 100,
    "dst.v1.PatchCell.interventions": 1000,
    "dst.v1.PatchGrid.entries": 100_000,
    "dst.v1.PatchGrid.layers": 1000,
    "dst.v1.PatchGrid.positions": 100_000,
    "dst.v1.PatchRequest.autoencoders": 100,
    "dst.v1.PatchRequest.cells": 10_000,
    "dst.v1.PatchRequest.grids": 100,
    "dst.v1.PatchRequest.pairs": 1000,
    "dst.v1.PatchRequest.paths": 100,
    "dst.v1.PatchRequest.reference": 10_000,
    "dst.v1.PathGrid.receivers": 50_000,
    "dst.v1.PathGrid.senders": 10_000,
    "dst.v1.PositionList.positions": 100_000,
    "dst.v1.SourceRun.interventions": 10_000,
    "dst.v1.TapSelection.axes": 100,
    "dst.v1.Tensor.axes": 100,
    "dst.v1.TensorDescription.sizes": 100,
    "dst.v1.TokenIds.token_ids": 100_000,
    "dst.v1.TopKGroup.dsts": 100,
    "dst.v1.TopKRequest.groups": 64,
    "dst.v1.TopKRequest.runs": 64,
}
"""Entries of each list of a request, also of one that is sent in parts, which protobuf merges."""
MAX_TEXT_BYTES = 4096
"""Bytes of a text, such as a name or a path, in UTF-8."""
MAX_LONG_TEXT_BYTES: Mapping[str, int] = {
    "dst.v1.Prompt.text": 500_000,
    "dst.v1.TokenizeRequest.text": 500_000,
}
"""Bytes of the texts that may be longer."""
