"""The files of the embedded default: their names, shapes, types and size."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open

from dst_grpc.embedded import AUTOENCODERS_FOLDER, FOLDER, MODEL_FOLDER, TRANSCODERS_FOLDER

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KINDS = ("mlp_post_act", "resid_delta_mlp", "resid_delta_attn")
CONFIG: dict[str, Any] = json.loads((MODEL_FOLDER / "config.json").read_text())
LAYERS = range(CONFIG["n_layer"])
TRANSCODERS = TRANSCODERS_FOLDER / "mlp_transcoders"
TRANSCODERS_CONFIG: dict[str, Any] = json.loads((TRANSCODERS / "config.json").read_text())


def test_folder_is_small_enough_to_ship() -> None:
    files = [
        path
        for path in FOLDER.rglob("*")
        if path.is_file() and path.suffix in {".safetensors", ".json", ".md", ".yaml"}
    ]
    assert 4 + 4 * len(KINDS) + len(LAYERS) + 2 <= len(files)
    assert sum(path.stat().st_size for path in files) < 12_600_000


def test_every_file_may_be_read_by_everyone() -> None:
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in FOLDER.rglob("*.safetensors"))


def test_config_is_of_a_gpt2_that_fits_its_tokenizer(tokenizer: Tokenizer) -> None:
    assert CONFIG["model_type"] == "gpt2"
    assert CONFIG["activation_function"] == "gelu_new"
    assert CONFIG["tie_word_embeddings"] is True
    assert CONFIG["vocab_size"] == tokenizer.get_vocab_size()
    assert CONFIG["n_positions"] >= 128
    assert CONFIG["bos_token_id"] == CONFIG["eos_token_id"] == tokenizer.token_to_id("<|endoftext|>")


def test_weights_have_the_names_and_shapes_of_a_gpt2_checkpoint() -> None:
    width, vocabulary = CONFIG["n_embd"], CONFIG["vocab_size"]
    per_layer = {
        "ln_1.weight": [width],
        "ln_1.bias": [width],
        "attn.c_attn.weight": [width, 3 * width],
        "attn.c_attn.bias": [3 * width],
        "attn.c_proj.weight": [width, width],
        "attn.c_proj.bias": [width],
        "ln_2.weight": [width],
        "ln_2.bias": [width],
        "mlp.c_fc.weight": [width, 4 * width],
        "mlp.c_fc.bias": [4 * width],
        "mlp.c_proj.weight": [4 * width, width],
        "mlp.c_proj.bias": [width],
    }
    expected = {
        "transformer.wte.weight": [vocabulary, width],
        "transformer.wpe.weight": [CONFIG["n_positions"], width],
        "transformer.ln_f.weight": [width],
        "transformer.ln_f.bias": [width],
    } | {f"transformer.h.{layer}.{name}": shape for layer in LAYERS for name, shape in per_layer.items()}
    with safe_open(MODEL_FOLDER / "model.safetensors", "pt") as file:
        assert {name: list(file.get_slice(name).get_shape()) for name in file.keys()} == expected  # noqa: SIM118


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", LAYERS)
def test_autoencoder_has_its_tensors_and_metadata(kind: str, layer: int) -> None:
    config = json.loads((AUTOENCODERS_FOLDER / kind / "config.json").read_text())
    inputs, latents = CONFIG["n_embd"] * (4 if kind == "mlp_post_act" else 1), config["n_latents"]
    with safe_open(AUTOENCODERS_FOLDER / kind / f"{layer}.safetensors", "pt") as file:
        assert file.metadata() == {
            "activation": "ReLU",
            "activation_state_dict": "{}",
            "dst": kind,
            "layer_index": str(layer),
        }
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "pre_bias": [inputs],
        "encoder.weight": [latents, inputs],
        "latent_bias": [latents],
        "decoder.weight": [inputs, latents],
        "latents_activation_frequency": [latents],
        "latents_mean_square": [latents],
    }
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    frequency, square = tensors["latents_activation_frequency"], tensors["latents_mean_square"]
    assert ((frequency >= 0) & (frequency <= 1)).all()
    assert ((frequency > 0) == (square > 0)).all()
    lengths = tensors["decoder.weight"].float().norm(dim=0)
    torch.testing.assert_close(lengths, torch.ones(latents), rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_autoencoder_config_describes_every_layer(kind: str) -> None:
    config = json.loads((AUTOENCODERS_FOLDER / kind / "config.json").read_text())
    assert config["dst"] == kind
    assert config["activation"] == "ReLU"
    assert list(config["layers"]) == [str(layer) for layer in LAYERS]
    for layer, row in config["layers"].items():
        assert 0 < row["l0"] < config["n_latents"] / 4
        assert row["fvu"] <= 0.2
        with safe_open(AUTOENCODERS_FOLDER / kind / f"{layer}.safetensors", "pt") as file:
            frequency = file.get_tensor("latents_activation_frequency")
        # L0 and the count of dead latents are sums over the file's own statistics.
        assert row["l0"] == pytest.approx(frequency.sum().item(), abs=0.02)
        assert row["dead_latents"] == (frequency == 0).sum().item()


def test_model_card_names_every_autoencoder_figure() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text()
    for kind in KINDS:
        for layer, row in json.loads((AUTOENCODERS_FOLDER / kind / "config.json").read_text())["layers"].items():
            line = next(line for line in card.splitlines() if line.startswith(f"| `{kind}` | {layer} |"))
            assert f"| {row['l0']:.1f} | {row['fvu']:.3f} | {row['dead_latents']} |" in line


@pytest.mark.parametrize("layer", LAYERS)
def test_transcoder_has_the_tensors_of_its_layout(layer: int) -> None:
    width, features = CONFIG["n_embd"], TRANSCODERS_CONFIG["n_features"]
    with safe_open(TRANSCODERS / f"layer_{layer}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "W_enc": [features, width],
        "b_enc": [features],
        "W_dec": [features, width],
        "b_dec": [width],
        "activation_function.threshold": [features],
    }
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert (tensors["activation_function.threshold"] > 0).all()
    lengths = tensors["W_dec"].float().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(features), rtol=0, atol=2e-3)


def test_transcoders_say_where_they_read_and_write() -> None:
    lines = dict(line.split(": ") for line in (TRANSCODERS / "config.yaml").read_text().splitlines())
    assert lines["model_kind"] == "transcoder_set"
    assert lines["feature_input_hook"] == "mlp.hook_in"
    assert lines["feature_output_hook"] == "hook_mlp_out"
    assert list(TRANSCODERS_CONFIG["layers"]) == [str(layer) for layer in LAYERS]
    assert all(0 < row["l0"] < 32 and row["fvu"] < 0.15 for row in TRANSCODERS_CONFIG["layers"].values())


def test_model_card_names_every_figure_of_the_transcoders() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text()
    for layer, row in TRANSCODERS_CONFIG["layers"].items():
        figures = f"{row['l0']:.1f} | {row['fvu']:.3f} | {row['dead_features']} | {row['fvu_made_text']:.3f}"
        assert f"| {layer} | {TRANSCODERS_CONFIG['n_features']} | {figures} |" in card
