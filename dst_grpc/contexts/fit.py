"""Checks whether an autoencoder fits its model, its input and its layer.

Each function returns why it does not fit, or an empty string; the caller puts the file or the field before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoder_inputs import AUTOENCODER_INPUTS
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS

if TYPE_CHECKING:
    from dst_grpc.contexts.entries import ModelEntry
    from dst_grpc.engine.formats.header import AutoencoderHeader


def agree(names: set[str], name: str) -> bool:
    """Whether all *names* of derived scalars are *name* or equivalent to it as an input."""
    return names == {name} or any(
        names <= {row.type, row.same_as} for row in AUTOENCODER_INPUTS.values() if row.same_as is not None
    )


def layer_problem(layer: int | None, dst: DerivedScalarType, model: ModelEntry) -> str:
    """Why no autoencoder of *dst* can be of *layer* in *model*; empty if one can."""
    if FACTS[dst].once:
        return "" if layer is None else f"must be absent: {dst} exists once per model"
    n_layers = model.dimensions.n_layers
    if layer is None:
        return f"is required: {dst} exists at every layer, and nothing names one"
    return "" if layer < n_layers else f"layer {layer} does not exist: {model.name!r} has {n_layers} layers"


def _architecture_problem(header: AutoencoderHeader, dst: DerivedScalarType, model: ModelEntry) -> str:
    architecture, tap = model.checkpoint.config.architecture, FACTS[dst].tap
    reason = None if tap is None else architecture.why_without(tap)
    # A transcoder reads the input of the MLP, which every model has, whatever its name.
    if reason is not None and header.output is None:
        return f"reads {dst}, which {model.name!r} does not have: {reason}"
    if header.is_before_post_norm and architecture.post_norms:
        part = header.output or dst
        return f"is of {part} before {model.name!r} norms it, and only what comes out of that norm is recorded"
    return ""


def misfit(header: AutoencoderHeader, dst: DerivedScalarType, model: ModelEntry) -> str:
    """Why the autoencoder of *header* cannot read *dst* of *model*; empty if it can."""
    problem = _architecture_problem(header, dst, model)
    if problem:
        return problem
    width = AUTOENCODER_INPUTS[dst].width(model.dimensions)
    if width is None:
        return f"{dst} cannot be read by an autoencoder"
    if header.n_inputs != width:
        return f"reads {header.n_inputs} inputs, but {dst} of {model.name!r} has {width}"
    output = header.output or dst
    width = AUTOENCODER_INPUTS[output].width(model.dimensions)
    if header.n_outputs != width:
        return f"puts out {header.n_outputs} channels, but {output} of {model.name!r} has {width}"
    if header.written is not None and header.written.stop != model.dimensions.n_layers:
        return f"writes to {header.written.stop} layers, but {model.name!r} has {model.dimensions.n_layers}"
    return ""


def disagreement(header: AutoencoderHeader, dst: DerivedScalarType, layer: int | None) -> str:
    """Why the requested *dst* or *layer* contradicts the file's header; empty if they agree."""
    if header.dst is not None and not agree({header.dst, dst.value}, dst.value):
        return f"says that it reads {header.dst}, not {dst}"
    if header.layer_index not in {None, layer}:
        return f"says that it belongs to layer {header.layer_index}"
    return ""
