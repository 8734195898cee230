"""Planning of Attribute: what does not fit the model or another field is found before anything is run. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.causal.attribution import Question
from dst_grpc.causal.edges import sites_of_changes, sites_of_reads
from dst_grpc.causal.graph import Graph
from dst_grpc.causal.passes import pairs_at_once
from dst_grpc.causal.paths import points
from dst_grpc.causal.read_logits import diverges_from_source
from dst_grpc.causal.rules import RULES
from dst_grpc.domain.architecture import NormKind
from dst_grpc.domain.attribute import (
    ATTRIBUTED_NODES,
    AttributedNode,
    AttributionMethod,
    Baseline,
    PathGroups,
    PathRule,
    PostNormJacobian,
)
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.enum_names import json_name
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.errors import Reason
from dst_grpc.pipeline.findings import Findings
from dst_grpc.pipeline.pair_planner import PairPlanner, PairsPlan
from dst_grpc.pipeline.pass_memory import pass_bytes
from dst_grpc.pipeline.sizes import BYTES_OF_FLOAT32, Sizes, most_latents

if TYPE_CHECKING:
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.engine.taps import Site
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.pair_planner import PlannedPairs
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.scalars.origins import Origin

_N = AttributedNode
_L = ActivationLocationType
_LATENTS = frozenset({_N.LATENT, _N.LATENT_ERROR})


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributePlan(PairsPlan[AttributeRequest]):
    """A request of Attribute, checked and completed."""

    @property
    def graph(self) -> Graph:
        """The model's."""
        return Graph.of(self.plan.model.dimensions, self.plan.model.architecture)

    @property
    def question(self) -> Question:
        """What scores are asked for."""
        request = self.request
        return Question(
            method=request.method,
            nodes=request.effective_nodes,
            edges=request.edges,
            by_position=request.by_position,
            propagation=RULES[request.rule],
            rule=request.effective_path_rule,
            steps=request.effective_steps,
            groups=request.path_groups or PathGroups.OWN_LAYER,
            post_norms=request.post_norms or PostNormJacobian.EXACT,
            fixes_qk=request.qk_fix,
            drops_gradients=request.grad_drop,
            magnitudes=request.magnitudes,
        )

    @property
    def pairs_of_a_block(self) -> int:
        """How many pairs run together."""
        return pairs_at_once(self.longest)

    @property
    def n_runs(self) -> int:
        """Runs with gradients of each pair."""
        layers = self.plan.model.dimensions.n_layers
        match self.request.method:
            case AttributionMethod.ATTRIBUTION_PATCHING:
                return layers if self.request.grad_drop else 1
            case AttributionMethod.CLEAN_CORRUPT:
                return 2
            case AttributionMethod.INTEGRATED_ACTIVATIONS:
                return self.request.effective_steps * (2 * layers + 1)
            case _:
                return self.request.effective_steps

    @property
    def peak_bytes(self) -> int:
        """Estimated memory, without weights: the graph of a block of pairs, what is recorded of it, and the scores."""
        n_rows = 2 * min(self.pairs_of_a_block, len(self.pairs))
        values, gradients = self._sites()
        passes = pass_bytes(
            Sizes.of_prompt(self.plan.model, self.longest),
            values,
            gradients,
            n_gradient_passes=self.n_runs if self.request.grad_drop else 1,
            logit_count=1,
            spliced=self.plan.spliced,
        )
        scores = self.output_elements
        per_chunk = 0
        if self.request.edges:
            # Changes of all sources and reads of a layer, at some positions, see `EdgeScores`.
            d = self.plan.model.dimensions
            per_chunk = 16 * d.d_model * (len(self.graph.sources) + 3 * (3 * d.n_heads + 1)) + (4 << 20)
            scores += self.graph.mask.size
        return 2 * n_rows * passes.peak + per_chunk + 3 * BYTES_OF_FLOAT32 * scores + self.plan.cost.peak_bytes

    def _sites(self) -> tuple[frozenset[Site], frozenset[Site]]:
        """The sites whose values, and those whose gradients, are recorded."""
        layers = range(self.graph.n_layers)
        taps = {ATTRIBUTED_NODES[node].tap for node in self.request.effective_nodes}
        if self.request.of_tokens or self.request.method is AttributionMethod.INTEGRATED_INPUTS:
            taps.add(_L.RESID_POST_EMBEDDING)
        if self.request.method is AttributionMethod.INTEGRATED_ACTIVATIONS:
            taps |= {_L.RESID_POST_EMBEDDING, _L.ATTN_WEIGHTED_SUM_OF_VALUES, _L.RESID_DELTA_MLP}
        if _N.LATENT in self.request.nodes:
            taps |= {info.input.latent_tap for info in self.plan.spliced}
        if _N.LATENT_ERROR in self.request.nodes:
            taps |= {info.input.error_tap for info in self.plan.spliced}
        if self.request.qk_fix or not RULES[self.request.rule].fuses_attention:
            taps.add(_L.ATTN_QK_PROBS)
        known = [tap for tap in taps if tap is not None]
        of_nodes = {(tap, layer) for tap in known for layer in ((None,) if tap.has_no_layers else layers)}
        values, gradients = set(of_nodes), set(of_nodes)
        if self.request.edges:
            read, differentiated = sites_of_reads(self.graph, has_post_norms=self.plan.model.architecture.post_norms)
            values |= read | sites_of_changes(self.graph)
            # What MLPs read is as large as the residual after attention.
            gradients |= differentiated | {(_L.RESID_DELTA_MLP, layer) for layer in layers}
        return frozenset(values), frozenset(gradients)

    @property
    def output_elements(self) -> int:
        """About how many scores are sent."""
        d, n_tokens = self.plan.model.dimensions, self.longest
        n_positions = n_tokens if self.request.by_position else 1
        found = self.graph.mask.size * n_positions if self.request.edges else 0
        found += len(self.request.effective_nodes) * n_positions * d.n_layers * d.n_heads
        found += n_positions * d.n_layers * (d.d_mlp if _N.NEURON in self.request.nodes else 0)
        found += n_positions * d.n_layers * (most_latents(self.plan.spliced) if _N.LATENT in self.request.nodes else 0)
        return found + (n_tokens * d.d_model if self.request.of_tokens else 0)

    @property
    def floating_point_operations(self) -> int:
        """Approximate operations of the whole; a plan's cost is that of its forward pass."""
        n_passes = 2 + 2 * self.n_runs + 2 * self.request.verify
        return len(self.pairs) * n_passes * self.plan.cost.floating_point_operations

    @property
    def n_steps(self) -> int:
        """How many steps there are."""
        return sum(1 for _ in self.blocks()) * (2 if self.request.verify else 1) + 1


def plan_attribute(
    request: AttributeRequest,
    registry: Registry,
    known: Violations | None = None,
    *,
    check: Check = never_cancelled,
) -> AttributePlan:
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
        PreconditionFailed: if latents are attributed and no autoencoder is named.
    """
    findings = Findings.after(known, check_wanted=check)
    planned = PairPlanner(request, registry, findings).plan()
    if planned is not None:
        _check(request, planned, findings)
    if planned is None or findings.count or findings.known:
        raise findings.error()
    return AttributePlan(request=request, plan=planned.plan, pairs=planned.pairs)


def _check(request: AttributeRequest, planned: PlannedPairs, findings: Findings) -> None:
    """Note what the model, or the lengths of prompts, rule out."""
    model = planned.plan.model
    if request.by_position:
        planned.check_equal_lengths(findings, "the mean is by position")
    if request.of_tokens:
        planned.check_equal_lengths(findings, "the mean is by token")
    for i, node in enumerate(request.nodes):
        tap = ATTRIBUTED_NODES[node].tap
        why = None if tap is None else model.architecture.why_without(tap)
        if why is not None:
            findings.add(f"nodes[{i}]", f"{model.name!r} has no {json_name(node)}: {why}")
    _check_autoencoders(request, planned.plan, findings)
    _check_metrics(request, planned, findings)
    if request.grad_drop and model.dimensions.n_layers < 2:
        findings.add("grad_drop", f"must be false: {model.name!r} has only one layer")
    starts_at_zero = request.effective_path_rule in {PathRule.LEFT, PathRule.TRAPEZOID}
    if request.baseline is Baseline.ZERO and starts_at_zero and model.architecture.norm is NormKind.RMS_NORM:
        problem = "must not begin at 0: the gradient of an RMS norm has no bound there"
        findings.add("path_rule", problem)


def _check_metrics(request: AttributeRequest, planned: PlannedPairs, findings: Findings) -> None:
    for one in planned.each:
        if one.metric.reference is None or not _vanishes(request, one.metric):
            continue
        problem = "must not be a divergence from the run where alone gradients are taken, as all are 0 there: take them"
        findings.add(f"{one.metric_path}.name", f"{problem} elsewhere, by another method or with more steps")


def _vanishes(request: AttributeRequest, divergence: Origin) -> bool:
    """Whether gradients are taken in the run that *divergence* is from, and nowhere else."""
    of_source = diverges_from_source(divergence)
    match request.method:
        case AttributionMethod.ATTRIBUTION_PATCHING:
            return not of_source
        case AttributionMethod.CLEAN_CORRUPT:
            return False
    place = 0.0 if of_source else 1.0
    return all(alpha == place for alpha, _ in points(request.effective_path_rule, request.effective_steps))


def _check_autoencoders(request: AttributeRequest, plan: Plan, findings: Findings) -> None:
    for node in request.nodes:
        if node in _LATENTS and not plan.spliced:
            problem = f"{json_name(node)} needs an autoencoder to splice in"
            findings.lack("autoencoders", problem, Reason.AUTOENCODER_REQUIRED)
