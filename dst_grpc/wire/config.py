"""config.proto: how derived scalars are computed, what a run starts from, and what is changed in it."""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import config_pb2 as pb
from dst_grpc.domain.components import InferenceEngineType, LossFnName
from dst_grpc.domain.config import AutoencoderConfig, DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.wire._reader import Reader
from dst_grpc.wire.enums import DERIVED_SCALAR_TYPE, INFERENCE_ENGINE_TYPE, LOSS_FN_NAME
from dst_grpc.wire.indices import (
    activation_index_from_wire,
    activation_index_to_wire,
    node_index_from_wire,
    node_index_to_wire,
)
from dst_grpc.wire.trace import trace_config_from_wire, trace_config_to_wire

# An index that may be ablated, so that a bad one does not hide a bad value beside it.
_ANY_ABLATED = ActivationIndex(
    activation_location_type=ActivationLocationType.RESID_POST_EMBEDDING, tensor_indices=(None, None)
)


def autoencoder_config_to_wire(config: AutoencoderConfig) -> pb.AutoencoderConfig:
    """The message of autoencoders given by path."""
    return pb.AutoencoderConfig(
        dst=DERIVED_SCALAR_TYPE.to_wire(config.dst),
        autoencoder_path_by_layer_index=[
            pb.AutoencoderPath(layer_index=layer, path=path) for layer, path in config.autoencoder_path_by_layer_index
        ],
    )


def autoencoder_config_from_wire(message: pb.AutoencoderConfig) -> AutoencoderConfig:
    """The autoencoders by path. Raises InvalidRequest."""
    reader = Reader(message)
    dst = reader.required_enum("dst", DERIVED_SCALAR_TYPE, DerivedScalarType.LOGITS)
    pairs = tuple(
        (entry.layer_index if entry.HasField("layer_index") else None, entry.path)
        for entry in message.autoencoder_path_by_layer_index
    )
    return reader.finish(lambda: AutoencoderConfig(dst=dst, autoencoder_path_by_layer_index=pairs))


def dst_config_to_wire(config: DstConfig) -> pb.DstConfig:
    """The message of a config; what is None there is absent here, and an empty list stays a list."""
    message = pb.DstConfig(
        derive_gradients=config.derive_gradients,
        model_name=config.model_name,
        inference_engine_type=INFERENCE_ENGINE_TYPE.to_wire(config.inference_engine_type),
        model_context=config.model_context,
        autoencoder_context=config.autoencoder_context,
        device_for_raw_activations=config.device_for_raw_activations,
        detach_layer_norm_scale_for_attribution=config.detach_layer_norm_scale_for_attribution,
    )
    if config.layer_indices is not None:
        message.layer_indices.CopyFrom(pb.LayerIndices(layer_indices=config.layer_indices))
    if config.multi_autoencoder_context is not None:
        message.multi_autoencoder_context.CopyFrom(
            pb.MultiAutoencoderContext(autoencoder_contexts=config.multi_autoencoder_context)
        )
    if config.autoencoder_config is not None:
        message.autoencoder_config.CopyFrom(autoencoder_config_to_wire(config.autoencoder_config))
    if config.trace_config is not None:
        message.trace_config.CopyFrom(trace_config_to_wire(config.trace_config))
    if config.node_index_for_attention_write is not None:
        message.node_index_for_attention_write.CopyFrom(node_index_to_wire(config.node_index_for_attention_write))
    if config.activation_index_for_fake_grad is not None:
        message.activation_index_for_fake_grad.CopyFrom(activation_index_to_wire(config.activation_index_for_fake_grad))
    if config.node_index_for_attribution is not None:
        message.node_index_for_attribution.CopyFrom(node_index_to_wire(config.node_index_for_attribution))
    return message


def dst_config_from_wire(message: pb.DstConfig) -> DstConfig:
    """The config. Raises InvalidRequest."""
    reader = Reader(message)
    layers: pb.LayerIndices | None = reader.present("layer_indices")
    contexts: pb.MultiAutoencoderContext | None = reader.present("multi_autoencoder_context")
    engine = reader.enum("inference_engine_type", INFERENCE_ENGINE_TYPE, InferenceEngineType.STANDARD)
    autoencoder_config = reader.child("autoencoder_config", autoencoder_config_from_wire)
    trace_config = reader.child("trace_config", trace_config_from_wire)
    attention_write = reader.child("node_index_for_attention_write", node_index_from_wire)
    fake_grad = reader.child("activation_index_for_fake_grad", activation_index_from_wire)
    attribution = reader.child("node_index_for_attribution", node_index_from_wire)
    return reader.finish(
        lambda: DstConfig(
            derive_gradients=message.derive_gradients,
            model_name=reader.present("model_name"),
            inference_engine_type=engine,
            layer_indices=None if layers is None else tuple(layers.layer_indices),
            autoencoder_config=autoencoder_config,
            model_context=reader.present("model_context"),
            autoencoder_context=reader.present("autoencoder_context"),
            multi_autoencoder_context=None if contexts is None else tuple(contexts.autoencoder_contexts),
            trace_config=trace_config,
            node_index_for_attention_write=attention_write,
            device_for_raw_activations=reader.present("device_for_raw_activations"),
            activation_index_for_fake_grad=fake_grad,
            node_index_for_attribution=attribution,
            detach_layer_norm_scale_for_attribution=message.detach_layer_norm_scale_for_attribution,
        )
    )


def loss_fn_config_to_wire(loss: LossFnConfig) -> pb.LossFnConfig:
    """The message of a loss."""
    return pb.LossFnConfig(
        name=LOSS_FN_NAME.to_wire(loss.name),
        target_tokens=loss.target_tokens,
        distractor_tokens=loss.distractor_tokens,
        target_token_ids=loss.target_token_ids,
        distractor_token_ids=loss.distractor_token_ids,
    )


def loss_fn_config_from_wire(message: pb.LossFnConfig) -> LossFnConfig:
    """The loss. Raises InvalidRequest."""
    reader = Reader(message)
    name = reader.required_enum("name", LOSS_FN_NAME, LossFnName.ZERO)
    return reader.finish(
        lambda: LossFnConfig(
            name=name,
            target_tokens=tuple(message.target_tokens),
            distractor_tokens=tuple(message.distractor_tokens),
            target_token_ids=tuple(message.target_token_ids),
            distractor_token_ids=tuple(message.distractor_token_ids),
        )
    )


def ablation_spec_to_wire(spec: AblationSpec) -> pb.AblationSpec:
    """The message of an ablation.

    A value travels as binary32, so only values that are exact in it come back equal; others are rounded.
    """
    return pb.AblationSpec(index=activation_index_to_wire(spec.index), value=spec.value)


def ablation_spec_from_wire(message: pb.AblationSpec) -> AblationSpec:
    """The ablation. Raises InvalidRequest."""
    reader = Reader(message)
    index = reader.required_child("index", activation_index_from_wire, _ANY_ABLATED)
    return reader.finish(lambda: AblationSpec(index=index, value=message.value))
