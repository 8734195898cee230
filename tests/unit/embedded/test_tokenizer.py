"""The embedded tokenizer: nothing is lost, and the words of the made-up text are single tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Loaded

from dst_grpc.embedded import MODEL_FOLDER
from scripts.embedded import behaviours, lexicon, wordings
from scripts.embedded.grammar import plural
from scripts.embedded.tokenizer import required_words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TOKENIZER = Loaded.from_file(str(MODEL_FOLDER / "tokenizer.json"))


@given(st.text())
def test_decoding_gives_back_any_text(text: str) -> None:
    assert _TOKENIZER.decode(_TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_words_are_single_tokens_after_a_space(tokenizer: Tokenizer) -> None:
    words = {
        *required_words(),
        *map(plural, behaviours.ATTRACTORS),
        *(v for pair in wordings.VERB_PAIRS for v in pair),
    }
    assert len(words) > 2000
    split = [word for word in words if len(tokenizer.encode(" " + word).ids) != 1]
    assert not split


def test_names_are_single_tokens_at_the_start_of_a_text(tokenizer: Tokenizer) -> None:
    assert not [name for name in lexicon.NAMES if len(tokenizer.encode(name).ids) != 1]


def test_a_text_gets_no_token_that_it_does_not_hold(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("When Mary and John went to the store").tokens
    assert tokens == ["When", "ĠMary", "Ġand", "ĠJohn", "Ġwent", "Ġto", "Ġthe", "Ġstore"]


def test_separator_is_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|endoftext|>").ids == [tokenizer.token_to_id("<|endoftext|>")]
