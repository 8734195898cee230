"""What the tests of the embedded default share: the model, read once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel


@pytest.fixture(scope="session")
def loaded() -> tuple[GPT2LMHeadModel, Tokenizer]:
    """The embedded model as its file holds it, run in float32, and its tokenizer."""
    from dst_grpc.embedded import MODEL_FOLDER
    from scripts.embedded.train_model import load

    return load(MODEL_FOLDER)


@pytest.fixture(scope="session")
def model(loaded: tuple[GPT2LMHeadModel, Tokenizer]) -> GPT2LMHeadModel:
    return loaded[0]


@pytest.fixture(scope="session")
def tokenizer(loaded: tuple[GPT2LMHeadModel, Tokenizer]) -> Tokenizer:
    return loaded[1]
