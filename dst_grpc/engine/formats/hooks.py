"""Names of hook points in autoencoder configs, and the derived scalars that are recorded there.

Two vocabularies: TransformerLens hooks (`blocks.7.hook_resid_pre`) and modules of Hugging Face models
(`model.layers.7.mlp`, meaning its output unless the name says otherwise). A place without a tap here is refused.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.formats.header import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.errors import DataLoss

_T = DerivedScalarType
_NORMED = (ModelNorm.MLP_NORM,)
_LENS = re.compile(r"blocks\.(\d+)\.(.+)")
_LENS_TAPS: dict[str, tuple[DerivedScalarType, tuple[ModelNorm, ...]]] = {
    "hook_resid_mid": (_T.RESID_POST_ATTN, (ModelNorm.NONE,)),
    "hook_resid_post": (_T.RESID_POST_MLP, (ModelNorm.NONE,)),
    "hook_attn_out": (_T.RESID_DELTA_ATTN, (ModelNorm.NONE,)),
    "hook_mlp_out": (_T.RESID_DELTA_MLP, (ModelNorm.NONE,)),
    "mlp.hook_out": (_T.RESID_DELTA_MLP, (ModelNorm.NONE,)),
    "attn.hook_z": (_T.ATTN_WEIGHTED_SUM_OF_VALUES, (ModelNorm.NONE,)),
    "mlp.hook_post": (_T.MLP_POST_ACT, (ModelNorm.NONE,)),
    "hook_mlp_in": (_T.RESID_POST_ATTN, (ModelNorm.NONE,)),
    "mlp.hook_in": (_T.RESID_POST_ATTN, _NORMED),
    # With its gain where the library keeps it in a layer norm; without it where the library folds it into the next
    # weights, and for RMS norms.
    "ln2.hook_normalized": (_T.RESID_POST_ATTN, (ModelNorm.MLP_NORM_WITHOUT_GAIN, ModelNorm.MLP_NORM)),
}
_MODULE = re.compile(r"(?:(?:model|transformer|gpt_neox|language_model)\.)*(?:layers|h)\.(\d+)(?:\.(.+))?")
_MODULE_TAPS: dict[str, tuple[DerivedScalarType, tuple[ModelNorm, ...]]] = {
    "": (_T.RESID_POST_MLP, (ModelNorm.NONE,)),
    "mlp": (_T.RESID_DELTA_MLP, (ModelNorm.NONE,)),
    "post_feedforward_layernorm": (_T.RESID_DELTA_MLP, (ModelNorm.NONE,)),
    "self_attn": (_T.RESID_DELTA_ATTN, (ModelNorm.NONE,)),
    "attn": (_T.RESID_DELTA_ATTN, (ModelNorm.NONE,)),
    "attention": (_T.RESID_DELTA_ATTN, (ModelNorm.NONE,)),
    "self_attn.o_proj.input": (_T.ATTN_WEIGHTED_SUM_OF_VALUES, (ModelNorm.NONE,)),
    "attn.c_proj.input": (_T.ATTN_WEIGHTED_SUM_OF_VALUES, (ModelNorm.NONE,)),
    "attention.dense.input": (_T.ATTN_WEIGHTED_SUM_OF_VALUES, (ModelNorm.NONE,)),
    "mlp.input": (_T.RESID_POST_ATTN, _NORMED),
    "pre_feedforward_layernorm": (_T.RESID_POST_ATTN, _NORMED),
    "mlp.act": (_T.MLP_POST_ACT, (ModelNorm.NONE,)),
    "mlp.c_proj.input": (_T.MLP_POST_ACT, (ModelNorm.NONE,)),
    "mlp.down_proj.input": (_T.MLP_POST_ACT, (ModelNorm.NONE,)),
}
_WHOLE_PARTS = frozenset({"mlp", "mlp.hook_out", "self_attn", "attn", "attention"})
"""Outputs of all of attention or the MLP, before the post-norm, which some models have in a module of its own."""


def place_of(name: str, refused: Callable[[str], DataLoss], *, output: str | None = None) -> Place:
    """The place called *name*, and for a transcoder the one called *output* that it predicts.

    Args:
        name: a TransformerLens hook or a Hugging Face module.
        refused: makes the error from a description of the problem.
        output: the place that a transcoder predicts; None if the input is reconstructed.

    Raises:
        DataLoss: if a name is not that of a tap, or the two do not belong together.
    """
    place = _tap_of(name, refused)
    if output is None or output == name:
        if place.input_norms != (ModelNorm.NONE,):
            raise refused(f"reads {name!r}: only a transcoder may read there, and this is none")
        return place
    target = _tap_of(output, refused)
    if (place.dst, target.dst, place.layer_index) != (_T.RESID_POST_ATTN, _T.RESID_DELTA_MLP, target.layer_index):
        raise refused(f"reads {name!r} and predicts {output!r}: only transcoders of an MLP are supported")
    return replace(place, output=_T.RESID_DELTA_MLP, is_before_post_norm=target.is_before_post_norm)


def _tap_of(name: str, refused: Callable[[str], DataLoss]) -> Place:
    if found := _LENS.fullmatch(name):
        layer, rest = int(found[1]), found[2]
        if rest == "hook_resid_pre":
            # The residual that enters a layer is tapped as the one that leaves the layer before.
            if layer:
                return Place(dst=_T.RESID_POST_MLP, layer_index=layer - 1)
            return Place(dst=_T.RESID_POST_EMBEDDING, layer_index=None)
        taps = _LENS_TAPS
    elif found := _MODULE.fullmatch(name):
        layer, rest = int(found[1]), (found[2] or "").removesuffix("output").removesuffix(".")
        taps = _MODULE_TAPS
    else:
        raise refused(f"{name!r} is no place of a layer that is recorded")
    if rest not in taps:
        raise refused(f"{name!r} is not recorded; these are: {', '.join(key or 'the layer itself' for key in taps)}")
    dst, input_norms = taps[rest]
    is_before_post_norm = rest in _WHOLE_PARTS
    return Place(dst=dst, layer_index=layer, input_norms=input_norms, is_before_post_norm=is_before_post_norm)
