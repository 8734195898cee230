"""From a request of TopK or Explain to the plans of its runs and everything else that is to be done. Pure.

Both are one kind of question: runs, groups that choose among their nodes, and parts to say of them. A run is planned as
a request to derive what the groups name; what is wrong with it is told in the terms of the request that was sent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dst_grpc.domain.components import NodeType, PassType
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, NodeAblation, NodeScope, TopKSelection, default_groups
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.engine.taps import LATENT_LOCATION
from dst_grpc.errors import FieldViolation, InvalidRequest, PreconditionFailed, Reason, Violations
from dst_grpc.scalars.reads import INPUT_LOCATION
from dst_grpc.scalars.token_scoring import CHUNK_TOKENS, sites_of_attended_tokens, sites_of_vectors
from dst_grpc.scalars.topology import AutoencoderInputs, Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dst_grpc.domain.explain import TopKGroup, TopKRequest
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.plan import Plan

_L = ActivationLocationType
_ABLATED_LOCATION = {
    NodeType.ATTENTION_HEAD: _L.ATTN_QK_PROBS,
    NodeType.MLP_NEURON: _L.MLP_POST_ACT,
    NodeType.AUTOENCODER_LATENT: _L.ONLINE_AUTOENCODER_LATENT,
    NodeType.MLP_AUTOENCODER_LATENT: _L.ONLINE_MLP_AUTOENCODER_LATENT,
    NodeType.ATTENTION_AUTOENCODER_LATENT: _L.ONLINE_ATTENTION_AUTOENCODER_LATENT,
}
_FREEZE_FINAL_NORM = AblationSpec(
    index=ActivationIndex(
        activation_location_type=_L.RESID_FINAL_LAYER_NORM_SCALE,
        tensor_indices=(None, None),
        pass_type=PassType.BACKWARD,
    ),
    value=0.0,
)
_MLP_NODES = frozenset({NodeType.MLP_NEURON, NodeType.AUTOENCODER_LATENT, NodeType.MLP_AUTOENCODER_LATENT})
_P = ExplainPart
SCORED_PARTS = (
    _P.UPVOTED_OUTPUT_TOKENS,
    _P.INPUT_TOKENS_THAT_UPVOTE_MLP,
    _P.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q,
    _P.INPUT_TOKENS_THAT_UPVOTE_ATTN_K,
)
REFERRING_PARTS = frozenset({*SCORED_PARTS, _P.TOKEN_PAIRS})
"""Parts that refer to nodes of the table."""
_MAX_TABLE_NODES = 20_000
_MAX_TABLE_BYTES = 3_500_000
_SCORES_OF_A_MESSAGE = 20_000
_NODE_BYTES, _VALUE_BYTES = 50, 5
"""About what a node, and a value, take on the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request of TopK or Explain, checked and completed."""

    request_id: str
    plans: tuple[Plan, ...]
    """Its runs."""
    groups: tuple[TopKGroup, ...]
    """What to choose nodes by."""
    component_groups: tuple[TopKGroup, ...]
    """What the component sums are of; empty if they are not wanted."""
    k: int
    token_indices: tuple[int | None, ...]
    """The one token of each run to choose at; None = every token."""
    logit_tokens: tuple[int, ...]
    """The token of each run whose logits are ranked."""
    is_shared: bool
    """Whether the runs share one list of nodes."""
    with_sums: bool
    parts: frozenset[ExplainPart]
    """What to say, the node table included if anything refers to it."""
    scored_token_count: int = 0
    token_pair_count: int = 0
    top_logit_count: int = 0

    @property
    def max_table_nodes(self) -> int:
        """Most nodes of one table."""
        return min(_MAX_TABLE_NODES, _MAX_TABLE_BYTES // (_NODE_BYTES + _VALUE_BYTES * len(self.groups)))

    @property
    def peak_bytes(self) -> int:
        """Estimated memory of all its runs together, and of what is made of them."""
        return sum(plan.cost.peak_bytes for plan in self.plans) + self._scoring_bytes

    @property
    def _scoring_bytes(self) -> int:
        """Of the scores of one chunk of the vocabulary, and a copy of them while the best are found."""
        if not self.parts & frozenset(SCORED_PARTS):
            return 0
        chosen = sum(self._choices(group) for group in self.groups)
        rows = len(self.plans) * min(chosen, self.nodes_of_a_message)
        return 2 * 4 * rows * min(CHUNK_TOKENS, self.plans[0].model.dimensions.vocab_size)

    @property
    def nodes_of_a_message(self) -> int:
        """Nodes of one run whose scored tokens are found, and sent, together."""
        return max(_SCORES_OF_A_MESSAGE // (2 * self.scored_token_count), 1)

    def _choices(self, group: TopKGroup) -> int:
        """The most nodes that *group* can choose in one run."""
        sizes = {scalar.task.facts.type: scalar.output_bytes // 4 for scalar in self.plans[0].scalars}
        wanted = (self.k if group.k is None else group.k) * len(ends_of(group.selection))
        return sum(min(wanted, sizes.get(dst, 0)) for dst in group.dsts)

    def check_size(self) -> None:
        """Raise InvalidRequest, at the k that goes too far, if a table of even one run may fit no message."""
        total = 0
        for i, group in enumerate(self.groups):
            total += self._choices(group)
            if total > self.max_table_nodes:
                field, k = ("k", self.k) if group.k is None else (f"groups[{i}].k", group.k)
                limit = self.max_table_nodes
                message = f"{k} makes the groups choose up to {total} nodes; a table holds at most {limit}"
                raise InvalidRequest.of(field, message)

    @property
    def floating_point_operations(self) -> int:
        """Of all its runs together."""
        return sum(plan.cost.floating_point_operations for plan in self.plans)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the answer's numbers."""
        of_runs = tuple(plan.digest for plan in self.plans)
        rest = replace(self, request_id="", plans=(), parts=frozenset())
        return hashlib.sha256(repr((of_runs, rest, sorted(self.parts))).encode()).hexdigest()


def top_k_question(request: TopKRequest, plan: Callable[[DeriveRequest], Plan]) -> Question:
    """Plan *request*, each of its runs by *plan*.

    Raises:
        InvalidRequest: listing every field that a model or another field rules out, of all runs.
        NotFound: for an unknown model or autoencoder.
        PreconditionFailed: if a type needs an origin, autoencoder or field that a run lacks.
    """
    types = _types_of(request.groups)
    specs = tuple(DerivedScalarSpec(dst=dst) for dst in types)
    runs = [replace(run, request_id="", derived_scalars=specs) for run in request.runs]
    plans = _planned(runs, plan, lambda i, field: _path_in_run(i, field, request.groups, types))
    _check_model(plans)
    tokens = _token_indices(plans, request.token_index)
    question = Question(
        request_id=request.request_id,
        plans=plans,
        groups=request.groups,
        component_groups=(),
        k=request.k,
        token_indices=tokens,
        logit_tokens=(),
        is_shared=_is_shared(plans, request.node_scope),
        with_sums=request.with_sums,
        parts=frozenset({_P.NODE_TABLE}),
    )
    question.check_size()
    return question


def explain_question(request: ExplainRequest, plan: Callable[[DeriveRequest], Plan]) -> Question:
    """Plan *request*, each of its runs by *plan*; raises as `top_k_question` does."""
    groups = request.effective_groups
    has_origin = all(run.has_origin for run in request.runs)
    parts = _parts(request, groups)
    component_groups = default_groups(has_origin=has_origin, k=1) if _P.COMPONENT_SUMS in parts else ()
    chosen_by = groups if _P.NODE_TABLE in parts else ()
    types = _types_of((*chosen_by, *component_groups))
    runs = [_derive_request(request, run, types) for run in request.runs]
    plans = _planned(runs, plan, lambda i, field: _path_in_explain(request, i, field, types))
    if _P.TOKEN_PAIRS in request.parts:
        _check_has_attention_latents(plans)
    plans = tuple(one.also_recording(_sites(one, groups, parts)) for one in plans)
    question = Question(
        request_id=request.request_id,
        plans=plans,
        groups=groups,
        component_groups=component_groups,
        k=request.k,
        token_indices=(None,) * len(plans),
        logit_tokens=tuple(map(_logit_token, plans)),
        is_shared=_is_shared(plans, request.node_scope),
        with_sums=True,
        parts=parts,
        scored_token_count=request.scored_token_count,
        token_pair_count=request.token_pair_count,
        top_logit_count=request.top_logit_count,
    )
    question.check_size()
    return question


def ends_of(selection: TopKSelection) -> tuple[bool, ...]:
    """Which ends are chosen from: True for the largest."""
    return {TopKSelection.TOP: (True,), TopKSelection.BOTTOM: (False,)}.get(selection, (True, False))


# Runs


def _types_of(groups: Sequence[TopKGroup]) -> tuple[DerivedScalarType, ...]:
    return tuple(dict.fromkeys(dst for group in groups for dst in group.dsts))


def _derive_request(request: ExplainRequest, run: ExplainRun, types: Sequence[DerivedScalarType]) -> DeriveRequest:
    """The run as a request to derive *types*."""
    freeze = () if run.detach_final_layer_norm_scale is False else (_FREEZE_FINAL_NORM,)
    return DeriveRequest(
        prompt=run.prompt,
        model=request.model,
        loss_fn_config=run.loss_fn_config,
        trace_config=run.trace_config,
        ablation_specs=(*run.ablation_specs, *map(_ablation, run.node_ablations), *freeze),
        autoencoders=request.autoencoders,
        derived_scalars=tuple(DerivedScalarSpec(dst=dst) for dst in types),
    )


def _ablation(ablation: NodeAblation) -> AblationSpec:
    """The tap's entries that stand for a node; of an attention head the whole row of its query token."""
    node = ablation.node_index
    indices = node.tensor_indices
    if node.node_type is NodeType.ATTENTION_HEAD:
        indices = (indices[0], None, indices[2])
    index = ActivationIndex(
        activation_location_type=_ABLATED_LOCATION[node.node_type],
        tensor_indices=indices,
        layer_index=node.layer_index,
    )
    return AblationSpec(index=index, value=ablation.value)


def _planned(
    runs: Sequence[DeriveRequest], plan: Callable[[DeriveRequest], Plan], path: Callable[[int, str], str]
) -> tuple[Plan, ...]:
    """The plans of all runs, or what is wrong with all of them; *path* tells where a field of a run came from."""
    plans: list[Plan] = []
    problems = Violations()
    missing: list[FieldViolation] = []
    reason: Reason | None = None
    for i, run in enumerate(runs):
        try:
            plans.append(plan(run))
        except InvalidRequest as error:
            for violation in error.violations:
                problems.add(path(i, violation.field), violation.description, error.reason)
        except PreconditionFailed as error:
            reason = reason or error.reason
            missing += [FieldViolation(path(i, one.field), one.description) for one in error.violations]
    problems.raise_if_any()
    if missing:
        raise PreconditionFailed(dict.fromkeys(missing), reason=reason)
    return tuple(plans)


def _path_in_run(i: int, field: str, groups: Sequence[TopKGroup], types: Sequence[DerivedScalarType]) -> str:
    return _path_of_type(field, groups, types) or f"runs[{i}].{field}"


def _path_of_type(field: str, groups: Sequence[TopKGroup], types: Sequence[DerivedScalarType]) -> str | None:
    """Where the type at `derived_scalars[N]` stands in the groups; None for another field."""
    name, _, rest = field.partition("[")
    if name != "derived_scalars" or not rest:
        return None
    wanted = types[int(rest.partition("]")[0])]
    places = [f"groups[{g}].dsts[{group.dsts.index(wanted)}]" for g, group in enumerate(groups) if wanted in group.dsts]
    return places[0] if places else "parts"


def _path_in_explain(request: ExplainRequest, i: int, field: str, types: Sequence[DerivedScalarType]) -> str:
    """The field of an ExplainRequest that became *field* of run *i*."""
    of_type = _path_of_type(field, request.groups, types)
    if of_type is not None:
        return of_type
    name, _, rest = field.partition("[")
    if name in {"model", "autoencoders"}:
        return field
    run = request.runs[i]
    if name == "ablation_specs" and rest:
        number, _, inner = rest.partition("]")
        of_node = int(number) - len(run.ablation_specs)
        if 0 <= of_node < len(run.node_ablations):
            inner = inner.replace(".index.activation_location_type", ".node_index.node_type")
            return f"runs[{i}].node_ablations[{of_node}]{inner.replace('.index.', '.node_index.')}"
    return f"runs[{i}].{field}"


# Rules over all runs


def _check_model(plans: Sequence[Plan]) -> None:
    problems = Violations()
    first = plans[0].model.name
    for i, plan in enumerate(plans):
        problems.check(
            plan.model.name == first, f"runs[{i}].model", f"is {plan.model.name!r}, but that of runs[0] is {first!r}"
        )
    problems.raise_if_any()


def _is_shared(plans: Sequence[Plan], scope: NodeScope | None) -> bool:
    lengths = [len(plan.token_ids) for plan in plans]
    are_equal = len(set(lengths)) == 1
    if scope is NodeScope.BATCH and not are_equal:
        counts = ", ".join(map(str, lengths))
        raise InvalidRequest.of("node_scope", f"must not be BATCH: the prompts have {counts} tokens")
    return are_equal if scope is None else scope is NodeScope.BATCH


def _token_indices(plans: Sequence[Plan], token_index: int | None) -> tuple[int | None, ...]:
    """The token meant in each run, counted from the start."""
    if token_index is None:
        return (None,) * len(plans)
    problems = Violations()
    for i, plan in enumerate(plans):
        count = len(plan.token_ids)
        problems.check(
            -count <= token_index < count,
            "token_index",
            f"must be between {-count} and {count - 1} for the {count} tokens of runs[{i}], not {token_index}",
        )
    problems.raise_if_any()
    return tuple(token_index % len(plan.token_ids) for plan in plans)


# Parts


def _parts(request: ExplainRequest, groups: Sequence[TopKGroup]) -> frozenset[ExplainPart]:
    """The parts wanted, or those that make sense; the node table too if another part refers to it."""
    if request.parts:
        found = set(request.parts)
        return frozenset(found | {_P.NODE_TABLE} if found & REFERRING_PARTS else found)
    node_types = _node_types(groups)
    found = {_P.NODE_TABLE, _P.COMPONENT_SUMS, _P.UPVOTED_OUTPUT_TOKENS, _P.TOP_LOGITS}
    if node_types & _MLP_NODES:
        found.add(_P.INPUT_TOKENS_THAT_UPVOTE_MLP)
    if NodeType.ATTENTION_HEAD in node_types:
        found |= {_P.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q, _P.INPUT_TOKENS_THAT_UPVOTE_ATTN_K}
    if NodeType.ATTENTION_AUTOENCODER_LATENT in node_types:
        found.add(_P.TOKEN_PAIRS)
    return frozenset(found)


def _node_types(groups: Sequence[TopKGroup]) -> frozenset[NodeType]:
    return frozenset(FACTS[dst].node_type for group in groups for dst in group.dsts)


def _check_has_attention_latents(plans: Sequence[Plan]) -> None:
    if any(info.dst is DerivedScalarType.RESID_DELTA_ATTN for info in plans[0].spliced):
        return
    violation = FieldViolation("autoencoders", "TOKEN_PAIRS needs an autoencoder that reads resid.delta_attn")
    raise PreconditionFailed([violation], reason=Reason.AUTOENCODER_REQUIRED)


def _logit_token(plan: Plan) -> int:
    """The traced node's token, else the last."""
    trace = plan.request.trace_config
    token = None if trace is None else trace.node_index.tensor_indices[0]
    return len(plan.token_ids) - 1 if token is None else token


def logits_are_changed(plan: Plan) -> bool:
    """Whether an ablation makes the logits differ from what the last residual says."""
    places = {_L.LOGITS, _L.RESID_FINAL_LAYER_NORM_SCALE}
    return any(a.location in places and a.pass_type is PassType.FORWARD for a in plan.ablations)


def _sites(plan: Plan, groups: Sequence[TopKGroup], parts: frozenset[ExplainPart]) -> Iterator[Site]:
    """What has to be recorded for the parts besides what the types read."""
    n_layers = plan.model.dimensions.n_layers
    node_types = _node_types(groups)
    if parts & frozenset(SCORED_PARTS):
        topology = Topology(n_layers, plan.model.architecture, AutoencoderInputs.of_sets(plan.spliced))
        yield from sites_of_vectors(node_types, range(n_layers), topology)
        for info in plan.spliced:
            if info.node_type in node_types or NodeType.AUTOENCODER_LATENT in node_types:
                for layer in info.layer_indices:
                    yield LATENT_LOCATION[INPUT_LOCATION[info.dst]], layer
                    if info.has_write_scale:
                        yield INPUT_LOCATION[info.dst], layer
    if _P.TOKEN_PAIRS in parts:
        for info in plan.spliced:
            if info.dst is DerivedScalarType.RESID_DELTA_ATTN:
                yield from sites_of_attended_tokens(info.layer_indices, plan.model.architecture)
    if _P.TOP_LOGITS in parts:
        yield (_L.LOGITS, None) if logits_are_changed(plan) else (_L.RESID_POST_MLP, n_layers - 1)
