"""The decoder: transformers' numbers, and nothing but what the taps ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers

from dst_grpc.domain.architecture import ActivationFunction, NormKind
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.embedded import MODEL_FOLDER
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.decoder_config import DecoderConfig
from dst_grpc.engine.taps import Site, Taps, site_entering
from dst_grpc.errors import DataLoss
from tests import families, models

PROMPT = torch.tensor([[5, 0, 17, 3, 3, 11, 8]])
EXPLICIT = {L.ATTN_QK_LOGITS, L.ATTN_QK_PROBS}
"""Taps that need an attention matrix."""
SCALES = {location for location in L if location.value.endswith(".scale")}
"""Taps that need a norm in steps."""
EVERY_ARCHITECTURE = pytest.mark.parametrize("name", models.ARCHITECTURES)


def test_the_embedded_model_has_the_logits_and_gradients_of_transformers() -> None:
    theirs: Any = transformers.GPT2LMHeadModel.from_pretrained(MODEL_FOLDER, attn_implementation="eager")
    ours = open_checkpoint(MODEL_FOLDER).load("cpu", torch.float32)
    families.assert_like(theirs.eval(), ours, torch.arange(3, 60).unsqueeze(0) * 31)


@pytest.fixture
def decoder() -> Decoder:
    return models.decoder(dtype=torch.float32)


def logits_of(decoder: Decoder, tokens: torch.Tensor, taps: Taps | None = None, **kwargs: Any) -> torch.Tensor:
    logits = decoder.forward(tokens, taps, **kwargs)
    assert logits is not None
    return logits


def test_the_architectures_of_the_tests_depart_from_gpt2_in_every_way() -> None:
    architectures = models.ARCHITECTURES.values()
    for field in fields(DecoderConfig):
        if field.default is not MISSING:
            assert any(getattr(one, field.name) != field.default for one in architectures), field.name
    assert {one.norm for one in architectures} == set(NormKind)
    assert {one.activation for one in architectures} == set(ActivationFunction)


def _begins_after(site: Site, layer: int) -> bool:
    location, index = site
    return location.facts.is_after_layers or (index is not None and index >= layer)


@EVERY_ARCHITECTURE
def test_a_pass_from_the_residual_that_enters_a_layer_ends_as_the_whole_pass(name: str) -> None:
    decoder = models.decoder(config=models.ARCHITECTURES[name])
    whole = Taps(values=models.sites(decoder.config))
    logits = logits_of(decoder, PROMPT, whole)
    for layer in range(decoder.config.n_layers + 1):
        after = [site for site in whole.values if _begins_after(site, layer)]
        taps = Taps(values=after)
        entering = (layer, whole.values[site_entering(layer)])
        assert torch.equal(logits_of(decoder, PROMPT, taps, entering=entering), logits)
        assert all(torch.equal(taps.values[site], whole.values[site]) for site in after)


def test_gradients_of_a_pass_from_a_layer_begin_there(decoder: Decoder) -> None:
    site: Site = (L.RESID_DELTA_MLP, 1)
    whole, part = (Taps(values=[site_entering(1)], gradients=[site]) for _ in range(2))
    found = whole.gradients(logits_of(decoder, PROMPT, whole).square().sum())
    entering = (1, whole.values[site_entering(1)])
    again = part.gradients(logits_of(decoder, PROMPT, part, entering=entering).square().sum())
    assert torch.equal(again[site], found[site])


def test_empty_taps_are_no_taps_to_the_bit(decoder: Decoder) -> None:
    assert torch.equal(logits_of(decoder, PROMPT), logits_of(decoder, PROMPT, Taps()))


@EVERY_ARCHITECTURE
def test_recording_changes_no_bit_where_the_fused_path_makes_the_tensor_anyway(name: str) -> None:
    config = models.ARCHITECTURES[name]
    decoder = models.decoder(config=config, dtype=torch.float32)
    wanted = {site for site in models.sites(config) if site[0] not in EXPLICIT | SCALES}
    taps = Taps(values=wanted)
    assert torch.equal(logits_of(decoder, PROMPT, taps), logits_of(decoder, PROMPT))
    assert taps.values.keys() == wanted


@EVERY_ARCHITECTURE
def test_recording_everything_changes_no_more_than_rounding(name: str) -> None:
    config = models.ARCHITECTURES[name]
    decoder, sites = models.decoder(config=config, dtype=torch.float32), models.sites(config)
    taps = Taps(values=sites, gradients=sites)
    torch.testing.assert_close(logits_of(decoder, PROMPT, taps).detach(), logits_of(decoder, PROMPT), rtol=0, atol=2e-5)


def test_weights_are_frozen_however_they_came(decoder: Decoder) -> None:
    """No gradient reaches a weight, even one that asked for it."""
    given = {name: w.requires_grad_() for name, w in models.weights(dtype=torch.float32).items()}
    decoder = Decoder(models.CONFIG, given)
    taps = Taps(gradients=[(L.RESID_POST_EMBEDDING, None)])
    logits_of(decoder, PROMPT, taps).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert all(w.grad is None for w in given.values())
    assert not logits_of(decoder, PROMPT).requires_grad


@EVERY_ARCHITECTURE
def test_a_padded_prompt_has_the_values_and_gradients_that_it_has_alone(name: str) -> None:
    config = models.ARCHITECTURES[name]
    decoder, sites = models.decoder(config=config), models.sites(config)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [8]]
    width = max(map(len, prompts))
    tokens = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    batch = Taps(values=sites, gradients=sites)
    together = logits_of(decoder, tokens, batch)
    found = batch.gradients(sum((together[i, last[i], i] for i in range(3)), torch.tensor(0.0)))
    for row, prompt in enumerate(prompts):
        taps = Taps(values=sites, gradients=sites)
        alone = taps.gradients(logits_of(decoder, torch.tensor([prompt]), taps)[0, -1, row])
        for site in sites:
            value, gradient = (x[row, : len(prompt)] for x in (batch.values[site], found[site]))
            if site[0] in EXPLICIT:
                value, gradient = value[:, : len(prompt)], gradient[:, : len(prompt)]
            torch.testing.assert_close(value, taps.values[site][0], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(gradient, alone[site][0], rtol=1e-9, atol=1e-12)


def wanted_from(layer: int) -> list[Site]:
    return [site for site in models.sites() if site[1] is not None and site[1] >= layer]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_graph_begins_with_the_first_layer_that_wants_a_gradient(decoder: Decoder, layer: int) -> None:
    taps = Taps(values=models.sites(), gradients=wanted_from(layer))
    assert taps.graph_starts_at_layer == layer
    entering: list[bool] = []

    class Watching(Taps):
        def visit(self, location: L, index: int | None, x: torch.Tensor) -> torch.Tensor:
            if location is L.RESID_DELTA_ATTN:
                entering.append(x.requires_grad)
            return super().visit(location, index, x)

    logits_of(decoder, PROMPT, Watching(values=models.sites(), gradients=wanted_from(layer)))
    assert entering == [index >= layer for index in range(3)]


def test_without_gradients_there_is_no_graph(decoder: Decoder) -> None:
    taps = Taps(values=models.sites())
    assert taps.graph_starts_at_layer is None
    assert not logits_of(decoder, PROMPT, taps).requires_grad


def test_a_gradient_after_all_layers_builds_no_graph_of_any(decoder: Decoder) -> None:
    site: Site = (L.RESID_FINAL_LAYER_NORM_SCALE, None)
    taps = Taps(values=models.sites(), gradients=[site])
    logits = logits_of(decoder, PROMPT, taps)
    found = taps.gradients(logits[0, -1, 0])
    assert found.keys() == {site}
    names = [type(node).__name__ for node in ancestors(logits.grad_fn)]
    assert not [name for name in names if "Gelu" in name]


def ancestors(node: Any) -> Iterator[Any]:
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [parent for parent, _ in node.next_functions]


@pytest.mark.parametrize("stop", [-1, 0, 1, 2])
def test_stopping_early_runs_no_later_layer_and_gives_no_logits(decoder: Decoder, stop: int) -> None:
    taps = Taps(values=models.sites())
    assert decoder.forward(PROMPT, taps, stop_after_layer=stop) is None
    reached = {layer for _, layer in taps.values if layer is not None}
    assert reached == set(range(stop + 1))
    assert (L.RESID_POST_EMBEDDING, None) in taps.values
    assert (L.LOGITS, None) not in taps.values


@pytest.mark.parametrize("start", [None, -1, 0, 2])
def test_a_graph_may_begin_after_the_layer_where_the_run_stops(decoder: Decoder, start: int | None) -> None:
    wanted: list[Site] = [] if start is None else [(L.RESID_POST_EMBEDDING, None)] if start < 0 else wanted_from(start)
    taps = Taps(values=models.sites(), gradients=wanted)
    assert decoder.forward(PROMPT, taps, stop_after_layer=1) is None
    assert (L.RESID_POST_MLP, 1) in taps.values


def test_logits_at_one_position_are_those_of_the_whole(decoder: Decoder) -> None:
    tokens = torch.stack([PROMPT[0], PROMPT[0].flip(0)])
    whole = logits_of(decoder, tokens)
    some = logits_of(decoder, tokens, logits_at=torch.tensor([2, 5]))
    assert some.shape == (2, 1, models.CONFIG.vocab_size)
    torch.testing.assert_close(some[:, 0], whole[[0, 1], [2, 5]], rtol=0, atol=1e-5)


def test_tapped_logits_are_whole_whatever_position_is_asked_for(decoder: Decoder) -> None:
    taps = Taps(values=[(L.LOGITS, None)])
    logits = logits_of(decoder, PROMPT, taps, logits_at=torch.tensor([2]))
    assert torch.equal(logits, logits_of(decoder, PROMPT))
    assert torch.equal(taps.values[L.LOGITS, None], logits)


def test_masked_scores_are_minus_infinity_and_their_probabilities_zero(decoder: Decoder) -> None:
    taps = Taps(values=models.sites(), gradients=models.sites())
    found = taps.gradients(logits_of(decoder, PROMPT, taps)[0, -1, 0])
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    assert (taps.values[L.ATTN_QK_LOGITS, 0][0][future] == -torch.inf).all()
    assert (taps.values[L.ATTN_QK_PROBS, 0][0][future] == 0).all()
    assert (found[L.ATTN_QK_LOGITS, 0][0][future] == 0).all()
    assert (found[L.ATTN_QK_PROBS, 0][0][future] != 0).any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers.1.mlp.gate": torch.zeros(1)}, "unknown weight 'layers.1.mlp.gate'"),
        ({"layers.1.mlp.in.bias": None}, "missing weight 'layers.1.mlp.in.bias'"),
        ({"unembedding": torch.zeros(19, 8)}, r"weight 'unembedding' has shape \(19, 8\), not \(8, 19\)"),
    ],
    ids=["unknown", "missing", "misshapen"],
)
def test_a_wrong_weight_is_named(change: dict[str, torch.Tensor | None], says: str) -> None:
    given = {name: w for name, w in (models.weights() | change).items() if w is not None}
    with pytest.raises(DataLoss, match=says) as caught:
        Decoder(models.CONFIG, given)
    assert caught.value.metadata == {"weight": next(iter(change))}


def test_weight_shapes_name_every_weight_once_in_loading_order() -> None:
    config = replace(models.CONFIG, n_layers=12)
    names = list(config.weight_shapes())
    assert names[:2] == ["embedding", "position_embedding"]
    assert names[-3:] == ["final_norm.gain", "final_norm.bias", "unembedding"]
    layers = [int(name.split(".")[1]) for name in names[2:-3]]
    assert all(a <= b for a, b in pairwise(layers))
    assert len(names) == 5 + 12 * 12
    shapes = config.weight_shapes()
    assert shapes["layers.11.attn.qkv.weight"] == (8, 30)
    assert shapes["layers.11.attn.out.weight"] == (10, 8)
    assert shapes["layers.0.mlp.in.weight"] == (8, 13)


def test_a_tied_weight_counts_once() -> None:
    given = models.weights()
    tied = Decoder(models.CONFIG, given | {"unembedding": given["embedding"].t()})
    assert Decoder(models.CONFIG, given).parameter_bytes - tied.parameter_bytes == given["unembedding"].nbytes


def test_heads_may_be_wider_together_than_the_residual() -> None:
    """Nothing assumes that heads times their width is the residual's width."""
    assert models.CONFIG.n_heads * models.CONFIG.d_head != models.CONFIG.d_model
    assert logits_of(models.decoder(), PROMPT).shape == (1, 7, 19)
