"""dictionary_learning: a folder with `ae.pt` (a state dict of tensors) and `config.json`.

    AutoEncoder                             relu((x - b) W^T + c)
    AutoEncoderNew                          relu(x W^T + c): nothing is taken off
    GatedAutoEncoder                        gated, folded into a JumpReLU
    JumpReluAutoEncoder                     relu(h) where h > theta; nothing is taken off
    AutoEncoderTopK                         the k largest of relu(h) at each token
    BatchTopKSAE, MatryoshkaBatchTopKSAE    outside training, relu(h) where h > theta, one theta for all latents

Decoders are left as they are: when the library loads an AutoEncoder it normalizes the decoder and multiplies its norms
into the encoder, which computes the same. A norm by which inputs were divided in training is folded in when they are
saved.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.families.config_values import ConfigValues
from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats.format import Format, describe
from dst_grpc.engine.formats.header import Place
from dst_grpc.engine.formats.hooks import place_of
from dst_grpc.engine.formats.known_keys import KnownKeys
from dst_grpc.engine.formats.layouts import DICTIONARY_LEARNING
from dst_grpc.engine.formats.sources import open_tensors
from dst_grpc.engine.formats.weights import AutoencoderFile, Role, StoredTensor, fold_gate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dst_grpc.engine.files import File
    from dst_grpc.engine.formats.layouts import FileGroup
    from dst_grpc.engine.formats.sources import TensorSource

_LINEAR = {
    Role.ENCODER: StoredTensor("encoder.weight"),
    Role.LATENT_BIAS: StoredTensor("encoder.bias"),
    Role.DECODER: StoredTensor("decoder.weight"),
}
_MATRICES = {
    Role.ENCODER: StoredTensor("W_enc", is_swapped=True),
    Role.LATENT_BIAS: StoredTensor("b_enc"),
    Role.DECODER: StoredTensor("W_dec", is_swapped=True),
}
_ONE_THRESHOLD = {Role.ONE_THRESHOLD: StoredTensor("threshold")}
_CLASSES: dict[str, tuple[AutoencoderActivation, dict[Role, StoredTensor]]] = {
    "AutoEncoder": (AutoencoderActivation.RELU, _LINEAR | {Role.PRE_BIAS: StoredTensor("bias")}),
    "AutoEncoderNew": (AutoencoderActivation.RELU, _LINEAR | {Role.DECODER_BIAS: StoredTensor("decoder.bias")}),
    "GatedAutoEncoder": (
        AutoencoderActivation.JUMP_RELU,
        {
            Role.ENCODER: StoredTensor("encoder.weight"),
            Role.DECODER: StoredTensor("decoder.weight"),
            Role.PRE_BIAS: StoredTensor("decoder_bias"),
            Role.LATENT_BIAS: StoredTensor("mag_bias"),
            Role.GATE_BIAS: StoredTensor("gate_bias"),
            Role.LOG_MAGNITUDE: StoredTensor("r_mag"),
        },
    ),
    "JumpReluAutoEncoder": (
        AutoencoderActivation.JUMP_RELU,
        _MATRICES | {Role.DECODER_BIAS: StoredTensor("b_dec"), Role.THRESHOLD: StoredTensor("threshold")},
    ),
    "AutoEncoderTopK": (AutoencoderActivation.TOP_K, _LINEAR | {Role.PRE_BIAS: StoredTensor("b_dec")}),
    "BatchTopKSAE": (
        AutoencoderActivation.JUMP_RELU,
        _LINEAR | {Role.PRE_BIAS: StoredTensor("b_dec")} | _ONE_THRESHOLD,
    ),
    "MatryoshkaBatchTopKSAE": (
        AutoencoderActivation.JUMP_RELU,
        _MATRICES | {Role.PRE_BIAS: StoredTensor("b_dec")} | _ONE_THRESHOLD,
    ),
}
# Settings of training; a norm by which inputs were divided is folded in when an autoencoder is saved.
_TRAINING = """
activation_queue_length anneal_end anneal_start auxk_alpha bandwidth batch_size compile ctx_len decay_start device
entropy group_fractions group_sizes group_weights initial_sparsity_penalty io l1_penalty lm_name lr n_sparsity_updates
norm_factor p_end p_start resample_steps seed sparsity_function sparsity_penalty sparsity_queue_length
sparsity_warmup_steps steps target threshold_beta threshold_start_step top_k_aux trainer_class wandb_name warmup_steps
"""
_SUBMODULE = re.compile(r"(resid_post|resid|mlp_out|mlp|attn_out|attn|attention)(?:_layer)?[._]?\d*")
_SUBMODULE_TAPS = {
    "resid": DerivedScalarType.RESID_POST_MLP,
    "resid_post": DerivedScalarType.RESID_POST_MLP,
    "mlp": DerivedScalarType.RESID_DELTA_MLP,
    "mlp_out": DerivedScalarType.RESID_DELTA_MLP,
    "attn": DerivedScalarType.RESID_DELTA_ATTN,
    "attn_out": DerivedScalarType.RESID_DELTA_ATTN,
    "attention": DerivedScalarType.RESID_DELTA_ATTN,
}


_KEYS = KnownKeys(
    read=frozenset({"dict_class", "activation_dim", "dict_size", "k", "layer", "submodule_name", "target_l0"})
    | {"apply_b_dec_to_input"},
    harmless=frozenset(_TRAINING.split()),
)
_STATISTICS = ("k", "threshold", "group_sizes")
"""Further tensors of top-k autoencoders: of training, or repeating the config."""


def _open(files: FileGroup) -> AutoencoderFile:
    path = files.path
    config, source = _trainer(files.beside[DICTIONARY_LEARNING.config]), open_tensors(files.weights)
    name = config.text("dict_class")
    _KEYS.check(config)
    if name not in _CLASSES:
        known = ", ".join(_CLASSES)
        raise config.refusal("dict_class", f"is {name!r}, which is not supported; these are: {known}")
    activation, parts = _CLASSES[name]
    parts = _with_input_bias(config, parts)
    k = _k(config, source, activation)
    if Role.ONE_THRESHOLD in parts and "threshold" not in source.shapes:
        raise corrupt(
            path, "lacks the float tensor 'threshold', without which a batch's top k is no function of a token"
        )
    header = describe(
        source,
        parts,
        layout=DICTIONARY_LEARNING,
        activation=activation,
        place=_place(config),
        k=k,
        says={"n": config.values.get("activation_dim"), "Z": config.values.get("dict_size")},
        declared_l0=_declared_l0(config),
        folded=["its gate is folded into a threshold"] if Role.GATE_BIAS in parts else [],
        harmless=_STATISTICS if "TopK" in name else (),
    )
    if Role.ONE_THRESHOLD in parts and source.read("threshold").item() < 0:
        raise corrupt(path, "'threshold' is negative: it was never set, so that nothing tells which latents are active")
    return AutoencoderFile(
        files=files,
        header=header,
        source=source,
        parts=parts,
        fold=fold_gate if Role.GATE_BIAS in parts else lambda _: None,
    )


FORMAT = Format(layout=DICTIONARY_LEARNING, open=_open)


def _trainer(file: File) -> ConfigValues:
    config = ConfigValues.read(file)
    trainer = config.values.get("trainer")
    if not isinstance(trainer, dict):
        raise config.refusal("trainer", "is missing: this is no config of dictionary_learning")
    config.refuse_others(("trainer", "buffer"))
    return ConfigValues(config.path, trainer, within="trainer.")


def _with_input_bias(config: ConfigValues, parts: Mapping[Role, StoredTensor]) -> dict[Role, StoredTensor]:
    """*parts*, with the bias also subtracted from the input if the config says so where the class usually does not."""
    found = dict(parts)
    if Role.THRESHOLD in found and config.flag("apply_b_dec_to_input", default=False):
        found[Role.PRE_BIAS] = found.pop(Role.DECODER_BIAS)
    return found


def _k(config: ConfigValues, source: TensorSource, activation: AutoencoderActivation) -> int | None:
    if activation is not AutoencoderActivation.TOP_K:
        return None
    k, stored = config.size("k"), source.facts.get("k")
    if stored is not None and int(stored) != k:
        raise config.refusal("k", f"is {k}, but the weights say {int(stored)}")
    return k


def _declared_l0(config: ConfigValues) -> float | None:
    for key in ("target_l0", "k"):
        value: Any = config.values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _place(config: ConfigValues) -> Place | None:
    layer, name = config.values.get("layer"), config.values.get("submodule_name")
    if type(layer) is not int or layer < 0:
        raise config.refusal("layer", f"must be a layer, not {layer!r}")
    if name is None:
        return Place(dst=DerivedScalarType.RESID_POST_MLP, layer_index=layer)
    if not isinstance(name, str):
        raise config.refusal("submodule_name", f"must be a text, not {name!r}")
    if found := _SUBMODULE.fullmatch(name):
        dst = _SUBMODULE_TAPS[found[1]]
        is_part = dst is not DerivedScalarType.RESID_POST_MLP
        return Place(dst=dst, layer_index=layer, is_before_post_norm=is_part)
    return place_of(name, lambda problem: config.refusal("submodule_name", problem))
