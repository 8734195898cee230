"""Tiny checkpoints on disk, for tests: a GPT-2 of a few kilobytes, its tokenizer, and autoencoders for it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.formats.detect import open_autoencoder
from dst_grpc.engine.formats.header import AutoencoderHeader
from dst_grpc.engine.formats.layouts import FileGroup
from dst_grpc.engine.formats.stored_file import StoredTranscoderFile
from dst_grpc.engine.formats.weights import AutoencoderFile

CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 8,
    "n_inner": 12,
    "n_positions": 16,
    "vocab_size": 300,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
WIDTH, NEURONS, LAYERS, LATENTS = 8, 12, 2, 10
INPUTS = {"mlp_post_act": NEURONS, "resid_delta_mlp": WIDTH, "resid_delta_attn": WIDTH}


@functools.cache
def tokenizer_json() -> str:
    """A byte-level BPE that knows a few words, as GPT-2's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["gave Mary the key. " * 9, " Mary and Mary"] * 9, trainer)
    return str(tokenizer.to_str())


def weights(prefix: str = "transformer.", *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under GPT-2's names."""
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (300, WIDTH), "wpe.weight": (16, WIDTH)}
    for i in range(LAYERS):
        shapes |= {
            f"h.{i}.ln_1.weight": (WIDTH,),
            f"h.{i}.ln_1.bias": (WIDTH,),
            f"h.{i}.attn.c_attn.weight": (WIDTH, 3 * WIDTH),
            f"h.{i}.attn.c_attn.bias": (3 * WIDTH,),
            f"h.{i}.attn.c_proj.weight": (WIDTH, WIDTH),
            f"h.{i}.attn.c_proj.bias": (WIDTH,),
            f"h.{i}.ln_2.weight": (WIDTH,),
            f"h.{i}.ln_2.bias": (WIDTH,),
            f"h.{i}.mlp.c_fc.weight": (WIDTH, NEURONS),
            f"h.{i}.mlp.c_fc.bias": (NEURONS,),
            f"h.{i}.mlp.c_proj.weight": (NEURONS, WIDTH),
            f"h.{i}.mlp.c_proj.bias": (WIDTH,),
        }
    shapes |= {"ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    generator = torch.Generator().manual_seed(seed)
    return {prefix + name: torch.randn(shape, generator=generator) / 2 for name, shape in shapes.items()}


def write_model(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a checkpoint, with *config* laid over the usual one, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    given = weights() if tensors is None else tensors
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in given.items()}, folder / "model.safetensors")
    return folder


def state_dict(inputs: int = WIDTH, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of an autoencoder."""
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(LATENTS, inputs, generator=generator)
    return {
        "pre_bias": torch.randn(inputs, generator=generator) / 10,
        "encoder.weight": encoder,
        "latent_bias": torch.randn(LATENTS, generator=generator) / 10,
        "decoder.weight": encoder.T.contiguous() / inputs,
        "latents_activation_frequency": torch.rand(LATENTS, generator=generator),
    }


def write_autoencoder(
    path: Path, tensors: dict[str, torch.Tensor] | None = None, metadata: dict[str, str] | None = None
) -> Path:
    """Write a safetensors autoencoder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state_dict() if tensors is None else tensors, path, metadata=metadata)
    return path


def write_state_dict(path: Path, entries: dict[str, Any] | None = None) -> Path:
    """Write an autoencoder as the reference implementation does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**state_dict(), **(entries or {})}, path)
    return path


def write_autoencoders(folder: Path) -> Path:
    """Write the three kinds at every layer into *folder*, without declared figures."""
    for kind, inputs in INPUTS.items():
        for layer in range(LAYERS):
            metadata = {"activation": "ReLU", "activation_state_dict": "{}", "dst": kind, "layer_index": str(layer)}
            write_autoencoder(folder / kind / f"{layer}.safetensors", state_dict(inputs, seed=layer), metadata)
    return folder


def opened(path: Path) -> AutoencoderFile:
    """The autoencoder at *path*, its weights not read yet."""
    file = open_autoencoder(FileGroup.at(path))
    assert isinstance(file, AutoencoderFile)
    return file


def opened_cross_layer(path: Path) -> StoredTranscoderFile:
    """The layer of a cross-layer transcoder at *path*, its weights not read yet."""
    file = open_autoencoder(FileGroup.at(path))
    assert isinstance(file, StoredTranscoderFile)
    return file


def read_header(path: Path) -> AutoencoderHeader:
    """What the autoencoder at *path* says without its weights."""
    return open_autoencoder(FileGroup.at(path)).header


def load_autoencoder(
    path: Path,
    device: str,
    dtype: torch.dtype,
    on_progress: Callable[[int], None] = lambda _: None,
    *,
    n_dropped: int = 0,
) -> Autoencoder:
    """The autoencoder at *path* in the likeliest reading."""
    return next(iter(opened(path).without(n_dropped).load(device, dtype, on_progress).values()))
