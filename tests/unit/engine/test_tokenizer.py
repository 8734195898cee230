"""Tokenizer: text is encoded as it is, and every refusal says what would be right."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers
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
    library = Library.from_str(checkpoints.tokenizer_json())
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


# Vocabularies of the SentencePiece kind


def spaced(*, prefixed: bool, added: tuple[str, ...] = ()) -> Library:
    """As Llama's and Mistral's (*prefixed*), or Gemma's: spaces belong to pieces, unknown characters are bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁Maryko", "Ma", "ry", "Mary", "▁Mary", "▁▁"]
    merges = [("M", "a"), ("r", "y"), ("Ma", "ry"), ("▁", "Mary"), ("▁", "▁")]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Library(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    to_pieces: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    to_text: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        to_pieces.insert(0, normalizers.Prepend("▁"))
        to_text.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(to_pieces)
    tokenizer.decoder = decoders.Sequence(to_text)
    tokenizer.add_special_tokens(list(added))
    return tokenizer


@pytest.fixture(params=[True, False], ids=["prefixed", "not prefixed"])
def pieces(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(spaced(prefixed=request.param))


@pytest.mark.parametrize("text", ["Mary Mary", "Mary  rook", "☃ Mary é"])
def test_pieces_decode_to_the_text(pieces: Tokenizer, text: str) -> None:
    assert pieces.decode(pieces.encode(text)) == text


def test_a_piece_s_text_has_its_spaces(pieces: Tokenizer) -> None:
    ids = pieces.encode("Mary Mary  ☃")
    strings = pieces.token_strings(ids)
    assert strings[-3:] == ["\N{REPLACEMENT CHARACTER}"] * 3
    assert "".join(strings[:-3]).removeprefix(" ") == "Mary Mary  "
    assert " Mary" in strings


@pytest.mark.parametrize("text", ["Mary", " Mary", "ry", "  ", " ", "k"])
def test_a_token_is_found_by_the_text_that_is_shown_for_it(pieces: Tokenizer, text: str) -> None:
    token = pieces.single_token(text, "token")
    assert pieces.token_strings([token]) == [text]


def test_every_token_is_found_by_its_text_unless_it_is_part_of_a_character(pieces: Tokenizer) -> None:
    for token in range(257, pieces.vocab_size):
        assert pieces.single_token(pieces.token_strings([token])[0], "token") == token


def test_a_piece_that_does_not_exist_is_refused_with_the_hint_about_the_space(pieces: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"' ry' must be one token, .*'ry', without the leading space"):
        pieces.single_token(" ry", "token")


def test_a_token_without_text_is_shown_and_named_by_its_id() -> None:
    library = Library(models.WordLevel({"a": 0, "b": 5}, unk_token="a"))
    tokenizer = Tokenizer(library, 8)
    assert tokenizer.vocab_size == 8
    assert tokenizer.token_strings([0, 3, 5, 7]) == ["a", "<3>", "b", "<7>"]
    assert tokenizer.decode([3, 5, 7]) == "<3>b<7>"
    assert tokenizer.single_token("<7>", "token") == 7
    with pytest.raises(InvalidRequest, match="is no token of this model, which reads it as 'a'"):
        tokenizer.single_token("<8>", "token")
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.decode([0, 3, 5, 8])
    assert [v.field for v in caught.value.violations] == ["token_ids[3]"]


def test_a_word_that_is_a_token_with_a_space_alone_is_hinted_at() -> None:
    words = Library(models.WordLevel({"<unk>": 0, " w5": 1}, unk_token="<unk>"))
    with pytest.raises(InvalidRequest, match="reads it as '<unk>'; ' w5', with the leading space, is one token"):
        Tokenizer(words).single_token("w5", "token")


def test_a_text_that_cannot_be_encoded_is_told_by_the_field_that_holds_it() -> None:
    without_unknown = Tokenizer(Library(models.WordLevel({"w5": 0}, unk_token="none")))
    for text in ("w6", "ab\ud800"):
        with pytest.raises(InvalidRequest) as caught:
            without_unknown.single_token(text, "targets[0].token")
        assert [violation.field for violation in caught.value.violations] == ["targets[0].token"]


def test_the_space_after_a_token_without_text_is_kept(pieces: Tokenizer) -> None:
    tokenizer = Tokenizer(spaced(prefixed=True), pieces.vocab_size + 1)
    mary = tokenizer.single_token(" Mary", "token")
    assert tokenizer.decode([mary, pieces.vocab_size, mary, mary]) == f"Mary<{pieces.vocab_size}> Mary Mary"


@pytest.mark.parametrize(("text", "name"), [("\n", "<0x0A>"), ("\t", "<0x09>"), ("!", "<0x21>"), ("\x7f", "<0x7F>")])
def test_a_byte_of_its_own_is_found_by_its_character_and_by_its_name(pieces: Tokenizer, text: str, name: str) -> None:
    token = pieces.single_token(text, "token")
    assert token == pieces.single_token(name, "token") == pieces.single_token(f"<{token}>", "token")
    assert pieces.token_strings([token]) == [text]


def test_a_byte_that_is_part_of_a_character_is_found_by_its_name(pieces: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"'☃' must be one token, .*'<0xE2>', '<0x98>', '<0x83>'$"):
        pieces.single_token("☃", "token")
    assert pieces.single_token("<0xE2>", "token") == 1 + 0xE2


def test_a_token_that_is_part_of_a_character_is_named_by_its_id(tokenizer: Tokenizer) -> None:
    first, *_ = tokenizer.encode("☃")
    with pytest.raises(InvalidRequest, match=rf"'☃' must be one token, but splits into 3: '<{first}>', "):
        tokenizer.single_token("☃", "token")
    assert tokenizer.single_token(f"<{first}>", "token") == first


def test_a_word_that_the_vocabulary_does_not_know_is_no_token() -> None:
    tokenizer = Tokenizer(Library(models.WordLevel({"?": 0, "b": 1}, unk_token="?")))
    assert tokenizer.single_token("?", "token") == 0
    with pytest.raises(InvalidRequest, match=r"'c' is no token of this model, which reads it as '\?'"):
        tokenizer.single_token("c", "token")


@pytest.mark.parametrize("text", ["a", "Mary gave ", "☃", " "])
def test_a_long_text_is_not_encoded_whole(tokenizer: Tokenizer, text: str) -> None:
    whole = text * 50_000
    assert tokenizer.encode_at_most(whole, 100) is None
    short = text * 20
    assert tokenizer.encode_at_most(short, 100) == tokenizer.encode(short)
    with pytest.raises(InvalidRequest, match=rf"must be one token, but has {len(whole)} characters"):
        tokenizer.single_token(whole, "token")


def test_other_threads_run_while_a_long_text_is_encoded() -> None:
    """A million characters may be one token, so that the text is encoded whole."""
    library = Library(models.WordLevel({"?": 0}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer, found = Tokenizer(library), []
    thread = threading.Thread(target=lambda: found.append(tokenizer.encode_at_most("x" * 1_000_000, 8)))
    ours, all_of_us = time.thread_time(), time.process_time()
    thread.start()
    while thread.is_alive():
        pass
    assert found == [[0]]
    # Who never waits gets as much of the processors as who encodes.
    assert time.thread_time() - ours > (time.process_time() - all_of_us) / 4


def test_a_text_of_few_tokens_is_encoded_whole_however_long_it_is() -> None:
    library = Library(models.WordLevel({"?": 0, "b": 1}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    assert Tokenizer(library).encode_at_most("b" + 100_000 * " " + "b", 2) == [1, 1]


def test_tokens_added_for_other_models_are_none_of_this_one_s(tmp_path: Path) -> None:
    library = spaced(prefixed=False, added=("<image>",))
    (tmp_path / "tokenizer.json").write_text(library.to_str())
    size = library.get_vocab_size() - 1
    tokenizer = Tokenizer.from_folder(tmp_path, size)
    assert tokenizer.vocab_size == size
    with pytest.raises(InvalidRequest, match="holds '<image>', which this model has no embedding for"):
        tokenizer.encode("Mary <image>")
    with pytest.raises(InvalidRequest, match=f"between 0 and {size - 1}, not {size}"):
        tokenizer.decode([size])
    assert Tokenizer.from_folder(tmp_path, size + 100).vocab_size == size + 100
    with pytest.raises(DataLoss, match=f"has {size} tokens, but the model embeds only {size - 1}"):
        Tokenizer.from_folder(tmp_path, size - 1)
