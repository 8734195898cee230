"""Folders with a model in a form that is not read are refused by what they are, and told what to do with them.

`tests/folders` holds some as people have them.
"""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.tokenizer import Tokenizer
from dst_grpc.errors import DataLoss
from dst_grpc.sources.selections import model_files
from tests import checkpoints

FOLDERS = Path(__file__).parents[2] / "folders"


def refusal(folder: Path) -> str:
    with pytest.raises(DataLoss) as caught:
        open_checkpoint(folder)
    return caught.value.message


def with_files(tmp_path: Path, *names: str, without: str = "") -> Path:
    """A model in a folder, without a file, and with others of these *names*, whose content nobody looks at."""
    folder = checkpoints.write_model(tmp_path / "m")
    if without:
        (folder / without).unlink()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def run_as_told(message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command of a message in *folder*."""
    (code,) = re.findall('python -c "([^"]+)"', message)
    script = folder.with_suffix(".py")
    script.write_text(code)
    with monkeypatch.context() as context:
        context.chdir(folder)
        runpy.run_path(str(script))


def test_a_tokenizer_in_older_files_is_made_anew_by_the_command_of_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(FOLDERS / "slow_tokenizer", tmp_path / "m")
    message = refusal(folder)
    assert message.startswith("m/merges.txt: is of a tokenizer without its tokenizer.json; to make that, run in its")
    run_as_told(message, folder, monkeypatch)
    open_checkpoint(folder)
    text = "the key to the cabinets"
    wanted = transformers.AutoTokenizer.from_pretrained(FOLDERS / "slow_tokenizer")(text, add_special_tokens=False)
    assert Tokenizer.from_folder(folder).encode(text) == wanted["input_ids"]


def test_a_pickled_model_is_written_anew_by_the_command_of_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(FOLDERS / "yarn_finetuned", tmp_path / "m")
    before = open_checkpoint(folder)
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert message.startswith("m/pytorch_model.bin: is a pickle, which is never loaded here")
    run_as_told(message, folder, monkeypatch)
    assert open_checkpoint(folder).parameter_count == before.parameter_count
    written = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in weights.items())


PLACES = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("name", PLACES)
def test_a_pointer_to_a_file_that_git_has_not_fetched_is_told(name: str, tmp_path: Path) -> None:
    folder = checkpoints.write_model(tmp_path / "m")
    oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n")
    assert refusal(folder) == f"m/{name}: is a pointer of Git LFS to the file, not the file: git lfs pull fetches that"


@pytest.mark.parametrize("name", PLACES)
def test_a_link_that_leads_nowhere_is_told(name: str, tmp_path: Path) -> None:
    """As in a cache from which files were removed."""
    folder = checkpoints.write_model(tmp_path / "m")
    (folder / name).unlink()
    (folder / name).symlink_to("../blobs/4d7a21")
    (folder / "merges.txt").write_text("")
    assert refusal(folder) == f"m/{name}: is a link to '../blobs/4d7a21', where there is nothing"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is no sound JSON"),
        ("<html></html>", "is no sound JSON"),
        ('{"model": {}, "model": {}}', "is no sound JSON: a key stands twice"),
        ("[]", "is no tokenizer: it has no model"),
        ('{"model_max_length": 1024}', "is no tokenizer: it has no model"),
        ('{"model": {"vocab": {"a": 0, "b": 700}}}', "has 701 tokens, but the model embeds only"),
        ('{"model": {"vocab": ' + str([["a", 0]] * 800).replace("'", '"') + "}}", "has 800 tokens, but the model"),
    ],
)
def test_a_tokenizer_that_is_none_or_another_model_s_is_told_when_the_folder_is_opened(
    content: str, problem: str, tmp_path: Path
) -> None:
    folder = checkpoints.write_model(tmp_path / "m")
    (folder / "tokenizer.json").write_text(content)
    assert refusal(folder).startswith(f"m/tokenizer.json: {problem}")


def test_an_adapter_is_no_model_even_if_one_lies_beside_it(tmp_path: Path) -> None:
    assert refusal(FOLDERS / "lora_adapter").startswith("lora_adapter/adapter_config.json: is of an adapter (LoRA):")
    folder = shutil.copytree(FOLDERS / "tied_alias", tmp_path / "m")
    shutil.copy(FOLDERS / "lora_adapter" / "adapter_config.json", folder)
    assert "merge it into its base model" in refusal(folder)


def test_quantised_weights_are_told_by_the_config(tmp_path: Path) -> None:
    assert refusal(FOLDERS / "mlx_4_bit").startswith(
        "mlx_4_bit/config.json: quantization says that the weights are quantised (4 bits): only floats are read here"
    )


@pytest.mark.parametrize(
    ("said", "how"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config .*(gptq)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config .*(awq)"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, ".*(bitsandbytes)"),
        ({"quantization_config": {"group_size": 64, "bits": 3}}, "quantization_config .*(3 bits)"),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "quantization .*(mxfp4)"),
    ],
)
def test_every_way_of_saying_that_weights_are_quantised_is_known(
    said: dict[str, Any], how: str, tmp_path: Path
) -> None:
    assert re.search(re.escape(how).replace(r"\.\*", ".*"), refusal(checkpoints.write_model(tmp_path, config=said)))
    nothing: dict[str, Any] = dict.fromkeys(said)
    open_checkpoint(checkpoints.write_model(tmp_path, config=nothing))


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        (("qweight", "qzeros", "scales", "g_idx"), "is of quantised weights"),  # GPTQ, and AWQ but for the last
        (("scales", "biases"), "is of quantised weights"),  # MLX
        (("weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"), "is of quantised weights"),
        (("SCB",), "is of quantised weights"),
        (("weight_scale_inv",), "is of quantised weights"),
        (("lora_A.weight", "lora_B.weight"), "is of an adapter"),
    ],
)
def test_tensors_of_quantised_weights_and_adapters_are_told_by_their_names(
    parts: tuple[str, ...], what: str, tmp_path: Path
) -> None:
    for part in parts:
        tensors = checkpoints.weights() | {f"transformer.h.0.mlp.c_fc.{part}": torch.zeros(2)}
        message = refusal(checkpoints.write_model(tmp_path, tensors=tensors))
        assert f"tensor 'transformer.h.0.mlp.c_fc.{part}' {what}" in message


@pytest.mark.parametrize(
    ("lacks", "names", "problem"),
    [
        ("config.json", ["model.Q4_K_M.gguf"], r"m/model.Q4_K_M.gguf: is a GGUF file: .* dst-grpc convert"),
        ("config.json", ["params.json", "consolidated.00.pth"], "consolidated.00.pth: is of a layout that only its"),
        ("config.json", ["blobs/a", "refs/main", "snapshots/b"], "snapshots: holds a folder for each revision"),
        ("config.json", ["README.md"], "m/config.json: is missing$"),
        ("model.safetensors", ["model.fp16.safetensors"], "model.fp16.safetensors: is a variant .* rename it"),
        ("model.safetensors", ["consolidated.safetensors"], "consolidated.safetensors: is of a layout that only"),
        ("model.safetensors", ["model-00001-of-00002.safetensors"], "model.safetensors.index.json is missing"),
        ("model.safetensors", ["pytorch_model-00001-of-00002.bin"], "bin: is a pickle, which is never loaded"),
        ("model.safetensors", ["m.gguf"], "m.gguf: is a GGUF file"),
        ("model.safetensors", ["weights.00.npz"], "weights.00.npz: is of an older layout of MLX"),
        ("model.safetensors", ["tf_model.h5"], "tf_model.h5: is a format that is not read here"),
        ("model.safetensors", ["flax_model.msgpack"], "flax_model.msgpack: is a format that is not read here"),
        ("model.safetensors", ["other.safetensors"], "m/model.safetensors: is missing$"),
        ("tokenizer.json", ["tokenizer.model"], r"tokenizer.model: is of a tokenizer without .* sentencepiece"),
        ("tokenizer.json", ["spiece.model"], "spiece.model: is of a tokenizer without"),
        ("tokenizer.json", ["tekken.json"], "tekken.json: is a tokenizer that another library reads"),
        ("tokenizer.json", ["tokenizer_config.json"], "m/tokenizer.json: is missing$"),
    ],
)
def test_what_lies_in_the_place_of_a_file_is_told(lacks: str, names: list[str], problem: str, tmp_path: Path) -> None:
    folder = with_files(tmp_path, *names, without=lacks)
    assert re.search(problem, refusal(folder))
    # A repository on the hub is told in the same words, from the names of its files alone.
    listed = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(DataLoss) as caught:
        model_files(listed, lambda _: b"")
    if not problem.endswith("is missing$") and "snapshots" not in problem:
        assert re.search(problem.removeprefix("m/").replace(": ", " ", 1), caught.value.message)
