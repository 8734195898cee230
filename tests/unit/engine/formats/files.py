"""Files as the published formats write them, and the formulas that they stand for, in numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from dst_grpc.engine.autoencoder import Autoencoder
from tests import checkpoints
from tests.checkpoints import read_header

N, M, Z, K = 6, 5, 9, 3
Array = NDArray[np.float64]
Files = dict[str, Any]
RNG = np.random.default_rng(7)
X: Array = RNG.normal(size=(40, N)) * 2 + 0.3


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32).astype(np.float64)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def jump(h: Array, threshold: Array | float) -> Array:
    return np.where(h > threshold, relu(h), 0)


def top_k(h: Array, k: int) -> Array:
    kept = np.zeros_like(h)
    for row, out in zip(h, kept, strict=True):
        chosen = np.argsort(-row)[:k]
        out[chosen] = relu(row[chosen])
    return kept


def tensors_of(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: array if isinstance(array, torch.Tensor) else torch.tensor(array, dtype=torch.float32)
        for name, array in arrays.items()
    }


def write(path: Path, arrays: Mapping[str, Any], config: Mapping[str, Any] | None = None, name: str = "") -> Path:
    """A file of weights, with a config called *name* beside it, or *name* from its folder on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        single: dict[str, Any] = {key: np.asarray(array, dtype=np.float32) for key, array in arrays.items()}
        np.savez(path, **single)
    elif path.suffix == ".pt":
        torch.save(tensors_of(arrays), path)
    else:
        save_file({key: tensor.contiguous() for key, tensor in tensors_of(arrays).items()}, path)
    if config is not None:
        (path.parent / name).write_text(json.dumps(config))
    return path


def loaded(path: Path) -> Autoencoder:
    """The autoencoder, its bytes as announced."""
    seen: list[int] = []
    autoencoder = checkpoints.load_autoencoder(path, "cpu", torch.float32, seen.append)
    header = read_header(path)
    assert autoencoder.parameter_bytes == header.bytes_as(torch.float32) == seen[-1]
    assert seen == sorted(seen)
    return autoencoder


def check(autoencoder: Autoencoder, latents: Array, output: Array, x: Array = X) -> None:
    """The latents of *x*, and what they are decoded to; no row all alike, or a mistake could not show."""
    given = torch.tensor(x, dtype=torch.float32)
    found = autoencoder.encode(given)
    assert (latents != 0).any(axis=0).sum() > 2
    np.testing.assert_allclose(found.numpy(), latents, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(autoencoder.decode(found, given).numpy(), output, rtol=2e-4, atol=2e-5)


def sae(**more: Any) -> Files:
    return {"W_enc": normal(N, Z), "b_enc": normal(Z), "W_dec": normal(Z, N), "b_dec": normal(N)} | more


CONFIG: dict[str, Any] = {
    "architecture": "standard",
    "d_in": N,
    "d_sae": Z,
    "dtype": "float32",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.30.0", "hook_name": "blocks.3.hook_resid_post", "prepend_bos": True},
}


def saelens(folder: Path, files: Mapping[str, Any], **changes: Any) -> Path:
    config = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
    return write(folder / "sae_weights.safetensors", files, config, "cfg.json")


def trainer(name: str, **more: Any) -> dict[str, Any]:
    of = {"dict_class": name, "activation_dim": N, "dict_size": Z, "layer": 8, "submodule_name": "resid_post_layer_8"}
    return {"trainer": of | more, "buffer": {"ctx_len": 128}}


def set_config(kind: str = "transcoder_set", **changes: Any) -> dict[str, Any]:
    """The config of circuit-tracer's transcoders, without the keys that are `...`."""
    config = {
        "model_name": "someone/some-model",
        "model_kind": kind,
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": "some-scan",
    }
    return {key: value for key, value in (config | changes).items() if value is not ...}


def transcoder(**more: Any) -> Files:
    """A transcoder as circuit-tracer writes it, from N channels to M."""
    return {"W_enc": normal(Z, N), "b_enc": normal(Z), "W_dec": normal(Z, M), "b_dec": normal(M)} | more


def cross_layer(folder: Path, config: Mapping[str, Any], n_layers: int, *, thresholds: bool = True) -> list[Files]:
    """Files of a cross-layer transcoder as circuit-tracer writes them, from N channels to M; and their tensors, by
    layer."""
    found = []
    for layer in range(n_layers):
        names = {"W_enc": (Z, N), "b_enc": (Z,), "b_dec": (M,), **({"threshold": (Z,)} if thresholds else {})}
        reads = {f"{name}_{layer}": normal(*shape) for name, shape in names.items()}
        writes = {f"W_dec_{layer}": normal(Z, n_layers - layer, M)}
        write(folder / f"W_enc_{layer}.safetensors", reads, config, "config.yaml")
        write(folder / f"W_dec_{layer}.safetensors", writes)
        found.append(reads | writes)
    return found
