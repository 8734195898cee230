"""Latents, error and decoder bias of the residual's autoencoder add up to the residual, and that to the whole."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization
from dst_grpc.domain.components import ComponentTypeForMlp, ComponentTypeForResidual, NodeType
from dst_grpc.domain.explain import NodeAblation, TopKGroup
from dst_grpc.domain.explanations import Completeness, ExplainPart, NodeTable, RunExplanation
from dst_grpc.domain.groups import DEFAULT_GROUPS, RESIDUAL_GROUPS
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.taps import Site
from tests import explaining, models, plain, traces
from tests.explained import N_LAYERS, Explained

RESIDUALS = (T.RESID_POST_ATTN, T.RESID_POST_MLP)
OF_STREAM = {"component_type_for_residual": ComponentTypeForResidual.AUTOENCODER_LATENT}
ALL = 400
"""More than there are nodes of a type."""
LATENT = traces.trace(traces.LATENT, 2, 4, 3, post=False, detach=True)
NEURON = traces.trace(traces.NEURON, 2, 4, 7, post=False, detach=True)

CASES = [
    *(Explained(architecture, (T.RESID_POST_MLP,)) for architecture in models.ARCHITECTURES),
    *(Explained(kinds=(kind,), origin=origin) for kind in RESIDUALS for origin in (LATENT, NEURON)),
    Explained("gemma", (T.RESID_POST_ATTN,)),
    Explained(kinds=(T.MLP_POST_ACT, T.RESID_DELTA_ATTN, T.RESID_POST_MLP)),
    *(
        Explained(kinds=(T.RESID_POST_ATTN,), activation=activation)
        for activation in AutoencoderActivation
        if activation is not AutoencoderActivation.RELU
    ),
    *(
        Explained(kinds=(T.RESID_POST_MLP,), origin=origin, normalization=normalization)
        for normalization in InputNormalization
        if normalization is not InputNormalization.NONE
        for origin in (None, LATENT)
    ),
]


def explained(x: Explained, **fields: Any) -> RunExplanation:
    """Every node of *x*, by the groups of the residual stream and by the others."""
    of_run = traces.fields_of(x.origin, models.LOSS)
    request = explaining.request(autoencoders=tuple(x.world.sets), **{"k": ALL, **OF_STREAM, **of_run, **fields})
    (found,) = explaining.explain(x.world, request).runs
    return found


def table(found: RunExplanation) -> NodeTable:
    """Its nodes."""
    assert found.node_table is not None
    return found.node_table


def completeness(found: RunExplanation, group: str) -> Completeness:
    """What is said of how complete a group is."""
    told = table(found).group(group).completeness
    assert told is not None
    return told


def kind_of(x: Explained) -> T:
    """The residual that is described."""
    return next(kind for kind in RESIDUALS if kind in x.kinds)


def output(layer: int) -> Site:
    """The residual behind the autoencoder."""
    return L.ONLINE_RESIDUAL_AUTOENCODER_OUTPUT, layer


def close(found: float, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected.sum(), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("x", CASES, ids=str)
def test_the_shares_of_each_layer_add_up_to_the_residual_there(x: Explained) -> None:
    found, kind = explained(x, parts=(ExplainPart.NODE_TABLE,), detach_final_layer_norm_scale=False), kind_of(x)
    direct, by_gradient = (
        {one.layer_index: one for one in completeness(found, f"residual_{group}").residuals}
        for group in ("direction_write", "act_times_grad")
    )
    direction = x.before_origin
    place = x.latent_place(kind)
    assert list(direct) == list(by_gradient) == [i for i in range(N_LAYERS) if direction.is_after(i, place)]
    for i in direct:
        writes, error = x.latent_writes(kind, i).sum(1), x.value[plain.ERROR[kind], i]
        residual = x.value[output(i)]
        parts = {"latents": writes, "error": error, "decoder_bias": residual - writes - error, "total": residual}
        for name, vector in parts.items():
            close(getattr(direct[i], name), vector * direction.vector)
            if name in {"decoder_bias", "total"}:
                close(getattr(by_gradient[i], name), vector * x.gradient[output(i)])
        close(by_gradient[i].latents, x.latents(kind, i) * x.gradient[plain.LATENT[kind], i])
        close(by_gradient[i].error, error * x.gradient[plain.ERROR[kind], i])
        assert direct[i].listed == pytest.approx(direct[i].latents + direct[i].error, abs=1e-4)


@pytest.mark.parametrize("x", CASES[:7], ids=str)
def test_the_residual_and_what_is_written_later_add_up_to_the_whole(x: Explained) -> None:
    """Of a loss of a model without a cap, and of a trace before its nonlinearity, whose scale is held."""
    if x.config.final_softcap is not None:
        return
    fields = {} if x.origin is not None else {"detach_final_layer_norm_scale": True}
    found, kind = explained(x, parts=(ExplainPart.NODE_TABLE,), **fields), kind_of(x)
    told = completeness(found, "residual_direction_write")
    direct = table(found).group("direction_write")
    if x.origin is not None:
        direction = x.before_origin.vector
    else:
        last = x.value[output(N_LAYERS - 1)] if kind is T.RESID_POST_MLP else x.value[L.RESID_POST_MLP, N_LAYERS - 1]
        direction = plain.local_gradient(lambda r: traces.loss(x.plain.logits(r, x.plain.scale(r).detach())[-1]), last)
    for share in told.residuals:
        later = 0.0
        for node, value in zip(table(found).nodes, direct.values, strict=True):
            if node.layer_index is None or node.node_type not in {NodeType.ATTENTION_HEAD, NodeType.MLP_NEURON}:
                continue
            is_mlp_of_it = node.node_type is NodeType.MLP_NEURON and kind is T.RESID_POST_ATTN
            if node.layer_index > share.layer_index or (node.layer_index == share.layer_index and is_mlp_of_it):
                later += float(value)
        biases = sum(
            (x.plain.biases(i, part, x.value) * direction).sum().item()
            for i in range(N_LAYERS)
            for part, at in (("attn", 2.0), ("mlp", 4.0))
            if (i, at) > (share.layer_index, 2.2 if kind is T.RESID_POST_ATTN else 4.5) and counts(x, i, part)
        )
        assert share.total + later + biases + constant(x) == pytest.approx(value_of(found), abs=1e-4)


def counts(x: Explained, layer: int, part: str) -> bool:
    """Whether what a part of *layer* writes comes before the origin."""
    if x.origin is None:
        return True
    own = x.origin.node_index.layer_index or 0
    reads_mlp = x.origin is LATENT and kind_of(x) is T.RESID_POST_MLP
    return layer < own or (layer == own and (part == "attn" or reads_mlp))


def constant(x: Explained) -> float:
    """What of the origin is no function of the residual."""
    if x.origin is None:
        bias = x.plain.weights.get("final_norm.bias")
        return 0.0 if bias is None else traces.loss(bias @ x.plain.weights["unembedding"]).item()
    zero = torch.zeros(len(models.TOKENS), x.config.d_model, dtype=torch.float64)
    if x.origin is LATENT:
        return plain.pre(x.autoencoder(kind_of(x), 2), zero)[4, 3].item()
    name = "layers.2.mlp_norm.bias"
    return x.plain.pre_act(2, x.plain.weights[name].expand(len(zero), -1))[4, 7].item()


def value_of(found: RunExplanation) -> float:
    """The explained value."""
    value = found.header.loss if found.header.activation_value is None else found.header.activation_value
    assert value is not None
    return value


def test_latents_of_the_residual_take_no_part_in_the_sums_of_what_writes() -> None:
    x = Explained(kinds=(T.RESID_POST_MLP,))
    with_them, without = (
        explained(x, component_type_for_residual=of, parts=(ExplainPart.NODE_TABLE,))
        for of in (ComponentTypeForResidual.AUTOENCODER_LATENT, ComponentTypeForResidual.NONE)
    )
    for group in DEFAULT_GROUPS:
        one, other = (completeness(found, group) for found in (with_them, without))
        assert (one.total, one.target, one.residuals) == (other.total, other.target, ())
    for group in RESIDUAL_GROUPS:
        told = completeness(with_them, group)
        is_of_effects = group in {"residual_direction_write", "residual_act_times_grad"}
        assert bool(told.residuals) is is_of_effects
        assert (told.total == 0.0) is is_of_effects
        assert (told.target is None) is is_of_effects
    assert {group.group_id for group in table(without).groups} == set(DEFAULT_GROUPS)


def test_a_group_of_writers_and_the_residual_counts_nothing_twice() -> None:
    x = Explained(kinds=(T.RESID_POST_MLP,))
    types = (*DEFAULT_GROUPS["direction_write"][:1], T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD)
    groups = tuple(
        TopKGroup(group_id=name, dsts=dsts)
        for name, dsts in {"writers": types, "all": (*types, RESIDUAL_GROUPS["residual_direction_write"][0])}.items()
    )
    found = explained(x, groups=groups, parts=(ExplainPart.NODE_TABLE,))
    writers, every = (completeness(found, name) for name in ("writers", "all"))
    assert (every.total, every.target) == (writers.total, writers.target)
    assert every.listed == pytest.approx(writers.listed, abs=1e-6)
    assert len(every.residuals) == N_LAYERS


@pytest.mark.parametrize("kind", RESIDUALS)
@pytest.mark.parametrize("layer", [1, 2])
def test_an_ablated_latent_of_the_residual_changes_all_that_is_told_of_what_follows(kind: T, layer: int) -> None:
    """The loss, the logits and the shares are those of the plain model with the same change."""
    x = Explained(kinds=(kind,))
    token, latent = len(models.TOKENS) - 1, int(x.latents(kind, layer)[-1].argmax())

    def edit(site: Site, tap: torch.Tensor) -> torch.Tensor:
        if site == (L.ONLINE_AUTOENCODER_LATENT, layer):
            tap = tap.clone()
            tap[token, latent] = 0.5
        return tap

    ablation = NodeAblation(node_index=traces.node(traces.LATENT, layer, token, latent), value=0.5)
    found = explained(x, node_ablations=(ablation,), parts=(ExplainPart.NODE_TABLE, ExplainPart.TOP_LOGITS))
    changed = {site: tap.detach() for site, tap in x.plain.run(models.TOKENS, edit).items()}
    logits = changed[L.LOGITS, None][-1]
    assert found.header.loss == pytest.approx(traces.loss(logits).item(), rel=1e-9)
    assert found.top_logits is not None
    top = {
        node.tensor_indices[1]: value
        for node, value in zip(found.top_logits.nodes, found.top_logits.groups[0].values, strict=True)
    }
    for token_id, value in top.items():
        assert value == pytest.approx(logits[token_id or 0].item(), rel=1e-5)
    last = plain.Plain.as_read(x.plain, L.RESID_POST_MLP, N_LAYERS - 1)
    direction = plain.local_gradient(
        lambda r: traces.loss(x.plain.logits(r, x.plain.scale(r).detach())[-1]), changed[last]
    )
    for share in completeness(found, "residual_direction_write").residuals:
        close(share.total, changed[output(share.layer_index)] * direction)


def test_errors_of_the_residual_are_nodes_and_promote_tokens() -> None:
    x = Explained(kinds=(T.RESID_POST_MLP,))
    group = TopKGroup(group_id="errors", dsts=(T.ONLINE_RESIDUAL_AUTOENCODER_ERROR_WRITE_NORM,))
    found = explained(x, groups=(group,), parts=(ExplainPart.UPVOTED_OUTPUT_TOKENS,))
    nodes = table(found).nodes
    errors = [i for i, node in enumerate(nodes) if node.node_type is NodeType.AUTOENCODER_ERROR]
    assert {(nodes[i].layer_index, nodes[i].tensor_indices) for i in errors} == {
        (layer, (t, 0)) for layer in range(N_LAYERS) for t in range(len(models.TOKENS))
    }
    promoted = found.tokens_of(ExplainPart.UPVOTED_OUTPUT_TOKENS)
    assert promoted is not None
    by_node = {one.node: one for one in promoted.nodes}
    for i in errors:
        error = x.value[L.ONLINE_RESIDUAL_AUTOENCODER_ERROR, nodes[i].layer_index][nodes[i].tensor_indices[0] or 0]
        scores = (error * x.plain.weights["final_norm.gain"]) @ x.plain.weights["unembedding"]
        assert by_node[i].top[0].score == pytest.approx((scores.max() - scores.mean()).item(), rel=1e-5, abs=1e-6)


def test_tokens_excite_latents_of_the_residual_by_what_these_read() -> None:
    x = Explained(kinds=(T.RESID_POST_ATTN,), normalization=InputNormalization.LAYER_NORM)
    found = explained(x, k=10, parts=(ExplainPart.INPUT_TOKENS_THAT_UPVOTE_MLP,))
    exciting = found.tokens_of(ExplainPart.INPUT_TOKENS_THAT_UPVOTE_MLP)
    assert exciting is not None
    nodes = table(found).nodes
    of_latents = [one for one in exciting.nodes if nodes[one.node].node_type is NodeType.AUTOENCODER_LATENT]
    assert of_latents
    for one in of_latents[:20]:
        node = nodes[one.node]
        (t, j), layer = node.tensor_indices, node.layer_index or 0
        assert t is not None
        assert j is not None
        rho = x.value[L.RESID_POST_ATTN, layer]
        reads = plain.local_gradient(partial(read, x.autoencoder(T.RESID_POST_ATTN, layer), t, j), rho)[t]
        expected = x.plain.embedded(range(models.CONFIG.vocab_size)) @ reads
        assert one.top[0].score == pytest.approx(expected.max().item(), rel=1e-5, abs=1e-6)


def read(one: Autoencoder, token: int, latent: int, residual: torch.Tensor) -> torch.Tensor:
    """One latent before its nonlinearity; the scale of its input is held."""
    return plain.pre(one, residual, detach=True)[token, latent]


def test_latents_of_all_three_kinds_stand_in_one_explanation() -> None:
    x = Explained(kinds=(T.MLP_POST_ACT, T.RESID_DELTA_ATTN, T.RESID_POST_MLP))
    latents = ComponentTypeForMlp.AUTOENCODER_LATENT
    found = explained(x, component_type_for_mlp=latents, parts=(ExplainPart.NODE_TABLE,))
    types = {node.node_type for node in table(found).nodes}
    assert {NodeType.AUTOENCODER_LATENT, NodeType.AUTOENCODER_ERROR, NodeType.MLP_AUTOENCODER_LATENT} <= types
    assert completeness(found, "direction_write").reconstruction_error is not None
