"""SAELens: a folder with `cfg.json`, `sae_weights.safetensors` and perhaps `sparsity.safetensors`.

    standard                    relu(x W + b)
    gated                       (x W + b_gate > 0) relu(x W e^r + b_mag), folded into the next
    jumprelu                    relu(h) where h > theta; batch top-k autoencoders are saved as these
    topk                        the k largest of h; if rescaled, as if the decoder's rows had length 1 (folded)
    ..._transcoder              the same from one place to another; `W_skip` adds x W_skip^T

b_dec is subtracted from the input unless `apply_b_dec_to_input` is false; in transcoders it never is. Keys of versions
before 6.0 are supported. Refused are architectures and normalisations that are not a function of one token's vector
alone, and a normalisation by a factor that the files do not hold (SAELens itself only warns, and omits it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.autoencoder_inputs import AUTOENCODER_INPUTS
from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization
from dst_grpc.engine.element_types import moved
from dst_grpc.engine.families.config_values import ConfigValues
from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats.format import Format, describe
from dst_grpc.engine.formats.hooks import place_of
from dst_grpc.engine.formats.layouts import SAELENS
from dst_grpc.engine.formats.saelens_keys import FACTOR, SaeLensConfig
from dst_grpc.engine.formats.sources import open_tensors
from dst_grpc.engine.formats.weights import (
    AutoencoderFile,
    Role,
    StoredTensor,
    Weights,
    fold_decoder_norms,
    fold_gate,
    fold_input_scale,
    fold_output_scale,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.engine.files import File
    from dst_grpc.engine.formats.header import Place
    from dst_grpc.engine.formats.layouts import FileGroup
    from dst_grpc.engine.formats.sources import TensorSource

_SPARSITY, _SCALER = SAELENS.optional
_ARCHITECTURES = {
    "standard": AutoencoderActivation.RELU,
    "gated": AutoencoderActivation.JUMP_RELU,
    "jumprelu": AutoencoderActivation.JUMP_RELU,
    "topk": AutoencoderActivation.TOP_K,
    "transcoder": AutoencoderActivation.RELU,
    "skip_transcoder": AutoencoderActivation.RELU,
    "jumprelu_transcoder": AutoencoderActivation.JUMP_RELU,
    "jumprelu_skip_transcoder": AutoencoderActivation.JUMP_RELU,
}
_NORMALIZATIONS = {
    "none": InputNormalization.NONE,
    "layer_norm": InputNormalization.LAYER_NORM,
    "constant_norm_rescale": InputNormalization.CONSTANT_NORM,
}
_IS_FINETUNED = "finetuning_scaling_factor"
_FINETUNED_SCALES = ("scaling_factor", _IS_FINETUNED)
"""Names of the tensor of factors that latents are multiplied by before they are decoded."""
_BY_FACTOR = ("expected_average_only_in", "constant_scalar_rescale")


def _open(files: FileGroup) -> AutoencoderFile:
    config, source = SaeLensConfig(files.beside[SAELENS.config]), open_tensors(files.weights)
    architecture, activation, k = _architecture(config)
    is_transcoder = architecture.endswith("transcoder")
    place = _place(config, is_transcoder=is_transcoder)
    parts = _parts(config, source, architecture, is_transcoder=is_transcoder)
    normalizations, scale = _normalizations(config, files.beside.get(_SCALER), place, is_transcoder=is_transcoder)
    folds: list[tuple[str, Callable[[Weights], None]]] = []
    if architecture == "gated":
        folds.append(("its gate is folded into a threshold", fold_gate))
    if scale is not None:
        folds.append((f"its input's scale {scale:.6g} is folded", fold_input_scale(scale)))
    if config.values.flag("rescale_acts_by_decoder_norm", default=False):
        folds.append(("its decoder's norms are folded", fold_decoder_norms))
    if Role.OUTPUT_SCALE in parts:
        folds.append(("its finetuned scales are folded into the decoder", fold_output_scale))

    def fold(weights: Weights) -> None:
        for _, one in folds:
            one(weights)

    header = describe(
        source,
        parts,
        layout=SAELENS,
        activation=activation,
        place=place,
        k=k,
        normalizations=normalizations,
        says={key: config.get(name) for key, name in {"n": "d_in", "Z": "d_sae", "m": "d_out"}.items()},
        folded=[name for name, _ in folds],
        harmless=_FINETUNED_SCALES,
    )
    return AutoencoderFile(
        files=files,
        header=header,
        source=source,
        parts=parts,
        fold=fold,
        frequencies=lambda: _frequencies(files.beside.get(_SPARSITY), header.n_latents),
    )


FORMAT = Format(layout=SAELENS, open=_open)


def _architecture(config: SaeLensConfig) -> tuple[str, AutoencoderActivation, int | None]:
    values = config.values
    architecture, activation_fn = config.text("architecture", "standard"), config.text("activation_fn", "relu")
    if architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise values.refusal("architecture", f"is {architecture!r}, which is not supported; these are: {known}")
    if activation_fn == "topk" and architecture in {"standard", "topk"}:
        architecture = "topk"
    elif activation_fn != "relu":
        problem = f"is {activation_fn!r}, which is not supported with the architecture {architecture!r}"
        raise values.refusal("activation_fn", f"{problem}: it must be relu, or topk with standard or topk")
    activation = _ARCHITECTURES[architecture]
    return architecture, activation, config.k if activation is AutoencoderActivation.TOP_K else None


def _place(config: SaeLensConfig, *, is_transcoder: bool) -> Place | None:
    values = config.values
    for key in ("hook_head_index", "hook_head_index_out"):
        if config.get(key) is not None:
            raise values.refusal(key, "is set: autoencoders of a single head are not supported")
    name = config.get("hook_name") or config.get("hf_hook_name")
    if not isinstance(name, str):
        raise values.refusal("hook_name", "is missing: nothing says where it reads")
    output = None
    if is_transcoder:
        output = config.get("hook_name_out") or config.get("hf_hook_name_out")
        if not isinstance(output, str):
            raise values.refusal("hook_name_out", "is missing: nothing says what the transcoder predicts")
    place = place_of(name, lambda problem: values.refusal("hook_name", problem), output=output)
    reshaped = config.text("reshape_activations", "none")
    if reshaped not in {"none", "hook_z"}:
        raise values.refusal("reshape_activations", f"is {reshaped!r}, which is not supported: none or hook_z")
    return place


def _parts(
    config: SaeLensConfig, source: TensorSource, architecture: str, *, is_transcoder: bool
) -> dict[Role, StoredTensor]:
    parts = {Role.ENCODER: StoredTensor("W_enc", is_swapped=True), Role.DECODER: StoredTensor("W_dec", is_swapped=True)}
    if architecture == "gated":
        parts[Role.LATENT_BIAS] = StoredTensor("b_mag")
        parts[Role.GATE_BIAS] = StoredTensor("b_gate")
        parts[Role.LOG_MAGNITUDE] = StoredTensor("r_mag")
    else:
        parts[Role.LATENT_BIAS] = StoredTensor("b_enc")
    if architecture.startswith("jumprelu"):
        parts[Role.THRESHOLD] = StoredTensor("threshold")
    subtracts = not is_transcoder and config.values.flag("apply_b_dec_to_input", default=True)
    parts[Role.PRE_BIAS if subtracts else Role.DECODER_BIAS] = StoredTensor("b_dec")
    if "skip" in architecture:
        parts[Role.SKIP] = StoredTensor("W_skip")
    for key in _FINETUNED_SCALES:
        if key in source.shapes and not _is_one(source, key):
            if config.get(_IS_FINETUNED) is False:
                raise config.values.refusal(_IS_FINETUNED, f"is false, though the weights hold a {key!r} other than 1")
            parts[Role.OUTPUT_SCALE] = StoredTensor(key)
    return parts


def _is_one(source: TensorSource, key: str) -> bool:
    factors = source.read(key)
    return torch.allclose(factors, torch.ones_like(factors))


def _normalizations(
    config: SaeLensConfig, scaler: File | None, place: Place | None, *, is_transcoder: bool
) -> tuple[tuple[InputNormalization, ...], float | None]:
    """Possible normalizations of each input vector, and the factor to fold if there is one."""
    # Older versions say whether.
    name = (
        _BY_FACTOR[0] if config.get("normalize_activations") is True else config.text("normalize_activations", "none")
    )
    if name in _BY_FACTOR:
        if is_transcoder:
            raise config.values.refusal("normalize_activations", f"is {name!r}, which no transcoder can be folded by")
        return (InputNormalization.NONE,), _factor(config, scaler, name)
    if name not in _NORMALIZATIONS or (is_transcoder and name != "none"):
        known = ", ".join([*_NORMALIZATIONS, *_BY_FACTOR])
        raise config.values.refusal("normalize_activations", f"is {name!r}, which is not supported; these are: {known}")
    normalization = _NORMALIZATIONS[name]
    # In a model with centred writing weights all vectors of the residual stream are centred.
    is_residual = place is not None and AUTOENCODER_INPUTS[place.dst].is_residual
    if normalization is not InputNormalization.NONE or not is_residual or is_transcoder:
        return (normalization,), None
    arguments = config.get("model_from_pretrained_kwargs")
    if isinstance(arguments, dict) and "center_writing_weights" in arguments:
        return (InputNormalization.CENTRED if arguments["center_writing_weights"] else InputNormalization.NONE,), None
    # Before version 3 models were loaded with centred weights, and the config does not say so.
    if not config.has_metadata and not arguments:
        return (InputNormalization.NONE, InputNormalization.CENTRED), None
    return (InputNormalization.NONE,), None


def _factor(config: SaeLensConfig, scaler: File | None, name: str) -> float:
    """The factor that inputs are multiplied by, from wherever it is stored."""
    if FACTOR in config.values.values:
        return config.values.positive(FACTOR)
    if scaler is not None:
        factors = ConfigValues.read(scaler)
        factors.refuse_others(("scaling_factor",))
        return factors.positive("scaling_factor")
    raise config.values.refusal(
        "normalize_activations",
        f"is {name!r}, which needs the factor that inputs are multiplied by, and it is nowhere: "
        f"write it under {FACTOR!r} into this file",
    )


def _frequencies(file: File | None, n_latents: int) -> torch.Tensor | None:
    """Frequencies of latents from their decimal logarithms."""
    if file is None:
        return None
    path, source = file.path, open_tensors(file)
    if source.shapes.get("sparsity") != (n_latents,):
        raise corrupt(path, f"lacks the float tensor 'sparsity' of {n_latents} latents")
    logarithms = moved(source.read("sparsity"), "cpu", torch.float32)
    # A logarithm of minus infinity means a latent that is never active.
    if logarithms.isnan().any() or (logarithms > 1e-3).any():
        raise corrupt(path, "'sparsity' has values that are no logarithms of frequencies")
    return 10.0**logarithms
