"""Tensors that a file holds once under one of their names: a tied head alone, what `save_model` keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file, save_model

from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.errors import DataLoss
from tests import families

FOLDERS = Path(__file__).parents[2] / "folders"
TOKENS = torch.tensor([[5, 6, 7, 8]])
EMBEDDINGS = {
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "gpt_neox no bias": ("gpt_neox.embed_in.weight", "embed_out.weight"),
    "gemma2": ("model.embed_tokens.weight", "lm_head.weight"),
}


def logits_of(folder: Path) -> torch.Tensor:
    logits = open_checkpoint(folder).load("cpu", torch.float32).forward(TOKENS)
    assert logits is not None
    return logits


def expected(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(TOKENS).logits
    return logits


def test_a_model_written_by_save_model_is_served_as_the_reference_serves_it() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDERS / "tied_alias", attn_implementation="eager")
    torch.testing.assert_close(logits_of(FOLDERS / "tied_alias"), expected(model), rtol=0, atol=5e-5)
    checkpoint = open_checkpoint(FOLDERS / "tied_alias")
    assert checkpoint.parameter_count == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_tied_head_may_be_all_that_is_left_of_the_embedding(name: str, tmp_path: Path) -> None:
    model = families.make(name)
    folder = families.save(model, tmp_path)
    held = load_file(folder / "model.safetensors")
    embedding, head = EMBEDDINGS[name]
    weight = held.pop(embedding)
    held.pop(head, None)
    save_file({**held, head: weight}, folder / "model.safetensors")
    torch.testing.assert_close(logits_of(folder), expected(model), rtol=0, atol=5e-5)
    save_file(held, folder / "model.safetensors")
    with pytest.raises(DataLoss, match=f"tensor '{embedding}' is needed, but no weight file holds it"):
        open_checkpoint(folder)


def test_any_tensor_may_stand_under_another_name_even_if_nothing_ties_it(tmp_path: Path) -> None:
    model = families.make("llama")
    folder = families.save(model, tmp_path)
    model.model.layers[2].input_layernorm.weight = model.model.layers[0].input_layernorm.weight
    model.lm_head.weight = model.model.embed_tokens.weight
    save_model(model, str(folder / "model.safetensors"))
    assert len(load_file(folder / "model.safetensors")) == len(model.state_dict()) - 2
    assert not json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    torch.testing.assert_close(logits_of(folder), expected(model), rtol=0, atol=5e-5)


def test_shards_name_what_they_share_too(tmp_path: Path) -> None:
    model = families.make("gpt2")
    folder = families.save(model, tmp_path)
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(model.state_dict(), folder, max_shard_size="4KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len({*index.values()}) > 2
    assert len({"transformer.wte.weight", "lm_head.weight"} & index.keys()) == 1
    torch.testing.assert_close(logits_of(folder), expected(model), rtol=0, atol=5e-5)


def test_a_name_that_stands_for_nothing_or_for_nothing_known_is_no_weight(tmp_path: Path) -> None:
    folder = families.save(families.make("gpt2"), tmp_path)
    held = load_file(folder / "model.safetensors")
    save_file(held, folder / "model.safetensors", metadata={"format": "pt", "lm_head.weight": "no.such.tensor"})
    open_checkpoint(folder)
    save_file(held, folder / "model.safetensors", metadata={"score.weight": "transformer.wte.weight"})
    with pytest.raises(DataLoss, match=r"tensor 'score\.weight' is no weight of a gpt2 checkpoint"):
        open_checkpoint(folder)
