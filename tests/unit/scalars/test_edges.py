"""Edges: derivatives along one node's write, by hand, and the laws that tie them to each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dst_grpc.domain.components import PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from tests import models, plain, traces

N_TOKENS, N_LAYERS = len(models.TOKENS), models.CONFIG.n_layers
KINDS = (T.MLP_POST_ACT, T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN)
LOSS: dict[str, Any] = {"loss_fn_config": models.LOSS}
HEAD, NEURON, LATENT = (
    traces.node(traces.HEAD, 1, 4, 3, 3),
    traces.node(traces.NEURON, 1, 4, 7),
    traces.node(traces.LATENT, 1, 4, 6),
)
ATTRIBUTIONS = {
    T.ATTN_QUERY_IN_EDGE_ATTRIBUTION: (traces.HEAD, traces.Q),
    T.ATTN_KEY_IN_EDGE_ATTRIBUTION: (traces.HEAD, traces.K),
    T.ATTN_VALUE_IN_EDGE_ATTRIBUTION: (traces.HEAD, traces.V),
    T.MLP_IN_EDGE_ATTRIBUTION: (traces.NEURON, None),
    T.ONLINE_AUTOENCODER_IN_EDGE_ATTRIBUTION: (traces.LATENT, None),
}
ACTIVATIONS = {
    T.ATTN_QUERY_IN_EDGE_ACTIVATION: (traces.HEAD, traces.Q),
    T.ATTN_KEY_IN_EDGE_ACTIVATION: (traces.HEAD, traces.K),
    T.MLP_IN_EDGE_ACTIVATION: (traces.NEURON, None),
    T.ONLINE_AUTOENCODER_IN_EDGE_ACTIVATION: (traces.LATENT, None),
}
OUT = (T.ATTN_OUT_EDGE_ATTRIBUTION, T.MLP_OUT_EDGE_ATTRIBUTION, T.ONLINE_AUTOENCODER_OUT_EDGE_ATTRIBUTION)


class Case:
    """A model with one autoencoder spliced in, its plain twin's taps, and the loss's gradients there."""

    def __init__(self, kind: T, architecture: str = "gpt2", seed: int = 3) -> None:
        self.kind, self.of_attention = kind, kind is T.RESID_DELTA_ATTN
        self.config = models.GPT2_AND_OTHERS[architecture]
        self.world = models.world(kind, seed=seed, config=self.config)
        sets = {one.dst: one.by_layer for one in self.world.sets.values()}
        self.plain = plain.Plain(self.config, models.weights(seed, self.config), sets, is_spliced=True)
        self.taps = self.plain.run(models.TOKENS)
        self.gradients = plain.gradients(self.plain, models.TOKENS, lambda taps: traces.loss(taps[L.LOGITS, None][-1]))

    def one(self, dst: T, node: NodeIndex, *, detach: bool = False, **fields: Any) -> dict[int | None, torch.Tensor]:
        config = DstConfig(node_index_for_attribution=node, detach_layer_norm_scale_for_attribution=detach)
        return self.world.one(dst, config, autoencoders=tuple(self.world.sets), **{**LOSS, **fields})

    def write(self, node: NodeIndex) -> torch.Tensor:
        """What one node writes, [T, d]."""
        layer, (t, *rest) = node.layer_index or 0, [i for i in node.tensor_indices if i is not None]
        found = torch.zeros(N_TOKENS, models.CONFIG.d_model, dtype=torch.float64)
        if node.node_type is traces.HEAD:
            u, h = rest
            v = self.taps[L.ATTN_VALUE, layer][u, h]
            found[t] = self.taps[L.ATTN_QK_PROBS, layer][t, u, h] * (v @ self.plain.wo(layer)[h])
            return self.plain.written(layer, "attn", found, self.taps)
        if node.node_type is traces.NEURON:
            found[t] = self.taps[L.MLP_POST_ACT, layer][t, rest[0]] * self.plain.wout(layer)[rest[0]]
            return self.plain.written(layer, "mlp", found, self.taps)
        row = self.plain.sets[self.kind][layer].decoder[:, rest[0]]
        of_neurons = self.kind is T.MLP_POST_ACT
        row = row @ self.plain.wout(layer) if of_neurons else row
        found[t] = self.taps[plain.LATENT[self.kind], layer][t, rest[0]] * row
        return self.plain.written(layer, "mlp", found, self.taps) if of_neurons else found

    def end(self, dst: T, layer: int, *, detach: bool) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
        """The downstream activations (times their gradient) as a function of a residual, and that residual."""
        node_type, through = {**ATTRIBUTIONS, **ACTIVATIONS}[dst]
        is_attribution = dst in ATTRIBUTIONS
        anything = traces.trace(node_type, layer, 0, 0, *([0] if node_type is traces.HEAD else []), through=through)
        rho = self.plain.rho(self.taps, anything).detach()
        if through is traces.V:
            gradient = self.gradients[L.ATTN_WEIGHTED_SUM_OF_VALUES, layer]
            probs = self.taps[L.ATTN_QK_PROBS, layer].detach()

            def values(x: torch.Tensor) -> torch.Tensor:
                _, _, v = self.plain.qkv(layer, self.plain.normed(x, f"layers.{layer}.attn_norm", detach=detach))
                return torch.einsum("tuh,uhc,thc->tuh", probs, v, gradient)

            return values, rho
        tap = {traces.HEAD: L.ATTN_QK_PROBS, traces.NEURON: L.MLP_POST_ACT}.get(node_type, plain.LATENT[self.kind])

        def activations(x: torch.Tensor) -> torch.Tensor:
            found = self.plain.activations(node_type, layer, x, post=True, detach=detach, through=through)
            return found * self.gradients[tap, layer] if is_attribution else found

        return activations, rho

    def precedes(self, node: NodeIndex, dst: T, layer: int) -> bool:
        """Whether the node's write is in the residual that the downstream component of *layer* reads."""
        upstream = node.layer_index or 0
        early = node.node_type is traces.HEAD or (node.node_type is traces.LATENT and self.of_attention)
        node_type, _ = {**ATTRIBUTIONS, **ACTIVATIONS}[dst]
        late = node_type is traces.NEURON or (node_type is traces.LATENT and not self.of_attention)
        return upstream < layer or (upstream == layer and early and late and not self.config.parallel)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-11)


def jvp(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The derivative along a direction, by torch; what `function` detaches is constant."""
    along = direction.detach()
    _, found = torch.autograd.functional.jvp(function, x.detach(), along)  # type: ignore[no-untyped-call]  # torch's
    assert isinstance(found, torch.Tensor)
    return found


CASES = [(kind, "gpt2") for kind in KINDS] + [
    # Every architecture with one kind of autoencoder, each kind with several; post-norms, which matter to it, with all.
    (kind, architecture)
    for i, (architecture, config) in enumerate(models.ARCHITECTURES.items())
    for kind in (KINDS if config.post_norms else KINDS[i % 3 : i % 3 + 1])
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[1]}-{case[0].value}")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


@pytest.mark.parametrize("node", [HEAD, NEURON, LATENT], ids=lambda node: str(node.node_type))
def test_one_node_s_write_is_at_its_own_token(case: Case, node: NodeIndex) -> None:
    found = case.one(T.SINGLE_NODE_WRITE, node)
    assert list(found) == [1]
    close(found[1], case.write(node))
    gradient = case.gradients[L.RESID_POST_MLP, N_LAYERS - 1]
    projected = (case.write(node) * gradient).sum(dim=-1, keepdim=True)
    close(case.one(T.SINGLE_NODE_WRITE_TO_FINAL_RESIDUAL_GRAD, node)[1], projected)


@pytest.mark.parametrize("dst", [*ATTRIBUTIONS, *ACTIVATIONS])
@pytest.mark.parametrize("node", [HEAD, NEURON, LATENT], ids=lambda node: str(node.node_type))
@pytest.mark.parametrize("detach", [False, True])
def test_an_edge_in_is_a_derivative_along_the_write(case: Case, dst: T, node: NodeIndex, detach: bool) -> None:
    """0 where the write comes too late. Activations always detach the norm's scale."""
    found = case.one(dst, node, detach=detach)
    for layer in range(N_LAYERS):
        end, rho = case.end(dst, layer, detach=detach or dst in ACTIVATIONS)
        expected = jvp(end, rho, case.write(node)) * case.precedes(node, dst, layer)
        close(found[layer], expected)


def test_edges_in_from_everything_upstream_add_up(case: Case) -> None:
    """The writes of the embedding, all heads and neurons and the biases are the residual, and edges are linear."""
    layer, dst = 1, T.MLP_IN_EDGE_ACTIVATION
    end, rho = case.end(dst, layer, detach=True)
    total = jvp(end, rho, case.taps[L.RESID_POST_EMBEDDING, None])
    for upstream in range(layer + 1):
        if upstream == layer and case.config.parallel:
            continue
        biases = case.plain.biases(upstream, "attn", case.taps)
        nodes = [
            traces.node(traces.HEAD, upstream, t, u, h)
            for t in range(N_TOKENS)
            for u in range(t + 1)
            for h in range(case.config.n_heads)
            if case.plain.sees(upstream, t, u)
        ]
        if upstream < layer:
            biases = biases + case.plain.biases(upstream, "mlp", case.taps)
            nodes += [traces.node(traces.NEURON, upstream, t, n) for t in range(N_TOKENS) for n in range(13)]
        total = total + jvp(end, rho, biases)
        # All edges of a layer are one derivative along the sum of its nodes' writes; a few are compared one by one.
        total = total + jvp(end, rho, torch.stack([case.write(node) for node in nodes]).sum(dim=0))
        for node in nodes[:: len(nodes) // 3]:
            close(case.one(dst, node)[layer], jvp(end, rho, case.write(node)))
    close(total, jvp(end, rho, rho))


SUBNODES = [traces.subnode(HEAD, part) for part in (L.ATTN_QUERY, L.ATTN_KEY, L.ATTN_VALUE)]
DOWNSTREAM = [*SUBNODES, NEURON, LATENT]
IN_OF = dict(zip(DOWNSTREAM, ATTRIBUTIONS, strict=True))


def node_name(node: NodeIndex) -> str:
    return str(getattr(node, "q_k_or_v", node.node_type))


@pytest.mark.parametrize("node", DOWNSTREAM, ids=node_name)
@pytest.mark.parametrize("detach", [False, True])
def test_the_gradient_of_a_subnode_s_attribution_is_taken_at_the_residual_before_it(
    case: Case, node: NodeIndex, detach: bool
) -> None:
    end, rho = case.end(IN_OF[node], 1, detach=detach)
    gradient = plain.local_gradient(lambda x: end(x)[node.tensor_indices], rho)
    close(case.one(T.GRAD_OF_SINGLE_SUBNODE_ATTRIBUTION, node, detach=detach)[1], gradient)
    embedding = (case.taps[L.RESID_POST_EMBEDDING, None] * gradient).sum(dim=-1, keepdim=True)
    close(case.one(T.TOKEN_OUT_EDGE_ATTRIBUTION, node, detach=detach)[None], embedding)


@pytest.mark.parametrize("downstream", DOWNSTREAM, ids=node_name)
def test_the_edge_out_of_a_node_is_the_edge_into_the_other(case: Case, downstream: NodeIndex) -> None:
    """One edge, seen from both of its ends."""
    for upstream, dst in zip((HEAD, NEURON, LATENT), OUT, strict=True):
        for layer in range(N_LAYERS):
            node = traces.node(upstream.node_type, layer, *upstream.tensor_indices)
            out = case.one(dst, downstream)[layer][upstream.tensor_indices]
            into = case.one(IN_OF[downstream], node)[1][downstream.tensor_indices]
            close(out, into)


def test_edges_out_need_no_more_than_one_backward_pass(case: Case) -> None:
    config = DstConfig(node_index_for_attribution=SUBNODES[0])
    given = models.request(*OUT[:2], config=config, autoencoders=tuple(case.world.sets), loss_fn_config=models.LOSS)
    (outcome,) = case.world.outcomes(given)
    assert (outcome.statistics.forward_passes, outcome.statistics.backward_passes) == (1, 1)


def test_where_no_gradient_reaches_edges_are_zero_in_full_shape(case: Case) -> None:
    """Q12: a trace at layer 0 leaves the layers after it without gradients."""
    origin = traces.trace(traces.NEURON, 0, 4, 7)
    node = traces.node(traces.HEAD, 0, 4, 3, 3)
    found = case.one(T.MLP_IN_EDGE_ATTRIBUTION, node, trace_config=origin, loss_fn_config=None)
    assert {tuple(tensor.shape) for tensor in found.values()} == {(N_TOKENS, models.CONFIG.d_mlp)}
    assert not any(tensor.any() for tensor in found.values())
    raw = case.world.derive(
        models.request(
            T.LOGITS, T.RESID_FINAL_LAYER_NORM_SCALE, config=DstConfig(derive_gradients=True), trace_config=origin
        )
    )
    for dst in (T.LOGITS, T.RESID_FINAL_LAYER_NORM_SCALE):
        backward = raw[dst, PassType.BACKWARD, None]
        assert backward.shape == raw[dst, PassType.FORWARD, None].shape
        assert not backward.any()
