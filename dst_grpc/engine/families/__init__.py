"""Families of checkpoints, one row each: how a `config.json` and its tensors become a `DecoderConfig` and our weights.

A new family is a module with a row and a table of names; no other code knows a family's name.
"""

from __future__ import annotations

from dst_grpc.engine.families import gemma, gpt2, gpt_neox, llama, qwen
from dst_grpc.engine.families.config_values import ConfigValues
from dst_grpc.engine.families.family import Family, Source
from dst_grpc.engine.model_folder import FLOATS_ONLY

FAMILIES: tuple[Family, ...] = (
    gpt2.FAMILY,
    gpt_neox.FAMILY,
    llama.LLAMA,
    llama.MISTRAL,
    llama.SMOLLM3,
    qwen.QWEN2,
    qwen.QWEN3,
    gemma.GEMMA2,
    gemma.GEMMA3_TEXT,
    gemma.GEMMA3,
)
"""Every family that can be loaded."""
_QUANTISED = {"quantization_config": "quant_method", "quantization": "mode"}
"""Keys that say how weights were quantised, as transformers and MLX write them, with the key in them of the method."""


def family_of(values: ConfigValues) -> tuple[Family, ConfigValues]:
    """The family that `config.json` names, and its values, complete.

    Raises:
        DataLoss: for a family that is not supported, or weights that are said to be quantised.
    """
    for key, method in _QUANTISED.items():
        said = values.nested(key)
        if said is not None and said.values:
            how = said.values.get(method) or f"{said.values.get('bits', 'a few')} bits"
            raise values.refusal(key, f"says that the weights are quantised ({how}): {FLOATS_ONLY}")
    model_type = values.text("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family, family.complete(values)
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise values.refusal("model_type", f"is {model_type!r}, which is not supported; these are: {known}")


__all__ = ["FAMILIES", "ConfigValues", "Family", "Source", "family_of"]
