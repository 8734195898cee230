"""Special tokens of models, from the files that come with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dst_grpc.engine.special_tokens import SpecialTokens
from dst_grpc.errors import DataLoss
from tests.graph_goldens import model_folder

N_EMBEDDED = 100


def read(folder: Path, config: Any, tokenizer: Any) -> SpecialTokens:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return SpecialTokens.from_folder(folder, N_EMBEDDED)


def added(*tokens: Any, special: Any = True) -> list[dict[str, Any]]:
    return [{"id": token, "content": f"<{token}>", "special": special} for token in tokens]


def test_begin_tokens_are_preferred_in_their_order(tmp_path: Path) -> None:
    config = {"eos_token_id": [5, 6], "bos_token_id": 7, "pad_token_id": 0}
    found = read(tmp_path, config, {"added_tokens": [*added(7, 9), *added(11, special=False)]})
    assert found.begin == (7, 0, 5)
    assert found.special == {0, 5, 7, 9}


def test_a_token_is_named_once_and_must_be_embedded(tmp_path: Path) -> None:
    config = {"bos_token_id": 50_256, "eos_token_id": 3, "pad_token_id": 3}
    found = read(tmp_path, config, {"added_tokens": added(3, 50_256)})
    assert found == SpecialTokens(special=frozenset({3}), begin=(3,))


def test_a_model_of_several_modalities_names_them_in_the_config_of_its_text(tmp_path: Path) -> None:
    found = read(tmp_path, {"bos_token_id": None, "text_config": {"bos_token_id": 2, "eos_token_id": 1}}, {})
    assert found.begin == (2, 1)


@pytest.mark.parametrize(
    ("config", "tokenizer"),
    [
        ({}, {}),
        ({"bos_token_id": None, "eos_token_id": []}, {"added_tokens": None}),
        ({"bos_token_id": True, "eos_token_id": "<s>", "text_config": 5}, {"added_tokens": {"0": 1}}),
        ({"bos_token_id": -1, "pad_token_id": [None]}, {"added_tokens": [None, 5, {"special": True}, *added("x", -2)]}),
        ([], []),
    ],
)
def test_there_may_be_none(tmp_path: Path, config: Any, tokenizer: Any) -> None:
    found = read(tmp_path, config, tokenizer)
    assert (found.begin, found.special) == ((), frozenset())


def test_damaged_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match="config"):
        SpecialTokens.from_folder(tmp_path, N_EMBEDDED)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataLoss, match="tokenizer"):
        SpecialTokens.from_folder(tmp_path, N_EMBEDDED)


@pytest.mark.parametrize("model", ["gpt2", "llama", "qwen3", "gemma2"])
def test_golden_models_have_one(model: str) -> None:
    found = SpecialTokens.from_folder(model_folder(model), 64)
    assert 0 in found.special
