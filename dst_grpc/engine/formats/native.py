"""Files of OpenAI's published autoencoders and of this project: `pre_bias`, `encoder.weight`, `latent_bias`,
`decoder.weight`.

OpenAI's files are `.pt` state dicts; ours are safetensors with the same keys. Activation and k are entries of the state
dict or in the header's metadata. Of the statistics that come with them, only the frequencies of latents are ever read.

OpenAI's files do not say whether the input is normalised. The published TopK autoencoders (v5) all do, so a file below
a folder named after that version does; another TopK file is interpreted both ways, and the self-check decides, unless
the file says `normalization`.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization
from dst_grpc.engine.element_types import is_finite, moved
from dst_grpc.engine.families.config_values import UNKNOWN
from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats.format import Format, describe, interpretations_of
from dst_grpc.engine.formats.layouts import NATIVE
from dst_grpc.engine.formats.sources import open_tensors
from dst_grpc.engine.formats.weights import AutoencoderFile, Role, StoredTensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dst_grpc.engine.formats.layouts import FileGroup
    from dst_grpc.engine.formats.sources import TensorSource

PARTS = {
    Role.PRE_BIAS: StoredTensor("pre_bias"),
    Role.ENCODER: StoredTensor("encoder.weight"),
    Role.LATENT_BIAS: StoredTensor("latent_bias"),
    Role.DECODER: StoredTensor("decoder.weight"),
}
"""Its tensors."""
_ACTIVATIONS = (AutoencoderActivation.RELU, AutoencoderActivation.TOP_K, AutoencoderActivation.IDENTITY)
_FREQUENCIES = "latents_activation_frequency"
_FACTS = frozenset({"activation", "activation_state_dict", "dst", "layer_index", "normalization"})
_HARMLESS = frozenset(
    {_FREQUENCIES, "latents_mean_square", "stats_last_nonzero", "activation.k", "activation.postact_fn", "format"}
)
"""Statistics, a copy of TopK's k, and metadata that libraries write into every safetensors file."""
_VERSION_5 = re.compile(r"_v5(_|$)")


def _open(files: FileGroup) -> AutoencoderFile:
    path, source = files.path, open_tensors(files.weights)
    facts = source.facts
    state = facts.get("activation_state_dict", {})
    if path.suffix == ".safetensors":
        try:
            state = json.loads(state or "{}")
        except (ValueError, RecursionError) as error:
            raise corrupt(path, f"its metadata's activation_state_dict is no sound JSON: {error}") from error
    activation = _activation(path, facts.get("activation", AutoencoderActivation.RELU))
    k, postact = (
        _top_k(path, state) if activation is AutoencoderActivation.TOP_K else (None, AutoencoderActivation.RELU)
    )
    header = describe(source, PARTS, layout=NATIVE, activation=activation, place=None, k=k, harmless=_FACTS | _HARMLESS)
    for name in sorted(facts.keys() - source.others - _FACTS - _HARMLESS):
        raise corrupt(path, f"its metadata's {name!r} {UNKNOWN}")
    header = replace(
        header,
        postact=postact,
        dst=_text(facts.get("dst")),
        layer_index=_layer(path, facts.get("layer_index")),
        interpretations=interpretations_of(None, _normalizations(path, facts, activation)),
    )
    return AutoencoderFile(
        files=files,
        header=header,
        source=source,
        parts=PARTS,
        frequencies=lambda: read_frequencies(source, _FREQUENCIES, header.n_latents),
    )


FORMAT = Format(layout=NATIVE, open=_open)


def read_frequencies(source: TensorSource, key: str, n_latents: int) -> torch.Tensor | None:
    """How often each latent is active, as float32 [Z], from the tensor *key*; None if it is absent.

    Raises:
        DataLoss: if these are not frequencies.
    """
    shape = source.shapes.get(key)
    if shape is None:
        return None
    if shape != (n_latents,):
        raise corrupt(source.path, f"{key!r} has shape {list(shape)}, but there are {n_latents} latents")
    frequencies = moved(source.read(key), "cpu", torch.float32)
    if not is_finite(frequencies) or (frequencies < 0).any():
        raise corrupt(source.path, f"{key!r} has values that are negative, NaN or infinite")
    return frequencies


def _normalizations(
    path: Path, facts: Mapping[str, Any], activation: AutoencoderActivation
) -> tuple[InputNormalization, ...]:
    said = facts.get("normalization")
    if said is not None:
        try:
            return (InputNormalization(said),)
        except ValueError:
            known = ", ".join(InputNormalization)
            raise corrupt(path, f"has the unknown normalization {said!r}; these are known: {known}") from None
    if activation is not AutoencoderActivation.TOP_K:
        return (InputNormalization.NONE,)
    if any(_VERSION_5.search(folder.name) for folder in path.parents):
        return (InputNormalization.LAYER_NORM,)
    return (InputNormalization.NONE, InputNormalization.LAYER_NORM)


def _activation(path: Path, name: Any) -> AutoencoderActivation:
    if name in _ACTIVATIONS:
        return AutoencoderActivation(name)
    # The reference implementation falls back to ReLU here, which would compute another autoencoder.
    known = ", ".join(_ACTIVATIONS)
    raise corrupt(path, f"has the unknown activation {name!r}; these are known: {known}")


def _top_k(path: Path, state: Any) -> tuple[Any, AutoencoderActivation]:
    if not isinstance(state, dict):
        raise corrupt(path, "activation_state_dict is no mapping")
    for name in sorted(state.keys() - {"k", "postact_fn"}):
        raise corrupt(path, f"its activation_state_dict's {name!r} {UNKNOWN}")
    k = state.get("k")
    postact = _activation(path, state.get("postact_fn", AutoencoderActivation.RELU))
    if postact is AutoencoderActivation.TOP_K:
        raise corrupt(path, "TopK cannot be its own postact_fn")
    return k, postact


def _layer(path: Path, value: Any) -> int | None:
    text = _text(value)
    if text is None:
        return None
    if not text.isdecimal():
        raise corrupt(path, f"layer_index is {text!r}, not a number")
    return int(text)


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) else None
