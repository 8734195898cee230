"""Planning of ProbeGraph: the nodes that a kept graph must have, and the contexts that computed it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dst_grpc.domain.graph import GraphSource
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.domain.graph_probes import (
    GraphAttention,
    GraphEdgeHeads,
    GraphFeatureTokens,
    GraphInterventions,
    GraphProbe,
    GraphVerification,
    ProbeGraphRequest,
)
from dst_grpc.domain.requests import DeriveRequest, Prompt
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.graphs.memory import probe_bytes
from dst_grpc.pipeline.cost import costed
from dst_grpc.pipeline.findings import Findings
from dst_grpc.pipeline.graph_planner import n_zeroed
from dst_grpc.pipeline.lookup import Lookup
from dst_grpc.pipeline.planner import plan_run
from dst_grpc.pipeline.stepped_plan import SteppedPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.whole_graph import WholeGraph


_ERROR = GraphNodeKind.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePlan(SteppedPlan[ProbeGraphRequest]):
    """A request of ProbeGraph, checked."""

    graph: WholeGraph
    """The graph."""
    transcoders: AutoencoderEntry | None
    """Its transcoders; None if features are no units."""
    autoencoders: tuple[AutoencoderEntry, ...]
    """The autoencoders whose latents are units."""
    n_zeroed: int
    """Tokens, from the first, at which transcoders have neither features nor errors."""

    @property
    def peak_bytes(self) -> int:
        """Estimated memory, without weights."""
        config = self.plan.model.checkpoint.config
        nodes = self.graph.nodes
        return self.plan.cost.peak_bytes + probe_bytes(config, nodes.n_tokens, len(nodes.active), len(nodes.errors))

    @property
    def floating_point_operations(self) -> int:
        """Approximate operations of the whole: of two passes in each step."""
        return 2 * self.plan.cost.floating_point_operations * self.n_steps

    @property
    def n_steps(self) -> int:
        """How many steps there are, about."""
        match self.request.probe:
            case GraphInterventions() as asked:
                return 1 + len(asked.interventions)
            case GraphVerification() as asked:
                return 1 + min(asked.count, self.graph.nodes.n_features)
        return 1

    @property
    def _question(self) -> object:
        """The prompt of the graph, and what is asked of it."""
        return self.plan.token_ids, self.request.probe


def plan_probe(
    request: ProbeGraphRequest,
    graph: WholeGraph,
    registry: Registry,
    known: Violations | None = None,
    *,
    check: Check = never_cancelled,
) -> ProbePlan:
    """Plan *request*, which is about *graph*.

    Args:
        request: the request.
        graph: the kept graph.
        registry: the models, transcoders and autoencoders that can be loaded.
        known: violations found by reading the request's message, as for `make_plan`.
        check: raises Cancelled once nobody waits for the plan.

    Raises:
        InvalidRequest: listing every node, layer, head or position that the graph does not have, and those of *known*.
        NotFound: if its model, transcoders or autoencoders are no longer served as they were.
    """
    findings = Findings.after(known, check_wanted=check)
    model = registry.model_entry(graph.model)
    lookup = Lookup(registry, model, findings)
    transcoders = lookup.transcoders(graph.transcoders, "graph") if graph.transcoders else None
    autoencoders = tuple(lookup.sets(graph.autoencoders, "graph").values())
    _check(request, graph, model.dimensions.n_heads, findings)
    prompt = Prompt(token_ids=tuple(graph.nodes.token_ids.tolist()))
    plan = plan_run(DeriveRequest(prompt=prompt, model=graph.model), registry, findings)
    if plan is None or findings.count:
        raise findings.error()
    sets = autoencoders if transcoders is None else (transcoders, *autoencoders)
    run = replace(plan, shared_sets=sets, handles=(*plan.handles, *lookup.handles))
    return ProbePlan(
        request=request,
        plan=costed(run, 0),
        graph=graph,
        transcoders=transcoders,
        autoencoders=autoencoders,
        n_zeroed=n_zeroed(model.checkpoint.family, plan.token_ids) if transcoders is not None else 0,
    )


def _check(request: ProbeGraphRequest, graph: WholeGraph, n_heads: int, findings: Findings) -> None:
    """Note what *graph*, of a model with *n_heads* in a layer, does not have."""
    n_layers = graph.nodes.n_layers
    for path, name in _named(request.probe):
        if not graph.table.has(name):
            # What is not listed needs no nearest nodes either.
            findings.add(path, "" if findings.violations.is_full else graph.table.missing(name))

    def check_below(path: str, value: int, size: int, what: str) -> None:
        findings.check(value < size, path, f"must be below {size}, the number of {what}, not {value}")

    if isinstance(request.probe, GraphInterventions):
        for i, one in enumerate(request.probe.interventions):
            if one.first_free_layer is not None:
                path = f"interventions.interventions[{i}].first_free_layer"
                check_below(path, one.first_free_layer, n_layers, "layers")
    elif isinstance(request.probe, GraphEdgeHeads):
        at_mlps = GraphSource.HEADS not in graph.sources and {kind for kind, _ in graph.nodes.errors} <= {_ERROR}
        problem = "units of the graph stand for heads, or for what heads write into: its edges pass through no others"
        findings.check(at_mlps, "edge_heads", problem)
    elif isinstance(request.probe, GraphAttention):
        check_below("attention.layer", request.probe.layer, n_layers, "layers")
        check_below("attention.head", request.probe.head, n_heads, "heads")
        check_below("attention.query", request.probe.query, graph.nodes.n_tokens, "tokens")


def _named(probe: GraphProbe) -> Iterator[tuple[str, str]]:
    """The paths and the names of the nodes that *probe* names."""
    match probe:
        case GraphInterventions():
            for i, one in enumerate(probe.interventions):
                for j, setting in enumerate(one.settings):
                    for k, name in enumerate(setting.nodes):
                        yield f"interventions.interventions[{i}].settings[{j}].nodes[{k}]", name
        case GraphFeatureTokens():
            for i, name in enumerate(probe.nodes):
                yield f"feature_tokens.nodes[{i}]", name
        case GraphEdgeHeads():
            yield "edge_heads.source", probe.source
            yield "edge_heads.target", probe.target
