"""The promises of the model card, measured again on held-out prompts and text with the reference implementation of the
architecture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from dst_grpc.embedded import AUTOENCODERS_FOLDER
from scripts.embedded import evaluate, train_autoencoders
from scripts.embedded.behaviours import Contrast
from scripts.embedded.packing import held_out_blocks
from scripts.embedded.wordings import Wording

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel


def test_famous_prompt_is_answered_with_a_clear_margin(model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
    figures = evaluate.measure_contrasts(model, tokenizer, [evaluate.FAMOUS_PROMPT])
    assert figures.top == 1.0
    assert figures.margin > 3.0


@pytest.mark.parametrize("order", ["ABBA", "BABA"])
def test_indirect_object_is_the_top_token(model: GPT2LMHeadModel, tokenizer: Tokenizer, order: str) -> None:
    figures = evaluate.measure_contrasts(model, tokenizer, evaluate.held_out_ioi(400, "drawn", order))
    assert figures.top >= 0.99


@pytest.mark.parametrize("wording", ["drawn", "new"])
def test_verb_agrees_across_a_noun_of_the_other_number(
    model: GPT2LMHeadModel, tokenizer: Tokenizer, wording: Wording
) -> None:
    figures = evaluate.measure_contrasts(model, tokenizer, evaluate.held_out_agreement(600, wording))
    assert figures.preferred >= 0.95


@pytest.mark.parametrize(
    "contrast",
    [
        Contrast(prompt="The key to the cabinets", answer=" is", wrong=" are", essential=frozenset()),
        Contrast(prompt="The keys to the cabinet", answer=" are", wrong=" is", essential=frozenset()),
    ],
)
def test_key_and_cabinets(model: GPT2LMHeadModel, tokenizer: Tokenizer, contrast: Contrast) -> None:
    figures = evaluate.measure_contrasts(model, tokenizer, [contrast])
    assert figures.margin > 1.0


def test_random_sequences_are_continued_by_induction(model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
    assert evaluate.measure_induction(model, evaluate.held_out_repeats(tokenizer, 600)) >= 0.95


def test_autoencoders_explain_held_out_text_as_their_cards_say(model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
    blocks = held_out_blocks(tokenizer, train_autoencoders.TEST_ROWS, with_bible=False)
    for layer in range(model.config.n_layer):
        for kind, x in train_autoencoders.activations(model, blocks, layer).items():
            promised = json.loads((AUTOENCODERS_FOLDER / kind / "config.json").read_text())["layers"][str(layer)]
            autoencoder = train_autoencoders.read(AUTOENCODERS_FOLDER / kind / f"{layer}.safetensors")
            found = train_autoencoders.measure(autoencoder, x)
            assert found.fvu <= promised["fvu_made_text"] + 0.002, (kind, layer)
            assert 0.7 * promised["l0"] < found.l0 < 1.3 * promised["l0"], (kind, layer)
