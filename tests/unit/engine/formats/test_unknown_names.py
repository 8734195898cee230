"""What nobody here has a meaning for, in a config or among the tensors of an autoencoder, is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc.errors import DataLoss
from tests import checkpoints
from tests.checkpoints import read_header
from tests.unit.engine.formats.files import CONFIG, N, Z, normal, sae, set_config, trainer, transcoder, write

Files = dict[str, Any]


def _linear(bias: str) -> Files:
    return {"encoder.weight": normal(Z, N), "encoder.bias": normal(Z), "decoder.weight": normal(N, Z), bias: normal(N)}


def _coder() -> Files:
    return {"encoder.weight": normal(Z, N), "encoder.bias": normal(Z), "W_dec": normal(Z, N), "b_dec": normal(N)}


def _scope(prefix: str) -> Files:
    jump = sae(threshold=np.abs(normal(Z)))
    return {prefix + name.removeprefix("W") if name.startswith("W") else name: jump[name] for name in jump}


_LLAMA: dict[str, Any] = {
    "d_model": N,
    "hook_point_in": "blocks.15.hook_resid_post",
    "jump_relu_threshold": 0.8,
    "dataset_average_activation_norm": {"in": 5.0, "out": 5.0},
}
# By format: the file of weights, its tensors, the name of its config, the config.
FORMATS: dict[str, tuple[str, Callable[[], Files], str, dict[str, Any]]] = {
    "saelens": ("l/sae_weights.safetensors", sae, "cfg.json", CONFIG),
    "gemma_scope": ("l/params.npz", lambda: _scope("W"), "", {}),
    "gemma_scope_2": ("l/params.safetensors", lambda: _scope("w"), "config.json", {"architecture": "jump_relu"}),
    "dictionary_learning": ("l/ae.pt", lambda: _linear("bias"), "config.json", trainer("AutoEncoder")),
    "sparsify": ("layers.5/sae.safetensors", _coder, "cfg.json", {"d_in": N, "num_latents": Z, "k": 3}),
    "llama_scope": (
        "checkpoints/final.safetensors",
        lambda: _linear("decoder.bias"),
        "../hyperparams.json",
        _LLAMA,
    ),
    "circuit_tracer": ("layer_3.safetensors", transcoder, "config.yaml", set_config()),
    "native": ("0.pt", lambda: dict(checkpoints.state_dict()), "", {}),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tensor", [normal(N), np.array([1, 2])], ids=["floats", "integers"])
def test_a_tensor_that_is_not_known_is_refused_by_name(tmp_path: Path, name: str, tensor: Any) -> None:
    file, tensors, config_name, config = FORMATS[name]
    beside = config if config_name else None
    read_header(write(tmp_path / "known" / file, tensors(), beside, config_name))
    more = tensors() | {"b_embed_skip": torch.tensor(tensor) if tensor.dtype.kind == "i" else tensor}
    path = write(tmp_path / "more" / file, more, beside, config_name)
    with pytest.raises(
        DataLoss, match=f"{path.name}: its (tensor|entry) 'b_embed_skip' is not known here, and might change"
    ):
        read_header(path)


@pytest.mark.parametrize("name", [name for name, (*_, config) in FORMATS.items() if config])
@pytest.mark.parametrize("value", [True, 0, "", {}])
def test_a_key_that_is_not_known_is_refused_by_name_unless_it_is_null(tmp_path: Path, name: str, value: Any) -> None:
    file, tensors, config_name, config = FORMATS[name]
    of = "trainer." if name == "dictionary_learning" else ""

    def extended(more: Any) -> dict[str, Any]:
        added = {"gate_of_tomorrow": more}
        return config | {"trainer": config["trainer"] | added} if of else config | added

    read_header(write(tmp_path / "null" / file, tensors(), extended(None), config_name))
    path = write(tmp_path / "more" / file, tensors(), extended(value), config_name)
    with pytest.raises(DataLoss, match=f"{Path(config_name).name}: {of}gate_of_tomorrow is not known here") as caught:
        read_header(path)
    assert caught.value.metadata["key"] == f"{of}gate_of_tomorrow"


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("saelens", {"activation_fn_kwargs": {"signed": True}}, "activation_fn_kwargs.signed is True"),
        ("saelens", {"activation_fn_kwargs": {"k": 3, "gate": 1}}, "activation_fn_kwargs.gate is not known here"),
        ("saelens", {"hook_head_index_out": 2}, "hook_head_index_out is set: autoencoders of a single head"),
        ("sparsify", {"embed_skip": True}, "embed_skip is True, which is not supported: it must be false"),
        ("llama_scope", {"use_glu_encoder": True}, "use_glu_encoder is True"),
        ("llama_scope", {"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias_to_pre_encoder is True"),
        ("llama_scope", {"use_decoder_bias": False}, "use_decoder_bias is False"),
        (
            "llama_scope",
            {"dataset_average_activation_norm": {"in": 5.0, "mid": 3.0}},
            "dataset_average_activation_norm.mid is not known here",
        ),
        ("dictionary_learning", {"sae": {}}, "config.json: sae is not known here"),
    ],
)
def test_a_key_that_changes_what_is_computed_is_refused(
    tmp_path: Path, name: str, change: dict[str, Any], problem: str
) -> None:
    file, tensors, config_name, config = FORMATS[name]
    with pytest.raises(DataLoss, match=problem):
        read_header(write(tmp_path / file, tensors(), config | change, config_name))


def test_what_native_files_say_besides_their_tensors_is_known_or_refused(tmp_path: Path) -> None:
    known = {"activation": "TopK", "activation_state_dict": json.dumps({"k": 3}), "format": "pt", "dst": "mlp_post_act"}
    read_header(checkpoints.write_autoencoder(tmp_path / "0.safetensors", metadata=known))
    path = checkpoints.write_autoencoder(tmp_path / "1.safetensors", metadata=known | {"gram_lookup": "true"})
    with pytest.raises(DataLoss, match="its metadata's 'gram_lookup' is not known here"):
        read_header(path)
    path = checkpoints.write_state_dict(tmp_path / "2.pt", {"gram_lookup": True})
    with pytest.raises(DataLoss, match="its entry 'gram_lookup' is not known here"):
        read_header(path)
    state = {"activation": "TopK", "activation_state_dict": {"k": 3, "signed": True}}
    with pytest.raises(DataLoss, match="its activation_state_dict's 'signed' is not known here"):
        read_header(checkpoints.write_state_dict(tmp_path / "3.pt", state))


def test_the_config_of_the_first_published_autoencoders_is_known(tmp_path: Path) -> None:
    """All that training was told stands in it, beside what is read."""
    config = {
        "model_name": "gpt2-small", "hook_point": "blocks.1.hook_resid_pre", "hook_point_layer": 1,
        "hook_point_head_index": None, "dataset_path": "Skylion007/openwebtext", "is_dataset_tokenized": False,
        "context_size": 128, "use_cached_activations": False, "cached_activations_path": "activations/gpt2-small",
        "d_in": N, "n_batches_in_buffer": 128, "total_training_tokens": 300000000, "store_batch_size": 32,
        "device": "mps", "seed": 42, "dtype": "torch.float32", "b_dec_init_method": "geometric_median",
        "expansion_factor": 32, "from_pretrained_path": None, "l1_coefficient": 8e-05, "lr": 0.0004,
        "lr_scheduler_name": None, "lr_warm_up_steps": 5000, "train_batch_size": 4096, "use_ghost_grads": False,
        "feature_sampling_window": 1000, "feature_sampling_method": None, "resample_batches": 1028,
        "feature_reinit_scale": 0.2, "dead_feature_window": 5000, "dead_feature_estimation_method": "no_fire",
        "dead_feature_threshold": 1e-08, "log_to_wandb": True, "wandb_project": "sae", "wandb_entity": None,
        "wandb_log_frequency": 100, "n_checkpoints": 10, "checkpoint_path": "checkpoints/y1t51byy", "d_sae": Z,
        "tokens_per_buffer": 67108864, "run_name": "24576-L1-8e-05",
    }  # fmt: skip
    header = read_header(write(tmp_path / "sae_weights.safetensors", sae(), config, "cfg.json"))
    assert (header.n_latents, header.layer_index) == (Z, 0)
