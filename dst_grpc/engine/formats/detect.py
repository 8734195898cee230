"""The list of formats, and which of them given files are in.

The names of the files determine the format; keys and shapes are then checked when a file is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    native,
    saelens,
    sparsify,
)
from dst_grpc.engine.formats.layouts import NATIVE, layout_named
from dst_grpc.engine.formats.sources import open_tensors
from dst_grpc.engine.formats.weights import Role
from dst_grpc.errors import DataLoss

if TYPE_CHECKING:
    from dst_grpc.engine.files import File
    from dst_grpc.engine.formats.layouts import FileGroup
    from dst_grpc.engine.formats.stored_file import LayerFile

FORMATS = (
    saelens.FORMAT,
    gemma_scope.FIRST,
    gemma_scope.SECOND,
    gemma_scope.CROSS_LAYER,
    dictionary_learning.FORMAT,
    sparsify.FORMAT,
    llama_scope.FORMAT,
    circuit_tracer.FORMAT,
    circuit_tracer.CROSS_LAYER,
    native.FORMAT,
)
"""Every format."""

_BY_LAYOUT = {one.layout: one for one in FORMATS}


def holds_native_tensors(file: File) -> bool | None:
    """Whether *file* has any tensor of a native autoencoder; None if it cannot be read."""
    try:
        source = open_tensors(file)
    except DataLoss:
        return None
    return any(part.key in source.shapes or part.key in source.others for part in native.PARTS.values())


def check_has_config(weights: File) -> None:
    """Raise DataLoss if *weights* lack the config of the layout that they are named after, and are no native ones.

    Native files may have any name, such as layer_3.safetensors.
    """
    layout = layout_named(weights.path.name)
    if layout is not None and native.PARTS[Role.PRE_BIAS].key not in open_tensors(weights).shapes:
        raise corrupt(weights.path, f"lacks {layout.config} beside it, without which nothing says what it is")


def open_autoencoder(files: FileGroup) -> LayerFile:
    """The autoencoder in *files*, checked as far as possible without reading its weights.

    Raises:
        DataLoss: if a file is corrupt, lacks a key, has misshapen tensors, or uses an unsupported feature;
            (DIGEST_MISMATCH) if it was replaced.
    """
    layout = files.layout
    if layout is None:
        known = ", ".join(one.layout.format for one in FORMATS)
        raise corrupt(files.path, f"is in none of the known formats: {known}")
    if layout is NATIVE:
        check_has_config(files.weights)
    return _BY_LAYOUT[layout].open(files)
