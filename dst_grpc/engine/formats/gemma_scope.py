"""Gemma Scope: JumpReLU autoencoders and transcoders, of the first release (`params.npz`) and the second.

Inputs are encoded as they are. The first release has no config: layer and L0 are in the path
(`layer_12/width_16k/average_l0_82/params.npz`), the input in the repository's name, if that is among the folders
(`gemma-scope-2b-pt-res`). The second has `config.json` beside `params.safetensors`; unlike in other formats, its skip
connection is stored [n_in, n_out].

The second release's cross-layer transcoders have a file for each layer, `params_layer_L.safetensors`, whose decoder is
[F, all layers, d]; what is stored for layers before L is 0 but for rounding, and no path leads there: it is not read.
Crosscoders, in files of the same names, are refused: they read several layers at once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoders import AutoencoderActivation, ModelNorm
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.families.config_values import ConfigValues
from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats.format import Format, describe, layer_in_path
from dst_grpc.engine.formats.header import Place
from dst_grpc.engine.formats.hooks import place_of
from dst_grpc.engine.formats.known_keys import KnownKeys
from dst_grpc.engine.formats.layouts import GEMMA_SCOPE, GEMMA_SCOPE_2, GEMMA_SCOPE_2_CROSS_LAYER
from dst_grpc.engine.formats.sources import open_tensors
from dst_grpc.engine.formats.stored_file import StoredTranscoderFile
from dst_grpc.engine.formats.weights import AutoencoderFile, Role, StoredTensor
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.errors import require

if TYPE_CHECKING:
    from pathlib import Path

    from dst_grpc.engine.formats.layouts import FileGroup

_T = DerivedScalarType
_L0 = re.compile(r"average_l0_(\d+(?:\.\d+)?)")
_REPOSITORY = re.compile(r"(?:.*--)?(?:gemma-scope-.+-)?(res|mlp|att|transcoders)(?:-all)?")
_SECOND_KIND = re.compile(r"(resid_post|attn_out|mlp_out|transcoder)(?:_all)?")
_KINDS: dict[str, tuple[DerivedScalarType, ModelNorm, DerivedScalarType | None]] = {
    "res": (_T.RESID_POST_MLP, ModelNorm.NONE, None),
    "mlp": (_T.RESID_DELTA_MLP, ModelNorm.NONE, None),
    "att": (_T.ATTN_WEIGHTED_SUM_OF_VALUES, ModelNorm.NONE, None),
    "transcoders": (_T.RESID_POST_ATTN, ModelNorm.MLP_NORM_WITHOUT_GAIN, _T.RESID_DELTA_MLP),
    "resid_post": (_T.RESID_POST_MLP, ModelNorm.NONE, None),
    "mlp_out": (_T.RESID_DELTA_MLP, ModelNorm.NONE, None),
    "attn_out": (_T.ATTN_WEIGHTED_SUM_OF_VALUES, ModelNorm.NONE, None),
    "transcoder": (_T.RESID_POST_ATTN, ModelNorm.MLP_NORM, _T.RESID_DELTA_MLP),
}


_MLP_NORMS = {"hf_hook_point_in": "pre_feedforward_layernorm", "hf_hook_point_out": "post_feedforward_layernorm"}
"""What a cross-layer transcoder reads and predicts, by the keys that say so: outputs of the norms around the MLP."""
_KEYS = KnownKeys(
    read=frozenset({"hf_hook_point_in", "hf_hook_point_out", "width", "l0", "affine_connection", "type"}),
    only={"architecture": ("jump_relu",)},
    harmless=frozenset({"model_name"}),
)


def _open_first(files: FileGroup) -> AutoencoderFile:
    path, source = files.path, open_tensors(files.weights)
    parts = {
        Role.ENCODER: StoredTensor(_spelled("W_enc", source.shapes), is_swapped=True),
        Role.DECODER: StoredTensor(_spelled("W_dec", source.shapes), is_swapped=True),
        Role.LATENT_BIAS: StoredTensor("b_enc"),
        Role.DECODER_BIAS: StoredTensor("b_dec"),
        Role.THRESHOLD: StoredTensor("threshold"),
    }
    l0 = _L0.search(path.parent.name)
    header = describe(
        source,
        parts,
        layout=GEMMA_SCOPE,
        activation=AutoencoderActivation.JUMP_RELU,
        place=_place_in_path(path, _REPOSITORY),
        declared_l0=float(l0[1]) if l0 else None,
    )
    return AutoencoderFile(files=files, header=header, source=source, parts=parts)


def _open_second(files: FileGroup) -> AutoencoderFile:
    path, source = files.path, open_tensors(files.weights)
    parts = {
        Role.ENCODER: StoredTensor(_spelled("w_enc", source.shapes), is_swapped=True),
        Role.DECODER: StoredTensor(_spelled("w_dec", source.shapes), is_swapped=True),
        Role.LATENT_BIAS: StoredTensor("b_enc"),
        Role.DECODER_BIAS: StoredTensor("b_dec"),
        Role.THRESHOLD: StoredTensor("threshold"),
    }
    found = next(iter(files.beside.values()), None)
    config = ConfigValues(path, {}) if found is None else ConfigValues.read(found)
    _KEYS.check(config)
    if "affine_skip_connection" in source.shapes:
        parts[Role.SKIP] = StoredTensor("affine_skip_connection", is_swapped=True)
    elif config.flag("affine_connection", default=False):
        raise corrupt(path, "lacks 'affine_skip_connection', although its config has affine_connection")
    place = _place_in_path(path, _SECOND_KIND)
    if "hf_hook_point_in" in config.values:
        output = config.text("hf_hook_point_out") if config.values.get("type") == "transcoder" else None
        place = place_of(
            config.text("hf_hook_point_in"), lambda problem: config.refusal("hf_hook_point_in", problem), output=output
        )
    header = describe(
        source,
        parts,
        layout=GEMMA_SCOPE_2,
        activation=AutoencoderActivation.JUMP_RELU,
        place=place,
        says={"Z": config.values.get("width")},
        declared_l0=config.positive_or_none("l0"),
    )
    return AutoencoderFile(files=files, header=header, source=source, parts=parts)


def _open_cross_layer(files: FileGroup) -> StoredTranscoderFile:
    path, source = files.path, open_tensors(files.weights)
    layer = require(GEMMA_SCOPE_2_CROSS_LAYER.layer_of(path.name))
    found = next(iter(files.beside.values()), None)
    config = ConfigValues(path, {}) if found is None else ConfigValues.read(found)
    _KEYS.check(config)
    if config.values.get("type") == "crosscoder" or any(
        folder.name.startswith("crosscoder") for folder in list(path.parents)[:3]
    ):
        raise corrupt(path, "is of a crosscoder, which reads several layers at once: only transcoders are supported")
    for key, module in _MLP_NORMS.items():  # of one layer, or of all of them
        if key in config.values and module not in str(config.values[key]):
            raise config.refusal(key, f"is {config.values[key]!r}: only cross-layer transcoders of MLPs are supported")
    decoder = _spelled("w_dec", source.shapes)
    parts = {
        Role.ENCODER: StoredTensor(_spelled("w_enc", source.shapes), is_swapped=True),
        Role.LATENT_BIAS: StoredTensor("b_enc"),
        Role.DECODER_BIAS: StoredTensor("b_dec"),
        Role.THRESHOLD: StoredTensor("threshold"),
    }
    if "affine_skip_connection" in source.shapes:
        parts[Role.SKIP] = StoredTensor("affine_skip_connection", is_swapped=True)
    elif config.flag("affine_connection", default=False):
        raise corrupt(path, "lacks 'affine_skip_connection', although its config has affine_connection")
    dst, input_norm, output = _KINDS["transcoder"]
    header = describe(
        source,
        parts,
        layout=GEMMA_SCOPE_2_CROSS_LAYER,
        activation=AutoencoderActivation.JUMP_RELU,
        place=Place(dst=dst, layer_index=layer, input_norms=(input_norm,), output=output),
        harmless=(decoder,),
    )
    tensors = SafetensorsFile.open(files.weights)
    return StoredTranscoderFile.of(
        files=files, header=header, source=source, parts=parts, decoder=(tensors, decoder), first_stored=0
    )


FIRST = Format(layout=GEMMA_SCOPE, open=_open_first)
SECOND = Format(layout=GEMMA_SCOPE_2, open=_open_second)
CROSS_LAYER = Format(layout=GEMMA_SCOPE_2_CROSS_LAYER, open=_open_cross_layer)


def _spelled(key: str, known: object) -> str:
    """*key* as the file spells it: some have a lower-case W."""
    others = (key, key[0].swapcase() + key[1:])
    return next((name for name in others if name in known), key)  # type: ignore[operator]


def _place_in_path(path: Path, pattern: re.Pattern[str]) -> Place | None:
    """The place that a folder above the file names; None if none does, or no layer is named."""
    layer = layer_in_path(path.parent)
    kinds = [found[1] for folder in list(path.parents)[:5] if (found := pattern.fullmatch(folder.name))]
    if layer is None or not kinds:
        return None
    dst, input_norm, output = _KINDS[kinds[0]]
    return Place(dst=dst, layer_index=layer, input_norms=(input_norm,), output=output)
