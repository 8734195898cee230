"""From keyword arguments to a request of Attribute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from dst_grpc.client._given import given
from dst_grpc.client._pair_requests import PairArguments, PairLike, pairs_of
from dst_grpc.client._requests import PromptLike, TokensLike, loss_of, member, names_of
from dst_grpc.domain.attribute import (
    AttributedNode,
    AttributionMethod,
    Baseline,
    PathGroups,
    PathRule,
    PostNormJacobian,
    PropagationRule,
)
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.pairs import Orientation

E = TypeVar("E", PathRule, PathGroups, Baseline, PostNormJacobian)


class AttributeArguments(PairArguments, total=False):
    """The keyword arguments of `attribute`, besides its prompts: PairArguments, and these."""

    method: AttributionMethod | str
    """Where gradients are taken: `attribution_patching` (AtP, EAP), `clean_corrupt`, `integrated_inputs` (EAP-IG),
    `integrated_activations`, `integrated_gradients` (of tokens)."""
    nodes: AttributedNode | str | Iterable[AttributedNode | str]
    """Kinds of nodes: `input`, `head`, `mlp_out`, `resid_post`, `neuron`, `latent`, ..."""
    edges: bool
    """Whether to score all edges."""
    by_position: bool
    """Whether there is a score for each position."""
    rule: PropagationRule | str
    """How gradients pass: `plain`, `frozen`, `relp`, `gim`, ..."""
    path_rule: PathRule | str | None
    """Points of a path: `left`, `right`, `middle`, `trapezoid`, `gauss_legendre`."""
    steps: int | None
    """Steps of a path."""
    path_groups: PathGroups | str | None
    """`own_layer` or `every_layer`, for paths between activations."""
    baseline: Baseline | str | None
    """`corrupt`, `zero` or `mean`, for integrated gradients."""
    by_channel: bool
    """Whether integrated gradients are of each channel."""
    post_norms: PostNormJacobian | str | None
    """`exact`, `frozen` or `raw`, for edges."""
    qk_fix: bool
    """AtP*'s QK fix."""
    grad_drop: bool
    """AtP*'s GradDrop."""
    magnitudes: bool
    """Whether the mean over pairs is one of magnitudes."""
    verify: int
    """How many of the best edges to patch exactly."""


def make_attribute_request(
    clean: PromptLike | None = None,
    corrupt: PromptLike | None = None,
    *,
    target: TokensLike | None = None,
    distractor: TokensLike | None = None,
    loss: LossFnConfig | LossFnName | str | None = None,
    pairs: Iterable[PairLike] = (),
    model: str | None = None,
    autoencoders: str | Iterable[str] = (),
    orientation: Orientation | str = Orientation.NOISING,
    method: AttributionMethod | str = AttributionMethod.ATTRIBUTION_PATCHING,
    nodes: AttributedNode | str | Iterable[AttributedNode | str] = (),
    edges: bool = False,
    by_position: bool = False,
    rule: PropagationRule | str = PropagationRule.PLAIN,
    path_rule: PathRule | str | None = None,
    steps: int | None = None,
    path_groups: PathGroups | str | None = None,
    baseline: Baseline | str | None = None,
    by_channel: bool = False,
    post_norms: PostNormJacobian | str | None = None,
    qk_fix: bool = False,
    grad_drop: bool = False,
    magnitudes: bool = False,
    verify: int = 0,
    request_id: str = "",
) -> AttributeRequest:
    """The request that the arguments describe; see AttributeArguments.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model; names that are nearly right are suggested.
    """
    kinds = names_of(nodes, "nodes")
    return given(
        "",
        AttributeRequest,
        pairs=pairs_of(clean, corrupt, pairs),
        request_id=request_id,
        model=model,
        loss_fn_config=loss_of(loss, target, distractor),
        autoencoders=names_of(autoencoders),
        orientation=member(Orientation, orientation, "orientation"),
        method=member(AttributionMethod, method, "method"),
        nodes=tuple(member(AttributedNode, node, f"nodes[{i}]") for i, node in enumerate(kinds)),
        edges=edges,
        by_position=by_position,
        rule=member(PropagationRule, rule, "rule"),
        path_rule=_optional(PathRule, path_rule, "path_rule"),
        steps=steps,
        path_groups=_optional(PathGroups, path_groups, "path_groups"),
        baseline=_optional(Baseline, baseline, "baseline"),
        by_channel=by_channel,
        post_norms=_optional(PostNormJacobian, post_norms, "post_norms"),
        qk_fix=qk_fix,
        grad_drop=grad_drop,
        magnitudes=magnitudes,
        verify=verify,
    )


def _optional(enum: type[E], name: E | str | None, field: str) -> E | None:
    return None if name is None else member(enum, name, field)
