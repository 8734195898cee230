"""Requests that mutants are made of: of each type at least one, which a server with the tiny models answers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.worst_requests import small
from dst_grpc._gen.dst.v1 import (
    attribute_pb2,
    catalog_service_pb2,
    circuit_pb2,
    component_pb2,
    derived_scalar_type_pb2,
    explain_pb2,
    graph_pb2,
    graph_probe_pb2,
    inference_pb2,
    intervention_pb2,
    pairs_pb2,
    patch_pb2,
    resolution_pb2,
    tensor_pb2,
    tensor_service_pb2,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from google.protobuf.message import Message

_TOKEN, _LATENTS, _LATENT, _LOGIT = " Mary", "tiny/mlp_post_act", "f1.9@3", "logit:260"
_N = attribute_pb2


def kept_graph() -> graph_pb2.GraphRequest:
    """Asks for a graph that is kept, of which others then ask."""
    return graph_pb2.GraphRequest(prompt=_prompt(), targets=[graph_pb2.GraphTarget(token=_TOKEN)], keep=True)


def seeds(graph: str) -> Mapping[str, Sequence[Message]]:
    """Requests by the names of their types; some ask about the kept *graph*. Those of a stream follow one another."""
    found: dict[str, list[Message]] = {}
    for request in (
        *_derivations(),
        *_explanations(),
        *_patches(),
        *_attributions(),
        *_circuits(),
        *_graphs(),
        *_of_graph(graph),
        *_others(),
    ):
        found.setdefault(type(request).DESCRIPTOR.name, []).append(request)
    return found


def _prompt(text: str = "a b") -> inference_pb2.Prompt:
    return inference_pb2.Prompt(text=text)


def _pair() -> pairs_pb2.PromptPair:
    run = small("a b")
    return pairs_pb2.PromptPair(clean=run.prompt, corrupt=_prompt("a a"), loss_fn_config=run.loss_fn_config)


def _halved() -> intervention_pb2.Intervention:
    """Halves what the first neuron does at the first token."""
    at = intervention_pb2.TapSelection(
        activation_location_type=component_pb2.ACTIVATION_LOCATION_TYPE_MLP_POST_ACT,
        axes=[intervention_pb2.AxisSelection(at=0), intervention_pb2.AxisSelection(at=0)],
        layer_index=0,
    )
    return intervention_pb2.Intervention(at=at, scale=intervention_pb2.ScaleValue(factor=0.5))


def _derivations() -> Iterator[Message]:
    of_latents = small("a b")
    of_latents.autoencoders.append(_LATENTS)
    of_latents.derived_scalars.add(dst=derived_scalar_type_pb2.DERIVED_SCALAR_TYPE_ONLINE_AUTOENCODER_LATENT)
    changed = small("a b")
    changed.interventions.append(_halved())
    changed.source_runs.add(name="source", prompt=_prompt("a a"))
    for i, run in enumerate((small("a b"), of_latents, changed)):
        yield run
        yield resolution_pb2.ResolveRequest(request=run)
        named = inference_pb2.DeriveRequest(request_id=str(i))
        named.MergeFrom(run)
        yield inference_pb2.DeriveStreamRequest(request=named)
        yield resolution_pb2.ResolveStreamRequest(request=resolution_pb2.ResolveRequest(request=named))


def _explanations() -> Iterator[Message]:
    run = small("a b")
    explained = explain_pb2.ExplainRun(prompt=run.prompt, loss_fn_config=run.loss_fn_config)
    yield explain_pb2.ExplainRequest(runs=[explained], k=1, parts=[explain_pb2.EXPLAIN_PART_NODE_TABLE])
    yield explain_pb2.ExplainRequest(runs=[explained], k=2)
    group = explain_pb2.TopKGroup(group_id="g", dsts=[run.derived_scalars[0].dst])
    run.ClearField("derived_scalars")
    yield explain_pb2.TopKRequest(runs=[run], groups=[group], k=1)


def _patches() -> Iterator[Message]:
    pairs = [_pair()]
    heads = patch_pb2.PatchGrid(node=_N.ATTRIBUTED_NODE_HEAD, all_positions=True, layers=[1])
    yield patch_pb2.PatchRequest(pairs=pairs, grids=[heads])
    through = patch_pb2.PathGrid(senders=["a0.h1"], receivers=["logits"], through_mlps=True)
    yield patch_pb2.PatchRequest(pairs=pairs, paths=[through, patch_pb2.PathGrid(senders=["m0"])])
    edges = patch_pb2.EdgeList(edges=["a0.h1->a1.h0<q>"])
    yield patch_pb2.PatchRequest(pairs=pairs, edges=edges, alternative=pairs_pb2.ALTERNATIVE_ZERO, divergence=True)
    cell = patch_pb2.PatchCell(interventions=[_halved()], name="halved")
    yield patch_pb2.PatchRequest(pairs=pairs, cells=[cell], top_logits=2)


def _attributions() -> Iterator[Message]:
    pairs = [_pair()]
    yield attribute_pb2.AttributeRequest(pairs=pairs, nodes=[_N.ATTRIBUTED_NODE_HEAD])
    yield attribute_pb2.AttributeRequest(
        pairs=pairs, edges=True, by_position=True, method=_N.ATTRIBUTION_METHOD_INTEGRATED_INPUTS, steps=2
    )
    yield attribute_pb2.AttributeRequest(pairs=pairs, edges=True, verify=1)
    yield attribute_pb2.AttributeRequest(pairs=pairs, autoencoders=[_LATENTS], nodes=[_N.ATTRIBUTED_NODE_LATENT])


def _circuits() -> Iterator[Message]:
    pairs = [_pair()]
    yield circuit_pb2.CircuitRequest(pairs=pairs, circuits=[circuit_pb2.KeptCircuit(edges=["m0->logits"])])
    yield circuit_pb2.CircuitRequest(pairs=pairs, curve=circuit_pb2.CircuitCurve(fractions=[0.1, 0.5], steps=1))
    yield circuit_pb2.CircuitRequest(pairs=pairs, acdc=circuit_pb2.AcdcSearch(threshold=0.1))
    yield circuit_pb2.CircuitRequest(
        pairs=pairs,
        autoencoders=["tiny/resid_delta_mlp"],
        latents=True,
        circuits=[circuit_pb2.KeptCircuit(nodes=["m0.l1", "m0.error", "a0.h1"])],
    )


def _graphs() -> Iterator[Message]:
    yield kept_graph()
    sources = [graph_pb2.GRAPH_SOURCE_NEURONS, graph_pb2.GRAPH_SOURCE_HEADS]
    yield graph_pb2.GraphRequest(prompt=_prompt(), sources=sources, max_feature_nodes=4)
    yield graph_pb2.GraphRequest(
        prompt=_prompt(), autoencoders=["tiny/resid_delta_attn"], edges=graph_pb2.GRAPH_EDGE_SELECTION_WHOLE
    )


def _of_graph(graph: str) -> Iterator[Message]:
    neighbours, paths = graph_pb2.GraphNeighbours(node=_LATENT), graph_pb2.GraphPathQuery(source=_LATENT, target=_LOGIT)
    yield graph_pb2.QueryGraphRequest(graph=graph, neighbours=neighbours)
    yield graph_pb2.QueryGraphRequest(graph=graph, paths=paths)
    yield graph_pb2.QueryGraphRequest(graph=graph, edges=graph_pb2.GraphEdgeQuery(min_weight=0.1))
    yield graph_pb2.QueryGraphRequest(graph=graph, pruning=graph_pb2.GraphPruning(node_threshold=0.5))
    setting = graph_probe_pb2.GraphFeatureSetting(nodes=[_LATENT], factor=0.0)
    off = graph_probe_pb2.GraphIntervention(name="off", settings=[setting], first_free_layer=1)
    changes = graph_probe_pb2.GraphInterventions(interventions=[off])
    heads = graph_probe_pb2.GraphEdgeHeads(source=_LATENT, target=_LOGIT)
    tokens = graph_probe_pb2.GraphFeatureTokens(nodes=[_LATENT])
    yield graph_probe_pb2.ProbeGraphRequest(graph=graph, attention=graph_probe_pb2.GraphAttention(query=1))
    yield graph_probe_pb2.ProbeGraphRequest(graph=graph, interventions=changes)
    yield graph_probe_pb2.ProbeGraphRequest(graph=graph, verification=graph_probe_pb2.GraphVerification(count=1))
    yield graph_probe_pb2.ProbeGraphRequest(graph=graph, edge_heads=heads)
    yield graph_probe_pb2.ProbeGraphRequest(graph=graph, feature_tokens=tokens)


def _others() -> Iterator[Message]:
    description = tensor_service_pb2.TensorDescription(element_type=tensor_pb2.TENSOR_ELEMENT_TYPE_FLOAT32, sizes=[1])
    yield tensor_service_pb2.PutTensorRequest(description=description)
    yield tensor_service_pb2.PutTensorRequest(data=bytes(4))
    yield catalog_service_pb2.GetModelRequest(name="tiny")
    yield catalog_service_pb2.TokenizeRequest(text="a b")
    yield catalog_service_pb2.DetokenizeRequest(token_ids=[1, 2])
