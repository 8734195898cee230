"""From keyword arguments to a request of Explain or TopK."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias, TypedDict, Unpack

from dst_grpc.client._given import given, tuple_of
from dst_grpc.client._requests import (
    PromptLike,
    RequestArguments,
    SourceRunsLike,
    TokensLike,
    loss_of,
    make_request,
    member,
    names_of,
    prompt_of,
    source_runs_of,
)
from dst_grpc.domain.components import (
    ComponentTypeForAttention,
    ComponentTypeForMlp,
    ComponentTypeForResidual,
    LossFnName,
)
from dst_grpc.domain.explain import (
    DEFAULT_K,
    ExplainRequest,
    ExplainRun,
    NodeAblation,
    NodeScope,
    TopKGroup,
    TopKRequest,
)
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.interventions import AblationSpec, Intervention
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.errors import InvalidRequest

NodeToAblate: TypeAlias = NodeIndex | NodeAblation | tuple[NodeIndex, float]
"""A node to set to 0, or one with the value to set it to."""
GroupsLike: TypeAlias = TopKGroup | str | Iterable[TopKGroup | str] | Mapping[str, str | Iterable[str]]
"""Groups; or types, names or members of DerivedScalarType: each a group of that name, or several of a group, by its
name."""


class RunArguments(TypedDict, total=False):
    """The keyword arguments of one run of `explain`."""

    target: TokensLike | None
    """Target tokens."""
    distractor: TokensLike | None
    """Distractor tokens."""
    loss: LossFnConfig | LossFnName | str | None
    """A whole loss; or its name, for the target and distractor given."""
    trace: TraceConfig | None
    """A node to explain instead."""
    ablate: NodeToAblate | Iterable[NodeToAblate]
    """Nodes to ablate: set to 0, or to a value."""
    ablations: Iterable[AblationSpec]
    """Other entries to overwrite, applied before the nodes."""
    interventions: Iterable[Intervention]
    """Interventions, applied in order after the nodes."""
    source_runs: SourceRunsLike
    """Runs that interventions read: their prompts by name, or whole SourceRuns."""
    detach_final_layer_norm_scale: bool
    """Whether the final norm's scale is held constant in gradients, so that direct effects are shares of the logits."""


class ExplainArguments(RunArguments, total=False):
    """The keyword arguments of `explain`, besides its prompt."""

    beside: Iterable[ExplainRun]
    """Further runs to explain beside this one, such as the same prompt with a node ablated."""
    model: str | None
    """Name or handle of the model; None = the server's default."""
    autoencoders: str | Iterable[str]
    """Names or handles of autoencoders to splice into the runs."""
    mlp: ComponentTypeForMlp | str
    """Which nodes represent the MLPs: `neuron` or `autoencoder_latent`."""
    attention: ComponentTypeForAttention | str
    """Which nodes represent attention: `attention_head` or `autoencoder_latent`."""
    residual: ComponentTypeForResidual | str
    """Which nodes describe the residual stream, beside these: `none` or `autoencoder_latent`."""
    groups: GroupsLike
    """What to select nodes by; nothing = the default groups."""
    k: int
    """Nodes to select of each type, at each end."""
    parts: Iterable[ExplainPart | str]
    """Which parts to send; nothing = all that apply."""
    scored_token_count: int
    """Tokens to score at each end, per node."""
    token_pair_count: int
    """Tokens attended to, per latent of attention."""
    top_logit_count: int
    """Output logits at each end."""
    node_scope: NodeScope | str | None
    """Whether the runs share one list of nodes (`batch`) or not (`prompt`); None = if they can."""
    unit_length_embeddings: bool
    """Whether input tokens are scored by embeddings scaled to unit length, so that no long ones head all lists."""
    request_id: str
    """Your own id, carried by the answer."""


class TopKArguments(RequestArguments, total=False):
    """The keyword arguments of `top_k`: those of `derive`, and how to select."""

    k: int
    """Entries to select of each type, at each end."""
    token_index: int | None
    """Select only nodes at this token, from the end if negative."""
    with_sums: bool
    """Whether to send the sums of whole derived scalars too."""


def make_explain_run(
    prompt: PromptLike,
    *,
    target: TokensLike | None = None,
    distractor: TokensLike | None = None,
    loss: LossFnConfig | LossFnName | str | None = None,
    trace: TraceConfig | None = None,
    ablate: NodeToAblate | Iterable[NodeToAblate] = (),
    ablations: Iterable[AblationSpec] = (),
    interventions: Iterable[Intervention] = (),
    source_runs: SourceRunsLike = (),
    detach_final_layer_norm_scale: bool = True,
) -> ExplainRun:
    """One run that the arguments describe; see RunArguments.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model.
    """
    return given(
        "",
        ExplainRun,
        prompt=prompt_of(prompt),
        loss_fn_config=loss_of(loss, target, distractor),
        trace_config=trace,
        node_ablations=_node_ablations(ablate),
        ablation_specs=tuple_of("ablations", ablations),
        interventions=tuple_of("interventions", interventions),
        source_runs=source_runs_of(source_runs),
        detach_final_layer_norm_scale=detach_final_layer_norm_scale,
    )


def make_explain_request(
    prompt: PromptLike,
    *,
    beside: Iterable[ExplainRun] = (),
    model: str | None = None,
    autoencoders: str | Iterable[str] = (),
    mlp: ComponentTypeForMlp | str = ComponentTypeForMlp.NEURON,
    attention: ComponentTypeForAttention | str = ComponentTypeForAttention.ATTENTION_HEAD,
    residual: ComponentTypeForResidual | str = ComponentTypeForResidual.NONE,
    groups: GroupsLike = (),
    k: int = DEFAULT_K,
    parts: Iterable[ExplainPart | str] = (),
    scored_token_count: int = 10,
    token_pair_count: int = 3,
    top_logit_count: int = 100,
    node_scope: NodeScope | str | None = None,
    unit_length_embeddings: bool = True,
    request_id: str = "",
    **run: Unpack[RunArguments],
) -> ExplainRequest:
    """The request that the arguments describe; see ExplainArguments.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model; names that are nearly right are suggested.
    """
    return given(
        "",
        ExplainRequest,
        runs=(make_explain_run(prompt, **run), *tuple_of("beside", beside)),
        request_id=request_id,
        model=model,
        autoencoders=names_of(autoencoders),
        component_type_for_mlp=member(ComponentTypeForMlp, mlp, "component_type_for_mlp"),
        component_type_for_attention=member(ComponentTypeForAttention, attention, "component_type_for_attention"),
        component_type_for_residual=member(ComponentTypeForResidual, residual, "component_type_for_residual"),
        groups=_groups(groups),
        k=k,
        parts=tuple(member(ExplainPart, part, f"parts[{i}]") for i, part in enumerate(names_of(parts, "parts"))),
        scored_token_count=scored_token_count,
        token_pair_count=token_pair_count,
        top_logit_count=top_logit_count,
        node_scope=None if node_scope is None else member(NodeScope, node_scope, "node_scope"),
        unit_length_embeddings=unit_length_embeddings,
    )


def make_top_k_request(
    prompt: PromptLike,
    groups: GroupsLike,
    *,
    k: int = DEFAULT_K,
    token_index: int | None = None,
    with_sums: bool = False,
    **arguments: Unpack[RequestArguments],
) -> TopKRequest:
    """The request, of one run, that the arguments describe; see TopKArguments.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model; names that are nearly right are suggested.
    """
    request_id = arguments.pop("request_id", "")
    return given(
        "",
        TopKRequest,
        runs=(make_request(prompt, (), **arguments),),
        groups=_groups(groups),
        request_id=request_id,
        k=k,
        token_index=token_index,
        with_sums=with_sums,
    )


def _node_ablations(ablate: NodeToAblate | Iterable[NodeToAblate]) -> tuple[NodeAblation, ...]:
    if isinstance(ablate, NodeIndex | NodeAblation):
        return (_node_ablation(ablate),)
    if isinstance(ablate, tuple) and len(ablate) == 2 and isinstance(ablate[1], int | float):
        return (_node_ablation(ablate),)
    return tuple(map(_node_ablation, tuple_of("ablate", ablate)))


def _node_ablation(ablated: NodeToAblate) -> NodeAblation:
    if isinstance(ablated, NodeAblation):
        return ablated
    node, value = (ablated, 0.0) if isinstance(ablated, NodeIndex) else ablated
    return NodeAblation(node_index=node, value=float(value))


def _group(group: TopKGroup | str, path: str) -> TopKGroup:
    """A group; of the name of a type, that type alone under its own name."""
    if isinstance(group, TopKGroup):
        return group
    if not isinstance(group, str):
        raise InvalidRequest.of(path, f"must be a TopKGroup or the name of a derived scalar type, not {group!r}")
    dst = member(DerivedScalarType, group, path)
    return TopKGroup(group_id=dst.value, dsts=(dst,))


def _groups(groups: GroupsLike) -> tuple[TopKGroup, ...]:
    if not isinstance(groups, Mapping):
        listed_groups = (groups,) if isinstance(groups, str | TopKGroup) else tuple_of("groups", groups)
        return tuple(_group(group, f"groups[{i}]") for i, group in enumerate(listed_groups))
    found = []
    for i, (name, types) in enumerate(groups.items()):
        path = f"groups[{i}]"
        dsts = [member(DerivedScalarType, dst, f"{path}.dsts[{j}]") for j, dst in enumerate(names_of(types, path))]
        found.append(given(path, TopKGroup, group_id=name, dsts=tuple(dsts)))
    return tuple(found)
