"""What SAELens and sparsify themselves make of their files, old and new: written once, for tests to compare with.

Needs an environment of its own, as these libraries bring a hundred packages: `pip install sae-lens eai-sparsify
natsort schedulefree`, then `python scripts/library_values.py`. Each case is a config beside weights of one kind; the
library's loader reads both, and either refuses them or gives latents and outputs.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parents[1] / "tests" / "unit" / "engine" / "formats" / "libraries"
N, M, Z = 6, 5, 9
_GENERATOR = torch.Generator().manual_seed(3)
Tensors = dict[str, torch.Tensor]


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=_GENERATOR)


def _sae(**more: torch.Tensor) -> Tensors:
    return {"W_enc": _normal(N, Z), "b_enc": _normal(Z), "W_dec": _normal(Z, N), "b_dec": _normal(N), **more}


def _coder(**more: torch.Tensor) -> Tensors:
    weights = {"encoder.weight": _normal(Z, N), "encoder.bias": _normal(Z), "W_dec": _normal(Z, N)}
    return {**weights, "b_dec": _normal(N), **more}


_GATED = {"b_gate": _normal(Z), "b_mag": _normal(Z), "r_mag": _normal(Z) / 2}
_TRANSCODER = {"b_dec": _normal(M), "W_dec": _normal(Z, M)}
WEIGHTS: dict[str, Tensors] = {
    "standard": _sae(),
    "scaled by one": _sae(scaling_factor=torch.ones(Z)),
    "scaled": _sae(scaling_factor=_normal(Z)),
    "gated": {name: weight for name, weight in _sae(**_GATED).items() if name != "b_enc"},
    "jumprelu": _sae(threshold=_normal(Z).abs()),
    "transcoder": _sae(**_TRANSCODER),
    "skip": _sae(**_TRANSCODER, W_skip=_normal(M, N)),
    "jumprelu skip": _sae(**_TRANSCODER, threshold=_normal(Z).abs(), W_skip=_normal(M, N)),
    "coder": _coder(),
    "skipping coder": _coder(W_skip=_normal(N, N)),
}
_6 = {"d_in": N, "d_sae": Z, "dtype": "float32", "device": "cpu"}
_METADATA = {
    "metadata": {"sae_lens_version": "6.30.0", "model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_post"}
}
_OUT = {
    "metadata": {
        "sae_lens_version": "6.30.0",
        "hook_name": "blocks.3.mlp.hook_in",
        "hook_name_out": "blocks.3.hook_mlp_out",
    }
}
_HELD = {"model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_post", "hook_head_index": None, "hook_layer": 3}
_TRAINED = {"context_size": 128, "prepend_bos": True, "dataset_path": "x", "dataset_trust_remote_code": True}
_5 = _6 | _HELD | _TRAINED | {"sae_lens_training_version": "5.11.0", "neuronpedia_id": None, "seqpos_slice": [None]}
_3 = _6 | _HELD | _TRAINED | {"sae_lens_training_version": "3.0.0", "dtype": "torch.float32"}
_1 = {key: value for key, value in _3.items() if not key.startswith("hook_") and key != "sae_lens_training_version"} | {
    "hook_point": "blocks.3.hook_resid_post",
    "hook_point_head_index": None,
    "hook_point_layer": 3,
    "l1_coefficient": 8e-05,
    "use_ghost_grads": False,
    "resample_batches": 1028,
}
_TOP = {"activation_fn_kwargs": {"k": 4}}
SAELENS: dict[str, tuple[str, dict[str, Any]]] = {
    "6 standard": ("standard", _6 | _METADATA | {"architecture": "standard"}),
    "6 nothing taken off": ("standard", _6 | _METADATA | {"architecture": "standard", "apply_b_dec_to_input": False}),
    "6 layer norm": ("standard", _6 | _METADATA | {"architecture": "standard", "normalize_activations": "layer_norm"}),
    "6 topk": ("standard", _6 | _METADATA | {"architecture": "topk", "k": 4}),
    "6 topk rescaled": (
        "standard",
        _6 | _METADATA | {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True},
    ),
    "6 gated": ("gated", _6 | _METADATA | {"architecture": "gated"}),
    "6 jumprelu": ("jumprelu", _6 | _METADATA | {"architecture": "jumprelu"}),
    "6 transcoder": (
        "transcoder",
        _6 | _OUT | {"architecture": "transcoder", "d_out": M, "apply_b_dec_to_input": False},
    ),
    "6 skip transcoder": (
        "skip",
        _6 | _OUT | {"architecture": "skip_transcoder", "d_out": M, "apply_b_dec_to_input": False},
    ),
    "6 jumprelu skip transcoder": (
        "jumprelu skip",
        _6 | _OUT | {"architecture": "jumprelu_skip_transcoder", "d_out": M, "apply_b_dec_to_input": False},
    ),
    "6 unknown architecture": ("standard", _6 | _METADATA | {"architecture": "batchtopk_of_tomorrow"}),
    "5 topk": ("standard", _5 | {"architecture": "topk", "activation_fn_str": "topk"} | _TOP),
    "5 topk by the older name": ("standard", _5 | {"architecture": "topk", "activation_fn": "topk"} | _TOP),
    "4 topk as standard": ("standard", _5 | {"architecture": "standard", "activation_fn_str": "topk"} | _TOP),
    "4 topk without architecture": ("standard", _5 | {"activation_fn_str": "topk"} | _TOP),
    "4 topk by its arguments alone": ("standard", _5 | {"architecture": "topk"} | _TOP),
    "5 topk with two k": ("standard", _5 | {"architecture": "topk", "activation_fn_str": "topk", "k": 2} | _TOP),
    "5 topk, k beside it": ("standard", _5 | {"architecture": "topk", "k": 4}),
    "5 relu": (
        "standard",
        _5 | {"architecture": "standard", "activation_fn_str": "relu", "activation_fn_kwargs": {}},
    ),
    "5 gated": ("gated", _5 | {"architecture": "gated", "activation_fn_str": "relu", "activation_fn_kwargs": {}}),
    "5 jumprelu": (
        "jumprelu",
        _5
        | {"architecture": "jumprelu", "activation_fn_str": "relu", "activation_fn_kwargs": {}}
        | {"jumprelu_init_threshold": 0.001, "jumprelu_bandwidth": 0.001},
    ),
    "5 nothing taken off": (
        "standard",
        _5 | {"architecture": "standard", "activation_fn_str": "relu", "apply_b_dec_to_input": False},
    ),
    "3 standard": ("standard", _3 | {"activation_fn_str": "relu", "normalize_activations": "none"}),
    "3 not normalised": ("standard", _3 | {"activation_fn_str": "relu", "normalize_activations": False}),
    "3 null": ("standard", _3 | {"activation_fn_str": "relu", "normalize_activations": None}),
    "3 constant norm": (
        "standard",
        _3 | {"activation_fn_str": "relu", "normalize_activations": "constant_norm_rescale"},
    ),
    "3 scaled by one": ("scaled by one", _3 | {"activation_fn_str": "relu", "finetuning_scaling_factor": False}),
    "3 scaled, and denied": ("scaled", _3 | {"activation_fn_str": "relu", "finetuning_scaling_factor": False}),
    "1 standard": ("standard", _1),
    "1 activation": ("standard", _1 | {"activation_fn": "relu"}),
}
_CODER = {"d_in": N, "num_latents": Z, "k": 4}
SPARSIFY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "topk": ("layers.5", "coder", _CODER | {"activation": "topk", "normalize_decoder": True, "multi_topk": False}),
    "old": ("layers.5", "coder", _CODER | {"expansion_factor": 32, "normalize_decoder": True, "signed": False}),
    "transcoder": ("layers.5.mlp", "coder", _CODER | {"transcode": True}),
    "skip transcoder": ("layers.5.mlp", "skipping coder", _CODER | {"transcode": True, "skip_connection": True}),
    "old skip transcoder": (
        "layers.5.mlp",
        "skipping coder",
        _CODER | {"expansion_factor": 32, "normalize_decoder": True, "multi_topk": False, "skip_connection": True},
    ),
    "newest, with what it added switched off": (
        "layers.5",
        "coder",
        _CODER | {"embed_skip": False, "gram_lookup": False, "lookup_max_order": 4, "gram_table_hash": None},
    ),
}


def _write(folder: Path, name: str, weights: str, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in WEIGHTS[weights].items()}, folder / name)


def _saelens(folder: Path, weights: str, config: dict[str, Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from sae_lens import SAE

    _write(folder, "sae_weights.safetensors", weights, config)
    sae = SAE.load_from_disk(folder, dtype="float32")
    return sae.encode(x), sae(x)


def _sparsify(folder: Path, weights: str, config: dict[str, Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from sparsify import SparseCoder

    _write(folder, "sae.safetensors", weights, config)
    coder = SparseCoder.load_from_disk(folder)
    kept = coder.encode(x)
    latents = torch.zeros(len(x), Z).scatter(1, kept.top_indices, kept.top_acts)
    return latents, coder(x).sae_out


def main() -> None:
    """Write the cases as JSON, and weights, inputs and what came out as safetensors."""
    warnings.simplefilter("ignore")
    x = 2 * _normal(7, N) + 0.3
    tensors: Tensors = {"x": x}
    cases: list[dict[str, Any]] = []
    for kind, own in WEIGHTS.items():
        tensors |= {f"weights/{kind}/{name}": weight.contiguous() for name, weight in own.items()}
    todo = [("saelens", name, "layer_3", weights, config) for name, (weights, config) in SAELENS.items()]
    todo += [("sparsify", name, folder, weights, config) for name, (folder, weights, config) in SPARSIFY.items()]
    with tempfile.TemporaryDirectory() as root, torch.no_grad():
        for library, name, folder, weights, config in todo:
            read = _saelens if library == "saelens" else _sparsify
            case = {"library": library, "name": name, "folder": folder, "weights": weights, "config": config}
            try:
                latents, output = read(Path(root) / library / name / folder, weights, config, x)
            except Exception as error:  # noqa: BLE001  whatever a library raises, it does not read the files
                case["refused"] = type(error).__name__
            else:
                tensors |= {f"{library}/{name}/latents": latents.contiguous(), f"{library}/{name}/output": output}
            cases.append(case)
    versions = {name: version(name) for name in ("sae-lens", "eai-sparsify", "torch")}
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "cases.json").write_text(json.dumps({"versions": versions, "cases": cases}, indent=1) + "\n")
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, FOLDER / "values.safetensors")


if __name__ == "__main__":
    main()
