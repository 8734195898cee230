"""Checkpoints: what is loaded equals the reference implementation, and what is wrong is named before any load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.errors import DataLoss, Reason
from tests import checkpoints


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.write_model(tmp_path / "tiny")


def test_the_config_becomes_dimensions(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    assert checkpoint.family == "gpt2"
    assert (config.n_layers, config.d_model, config.n_heads, config.d_head) == (2, 8, 2, 4)
    assert (config.d_mlp, config.vocab_size, config.context_window) == (12, 300, 16)
    assert (config.n_key_value_heads, config.norm_epsilon) == (2, 1e-5)


def test_logits_equal_those_of_the_reference_implementation(folder: Path) -> None:
    model: Any = transformers.GPT2LMHeadModel
    reference = model(transformers.GPT2Config(**checkpoints.CONFIG)).eval()
    reference.load_state_dict(checkpoints.weights(), strict=False)
    decoder = open_checkpoint(folder).load("cpu", torch.float32)
    tokens = torch.tensor([[0, 5, 299, 17, 3, 3, 250]])
    with torch.no_grad():
        expected = reference(tokens).logits
    torch.testing.assert_close(decoder.forward(tokens), expected, rtol=1e-5, atol=1e-5)


def test_names_may_lack_their_prefix(tmp_path: Path, folder: Path) -> None:
    plain = checkpoints.write_model(tmp_path / "plain", tensors=checkpoints.weights(""))
    tokens = torch.tensor([[1, 2, 3]])
    one, other = (open_checkpoint(path).load("cpu", torch.float32).forward(tokens) for path in (plain, folder))
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)


def test_masks_are_skipped(tmp_path: Path) -> None:
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16), "transformer.h.1.attn.masked_bias": torch.ones(1)}
    open_checkpoint(checkpoints.write_model(tmp_path, tensors=checkpoints.weights() | masks))


def test_an_unembedding_of_its_own_is_transposed(tmp_path: Path) -> None:
    head = torch.randn(300, 8)
    tensors = checkpoints.weights() | {"lm_head.weight": head}
    folder = checkpoints.write_model(tmp_path, tensors=tensors, config={"tie_word_embeddings": False})
    checkpoint = open_checkpoint(folder)
    decoder = checkpoint.load("cpu", torch.float32)
    assert torch.equal(decoder.unembedding, head.T)
    assert decoder.parameter_bytes == checkpoint.parameter_bytes


def test_a_tied_unembedding_is_the_embedding_and_counts_once(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    decoder = checkpoint.load("cpu", torch.float32)
    assert decoder.unembedding.data_ptr() == decoder.embedding.data_ptr()
    assert decoder.parameter_bytes == checkpoint.parameter_bytes


def test_a_tied_unembedding_in_the_file_must_equal_the_embedding(tmp_path: Path) -> None:
    tensors = checkpoints.weights()
    same = checkpoints.write_model(
        tmp_path / "a", tensors=tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    )
    open_checkpoint(same).load("cpu", torch.float32)
    other = checkpoints.write_model(tmp_path / "b", tensors=tensors | {"lm_head.weight": torch.zeros(300, 8)})
    with pytest.raises(DataLoss, match=r"'lm_head.weight' differs from 'transformer.wte.weight'"):
        open_checkpoint(other).load("cpu", torch.float32)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_become_the_type_that_is_wanted(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    checkpoint = open_checkpoint(checkpoints.write_model(tmp_path, dtype=stored))
    decoder = checkpoint.load("cpu", wanted)
    assert decoder.dtype is wanted
    assert decoder.parameter_bytes == checkpoint.bytes_as(wanted)
    expected = checkpoints.weights()["transformer.wte.weight"].to(stored).to(wanted)
    assert torch.equal(decoder.embedding, expected)


def test_progress_rises_to_all_bytes_and_may_end_the_load(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    seen: list[int] = []
    checkpoint.load("cpu", torch.float32, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == checkpoint.parameter_bytes

    class EnoughError(Exception):
        pass

    def stop(_done: int) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        checkpoint.load("cpu", torch.float32, stop)


def test_loaded_weights_do_not_depend_on_the_file(folder: Path) -> None:
    decoder = open_checkpoint(folder).load("cpu", torch.float32)
    before = decoder.embedding.clone()
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(decoder.embedding, before)


BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    (
        {"model_type": "bert"},
        "model_type is 'bert', which is not supported; these are: gemma2, gemma3, gemma3_text, gpt2, ",
    ),
    ({"model_type": None}, "model_type is missing"),
    ({"activation_function": "mish"}, "activation_function is 'mish', which is not supported: it must be \"gelu\" or"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ({"scale_attn_weights": False}, "scale_attn_weights is False"),
    ({"add_cross_attention": True}, "add_cross_attention is True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config says that the weights are quantised (4 bits)"),
    ({"n_head": 3}, "n_head is 3, which does not divide n_embd, 8"),
    ({"n_layer": 0}, "n_layer must be an integer between 1 and 1000, not 0"),
    ({"n_layer": 10**9}, "n_layer must be an integer"),
    ({"n_embd": "8"}, "n_embd must be an integer"),
    ({"n_positions": None}, "n_positions is missing"),
    ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a positive number"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
]


@pytest.mark.parametrize(("config", "problem"), BAD_CONFIGS, ids=lambda value: str(value)[:40])
def test_an_unsupported_config_is_refused_by_key(tmp_path: Path, config: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataLoss) as caught:
        open_checkpoint(checkpoints.write_model(tmp_path, config=config))
    assert f"config.json: {problem}" in caught.value.message
    assert caught.value.metadata["key"] == next(iter(config))


def test_absent_values_mean_what_the_family_says(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in checkpoints.weights().items() if ".mlp.c_" not in name}
    for i in range(2):
        tensors |= {
            f"transformer.h.{i}.mlp.c_fc.weight": torch.zeros(8, 32),
            f"transformer.h.{i}.mlp.c_fc.bias": torch.zeros(32),
            f"transformer.h.{i}.mlp.c_proj.weight": torch.zeros(32, 8),
            f"transformer.h.{i}.mlp.c_proj.bias": torch.zeros(8),
        }
    folder = checkpoints.write_model(tmp_path, tensors=tensors, config={"n_inner": None})
    assert open_checkpoint(folder).config.d_mlp == 32


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"\xff"])
def test_an_unreadable_config_is_data_loss(folder: Path, content: bytes | None) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(DataLoss, match=r"tiny/config\.json: "):
        open_checkpoint(folder)


def test_an_unknown_weight_is_named(tmp_path: Path) -> None:
    tensors = checkpoints.weights() | {"transformer.h.2.ln_1.weight": torch.zeros(8)}
    with pytest.raises(DataLoss, match=r"'transformer.h.2.ln_1.weight' is no weight of a gpt2"):
        open_checkpoint(checkpoints.write_model(tmp_path, tensors=tensors))


@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.1.mlp.c_fc.bias"])
def test_a_missing_weight_is_named(tmp_path: Path, name: str) -> None:
    tensors = checkpoints.weights()
    del tensors[name]
    with pytest.raises(DataLoss, match=f"'{name}' is needed") as caught:
        open_checkpoint(checkpoints.write_model(tmp_path, tensors=tensors))
    assert caught.value.metadata["tensor"] == name


def test_a_missing_unembedding_that_is_not_tied_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match=r"'lm_head.weight' is needed"):
        open_checkpoint(checkpoints.write_model(tmp_path, config={"tie_word_embeddings": False}))


def test_a_misshapen_weight_is_named_without_being_read(tmp_path: Path) -> None:
    tensors = checkpoints.weights() | {"transformer.h.0.mlp.c_fc.weight": torch.zeros(12, 8)}
    with pytest.raises(DataLoss, match=r"c_fc.weight' has shape \[12, 8\]; config.json needs \[8, 12\]"):
        open_checkpoint(checkpoints.write_model(tmp_path, tensors=tensors))


def test_a_weight_of_integers_is_named(tmp_path: Path) -> None:
    folder = checkpoints.write_model(tmp_path)
    tensors = checkpoints.weights() | {"transformer.ln_f.bias": torch.zeros(8, dtype=torch.int32)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DataLoss, match=r"ln_f.bias' has element type I32"):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    tensors = checkpoints.weights()
    tensors["transformer.h.1.attn.c_proj.weight"][3, 4] = value
    checkpoint = open_checkpoint(checkpoints.write_model(tmp_path, tensors=tensors))
    with pytest.raises(DataLoss, match=r"h.1.attn.c_proj.weight' has values that are NaN or infinite"):
        checkpoint.load("cpu", torch.float32)


def test_a_weight_too_large_for_its_type_is_told_from_a_corrupt_one(tmp_path: Path) -> None:
    tensors = checkpoints.weights()
    tensors["transformer.wpe.weight"][0, 0] = 1e6
    checkpoint = open_checkpoint(checkpoints.write_model(tmp_path, tensors=tensors))
    with pytest.raises(DataLoss, match="values too large for float16"):
        checkpoint.load("cpu", torch.float16)


def test_a_pickle_is_refused_with_advice(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataLoss, match=r"convert it to model\.safetensors"):
        open_checkpoint(folder)


def test_a_folder_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataLoss, match=r"tiny/model.safetensors: is missing"):
        open_checkpoint(folder)


def split(folder: Path) -> dict[str, str]:
    """Cut the weights of *folder* into two shards; returns the index's map."""
    tensors = checkpoints.weights()
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_one_checkpoint(folder: Path) -> None:
    whole = open_checkpoint(folder).load("cpu", torch.float32)
    split(folder)
    sharded = open_checkpoint(folder)
    assert torch.equal(sharded.load("cpu", torch.float32).layers[1].mlp_out, whole.layers[1].mlp_out)


def test_an_index_that_is_wrong_is_named(folder: Path) -> None:
    weight_map = split(folder)
    name, shard = next(iter(weight_map.items()))
    other = next(s for s in weight_map.values() if s != shard)
    bad: list[tuple[Any, str]] = [
        ([], "no sound index"),
        ({name: 3}, "names the shard 3"),
        (weight_map | {name: "../secret.safetensors"}, "names the shard '../secret"),
        (weight_map | {name: "gone.safetensors"}, "No such file"),
        (weight_map | {name: other}, "which the index does not place there"),
        (weight_map | {"more": shard}, "places 'more' in"),
    ]
    for value, problem in bad:
        write_index(folder, value)
        with pytest.raises(DataLoss, match=problem):
            open_checkpoint(folder)


def test_the_digest_covers_every_file_by_name_and_content(folder: Path) -> None:
    digests = {open_checkpoint(folder).digest()}
    assert open_checkpoint(folder).digest() in digests
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text((folder / name).read_text() + " ")
        digests.add(open_checkpoint(folder).digest())
    checkpoints.write_model(folder, tensors=checkpoints.weights(seed=1))
    digests.add(open_checkpoint(folder).digest())
    assert len(digests) == 4
    assert all(len(digest) == 64 for digest in digests)


def test_a_file_that_changed_since_it_was_opened_is_not_loaded(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    checkpoints.write_model(folder, tensors=checkpoints.weights(seed=1), dtype=torch.float16)
    for call in (checkpoint.digest, lambda: checkpoint.load("cpu", torch.float32)):
        with pytest.raises(DataLoss, match=r"tiny/.*: changed since it was checked") as caught:
            call()
        assert caught.value.reason is Reason.DIGEST_MISMATCH
