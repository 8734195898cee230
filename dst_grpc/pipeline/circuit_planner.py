"""Planning of Circuit: names, shapes and lengths are checked before anything is run. Pure; reads no weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.causal.acdc import MAX_AHEAD
from dst_grpc.causal.circuit_runs import BATCH_BYTES, row_bytes
from dst_grpc.causal.circuits import edges_of_nodes
from dst_grpc.causal.graph import Graph
from dst_grpc.causal.node_runs import node_row_bytes
from dst_grpc.causal.node_space import NodeSpace, SplicedLayer
from dst_grpc.causal.read_logits import diverges_from_source
from dst_grpc.domain.circuit import FRACTIONS, CircuitRequest, CircuitSelection
from dst_grpc.domain.graph_nodes import Edge, Source, node_named
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.errors import InvalidRequest, Reason, require
from dst_grpc.pipeline.findings import Findings
from dst_grpc.pipeline.pair_planner import BLOCK_TOKENS, PairPlanner, PairsPlan
from dst_grpc.pipeline.sizes import BYTES_OF_FLOAT32, most_latents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.causal.circuits import Mask
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.circuit import CircuitCurve, KeptCircuit
    from dst_grpc.domain.request_tensors import TensorSource
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.pair_planner import PlannedPair
    from dst_grpc.pipeline.plan import Plan

_ACTIVE_LATENTS = 500
"""About how many latents of an autoencoder are active at some token of a prompt."""
_BLOCK_LATENTS = 1 << 25
"""Latents, at all tokens and layers, of the pairs that are recorded together, unless a single pair has more."""


@dataclass(frozen=True, kw_only=True)
class CircuitPlan(PairsPlan[CircuitRequest]):
    """A request of Circuit, checked and completed, its tensors looked up."""

    graph: Graph
    """The model's."""
    nodes: NodeSpace | None
    """The nodes that circuits are of, with latents; None for circuits of edges."""
    circuits: tuple[Mask, ...]
    """The circuits given, [S, D] or [N]."""

    @property
    def whole(self) -> Mask:
        """The circuit that keeps everything."""
        return self.graph.mask if self.nodes is None else np.ones(self.nodes.count, dtype=bool)

    @property
    def item_count(self) -> int:
        """How many edges, or nodes, a circuit may keep."""
        return int(self.whole.sum())

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions of the curve; empty if there is none."""
        curve = self.request.curve
        return () if curve is None else curve.fractions or FRACTIONS

    @property
    def pairs_of_a_block(self) -> int:
        """How many pairs are recorded together."""
        most = BLOCK_TOKENS // self.longest
        if self._latents_per_token:
            most = min(most, _BLOCK_LATENTS // (self._latents_per_token * self.longest))
        return max(most, 1)

    @property
    def peak_bytes(self) -> int:
        """Estimated memory, without weights: the recorded runs of a block of pairs, or of all in a search, and a pass
        of rows with cut edges or with gradients."""
        d, n_tokens = self.plan.model.dimensions, self.longest
        n_pairs = min(self.pairs_of_a_block, len(self.pairs))
        row = row_bytes(d, self.graph, n_tokens, n_inputs=3 * d.n_heads, n_held=len(self.graph.sources))
        if self.nodes is not None:
            row = node_row_bytes(d, n_tokens, most_latents(self.plan.spliced))
        n_circuits = 2 + len(self.circuits) + len(self.fractions)
        of_pass = row * (n_circuits if self.request.acdc is None else MAX_AHEAD) * n_pairs
        recorded = n_pairs if self.request.acdc is None else len(self.pairs)
        per_token = d.n_layers * (2 * d.d_model + d.n_heads * d.d_head) + self._latents_per_token
        of_recorded = BYTES_OF_FLOAT32 * n_tokens * recorded * 2 * per_token
        of_gradients = 0
        if self.request.curve is not None and self.request.curve.scores is None:
            kept = 6 * d.d_model + 3 * d.n_heads * d.d_head + 4 * d.d_mlp
            per_token = d.n_layers * kept + 4 * self._latents_per_token
            of_gradients = BYTES_OF_FLOAT32 * (n_pairs * n_tokens * per_token + self.whole.size)
        of_pass = max(min(of_pass, max(BATCH_BYTES, row)), of_gradients)
        return of_recorded + of_pass + self.plan.cost.peak_bytes

    @cached_property
    def _latents_per_token(self) -> int:
        """Latents of all layers that are nodes, and channels of errors."""
        if self.nodes is None:
            return 0
        d = self.plan.model.dimensions
        return sum(one.n_latents + (one.input.width(d) or 0) for one in self.nodes.spliced)

    @property
    def floating_point_operations(self) -> int:
        """Approximate operations of the whole."""
        n_circuits = 2 + len(self.circuits) + len(self.fractions)
        if self.request.acdc is not None:
            n_circuits += self._tried_count
        return self.operations_of_a_circuit * n_circuits

    @property
    def operations_of_a_circuit(self) -> int:
        """Approximate operations of running one circuit upon all pairs."""
        return 3 * self.plan.cost.floating_point_operations * len(self.pairs)

    @property
    def _tried_count(self) -> int:
        """About how many circuits a search runs: of most latents, which are not active, none."""
        if self.nodes is None:
            return self.graph.n_edges
        return len(self.nodes.sources) + sum(min(one.n_latents, _ACTIVE_LATENTS) for one in self.nodes.spliced)

    @property
    def n_steps(self) -> int:
        """About how many passes there are."""
        n_blocks = sum(1 for _ in self.blocks())
        n_found = self._tried_count if self.request.acdc is not None else 0
        return n_blocks * (2 + len(self.circuits) + len(self.fractions)) + n_found

    @property
    def tensor_handles(self) -> Sequence[str]:
        """Handle of the scores of the curve, if they have one."""
        curve = self.request.curve
        handle = None if curve is None or curve.scores is None else curve.scores.handle
        return () if handle is None else (handle,)

    def with_tensors(self, tensors: TensorSource | None) -> CircuitPlan:
        """The same plan with the scores that the request names by a handle.

        Raises:
            InvalidRequest: if they do not fit the graph.
            NotFound: for an unknown handle.
        """
        curve = self.request.curve
        if curve is None or curve.scores is None or curve.scores.handle is None:
            return self
        if tensors is None:
            raise InvalidRequest.of("curve.scores.handle", "must be absent: no tensors are kept here")
        scores = tensors.get(curve.scores.handle)
        findings = Findings()
        _check_scores(require(scores.tensor).shape, curve, self.graph, self.nodes, findings)
        if findings.count:
            raise findings.error()
        return replace(self, request=replace(self.request, curve=replace(curve, scores=scores)))


def plan_circuit(
    request: CircuitRequest, registry: Registry, known: Violations | None = None, *, check: Check = never_cancelled
) -> CircuitPlan:
    """Plan *request*.

    Args:
        request: the request.
        registry: the models and autoencoders that can be loaded.
        known: violations found by reading the request's message, as for `make_plan`.
        check: raises Cancelled once nobody waits for the plan.

    Raises:
        InvalidRequest: listing every field that a model or another field rules out, of all prompts, and those of
            *known*.
        NotFound: for an unknown model or autoencoder.
    """
    return _CircuitPlanner(request, registry, Findings.after(known, check_wanted=check)).plan()


class _CircuitPlanner:
    """The state of planning one request."""

    def __init__(self, request: CircuitRequest, registry: Registry, findings: Findings) -> None:
        self._request, self._registry, self._findings = request, registry, findings

    def plan(self) -> CircuitPlan:
        """The plan; raises all that is wrong."""
        request, findings = self._request, self._findings
        planner = PairPlanner(request, self._registry, findings, ablation_specs=request.ablation_specs)
        planned = planner.plan()
        if planned is None:
            raise findings.error()
        for pair in planned.each:
            self._check_metric(pair)
        reference = planner.reference(request, planned)
        graph = Graph.of(planned.plan.model.dimensions, planned.plan.model.architecture)
        nodes = self._nodes(planned.plan, graph) if request.latents else None
        if request.latents and nodes is None:
            raise findings.error()
        circuits = tuple(
            self._kept(one, f"circuits[{i}]", graph)
            if nodes is None
            else self._kept_nodes(one, f"circuits[{i}]", nodes)
            for i, one in enumerate(request.circuits)
        )
        if request.curve is not None and not findings.holds_stand_in("curve"):
            self._check_curve(request.curve, graph, nodes)
        if findings.count or findings.known:
            raise findings.error()
        return CircuitPlan(
            request=request,
            plan=planned.plan,
            graph=graph,
            nodes=nodes,
            pairs=planned.pairs,
            reference=reference,
            circuits=circuits,
        )

    def _check_metric(self, pair: PlannedPair) -> None:
        """Note a divergence of which scores would be computed where all its gradients are 0."""
        curve, metric = self._request.curve, pair.metric
        if curve is None or curve.scores is not None or curve.steps > 1 or metric.reference is None:
            return
        problem = "must be above 1, or give scores: the only gradients of a divergence would be where it is 0"
        self._findings.check(diverges_from_source(metric), "curve.steps", problem)

    def _kept(self, circuit: KeptCircuit, path: str, graph: Graph) -> Mask:
        """The circuit [S, D]; notes edges and nodes that the model does not have."""
        if self._findings.holds_stand_in(path):
            return graph.mask
        nodes = np.zeros(len(graph.sources), dtype=bool)
        kept = np.zeros_like(graph.mask)
        for i, name in enumerate(circuit.nodes):
            source = Source.named(name)
            try:
                nodes[graph.index_of_source(source)] = True
            except KeyError:
                self._findings.add(f"{path}.nodes[{i}]", f"the model has no {name}")
        for i, name in enumerate(circuit.edges):
            place = graph.place_of(Edge.named(name))
            if place is None:
                self._findings.add(f"{path}.edges[{i}]", f"the model has no edge {name}")
            else:
                kept[place] = True
        return kept | edges_of_nodes(graph, nodes)

    def _nodes(self, plan: Plan, graph: Graph) -> NodeSpace | None:
        """The nodes with latents; notes that there are no autoencoders."""
        if not plan.spliced:
            problem = "latents need an autoencoder to splice in"
            self._findings.lack("autoencoders", problem, Reason.AUTOENCODER_REQUIRED)
            return None
        layers = [
            SplicedLayer(entry.name, entry.input, layer, entry.n_latents)
            for entry in plan.spliced
            for layer in entry.layer_indices
        ]
        return NodeSpace.of(graph, layers)

    def _kept_nodes(self, circuit: KeptCircuit, path: str, nodes: NodeSpace) -> Mask:
        """The circuit [N]; notes nodes that there are not."""
        kept = np.zeros(nodes.count, dtype=bool)
        if self._findings.holds_stand_in(path):
            return kept
        for i, name in enumerate(circuit.nodes):
            try:
                kept[nodes.places_of(node_named(name))] = True
            except KeyError:
                self._findings.add(f"{path}.nodes[{i}]", f"there is no node {name}")
        return kept

    def _check_curve(self, curve: CircuitCurve, graph: Graph, nodes: NodeSpace | None) -> None:
        scores = curve.scores
        if nodes is not None and curve.selection is CircuitSelection.GREEDY:
            self._findings.add("curve.selection", "must not be GREEDY with latents: it chooses edges")
        if scores is None or scores.tensor is None or self._findings.holds_stand_in("curve.scores"):
            return
        _check_scores(scores.tensor.shape, curve, graph, nodes, self._findings)


def _check_scores(
    shape: tuple[int, ...], curve: CircuitCurve, graph: Graph, nodes: NodeSpace | None, findings: Findings
) -> None:
    if nodes is not None:
        problem = f"must be [{nodes.count}] for nodes with latents, not {list(shape)}"
        findings.check(shape == (nodes.count,), "curve.scores", problem)
        return
    of_edges, of_nodes = (len(graph.sources), len(graph.readers)), (len(graph.sources),)
    problem = f"must be {list(of_edges)} for edges or {list(of_nodes)} for nodes, not {list(shape)}"
    findings.check(shape in {of_edges, of_nodes}, "curve.scores", problem)
    is_greedy = curve.selection is CircuitSelection.GREEDY
    findings.check(not is_greedy or shape != of_nodes, "curve.selection", "GREEDY needs scores of edges")
