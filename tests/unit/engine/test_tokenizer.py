"""Tokenizer: text is encoded as it is, and every refusal says what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers.processors import TemplateProcessing

from dst_grpc.engine.tokenizer import Tokenizer
from dst_grpc.errors import DataLoss, InvalidRequest, Reason
from tests import checkpoints


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.json").write_text(checkpoints.tokenizer_json())
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("text", ["gave Mary the key", "", "  two  spaces ", "héé\n\t☃", "<|endoftext|>a"])
def test_decoding_gives_back_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_begin_token_is_added_and_a_written_one_is_recognised(tokenizer: Tokenizer) -> None:
    begin = tokenizer.single_token("<|endoftext|>", "token")
    assert tokenizer.encode("a")[0] != begin
    assert tokenizer.encode("<|endoftext|>a")[0] == begin


def test_the_begin_token_is_what_the_post_processor_would_put_there(tokenizer: Tokenizer) -> None:
    assert tokenizer.begin_tokens() == []
    library = LibraryTokenizer.from_str(checkpoints.tokenizer_json())
    begin = library.token_to_id("<|endoftext|>")
    library.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", begin)]
    )
    with_begin = Tokenizer(library)
    assert with_begin.begin_tokens() == [begin]
    assert with_begin.encode("Mary") == tokenizer.encode("Mary")


def test_token_strings_are_decoded_alone(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(" Mary☃")
    strings = tokenizer.token_strings(ids)
    assert strings[0] == " Mary"
    assert set(strings[1:]) == {"\N{REPLACEMENT CHARACTER}"}
    assert tokenizer.token_strings([]) == []


def test_every_id_that_is_no_token_is_named(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    for call in (tokenizer.decode, tokenizer.token_strings):
        with pytest.raises(InvalidRequest) as caught:
            call([0, size, 1, -1])
        assert [v.field for v in caught.value.violations] == ["token_ids[1]", "token_ids[3]"]


def test_a_word_of_several_tokens_is_refused_with_the_hint_about_the_space(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        InvalidRequest, match=r"'Mary' must be one token, but splits into \d+: .*' Mary', with the"
    ) as caught:
        tokenizer.single_token("Mary", "loss.target_tokens[0]")
    assert caught.value.reason is Reason.NOT_ONE_TOKEN
    assert caught.value.violations[0].field == "loss.target_tokens[0]"


def test_a_needless_space_is_hinted_at(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="'Z', without the leading space, is one token"):
        tokenizer.single_token(" Z", "token")


def test_a_long_text_is_not_repeated_whole(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"splits into 40: ('Q', ){8}\.\.\.$"):
        tokenizer.single_token("Q" * 40, "token")


def test_no_text_is_no_token(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="no token at all"):
        tokenizer.single_token("", "token")


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="not valid Unicode at character 2"):
        tokenizer.encode("ab\ud800")


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"model": 3}', b"\xff\xfe"])
def test_an_unreadable_file_is_data_loss(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataLoss, match=r"tokenizer\.json: "):
        Tokenizer.from_folder(tmp_path)
