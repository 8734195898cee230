"""Latents, reconstruction errors, what a latent reads, and what the vocabulary writes to a node."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.components import PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.engine.autoencoder import Autoencoder
from tests import models, plain, traces

N_LAYERS = models.CONFIG.n_layers
KINDS = (T.MLP_POST_ACT, T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN)
PREFIX = {T.MLP_POST_ACT: "MLP_", T.RESID_DELTA_MLP: "MLP_", T.RESID_DELTA_ATTN: "ATTENTION_"}
PAIRS = [(t, u) for t in range(len(models.TOKENS)) for u in range(t + 1)]
LOSS: dict[str, Any] = {"loss_fn_config": models.LOSS}


class Case:
    """A model with one autoencoder set, and its plain twin's taps."""

    def __init__(
        self,
        kind: T,
        architecture: str = "gpt2",
        *,
        is_spliced: bool = True,
        activation: AutoencoderActivation = AutoencoderActivation.RELU,
    ) -> None:
        self.kind, self.config = kind, models.GPT2_AND_OTHERS[architecture]
        self.world = models.world(kind, seed=2, activation=activation, config=self.config)
        sets = {one.dst: one.by_layer for one in self.world.sets.values()}
        self.plain = plain.Plain(self.config, models.weights(2, self.config), sets, is_spliced=is_spliced)
        self.taps = self.plain.run(models.TOKENS)
        self.fields: dict[str, Any] = {"autoencoders": tuple(self.world.sets)} if is_spliced else {}

    def one(self, dst: T, config: DstConfig | None = None, **fields: Any) -> dict[int | None, torch.Tensor]:
        return self.world.one(dst, config, **{**self.fields, **fields})

    def at(self, layer: int) -> Autoencoder:
        return self.plain.sets[self.kind][layer]

    def rows(self, layer: int) -> torch.Tensor:
        """D [T, Z, d], by hand: what each latent writes into the residual stream at a token."""
        decoder = self.at(layer).decoder.T.expand(len(models.TOKENS), -1, -1)
        if self.kind is not T.MLP_POST_ACT:
            return decoder
        return self.plain.written(layer, "mlp", decoder @ self.plain.wout(layer), self.taps)

    def heads(self, layer: int) -> torch.Tensor:
        """Write vectors of heads at pairs, [T, U, H, d]."""
        a, v = self.taps[L.ATTN_QK_PROBS, layer], self.taps[L.ATTN_VALUE, layer]
        raw = torch.einsum("tuh,uhc,hcd->tuhd", a, v, self.plain.wo(layer))
        return self.plain.written(layer, "attn", raw, self.taps)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


CASES = [(kind, architecture) for architecture in models.GPT2_AND_OTHERS for kind in KINDS]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[1]}-{case[0].value}")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


@pytest.mark.parametrize("generic", [True, False])
def test_offline_latents_are_encoded_recorded_taps(case: Case, generic: bool) -> None:
    """Those of RESID_DELTA_MLP read the MLP's write without its bias (Q5)."""
    prefix = "" if generic else PREFIX[case.kind]
    config = DstConfig(autoencoder_context=next(iter(case.world.sets)))
    latents = case.one(T[f"{prefix}AUTOENCODER_LATENT"], config, autoencoders=())
    norms = case.one(T[f"{prefix}AUTOENCODER_WRITE_NORM"], config, autoencoders=())
    for layer in range(N_LAYERS):
        x = case.taps[L[case.kind.name], layer]
        if case.kind is T.RESID_DELTA_MLP:
            raw = case.taps[L.MLP_POST_ACT, layer] @ case.plain.wout(layer)
            x = case.plain.written(layer, "mlp", raw, case.taps)
        h = plain.encode(case.at(layer), x)
        close(latents[layer], h)
        close(norms[layer], h * case.rows(layer).norm(dim=-1))


@pytest.mark.parametrize("architecture", ["gpt2", "gemma", "post layer norm"])
def test_offline_latents_read_a_write_without_bias(architecture: str) -> None:
    config = models.GPT2_AND_OTHERS[architecture]
    world = models.world(T.RESID_DELTA_MLP_FROM_MLP_POST_ACT, config=config)
    (name,) = world.sets
    found = world.one(T.MLP_AUTOENCODER_LATENT, DstConfig(autoencoder_context=name))
    reference = plain.Plain(config, models.weights(0, config))
    taps = reference.run(models.TOKENS)
    for layer in range(N_LAYERS):
        x = reference.written(layer, "mlp", taps[L.MLP_POST_ACT, layer] @ reference.wout(layer), taps)
        close(found[layer], plain.encode(world.sets[name].by_layer[layer], x))


@pytest.mark.parametrize("architecture", ["gpt2", "gemma", "post layer norm"])
@pytest.mark.parametrize("prefix", ["", "ATTENTION_"])
def test_offline_latents_of_heads_writes_have_a_row_for_each_pair_and_head(prefix: str, architecture: str) -> None:
    one = models.GPT2_AND_OTHERS[architecture]
    world = models.world(T.ATTN_WRITE, config=one)
    (name,) = world.sets
    reference = plain.Plain(one, models.weights(0, one))
    taps = reference.run(models.TOKENS)
    config = DstConfig(autoencoder_context=name)
    given = models.request(T[f"{prefix}AUTOENCODER_LATENT"], T[f"{prefix}AUTOENCODER_WRITE_NORM"], config=config)
    (outcome,) = world.outcomes(given)
    rows = len(PAIRS) * one.n_heads
    assert {scalar.axes[0].size for scalar in outcome.plan.scalars} == {rows}
    found = models.tensors(outcome)
    for layer in range(N_LAYERS):
        a, v = taps[L.ATTN_QK_PROBS, layer], taps[L.ATTN_VALUE, layer]
        raw = torch.einsum("tuh,uhc,hcd->tuhd", a, v, reference.wo(layer))
        writes = reference.written(layer, "attn", raw, taps)
        autoencoder = world.sets[name].by_layer[layer]
        h = plain.encode(autoencoder, torch.cat([writes[t, u] for t, u in PAIRS]))
        assert h.shape == (rows, autoencoder.n_latents)
        close(found[T[f"{prefix}AUTOENCODER_LATENT"], PassType.FORWARD, layer], h)
        norms = h * autoencoder.decoder.norm(dim=0)
        close(found[T[f"{prefix}AUTOENCODER_WRITE_NORM"], PassType.FORWARD, layer], norms)


@pytest.mark.parametrize("generic", [True, False])
def test_online_latents_write_their_rows_of_d(case: Case, generic: bool) -> None:
    prefix = f"ONLINE_{'' if generic else PREFIX[case.kind]}AUTOENCODER_"
    for layer in range(N_LAYERS):
        h, rows = case.taps[plain.LATENT[case.kind], layer], case.rows(layer)
        close(case.one(T[f"{prefix}LATENT"])[layer], h)
        close(case.one(T[f"{prefix}WRITE"])[layer], h.unsqueeze(-1) * rows)
        close(case.one(T[f"{prefix}WRITE_NORM"])[layer], h * rows.norm(dim=-1))


@pytest.mark.parametrize("generic", [True, False])
def test_online_latents_project_and_attribute(case: Case, generic: bool) -> None:
    prefix = f"ONLINE_{'' if generic else PREFIX[case.kind]}AUTOENCODER_"
    gradients = plain.gradients(case.plain, models.TOKENS, lambda taps: traces.loss(taps[L.LOGITS, None][-1]))
    final = gradients[L.RESID_POST_MLP, N_LAYERS - 1]
    origin = traces.trace(traces.NEURON, 2, 4, 7)
    rho = case.plain.rho(case.taps, origin)
    near = plain.local_gradient(lambda x: case.plain.value(origin, x, case.taps, None), rho)
    for layer in range(N_LAYERS):
        h, rows = case.taps[plain.LATENT[case.kind], layer], case.rows(layer)
        times_grad = case.one(T[f"{prefix}ACT_TIMES_GRAD"], **LOSS)[layer]
        close(times_grad, h * gradients[plain.LATENT[case.kind], layer])
        close(
            case.one(T[f"{prefix}WRITE_TO_FINAL_RESIDUAL_GRAD"], **LOSS)[layer],
            h * torch.einsum("td,tzd->tz", final, rows),
        )
        local = case.one(T[f"{prefix}WRITE_TO_FINAL_ACTIVATION_RESIDUAL_GRAD"], DstConfig(trace_config=origin))
        precedes = layer < 2 or (case.kind is T.RESID_DELTA_ATTN and not case.config.parallel)
        close(local[layer], h * torch.einsum("td,tzd->tz", near, rows) * precedes)


@pytest.mark.parametrize("architecture", models.GPT2_AND_OTHERS)
def test_errors_of_neurons_write_through_wout(architecture: str) -> None:
    case = Case(T.MLP_POST_ACT, architecture)
    prefix = "ONLINE_MLP_AUTOENCODER_ERROR"
    gradients = plain.gradients(case.plain, models.TOKENS, lambda taps: traces.loss(taps[L.LOGITS, None][-1]))
    final = gradients[L.RESID_POST_MLP, N_LAYERS - 1]
    for layer in range(N_LAYERS):
        error = case.taps[L.ONLINE_MLP_AUTOENCODER_ERROR, layer]
        writes = case.plain.written(layer, "mlp", error.unsqueeze(-1) * case.plain.wout(layer), case.taps)
        close(case.one(T[prefix])[layer], error)
        close(case.one(T[f"{prefix}_WRITE_NORM"])[layer], error.sign() * writes.norm(dim=-1))
        times_grad = case.one(T[f"{prefix}_ACT_TIMES_GRAD"], **LOSS)[layer]
        close(times_grad, error * gradients[L.ONLINE_MLP_AUTOENCODER_ERROR, layer])
        close(
            case.one(T[f"{prefix}_WRITE_TO_FINAL_RESIDUAL_GRAD"], **LOSS)[layer],
            torch.einsum("td,tfd->tf", final, writes),
        )


@pytest.mark.parametrize("kind", [T.RESID_DELTA_MLP, T.RESID_DELTA_ATTN])
def test_errors_of_residual_writes_are_taps(kind: T) -> None:
    case = Case(kind)
    for layer, found in case.one(T[plain.ERROR[kind].name]).items():
        close(found, case.taps[plain.ERROR[kind], layer])


# What a latent reads


def read_by_hand(case: Case, layer: int, latent: int) -> torch.Tensor:
    """Gradient of the latent, summed over tokens, at its autoencoder's true input."""
    x = case.taps[L[case.kind.name], layer]
    return plain.local_gradient(lambda leaf: plain.encode(case.at(layer), leaf)[:, latent].sum(), x)


@pytest.mark.parametrize("activation", AutoencoderActivation)
@pytest.mark.parametrize("kind", KINDS)
def test_a_latent_s_read_is_its_gradient_with_each_layer_s_own_autoencoder(
    kind: T, activation: AutoencoderActivation
) -> None:
    """Q24: the reference applies the traced layer's autoencoder everywhere."""
    case = Case(kind, activation=activation)
    dst = T.AUTOENCODER_LATENT_GRAD_WRT_RESIDUAL_INPUT
    if kind is T.MLP_POST_ACT:
        dst = T.AUTOENCODER_LATENT_GRAD_WRT_MLP_POST_ACT_INPUT
    config = DstConfig(trace_config=traces.trace(traces.LATENT, 1, None, 6))
    found = case.one(dst, config)
    assert list(found) == [0, 1, 2]
    for layer, tensor in found.items():
        assert layer is not None
        close(tensor, read_by_hand(case, layer, 6))
        on = plain.encode(case.at(layer), case.taps[L[kind.name], layer])[:, 6] != 0
        close(tensor, torch.outer(on.double(), case.at(layer).encoder[6]))


@pytest.mark.parametrize("architecture", models.GPT2_AND_OTHERS)
def test_what_heads_write_to_one_latent(architecture: str) -> None:
    case = Case(T.RESID_DELTA_ATTN, architecture)
    for layer in range(N_LAYERS):
        config = DstConfig(trace_config=traces.trace(traces.ATTENTION_LATENT, layer, None, 3), layer_indices=(layer,))
        read = read_by_hand(case, layer, 3)
        pairs = torch.einsum("tuhd,td->tuh", case.heads(layer), read)
        close(case.one(T.ATTN_WRITE_TO_LATENT, config)[layer], pairs)
        summed = pairs.sum(dim=2, keepdim=True)
        close(case.one(T.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS, config)[layer], summed)
        flattened = case.one(T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS, config)[layer]
        close(flattened, torch.stack([summed[t, u] for t, u in PAIRS]))
        close(case.one(T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN, config)[layer], pairs.sum(dim=1))


@pytest.mark.parametrize("architecture", models.GPT2_AND_OTHERS)
def test_what_heads_write_to_every_latent(architecture: str) -> None:
    case = Case(T.RESID_DELTA_ATTN, architecture)
    for layer in range(N_LAYERS):
        config = DstConfig(layer_indices=(layer,))
        on = plain.encode(case.at(layer), case.taps[L.RESID_DELTA_ATTN, layer]) > 0
        writes = torch.einsum("tuhd,zd->tuhz", case.heads(layer), case.at(layer).encoder) * on[:, None, None]
        at_token = case.one(T.ATTN_WRITE_TO_LATENT_PER_SEQUENCE_TOKEN_BATCHED, config)[layer]
        close(at_token, writes.sum(dim=1))
        flattened = case.one(T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS_BATCHED, config)[layer]
        close(flattened, torch.stack([writes[t, u].sum(dim=0) for t, u in PAIRS]))
        one = DstConfig(trace_config=traces.trace(traces.LATENT, layer, None, 4), layer_indices=(layer,))
        close(flattened[:, 4:5], case.one(T.FLATTENED_ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS, one)[layer])


# What the vocabulary writes


def vocabulary(case: Case, layer: int) -> torch.Tensor:
    """Each token's embedding, as the model scales it but without position, normed for the MLP [V, d]."""
    x = case.plain.embedded(range(case.config.vocab_size))
    return case.plain.norm(x, case.plain.scale(x), f"layers.{layer}.mlp_norm")


def reading(location: L, layer: int, entry: int) -> DstConfig:
    index = ActivationIndex(activation_location_type=location, layer_index=layer, tensor_indices=(None, entry))
    return DstConfig(activation_index_for_fake_grad=index)


def test_a_neuron_reads_the_vocabulary_whatever_autoencoder_is_there(case: Case) -> None:
    """Q11: the reference refuses if there is only one of attention. A gated neuron reads through its gate."""
    found = case.one(T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION, reading(L.MLP_POST_ACT, 1, 7))
    expected = case.plain.pre_act(1, vocabulary(case, 1))[:, 7]
    close(found[None], expected.expand(len(models.TOKENS), -1))


@pytest.mark.parametrize("location", [L.ONLINE_MLP_AUTOENCODER_LATENT, L.ONLINE_AUTOENCODER_LATENT])
@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("architecture", models.GPT2_AND_OTHERS)
def test_a_latent_reads_the_vocabulary_before_phi(kind: T, location: L, architecture: str) -> None:
    case = Case(kind, architecture)
    normed = vocabulary(case, 2)
    act = case.plain.act(2, normed, case.plain.pre_act(2, normed))
    x = act if kind is T.MLP_POST_ACT else case.plain.delta_mlp(2, act)
    found = case.one(T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION, reading(location, 2, 6))
    expected = plain.pre(case.at(2), x)[:, 6]
    assert (expected < 0).any() or architecture != "gpt2"
    close(found[None], expected.expand(len(models.TOKENS), -1))


def test_types_that_are_copies_in_the_reference_yield_no_backward_pass() -> None:
    """Q2: FORWARD again under the name BACKWARD says nothing, so we leave it out."""
    case = Case(T.MLP_POST_ACT)
    given = models.request(
        T.ONLINE_AUTOENCODER_ACT_TIMES_GRAD, config=DstConfig(derive_gradients=True), **case.fields, **LOSS
    )
    assert {pass_type for _, pass_type, _ in case.world.derive(given)} == {PassType.FORWARD}
