"""Writes, their norms and projections: the short formulas of the algebra against vectors written out in full."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dst_grpc.domain.components import PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.trace import TraceConfig
from tests import models, plain, traces

N_TOKENS, N_LAYERS = len(models.TOKENS), models.CONFIG.n_layers
PAIRS = [(t, u) for t in range(N_TOKENS) for u in range(t + 1)]
LOSS: dict[str, Any] = {"loss_fn_config": models.LOSS}
Found = dict[int | None, torch.Tensor]


class Case:
    """A model, its plain twin, and the twin's taps."""

    def __init__(self, seed: int, architecture: str = "gpt2") -> None:
        self.config = models.GPT2_AND_OTHERS[architecture]
        self.world = models.world(seed=seed, config=self.config)
        self.plain = plain.Plain(self.config, models.weights(seed, self.config))
        self.taps = self.plain.run(models.TOKENS)
        self.gradients = plain.gradients(self.plain, models.TOKENS, lambda taps: traces.loss(taps[L.LOGITS, None][-1]))

    def one(self, dst: T, config: DstConfig | None = None, **fields: Any) -> Found:
        return self.world.one(dst, config, **fields)

    def neuron_writes(self, layer: int) -> torch.Tensor:
        """[T, F, d]."""
        raw = self.taps[L.MLP_POST_ACT, layer].unsqueeze(-1) * self.plain.wout(layer)
        return self.plain.written(layer, "mlp", raw, self.taps)

    def pair_writes(self, layer: int) -> torch.Tensor:
        """[T, U, H, d]."""
        a, v = self.taps[L.ATTN_QK_PROBS, layer], self.taps[L.ATTN_VALUE, layer]
        return self.written_by_heads(layer, torch.einsum("tuh,uhc,hcd->tuhd", a, v, self.plain.wo(layer)))

    def head_writes(self, layer: int) -> torch.Tensor:
        """[T, H, d]."""
        o = self.taps[L.ATTN_WEIGHTED_SUM_OF_VALUES, layer]
        return self.written_by_heads(layer, torch.einsum("thc,hcd->thd", o, self.plain.wo(layer)))

    def written_by_heads(self, layer: int, raw: torch.Tensor) -> torch.Tensor:
        return self.plain.written(layer, "attn", raw, self.taps)


CASES = [("gpt2", seed) for seed in range(3)] + [(architecture, 4) for architecture in models.ARCHITECTURES]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest) -> Case:
    architecture, seed = request.param
    return Case(seed, architecture)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


def test_heads_writes_sum_to_what_attention_adds_but_for_the_bias(case: Case) -> None:
    for layer, found in case.one(T.ATTN_WRITE).items():
        assert layer is not None
        bias = case.plain.biases(layer, "attn", case.taps)
        close(found.sum(dim=(1, 2)), case.taps[L.RESID_DELTA_ATTN, layer] - bias)


def test_neurons_writes_sum_to_what_the_mlp_adds_but_for_the_bias(case: Case) -> None:
    written_out, summed = case.one(T.MLP_WRITE), case.one(T.RESID_DELTA_MLP_FROM_MLP_POST_ACT)
    for layer, found in written_out.items():
        assert layer is not None
        bias = case.plain.biases(layer, "mlp", case.taps)
        close(found.sum(dim=1), case.taps[L.RESID_DELTA_MLP, layer] - bias)
        close(found.sum(dim=1), summed[layer])


def test_writes_are_coefficients_times_rows(case: Case) -> None:
    pairs, neurons, values = (case.one(dst) for dst in (T.ATTN_WRITE, T.MLP_WRITE, T.ATTN_WEIGHTED_VALUE))
    for layer in range(N_LAYERS):
        close(pairs[layer], case.pair_writes(layer))
        close(neurons[layer], case.neuron_writes(layer))
        raw = torch.einsum("tuhc,hcd->tuhd", values[layer], case.plain.wo(layer))
        close(case.written_by_heads(layer, raw), case.pair_writes(layer))


def test_the_sum_over_heads_is_that_of_the_writes(case: Case) -> None:
    whole, summed = case.one(T.ATTN_WRITE), case.one(T.ATTN_WRITE_SUM_HEADS)
    for layer in range(N_LAYERS):
        close(summed[layer], whole[layer].sum(dim=2))


def test_norms_are_those_of_the_written_out_vectors(case: Case) -> None:
    pairs, heads = case.one(T.UNFLATTENED_ATTN_WRITE_NORM), case.one(T.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN)
    neurons = case.one(T.MLP_WRITE_NORM)
    for layer in range(N_LAYERS):
        close(pairs[layer], case.pair_writes(layer).norm(dim=-1))
        close(heads[layer], case.head_writes(layer).norm(dim=-1))
        sign = case.taps[L.MLP_POST_ACT, layer].sign()
        close(neurons[layer], sign * case.neuron_writes(layer).norm(dim=-1))


def test_the_norm_of_a_neuron_s_write_keeps_the_activation_s_sign() -> None:
    """Q6."""
    assert (Case(0).one(T.MLP_WRITE_NORM)[0] < 0).any()


@pytest.mark.parametrize(
    ("dst", "tap"),
    [
        (T.RESID_POST_EMBEDDING_NORM, L.RESID_POST_EMBEDDING),
        (T.RESID_POST_MLP_NORM, L.RESID_POST_MLP),
        (T.MLP_LAYER_WRITE_NORM, L.RESID_DELTA_MLP),
        (T.RESID_POST_ATTN_NORM, L.RESID_POST_ATTN),
        (T.ATTN_LAYER_WRITE_NORM, L.RESID_DELTA_ATTN),
    ],
)
def test_norms_of_residual_vectors(case: Case, dst: T, tap: L) -> None:
    if case.config.architecture.why_without(tap) is not None:
        return
    for layer, found in case.one(dst).items():
        close(found, case.taps[tap, layer].norm(dim=-1, keepdim=True))


def test_the_backward_pass_of_a_write_norm_is_a_ratio(case: Case) -> None:
    """Q3: the probability's gradient over the length of what it multiplies."""
    given = models.request(T.UNFLATTENED_ATTN_WRITE_NORM, config=DstConfig(derive_gradients=True), **LOSS)
    for (_, pass_type, layer), found in case.world.derive(given).items():
        if pass_type is PassType.BACKWARD:
            assert layer is not None
            value = torch.einsum("uhc,hcd->uhd", case.taps[L.ATTN_VALUE, layer], case.plain.wo(layer))
            write = case.written_by_heads(layer, value.expand(N_TOKENS, -1, -1, -1))
            close(found, case.gradients[L.ATTN_QK_PROBS, layer] / write.norm(dim=-1))


FLATTENED = {
    T.FLATTENED_ATTN_POST_SOFTMAX: T.ATTN_QK_PROBS,
    T.ATTN_WRITE_NORM: T.UNFLATTENED_ATTN_WRITE_NORM,
    T.ATTN_ACT_TIMES_GRAD: T.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
    T.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD: T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
}


@pytest.mark.parametrize("dst", FLATTENED)
@pytest.mark.parametrize("derive_gradients", [False, True])
def test_a_flattened_type_is_the_lower_triangle_row_by_row(dst: T, derive_gradients: bool) -> None:
    case = Case(0)
    if derive_gradients and FACTS[dst].requires_grad_for_forward_pass:
        return
    config = DstConfig(derive_gradients=derive_gradients)
    found = case.world.derive(models.request(dst, FLATTENED[dst], config=config, **LOSS))
    assert found
    for (kind, pass_type, layer), tensor in found.items():
        if kind is dst:
            whole = found[FLATTENED[dst], pass_type, layer]
            close(tensor, torch.stack([whole[t, u] for t, u in PAIRS]))


def test_act_times_grad_is_elementwise(case: Case) -> None:
    pairs, at_token = T.UNFLATTENED_ATTN_ACT_TIMES_GRAD, T.ATTN_ACT_TIMES_GRAD_PER_SEQUENCE_TOKEN
    for layer in range(N_LAYERS):
        probs = case.taps[L.ATTN_QK_PROBS, layer] * case.gradients[L.ATTN_QK_PROBS, layer]
        close(case.one(pairs, **LOSS)[layer], probs)
        close(case.one(at_token, **LOSS)[layer], probs.sum(dim=1))
        neurons = case.taps[L.MLP_POST_ACT, layer] * case.gradients[L.MLP_POST_ACT, layer]
        close(case.one(T.MLP_ACT_TIMES_GRAD, **LOSS)[layer], neurons)
    embedding = case.taps[L.RESID_POST_EMBEDDING, None] * case.gradients[L.RESID_POST_EMBEDDING, None]
    close(case.one(T.TOKEN_ATTRIBUTION, **LOSS)[None], embedding.sum(dim=1, keepdim=True))


# Projections, and what precedes what

_ORDER = {L.RESID_DELTA_ATTN: 2, L.RESID_POST_ATTN: 3, L.RESID_DELTA_MLP: 4, L.RESID_POST_MLP: 5}
ORIGINS = [None, traces.trace(traces.NEURON, 1, 4, 7), traces.trace(traces.HEAD, 1, 4, 2, 3, through=traces.QK)]
PROJECTIONS: dict[T, tuple[str, int]] = {
    T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD: ("neuron_writes", 4),
    T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD: ("pair_writes", 2),
    T.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD_PER_SEQUENCE_TOKEN: ("head_writes", 2),
    T.MLP_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD: ("neuron_writes", 4),
    T.UNFLATTENED_ATTN_WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD: ("pair_writes", 2),
}
RESIDUALS = {
    T.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD: L.RESID_POST_MLP,
    T.MLP_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: L.RESID_DELTA_MLP,
    T.RESID_POST_ATTN_PROJ_TO_FINAL_RESIDUAL_GRAD: L.RESID_POST_ATTN,
    T.ATTN_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: L.RESID_DELTA_ATTN,
}


def direction(case: Case, origin: TraceConfig | None) -> tuple[torch.Tensor, int, int]:
    """The gradient at the residual before *origin*, and that residual's layer and place in it."""
    if origin is None:
        return case.gradients[L.RESID_POST_MLP, N_LAYERS - 1], N_LAYERS - 1, 5
    gradient = plain.local_gradient(
        lambda rho: case.plain.value(origin, rho, case.taps, None), case.plain.rho(case.taps, origin)
    )
    of_mlp = origin.node_index.node_type is traces.NEURON and not case.config.parallel
    return gradient, origin.node_index.layer_index or 0, 3 if of_mlp else 1


@pytest.mark.parametrize("dst", [*PROJECTIONS, *RESIDUALS])
@pytest.mark.parametrize("origin", ORIGINS, ids=traces.name)
@pytest.mark.parametrize("architecture", models.GPT2_AND_OTHERS)
def test_projections_are_inner_products_of_what_comes_before(
    dst: T, origin: TraceConfig | None, architecture: str
) -> None:
    """0 where the component does not come strictly before the direction (Q4)."""
    case, tap = Case(1, architecture), FACTS[dst].tap
    if origin is None and FACTS[dst].needs_trace:
        return
    if tap is not None and case.config.architecture.why_without(tap) is not None:
        return
    gradient, its_layer, its_place = direction(case, origin)
    found = case.one(dst, DstConfig(trace_config=origin), **traces.fields_of(origin, models.LOSS))
    for layer in range(N_LAYERS):
        if dst in PROJECTIONS:
            name, place = PROJECTIONS[dst]
            writes = getattr(case, name)(layer)
            expected = (writes * gradient.reshape(N_TOKENS, *[1] * (writes.dim() - 2), -1)).sum(dim=-1)
        else:
            place = _ORDER[RESIDUALS[dst]]
            expected = (case.taps[RESIDUALS[dst], layer] * gradient).sum(dim=-1, keepdim=True)
        precedes = layer < its_layer or (layer == its_layer and place < its_place)
        close(found[layer], expected if precedes else torch.zeros_like(expected))


@pytest.mark.parametrize("origin", ORIGINS, ids=traces.name)
def test_the_embedding_always_precedes(case: Case, origin: TraceConfig | None) -> None:
    gradient, _, _ = direction(case, origin)
    expected = (case.taps[L.RESID_POST_EMBEDDING, None] * gradient).sum(dim=-1, keepdim=True)
    fields = traces.fields_of(origin, models.LOSS)
    close(case.one(T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD, **fields)[None], expected)
    if origin is not None:
        close(case.one(T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_ACTIVATION_RESIDUAL_GRAD, **fields)[None], expected)


def test_direct_effects_and_biases_add_up_to_the_final_residual(case: Case) -> None:
    """The embedding, every neuron, every head and the biases are all that the last residual consists of."""
    gradient = case.gradients[L.RESID_POST_MLP, N_LAYERS - 1]
    total = case.one(T.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD, **LOSS)[None].sum()
    for layer in range(N_LAYERS):
        total += case.one(T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD, **LOSS)[layer].sum()
        total += case.one(T.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD, **LOSS)[layer].sum()
        biases = case.plain.biases(layer, "mlp", case.taps) + case.plain.biases(layer, "attn", case.taps)
        total += (gradient * biases).sum()
    close(total, (case.taps[L.RESID_POST_MLP, N_LAYERS - 1] * gradient).sum())


@pytest.mark.parametrize("derive_gradients", [False, True])
def test_the_previous_residual_is_what_enters_the_layer(case: Case, derive_gradients: bool) -> None:
    config = DstConfig(derive_gradients=derive_gradients)
    for (_, pass_type, layer), found in case.world.derive(
        models.request(T.PREVIOUS_LAYER_RESID_POST_MLP, config=config, **LOSS)
    ).items():
        site = (L.RESID_POST_MLP, layer - 1) if layer else (L.RESID_POST_EMBEDDING, None)
        close(found, case.taps[site] if pass_type is PassType.FORWARD else case.gradients[site])


def test_always_one_is_one_per_token() -> None:
    assert Case(0).one(T.ALWAYS_ONE)[None].tolist() == [[1.0]] * N_TOKENS


def test_layer_indices_keep_what_they_name_and_change_no_number(case: Case) -> None:
    whole = case.one(T.PREVIOUS_LAYER_RESID_POST_MLP)
    some = case.one(T.PREVIOUS_LAYER_RESID_POST_MLP, DstConfig(layer_indices=(2, 1)))
    assert list(some) == [1, 2]
    assert all(torch.equal(some[layer], whole[layer]) for layer in some)
