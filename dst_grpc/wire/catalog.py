"""catalog.proto: models, autoencoder sets and derived scalar types. Clients read what servers write, so reading raises
DataLoss; see `_reader.read_answer`."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TypeVar

from dst_grpc._gen.dst.v1 import catalog_pb2 as pb
from dst_grpc.domain.architecture import (
    ActivationFunction,
    Architecture,
    ModelDimensions,
    NormKind,
    PositionKind,
    UnsupportedType,
)
from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.components import NodeType, TensorElementType
from dst_grpc.domain.resolution import AutoencoderInfo, ContextState, LayerCheck, ModelInfo
from dst_grpc.domain.scalar_facts import Backward, ScalarFacts
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.wire._reader import Reader, read_answer
from dst_grpc.wire.enums import (
    ACTIVATION_FUNCTION,
    CONTEXT_STATE,
    DERIVED_SCALAR_TYPE,
    DIMENSION,
    NODE_TYPE,
    NORM_KIND,
    POSITION_KIND,
    TENSOR_ELEMENT_TYPE,
)

W = TypeVar("W", bound=StrEnum)

_ANY_DIMENSIONS = ModelDimensions(
    n_layers=0, d_model=0, n_heads=0, n_key_value_heads=0, d_head=0, d_mlp=0, vocab_size=0, context_window=0
)
ANY_MODEL = ModelInfo(
    name="",
    handle="",
    family="",
    dimensions=_ANY_DIMENSIONS,
    element_type=TensorElementType.FLOAT32,
    device="",
    digest="",
    parameter_bytes=0,
    source="",
    default_model=False,
    state=ContextState.NOT_LOADED,
    autoencoders=(),
)
"""Stands in for a model that cannot be read."""


def model_dimensions_to_wire(dimensions: ModelDimensions) -> pb.ModelDimensions:
    """The message of a model's sizes."""
    return pb.ModelDimensions(
        n_layers=dimensions.n_layers,
        d_model=dimensions.d_model,
        n_heads=dimensions.n_heads,
        n_key_value_heads=dimensions.n_key_value_heads,
        d_head=dimensions.d_head,
        d_mlp=dimensions.d_mlp,
        vocab_size=dimensions.vocab_size,
        context_window=dimensions.context_window,
    )


def model_dimensions_from_wire(message: pb.ModelDimensions) -> ModelDimensions:
    """A model's sizes. Every message is valid."""
    return ModelDimensions(
        n_layers=message.n_layers,
        d_model=message.d_model,
        n_heads=message.n_heads,
        n_key_value_heads=message.n_key_value_heads,
        d_head=message.d_head,
        d_mlp=message.d_mlp,
        vocab_size=message.vocab_size,
        context_window=message.context_window,
    )


def architecture_to_wire(architecture: Architecture) -> pb.Architecture:
    """The message of how a model's parts hang together."""
    return pb.Architecture(
        norm=NORM_KIND.to_wire(architecture.norm),
        positions=POSITION_KIND.to_wire(architecture.positions),
        layers_without_positions=architecture.layers_without_positions,
        activation=ACTIVATION_FUNCTION.to_wire(architecture.activation),
        gated=architecture.gated,
        parallel=architecture.parallel,
        post_norms=architecture.post_norms,
        qk_norm=architecture.qk_norm,
        attn_softcap=architecture.attn_softcap,
        final_softcap=architecture.final_softcap,
        sliding_windows=[window or 0 for window in architecture.sliding_windows],
    )


def architecture_from_wire(message: pb.Architecture) -> Architecture:
    """How a model's parts hang together. Raises DataLoss."""
    return read_answer(_read_architecture, message)


def _read_architecture(message: pb.Architecture) -> Architecture:
    reader = Reader(message)
    norm = reader.required_enum("norm", NORM_KIND, NormKind.LAYER_NORM)
    positions = reader.required_enum("positions", POSITION_KIND, PositionKind.LEARNED)
    activation = reader.required_enum("activation", ACTIVATION_FUNCTION, ActivationFunction.GELU_TANH)
    return reader.finish(
        lambda: Architecture(
            norm=norm,
            positions=positions,
            layers_without_positions=tuple(message.layers_without_positions),
            activation=activation,
            gated=message.gated,
            parallel=message.parallel,
            post_norms=message.post_norms,
            qk_norm=message.qk_norm,
            attn_softcap=reader.present("attn_softcap"),
            final_softcap=reader.present("final_softcap"),
            sliding_windows=tuple(window or None for window in message.sliding_windows),
        )
    )


def unsupported_type_to_wire(unsupported: UnsupportedType) -> pb.UnsupportedType:
    """The message of a type that has no meaning in a model."""
    return pb.UnsupportedType(dst=DERIVED_SCALAR_TYPE.to_wire(unsupported.dst), reason=unsupported.reason)


def unsupported_type_from_wire(message: pb.UnsupportedType) -> UnsupportedType:
    """A type that has no meaning in a model. Raises DataLoss."""
    return read_answer(_read_unsupported_type, message)


def _read_unsupported_type(message: pb.UnsupportedType) -> UnsupportedType:
    reader = Reader(message)
    dst = reader.required_enum("dst", DERIVED_SCALAR_TYPE, DerivedScalarType.LOGITS)
    return reader.finish(lambda: UnsupportedType(dst=dst, reason=message.reason))


def model_info_to_wire(info: ModelInfo) -> pb.ModelInfo:
    """The message of a model."""
    return pb.ModelInfo(
        name=info.name,
        handle=info.handle,
        family=info.family,
        dimensions=model_dimensions_to_wire(info.dimensions),
        element_type=TENSOR_ELEMENT_TYPE.to_wire(info.element_type),
        device=info.device,
        digest=info.digest,
        parameter_bytes=info.parameter_bytes,
        source=info.source,
        default_model=info.default_model,
        state=CONTEXT_STATE.to_wire(info.state),
        autoencoders=info.autoencoders,
        architecture=architecture_to_wire(info.architecture),
        unsupported=map(unsupported_type_to_wire, info.unsupported),
        revision=info.revision,
    )


def model_info_from_wire(message: pb.ModelInfo) -> ModelInfo:
    """The model. Raises DataLoss."""
    return read_answer(read_model_info, message)


def read_model_info(message: pb.ModelInfo) -> ModelInfo:
    """The model, for messages that hold one. Raises InvalidRequest, which `read_answer` turns into DataLoss."""
    reader = Reader(message)
    dimensions = reader.required_child("dimensions", model_dimensions_from_wire, _ANY_DIMENSIONS)
    element_type = reader.required_enum("element_type", TENSOR_ELEMENT_TYPE, TensorElementType.FLOAT32)
    state = reader.required_enum("state", CONTEXT_STATE, ContextState.NOT_LOADED)
    architecture = reader.child("architecture", _read_architecture) or Architecture()
    unsupported = reader.children("unsupported", _read_unsupported_type)
    return reader.finish(
        lambda: ModelInfo(
            name=message.name,
            handle=message.handle,
            family=message.family,
            dimensions=dimensions,
            element_type=element_type,
            device=message.device,
            digest=message.digest,
            parameter_bytes=message.parameter_bytes,
            source=message.source,
            default_model=message.default_model,
            state=state,
            autoencoders=tuple(message.autoencoders),
            architecture=architecture,
            unsupported=unsupported,
            revision=message.revision,
        )
    )


def layer_check_to_wire(check: LayerCheck) -> pb.LayerCheck:
    """The message of an autoencoder's figures at one layer."""
    unexplained = check.fraction_of_variance_unexplained
    return pb.LayerCheck(
        layer_index=check.layer_index,
        l0=check.l0,
        fraction_of_variance_unexplained=math.nan if unexplained is None else unexplained,
        dead_latents=check.dead_latents,
        orientation=check.orientation,
        reading=check.reading,
    )


def layer_check_from_wire(message: pb.LayerCheck) -> LayerCheck:
    """An autoencoder's figures at one layer. Every message is valid."""
    unexplained = message.fraction_of_variance_unexplained
    return LayerCheck(
        layer_index=message.layer_index,
        l0=message.l0,
        fraction_of_variance_unexplained=None if math.isnan(unexplained) else unexplained,
        dead_latents=message.dead_latents if message.HasField("dead_latents") else None,
        orientation=message.orientation if message.HasField("orientation") else None,
        reading=message.reading,
    )


def autoencoder_info_to_wire(info: AutoencoderInfo) -> pb.AutoencoderInfo:
    """The message of an autoencoder set."""
    return pb.AutoencoderInfo(
        name=info.name,
        handle=info.handle,
        model=info.model,
        dst=DERIVED_SCALAR_TYPE.to_wire(info.dst),
        node_type=NODE_TYPE.to_wire(info.node_type),
        layer_indices=info.layer_indices,
        n_latents=info.n_latents,
        activation="/".join(info.activations),
        spliceable=info.spliceable,
        parameter_bytes=info.parameter_bytes,
        digest=info.digest,
        state=CONTEXT_STATE.to_wire(info.state),
        declared=map(layer_check_to_wire, info.declared),
        measured=map(layer_check_to_wire, info.measured),
        format="/".join(info.formats),
        output=None if info.output is None else DERIVED_SCALAR_TYPE.to_wire(info.output),
        normalization="/".join(info.normalizations),
        input_norm="/".join(info.input_norms),
        folded=info.folded,
        source=info.source,
        revision=info.revision,
    )


def autoencoder_info_from_wire(message: pb.AutoencoderInfo) -> AutoencoderInfo:
    """The autoencoder set. Raises DataLoss."""
    return read_answer(read_autoencoder_info, message)


def read_autoencoder_info(message: pb.AutoencoderInfo) -> AutoencoderInfo:
    """The autoencoder set, for messages that hold one. Raises InvalidRequest, as `read_model_info` does."""
    reader = Reader(message)
    dst = reader.required_enum("dst", DERIVED_SCALAR_TYPE, DerivedScalarType.LOGITS)
    node_type = reader.required_enum("node_type", NODE_TYPE, NodeType.AUTOENCODER_LATENT)
    activations = _read_joined(reader, message, "activation", AutoencoderActivation)
    normalizations = _read_joined(reader, message, "normalization", InputNormalization)
    input_norms = _read_joined(reader, message, "input_norm", ModelNorm)
    output = reader.enum("output", DERIVED_SCALAR_TYPE, None)
    state = reader.required_enum("state", CONTEXT_STATE, ContextState.NOT_LOADED)
    return reader.finish(
        lambda: AutoencoderInfo(
            name=message.name,
            handle=message.handle,
            model=message.model,
            dst=dst,
            node_type=node_type,
            layer_indices=tuple(message.layer_indices),
            n_latents=message.n_latents,
            activations=activations,
            spliceable=message.spliceable,
            parameter_bytes=message.parameter_bytes,
            digest=message.digest,
            state=state,
            declared=tuple(map(layer_check_from_wire, message.declared)),
            measured=tuple(map(layer_check_from_wire, message.measured)),
            formats=tuple(filter(None, message.format.split("/"))),
            output=output,
            normalizations=normalizations,
            input_norms=input_norms,
            folded=tuple(message.folded),
            source=message.source,
            revision=message.revision,
        )
    )


def _read_joined(reader: Reader, message: pb.AutoencoderInfo, field: str, members: type[W]) -> tuple[W, ...]:
    """The members in a text *field*, which are joined by slashes; one that is unknown is noted."""
    known = {member.value: member for member in members}
    words = [word for word in getattr(message, field).split("/") if word]
    for word in words:
        if word not in known:
            reader.note(field, f"{word!r} is none of {', '.join(known)}")
    return tuple(known[word] for word in words if word in known)


def scalar_type_info_to_wire(facts: ScalarFacts) -> pb.DerivedScalarTypeInfo:
    """The message of a row of facts. There is no way back: clients have the same table, and may print the message."""
    return pb.DerivedScalarTypeInfo(
        dst=DERIVED_SCALAR_TYPE.to_wire(facts.type),
        name=facts.type.value,
        dimensions=map(DIMENSION.to_wire, facts.dimensions),
        is_flattened=facts.is_flattened,
        node_type=NODE_TYPE.to_wire(facts.node_type),
        has_no_layers=facts.once,
        requires_grad_for_forward_pass=facts.requires_grad_for_forward_pass,
        accepts_derive_gradients=facts.backward is not Backward.REFUSED,
        yields_backward=facts.backward in {Backward.GRADIENT, Backward.RATIO},
        needs_autoencoder=None if facts.autoencoder is None else NODE_TYPE.to_wire(facts.autoencoder),
        needs_fields=facts.required_config_fields,
        formula=facts.formula,
        note=facts.note,
    )
