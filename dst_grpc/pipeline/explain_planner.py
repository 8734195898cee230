"""Planning of TopK and Explain. Pure.

A run is planned as a DeriveRequest of the groups' types. Violations are reported at the fields that it was made from.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dst_grpc.domain.components import NodeType, PassType
from dst_grpc.domain.enum_names import json_name
from dst_grpc.domain.explain import NodeScope, default_groups
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.errors import NotFound, Reason, require
from dst_grpc.pipeline.cost import costed
from dst_grpc.pipeline.explain_plan import ExplainPlan, logits_are_changed
from dst_grpc.pipeline.findings import Findings, SourceMap
from dst_grpc.pipeline.planner import model_ref, plan_run
from dst_grpc.scalars.attended_tokens import sites_of_attended_tokens
from dst_grpc.scalars.left_out import LeftOut
from dst_grpc.scalars.node_vectors import sites_of_vectors
from dst_grpc.scalars.residual_shares import SharesOfResiduals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.explain import ExplainRequest, ExplainRun, NodeAblation, TopKGroup, TopKRequest
    from dst_grpc.engine.taps import Site
    from dst_grpc.errors import Violations
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.scalars.recorded_taps import Tap

_L = ActivationLocationType
_P = ExplainPart


def plan_top_k(
    request: TopKRequest,
    registry: Registry,
    known: Violations | None = None,
    store_bytes: int = 0,
    *,
    check: Check = never_cancelled,
) -> ExplainPlan:
    """Plan *request*.

    Args:
        request: the request.
        registry: the models and autoencoders that can be loaded.
        known: violations found by reading the request's message, as for `make_plan`.
        store_bytes: budget of the store that will keep the recordings.
        check: raises Cancelled once nobody waits for the plan.

    Raises:
        InvalidRequest: listing every field that a model or another field rules out, of all runs, and those of *known*.
        NotFound: for an unknown model or autoencoder.
        PreconditionFailed: if a type needs an origin, autoencoder or field that a run lacks.
    """
    findings = Findings.after(known, check_wanted=check)
    types = _types_of(request.groups)
    specs = tuple(DerivedScalarSpec(dst=dst) for dst in types)
    runs = [replace(run, request_id="", derived_scalars=specs) for run in request.runs]
    made_from = _sources_of_types(types, request.groups)
    sources = [SourceMap(root=f"runs[{i}]", made_from=made_from) for i in range(len(runs))]
    found = [
        plan_run(run, registry, findings.about(source), store_bytes) for run, source in zip(runs, sources, strict=True)
    ]
    prompts = _known_prompts(runs, found, registry, findings)
    _check_model(prompts, findings)
    _check_token_index(prompts, request.token_index, findings)
    is_shared = _is_shared(prompts, request.node_scope, findings)
    plans = tuple(
        costed(one.also_recording(_taps_of_completeness(one)), store_bytes) for one in _planned(found, findings)
    )
    token = request.token_index
    asked = ExplainPlan(
        request_id=request.request_id,
        plans=plans,
        groups=request.groups,
        component_groups=(),
        k=request.k,
        token_indices=tuple(None if token is None else token % len(plan.token_ids) for plan in plans),
        logit_tokens=(),
        is_shared=is_shared,
        with_sums=request.with_sums,
        parts=frozenset({_P.NODE_TABLE}),
    )
    return _checked(asked, len(runs), findings)


def plan_explain(
    request: ExplainRequest, registry: Registry, known: Violations | None = None, *, check: Check = never_cancelled
) -> ExplainPlan:
    """Plan *request*; arguments and errors are those of `plan_top_k`. Nothing is recorded besides: its parts read most
    of what could be."""
    findings = Findings.after(known, check_wanted=check)
    groups = request.effective_groups
    has_origin = all(run.has_origin for run in request.runs)
    parts = _parts(request, groups)
    component_groups = default_groups(has_origin=has_origin, k=1) if _P.COMPONENT_SUMS in parts else ()
    chosen_by = groups if _P.NODE_TABLE in parts else ()
    types = _types_of((*chosen_by, *component_groups))
    runs = [_derive_request(request, run, types) for run in request.runs]
    made_from = {"config": "groups", **_sources_of_types(types, request.groups)}
    sources = [_source_of_run(i, run, made_from) for i, run in enumerate(request.runs)]
    found = [plan_run(run, registry, findings.about(source)) for run, source in zip(runs, sources, strict=True)]
    is_shared = _is_shared(_known_prompts(runs, found, registry, findings), request.node_scope, findings)
    plans = _planned(found, findings)
    if _P.TOKEN_PAIRS in request.parts:
        _check_has_attention_latents(plans, findings)
    plans = tuple(costed(_reading(one, groups, parts)) for one in plans)
    asked = ExplainPlan(
        request_id=request.request_id,
        plans=plans,
        groups=groups,
        component_groups=component_groups,
        k=request.k,
        token_indices=(None,) * len(plans),
        logit_tokens=tuple(map(_logit_token, plans)),
        is_shared=is_shared,
        with_sums=True,
        parts=parts,
        scored_token_count=request.scored_token_count,
        token_pair_count=request.token_pair_count,
        top_logit_count=request.top_logit_count,
        unit_length_embeddings=request.unit_length_embeddings is True,
    )
    return _checked(asked, len(runs), findings)


def _checked(asked: ExplainPlan, n_runs: int, findings: Findings) -> ExplainPlan:
    """*asked*, if nothing is wrong with it and all its *n_runs* runs could be planned; raises all that is wrong."""
    asked.check_size(findings)
    if findings.count or len(asked.plans) < n_runs:
        raise findings.error()
    return asked


# Runs


def _types_of(groups: Sequence[TopKGroup]) -> tuple[DerivedScalarType, ...]:
    return tuple(dict.fromkeys(dst for group in groups for dst in group.dsts))


def _derive_request(request: ExplainRequest, run: ExplainRun, types: Sequence[DerivedScalarType]) -> DeriveRequest:
    """The run as a request to derive *types*."""
    return DeriveRequest(
        prompt=run.prompt,
        model=request.model,
        loss_fn_config=run.loss_fn_config,
        trace_config=run.trace_config,
        ablation_specs=(*run.ablation_specs, *map(_ablation, run.node_ablations)),
        interventions=run.interventions,
        source_runs=run.source_runs,
        detach_final_layer_norm_scale=run.detach_final_layer_norm_scale is not False,
        autoencoders=request.autoencoders,
        derived_scalars=tuple(DerivedScalarSpec(dst=dst) for dst in types),
    )


def _ablation(ablation: NodeAblation) -> AblationSpec:
    """The tap's entries of a node; for an attention head the whole row of its query token."""
    node = ablation.node_index
    indices = node.tensor_indices
    if node.node_type is NodeType.ATTENTION_HEAD:
        indices = (indices[0], None, indices[2])
    index = ActivationIndex(
        activation_location_type=require(NODES[node.node_type].ablated_tap),
        tensor_indices=indices,
        layer_index=node.layer_index,
    )
    return AblationSpec(index=index, value=ablation.value)


def _planned(found: Sequence[Plan | None], findings: Findings) -> tuple[Plan, ...]:
    """The plans of the runs that could be planned; raises all that is wrong, or missing, if none could."""
    plans = tuple(plan for plan in found if plan is not None)
    if not plans:
        raise findings.error()
    return plans


def _sources_of_types(types: Sequence[DerivedScalarType], groups: Sequence[TopKGroup]) -> dict[str, str]:
    """The source of derived scalars of *types*: where *groups* first name them, or the field that implies them."""
    named: dict[DerivedScalarType, str] = {}
    for g, group in enumerate(groups):
        for j, dst in enumerate(group.dsts):
            named.setdefault(dst, f"groups[{g}].dsts[{j}]")
    return {"derived_scalars": "groups"} | {
        f"derived_scalars[{i}]": named.get(dst, "parts") for i, dst in enumerate(types)
    }


def _source_of_run(i: int, run: ExplainRun, made_from: Mapping[str, str]) -> SourceMap:
    """The source map of the DeriveRequest that is made from *run*, the one at *i*."""
    moved = dict.fromkeys(("model", "config.model_context", "config.model_name"), "model")
    moved["autoencoders"] = "autoencoders"
    for n in range(len(run.node_ablations)):
        spec, node = f"ablation_specs[{len(run.ablation_specs) + n}]", f"runs[{i}].node_ablations[{n}]"
        moved[spec] = node
        moved[f"{spec}.index"] = f"{node}.node_index"
        moved[f"{spec}.index.activation_location_type"] = f"{node}.node_index.node_type"
    return SourceMap(root=f"runs[{i}]", moved=moved, made_from=made_from)


# Rules over all runs


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What the rules over all runs read of a run."""

    model: str
    token_count: int


def _known_prompts(
    runs: Sequence[DeriveRequest], found: Sequence[Plan | None], registry: Registry, findings: Findings
) -> dict[int, _Prompt]:
    """The prompts of the runs, by place; also of those that could not be planned, unless it is the prompt or the model
    that is bad."""
    prompts = {}
    for i, (run, plan) in enumerate(zip(runs, found, strict=True)):
        if plan is not None:
            prompts[i] = _Prompt(plan.model.name, len(plan.token_ids))
        elif not any(map(findings.holds_stand_in, (f"runs[{i}].prompt", f"runs[{i}].model", "model"))):
            with suppress(NotFound):  # other violations are reported instead
                prompts[i] = _prompt(run, registry)
    return {i: prompt for i, prompt in prompts.items() if prompt.token_count}


def _prompt(run: DeriveRequest, registry: Registry) -> _Prompt:
    model, given = registry.model_entry(model_ref(run)), require(run.prompt)
    tokens = given.token_ids if given.text is None else model.tokenizer().encode(given.text)
    return _Prompt(model.name, len(tokens or ()))


def _check_model(prompts: Mapping[int, _Prompt], findings: Findings) -> None:
    first = min(prompts, default=0)
    for i, prompt in prompts.items():
        description = f"is {prompt.model!r}, but that of runs[{first}] is {prompts[first].model!r}"
        findings.check(prompt.model == prompts[first].model, f"runs[{i}].model", description)


def _is_shared(prompts: Mapping[int, _Prompt], scope: NodeScope | None, findings: Findings) -> bool:
    lengths = [prompt.token_count for prompt in prompts.values()]
    are_equal = len(set(lengths)) <= 1
    if scope is NodeScope.BATCH and not are_equal:
        counts = ", ".join(map(str, lengths))
        findings.add("node_scope", f"must not be {json_name(NodeScope.BATCH)}: the prompts have {counts} tokens")
    return are_equal if scope is None else scope is NodeScope.BATCH


def _check_token_index(prompts: Mapping[int, _Prompt], token_index: int | None, findings: Findings) -> None:
    for i, prompt in prompts.items():
        count = prompt.token_count
        findings.check(
            token_index is None or -count <= token_index < count,
            "token_index",
            f"must be between {-count} and {count - 1} for the {count} tokens of runs[{i}], not {token_index}",
        )


# Parts


def _parts(request: ExplainRequest, groups: Sequence[TopKGroup]) -> frozenset[ExplainPart]:
    """The parts asked for, or those that apply; the node table too if another part refers to it."""
    if request.parts:
        found = set(request.parts)
        return frozenset(found | {_P.NODE_TABLE} if any(part.is_about_nodes for part in found) else found)
    node_types = _node_types(groups)
    found = {_P.NODE_TABLE, _P.COMPONENT_SUMS, _P.UPVOTED_OUTPUT_TOKENS, _P.TOP_LOGITS}
    if any(NODES[node_type].may_read_one_token for node_type in node_types):
        found.add(_P.INPUT_TOKENS_THAT_UPVOTE_MLP)
    if NodeType.ATTENTION_HEAD in node_types:
        found |= {_P.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q, _P.INPUT_TOKENS_THAT_UPVOTE_ATTN_K}
    if NodeType.ATTENTION_AUTOENCODER_LATENT in node_types:
        found.add(_P.TOKEN_PAIRS)
    return frozenset(found)


def _node_types(groups: Sequence[TopKGroup]) -> frozenset[NodeType]:
    return frozenset(FACTS[dst].node_type for group in groups for dst in group.dsts)


def _check_has_attention_latents(plans: Sequence[Plan], findings: Findings) -> None:
    if not any(info.input.is_of_attention_write for info in plans[0].spliced):
        description = f"{json_name(_P.TOKEN_PAIRS)} needs an autoencoder that reads resid.delta_attn"
        findings.lack("autoencoders", description, Reason.AUTOENCODER_REQUIRED)


def _logit_token(plan: Plan) -> int:
    """The traced node's token, else the last."""
    trace = plan.request.trace_config
    token = None if trace is None else trace.node_index.tensor_indices[0]
    return len(plan.token_ids) - 1 if token is None else token


def _taps_of_completeness(plan: Plan) -> Iterator[Tap]:
    """What has to be recorded to say what latents leave out, and what the residual stream is in their terms."""
    for scalar in plan.scalars:
        left_out, shares = LeftOut.of(scalar), SharesOfResiduals.of(scalar)
        if left_out is not None:
            yield from ((PassType.FORWARD, site) for site in left_out.sites())
        if shares is not None:
            yield from shares.taps()


def _taps(plan: Plan, groups: Sequence[TopKGroup], parts: frozenset[ExplainPart]) -> Iterator[Tap]:
    """What has to be recorded for the parts, besides the taps of the types."""
    yield from _taps_of_completeness(plan)
    yield from ((PassType.FORWARD, site) for site in _sites(plan, groups, parts))


def _reading(plan: Plan, groups: Sequence[TopKGroup], parts: frozenset[ExplainPart]) -> Plan:
    """*plan* with everything recorded that the parts read, and nothing besides: the parts read so much that the rest
    would double the memory of the pass, and leave little to ask that it answers."""
    logits = plan.run.logit_positions & {_logit_token(plan)} if _P.TOP_LOGITS in parts else frozenset()
    return replace(plan.also_recording(_taps(plan, groups, parts)), logits=logits)


def _sites(plan: Plan, groups: Sequence[TopKGroup], parts: frozenset[ExplainPart]) -> Iterator[Site]:
    """Sites that the parts are computed from."""
    n_layers = plan.model.dimensions.n_layers
    node_types = _node_types(groups)
    if any(part.scores_tokens for part in parts):
        covered = {info.input: info.layer_indices for info in plan.spliced}
        for node_type in node_types:
            read = plan.topology.inputs.of(node_type) if NODES[node_type].is_of_autoencoder else None
            yield from sites_of_vectors(node_type, range(n_layers) if read is None else covered[read], plan.topology)
    if _P.TOKEN_PAIRS in parts:
        for info in plan.spliced:
            if info.input.is_of_attention_write:
                yield from sites_of_attended_tokens(info.input, info.layer_indices, plan.topology)
    if _P.TOP_LOGITS in parts:
        yield (_L.LOGITS, None) if logits_are_changed(plan) else plan.topology.final_residual(None).site
