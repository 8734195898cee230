"""Tokenizers that harm the library: each is refused, or confined, and every text has an answer."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from dst_grpc.engine import confined_tokenizer
from dst_grpc.engine.confined_tokenizer import ConfinedTokenizer
from dst_grpc.engine.tokenizer import Tokenizer
from dst_grpc.engine.tokenizer_growth import grows_in_proportion
from dst_grpc.errors import DataLoss, DstError, InvalidRequest
from tests import checkpoints

PLAIN: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"},
}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
BPE = {"type": "BPE", "vocab": {"a": 0}, "merges": []}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replaced(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(kind: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(steps)}


def charsmap(content: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


def opened(folder: Path, **fields: Any) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(PLAIN | fields))
    return Tokenizer.from_folder(folder)


HARMFUL: dict[str, tuple[dict[str, Any], str]] = {
    "a charsmap that leads out of itself": ({"normalizer": charsmap(b"\x08\0\0\0abcdefgh")}, "fails"),
    "a charsmap of another size": ({"normalizer": charsmap(b"\xff\xff\xff\xffabcdefgh")}, "tokenizer|memory"),
    "no charsmap": ({"normalizer": charsmap(b"")}, "is no tokenizer"),
    "backtracking": ({"pre_tokenizer": split(r"(a+)+$")}, "fails"),
    "backtracking on another letter": ({"pre_tokenizer": split(r"(x+x+)+y")}, "fails"),
    "backtracking in a sequence": (
        {"pre_tokenizer": sequence("pretokenizers", split("b"), split(r"(a|aa)+$"))},
        "fails",
    ),
    "no pattern": ({"pre_tokenizer": split("(")}, "is no tokenizer"),
    "no length": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "fails"),
    "growth": ({"normalizer": sequence("normalizers", *[replaced({"String": "a"}, "a" * 1000)] * 3)}, "memory"),
    "depth": ({"normalizer": json.loads('{"type":"Sequence","normalizers":[' * 150 + "]}" * 150)}, "recursion"),
    "another kind": ({"normalizer": {"type": "Unheard"}}, "is no tokenizer"),
    "a large number": ({"model": {"type": "WordLevel", "vocab": {"a": 10**30}, "unk_token": "a"}}, "is no tokenizer"),
    "no model": ({"model": None}, "is no tokenizer"),
}


@pytest.mark.parametrize(("fields", "problem"), HARMFUL.values(), ids=HARMFUL)
def test_a_file_that_harms_the_library_is_refused_when_it_is_read(
    tmp_path: Path, fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataLoss, match=f"tokenizer.json: .*({problem})"):
        opened(tmp_path, **fields)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"model": 1, "model": 2}', "[]", "1", ""]
)
def test_a_file_that_is_no_sound_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataLoss, match=r"tokenizer\.json: is no (sound JSON|tokenizer)"):
        Tokenizer.from_folder(tmp_path)


def test_a_pattern_that_harms_only_some_texts_fails_on_those_alone(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, pre_tokenizer=split(r"([\p{S}]+)+$"))
    assert tokenizer.encode("a") == [0]
    for _ in range(2):
        with pytest.raises(DataLoss, match="fails"):
            tokenizer.encode("+" * 40 + "!")
        assert tokenizer.encode("a") == [0]


def test_text_that_grows_without_bound_costs_neither_time_nor_memory_here(tmp_path: Path) -> None:
    """Of a letter that the trials do not know to look for, as a pattern finds it."""
    growing = [replaced({"Regex": r"\x{2604}"}, "\N{COMET}" * 300)] * 4
    tokenizer = opened(tmp_path, normalizer=sequence("normalizers", *growing))
    with pytest.raises(DataLoss, match="memory"):
        tokenizer.encode("\N{COMET}")
    assert tokenizer.encode("a") == [0]


def test_text_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word for itself is too short for the library to see a fault in the pattern."""
    monkeypatch.setattr(confined_tokenizer, "_SECONDS", 0.0)
    tokenizer = opened(tmp_path, pre_tokenizer=split(r"([\p{S}]+)+$"))
    started = time.process_time()
    with pytest.raises(DataLoss, match="more time"):
        tokenizer.encode(("+" * 17 + "!") * 5000)
    assert time.process_time() - started < 1  # of this process
    assert tokenizer.encode("a") == [0]


def test_an_answer_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = opened(tmp_path, pre_tokenizer=split("b|c"))
    with monkeypatch.context() as patch:
        patch.setattr(confined_tokenizer, "_WAIT_SECONDS", 0.0)
        with pytest.raises(DataLoss, match="given up"):
            tokenizer.encode("a")
    assert tokenizer.encode("a") == [0]


def test_text_that_the_vocabulary_has_nothing_for_is_the_callers_fault(tmp_path: Path) -> None:
    """In this process and in another."""
    model = {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]], "byte_fallback": False}
    for pre_tokenizer in (None, split("b|c")):
        tokenizer = opened(tmp_path, model=model, pre_tokenizer=pre_tokenizer)
        assert tokenizer.is_confined == (pre_tokenizer is not None)
        with pytest.raises(InvalidRequest, match="text: cannot be encoded"):
            tokenizer.encode("z")


def test_a_panic_in_this_process_is_an_error_too() -> None:
    """Of a tokenizer that was made here, for one."""
    library = Library.from_str(json.dumps(PLAIN | {"pre_tokenizer": {"type": "FixedLength", "length": 0}}))
    with pytest.raises(DstError, match="fails on a text"):
        Tokenizer(library).encode("a")


def test_a_confined_tokenizer_answers_as_the_library_does(tmp_path: Path) -> None:
    content = json.loads(checkpoints.tokenizer_json())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    known = Tokenizer.from_folder(tmp_path)
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [content["pre_tokenizer"], split("\N{SNOWMAN}+|x")],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    confined = Tokenizer.from_folder(tmp_path)
    assert (known.is_confined, confined.is_confined) == (False, True)
    library = Library.from_str(json.dumps(content))
    for text in ("Mary gave the key", "", "  two  spaces ", "héé\n\t☃", "<|endoftext|>a", "\N{NULL}\r\n"):
        ids = library.encode(text, add_special_tokens=False).ids
        assert confined.encode(text) == ids
        assert confined.decode(ids) == library.decode(ids, skip_special_tokens=False)
        assert confined.token_strings(ids) == known.token_strings(ids)
    assert confined.vocab_size == known.vocab_size
    assert confined.begin_tokens() == known.begin_tokens()
    assert confined.single_token(" Mary", "f") == known.single_token(" Mary", "f")


def test_the_process_ends_with_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, pre_tokenizer=split("b|c"))
    library = tokenizer._tokenizer
    assert isinstance(library, ConfinedTokenizer)
    process = library._process
    assert process.poll() is None
    del tokenizer, library
    assert process.returncode is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"pre_tokenizer": BYTE_LEVEL | {"use_regex": True}, "decoder": BYTE_LEVEL},
        {"pre_tokenizer": sequence("pretokenizers", split(LLAMA3), BYTE_LEVEL), "decoder": BYTE_LEVEL},
        {
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": sequence(
                "pretokenizers", split(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), BYTE_LEVEL
            ),
            "decoder": BYTE_LEVEL,
        },
        {
            "pre_tokenizer": sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, BYTE_LEVEL),
            "decoder": BYTE_LEVEL,
        },
        {
            "normalizer": sequence(
                "normalizers", {"type": "Prepend", "prepend": "▁"}, replaced({"String": " "}, "▁")
            ),
            "decoder": sequence(
                "decoders",
                replaced({"String": "▁"}, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ),
        },
        {
            "normalizer": replaced({"String": " "}, "▁"),
            "pre_tokenizer": {
                "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
            },
            "decoder": sequence("decoders", replaced({"String": "▁"}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}),
        },
        {"pre_tokenizer": sequence("pretokenizers", split(GPT2), BYTE_LEVEL)},
        {"model": {"vocab": {}, "merges": []}},
    ],
    ids=["GPT-2", "Llama 3", "Qwen", "SmolLM", "Llama 2", "Gemma", "GPT-2 spelt out", "without a type"],
)  # fmt: skip
def test_tokenizers_as_people_publish_them_run_in_this_process(fields: dict[str, Any]) -> None:
    assert grows_in_proportion(PLAIN | {"model": BPE} | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"pre_tokenizer": split("[a-z]+")},
        {"normalizer": charsmap(b"")},
        {"normalizer": replaced({"String": "a"}, "a" * 1000)},
        {"normalizer": replaced({"String": ""}, "a")},
        {"normalizer": sequence("normalizers", *[replaced({"String": "a"}, "aaa")] * 5)},
        {"decoder": sequence("decoders", *[replaced({"String": "a"}, "aaa")] * 5)},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 1000}},
        {"model": BPE | {"continuing_subword_prefix": "a" * 1000}},
        {"model": {"type": "WordPiece", "vocab": {}, "max_input_chars_per_word": 10**9}},
        {"model": {"type": "Unigram", "vocab": [["a" * 10_000, 0.0]]}},
        {"model": {"type": "Unheard"}},
        {"model": None},
        {"normalizer": {"type": "Unheard"}},
        {"normalizer": {}},
        {"normalizer": sequence("normalizers")["normalizers"]},
        {"normalizer": {"type": "Sequence", "normalizers": [], "more": []}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_whatever_else_a_file_says_is_not_trusted(fields: dict[str, Any]) -> None:
    assert not grows_in_proportion(PLAIN | {"model": BPE} | fields)
