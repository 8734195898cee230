"""The transcoders of the embedded model: what the model card says of them, measured again, and their training."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import torch

from dst_grpc.contexts.loading import FileLoader
from dst_grpc.contexts.registry import Registry
from dst_grpc.embedded import FOLDER, MODEL_FOLDER, TRANSCODERS_FOLDER
from dst_grpc.graphs.influence import GraphScores, scores
from scripts.embedded import evaluate, train_autoencoders, train_transcoders, transcoder_figures
from scripts.embedded.packing import Blocks, held_out_blocks, led
from scripts.embedded.train_transcoders import Transcoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

PLACE = TRANSCODERS_FOLDER / train_transcoders.NAME


@pytest.fixture(name="blocks", scope="module")
def _blocks(tokenizer: Tokenizer) -> Blocks:
    return led(held_out_blocks(tokenizer, train_autoencoders.TEST_ROWS, with_bible=False), tokenizer)


@pytest.fixture(name="transcoders", scope="module")
def _transcoders() -> list[Transcoder]:
    return train_transcoders.read_set(PLACE)


def test_rows_are_led_by_the_separator(tokenizer: Tokenizer) -> None:
    plain = held_out_blocks(tokenizer, 3, with_bible=False)
    some = led(plain, tokenizer, every=2)
    separator = tokenizer.token_to_id("<|endoftext|>")
    assert [row[0] == separator for row in some.ids] == [True, False, True]
    assert (some.ids[::2, 1:] == plain.ids[::2, :-1]).all()
    assert (some.scored[::2, 1:] == plain.scored[::2, :-1]).all()
    assert (some.ids[1] == plain.ids[1]).all()
    assert not some.scored[0, 0]


def test_transcoders_explain_held_out_text_as_their_card_says(
    model: GPT2LMHeadModel, blocks: Blocks, transcoders: list[Transcoder]
) -> None:
    promised = json.loads((PLACE / "config.json").read_text())["layers"]
    for layer, (read, written) in enumerate(train_transcoders.pairs(model, blocks)):
        found = train_transcoders.measure(transcoders[layer], read, written)
        assert found.fvu <= promised[str(layer)]["fvu_made_text"] + 0.002, layer
        assert 0.7 * promised[str(layer)]["l0"] < found.l0 < 1.3 * promised[str(layer)]["l0"], layer


def test_the_server_has_the_same_transcoders(transcoders: list[Transcoder]) -> None:
    registry = Registry.build()
    entry = registry.autoencoder_entry("embedded/mlp_transcoders", "embedded")
    loader = FileLoader()  # which also checks it
    loaded = loader.load_autoencoders(entry, loader.load_model(entry.model, lambda _: None), lambda _: None)
    assert loaded.transcoders is not None
    x = torch.randn(50, transcoders[0].encoder.shape[1], generator=torch.Generator().manual_seed(0))
    measured = transcoder_figures.in_engine(transcoders)
    for layer, ours in enumerate(transcoders):
        features = ours.features(x)
        assert (features != 0).any()
        torch.testing.assert_close(loaded.transcoders.activations(layer, x), features)
        torch.testing.assert_close(measured.activations(layer, x), features)
        active = {layer: loaded.transcoders.active(layer, x)}
        torch.testing.assert_close(loaded.transcoders.reconstruction(layer, active, x), ours.write(features))


def test_the_model_reads_little_worse_with_them_in_place_of_its_mlps(
    model: GPT2LMHeadModel, tokenizer: Tokenizer, blocks: Blocks, transcoders: list[Transcoder]
) -> None:
    some = Blocks(blocks.ids[:4], blocks.scored[:4])
    own = evaluate.measure_loss(model, some)

    def with_set(chosen: list[Transcoder]) -> float:
        with train_transcoders.replaced(model, chosen):
            return evaluate.measure_loss(model, some)

    none = with_set(transcoder_figures.empty_set(transcoders))
    assert own < with_set(transcoders) < own + 0.2 * (none - own)
    assert evaluate.measure_loss(model, some) == own  # the hooks are gone


def test_graphs_of_them_explain_more_than_others(tokenizer: Tokenizer, transcoders: list[Transcoder]) -> None:
    decoder = transcoder_figures.decoder_of(MODEL_FOLDER)
    asked = transcoder_figures.prompts(tokenizer, 2)

    def found(chosen: list[Transcoder]) -> list[GraphScores]:
        held = transcoder_figures.in_engine(chosen)
        return [scores(transcoder_figures.graph_of(prompt, decoder, held)) for prompt in asked]

    none = found(transcoder_figures.empty_set(transcoders))
    for one, other in zip(found(transcoders), none, strict=True):
        assert other.replacement < 0.2
        assert one.replacement > 0.6
        assert other.completeness < one.completeness


def test_the_card_has_the_scores_of_the_famous_prompt(tokenizer: Tokenizer, transcoders: list[Transcoder]) -> None:
    graph = transcoder_figures.graph_of(
        transcoder_figures.begun(tokenizer, evaluate.FAMOUS_PROMPT.prompt),
        transcoder_figures.decoder_of(MODEL_FOLDER),
        transcoder_figures.in_engine(transcoders),
    )
    numbers = re.search(
        r"`When Mary.*?replacement score is ([\d.]+), its\s+completeness score ([\d.]+), with (\d+) active features",
        (FOLDER / "MODEL_CARD.md").read_text(),
        re.DOTALL,
    )
    assert numbers is not None
    # A pre-activation may lie so near its threshold that another processor's rounding decides.
    assert float(numbers[1]) == pytest.approx(scores(graph).replacement, abs=0.01)
    assert float(numbers[2]) == pytest.approx(scores(graph).completeness, abs=0.01)
    assert int(numbers[3]) == pytest.approx(graph.nodes.n_features, abs=3)


def test_training_finds_what_a_narrow_mlp_does() -> None:
    """An MLP that is a sum of few features is explained by as few, at the L0 that was asked for."""
    generator = torch.Generator().manual_seed(0)
    directions, writes = (torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q[:8] for _ in range(2))
    strength = (0.5 + torch.rand(6000, 8, generator=generator)) * (torch.rand(6000, 8, generator=generator) < 0.25)
    read, written = strength @ directions, strength @ writes
    transcoder = train_transcoders.fit(read[:5000], written[:5000], 2, seed=0, steps=300, features=16)
    figures = train_transcoders.measure(transcoder, read[5000:], written[5000:])
    noise = train_transcoders.randomised(transcoder, read[:5000], written[:5000], seed=1)
    assert figures.l0 == pytest.approx(2, rel=0.2)
    assert figures.fvu < 0.35 < train_transcoders.measure(noise, read[5000:], written[5000:]).fvu
    torch.testing.assert_close(transcoder.decoder.norm(dim=1), torch.ones(16))
    off = train_transcoders.measure(train_transcoders.switched_off(transcoder), read, written)
    assert off.l0 == 0
    assert off.fvu > 0.9
