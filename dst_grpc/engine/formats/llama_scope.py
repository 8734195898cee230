"""Llama Scope: a folder with `hyperparams.json` and `checkpoints/final.safetensors`.

JumpReLU with one threshold for all latents; no bias is subtracted from the input. Inputs are multiplied by s = sqrt(d)
over their average norm in training, which is folded. Programs that read these files differ on whether the published
threshold applies before or after that scaling, so both interpretations are loaded and the self-check decides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.engine.families.config_values import ConfigValues
from dst_grpc.engine.formats.format import Format, describe
from dst_grpc.engine.formats.header import Interpretation
from dst_grpc.engine.formats.hooks import place_of
from dst_grpc.engine.formats.known_keys import KnownKeys
from dst_grpc.engine.formats.layouts import LLAMA_SCOPE
from dst_grpc.engine.formats.sources import open_tensors
from dst_grpc.engine.formats.weights import AutoencoderFile, Role, StoredTensor, fold_input_scale

if TYPE_CHECKING:
    from dst_grpc.engine.formats.layouts import FileGroup

_NORMS = "dataset_average_activation_norm"


_KEYS = KnownKeys(
    read=frozenset({"d_model", "d_sae", "hook_point_in", "hook_point_out", _NORMS, "jump_relu_threshold", "top_k"}),
    only={
        "act_fn": ("jumprelu",),
        "norm_activation": ("dataset-wise",),
        "use_decoder_bias": (True,),
        "use_glu_encoder": (False,),
        "apply_decoder_bias_to_pre_encoder": (False,),
    },
    harmless=frozenset(
        {"bias_init_method", "ddp_size", "decoder_exactly_fixed_norm", "device", "dtype", "expansion_factor"}
        | {"init_decoder_norm", "init_encoder_norm", "init_encoder_with_decoder_transpose", "k_warmup_steps"}
        | {"l1_coefficient", "l1_coefficient_warmup_steps", "lp", "seed", "sparsity_include_decoder_norm", "tp_size"}
        | {"use_batch_norm_mse", "use_ghost_grads"}
    ),
)


def _open(files: FileGroup) -> AutoencoderFile:
    config, source = ConfigValues.read(files.beside[LLAMA_SCOPE.config]), open_tensors(files.weights)
    _KEYS.check(config)
    parts = {
        Role.ENCODER: StoredTensor("encoder.weight"),
        Role.LATENT_BIAS: StoredTensor("encoder.bias"),
        Role.DECODER: StoredTensor("decoder.weight"),
        Role.DECODER_BIAS: StoredTensor("decoder.bias"),
    }
    name = config.text("hook_point_in")
    if config.values.get("hook_point_out", name) != name:
        raise config.refusal("hook_point_out", "differs from hook_point_in: transcoders of this kind are not supported")
    norms = config.nested(_NORMS)
    if norms is None:
        raise config.refusal(_NORMS, "is missing: nothing says how inputs are scaled")
    norms.refuse_others(("in", "out"))
    d_model = config.size("d_model")
    scale = d_model**0.5 / norms.positive("in")
    header = describe(
        source,
        parts,
        layout=LLAMA_SCOPE,
        activation=AutoencoderActivation.JUMP_RELU,
        place=place_of(name, lambda problem: config.refusal("hook_point_in", problem)),
        says={"n": d_model, "Z": config.values.get("d_sae")},
        declared_l0=float(config.size("top_k")) if config.values.get("top_k") is not None else None,
        folded=[f"its input's scale {scale:.6g} is folded"],
    )
    interpretations = (
        Interpretation(name="threshold as published"),
        Interpretation(name="threshold times the scale", threshold_scale=scale),
    )
    return AutoencoderFile(
        files=files,
        header=replace(header, interpretations=interpretations),
        source=source,
        parts=parts,
        fold=fold_input_scale(scale),
        threshold=config.positive("jump_relu_threshold"),
    )


FORMAT = Format(layout=LLAMA_SCOPE, open=_open)
