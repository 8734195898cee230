"""What clients send: prompts, requests to derive and to resolve. Paths in errors are relative to the message read."""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import inference_pb2 as pb
from dst_grpc._gen.dst.v1 import resolution_pb2
from dst_grpc.domain.components import TensorElementType, TensorEncoding
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt, ResolveRequest
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import InvalidRequest
from dst_grpc.wire._reader import Reader
from dst_grpc.wire.config import (
    ablation_spec_from_wire,
    ablation_spec_to_wire,
    dst_config_from_wire,
    dst_config_to_wire,
    loss_fn_config_from_wire,
    loss_fn_config_to_wire,
)
from dst_grpc.wire.enums import DERIVED_SCALAR_TYPE, TENSOR_ELEMENT_TYPE, TENSOR_ENCODING
from dst_grpc.wire.trace import trace_config_from_wire, trace_config_to_wire

_ANY_REQUEST = DeriveRequest(prompt=None)
_NOTHING_KNOWN = "is required: the message holds nothing that is known here"


def prompt_to_wire(prompt: Prompt) -> pb.Prompt:
    """The message of a prompt."""
    if prompt.token_ids is not None:
        return pb.Prompt(token_ids=pb.TokenIds(token_ids=prompt.token_ids))
    return pb.Prompt(text=prompt.text)


def prompt_from_wire(message: pb.Prompt) -> Prompt:
    """The prompt. Raises InvalidRequest."""
    reader = Reader(message)
    token_ids: pb.TokenIds | None = reader.present("token_ids")
    return reader.finish(
        lambda: Prompt(text=reader.present("text"), token_ids=None if token_ids is None else tuple(token_ids.token_ids))
    )


def derived_scalar_spec_to_wire(spec: DerivedScalarSpec) -> pb.DerivedScalarSpec:
    """The message of one derived scalar asked for."""
    return pb.DerivedScalarSpec(
        dst=DERIVED_SCALAR_TYPE.to_wire(spec.dst),
        config=None if spec.config is None else dst_config_to_wire(spec.config),
    )


def derived_scalar_spec_from_wire(message: pb.DerivedScalarSpec) -> DerivedScalarSpec:
    """One derived scalar asked for. Raises InvalidRequest."""
    reader = Reader(message)
    dst = reader.required_enum("dst", DERIVED_SCALAR_TYPE, DerivedScalarType.LOGITS)
    config = reader.child("config", dst_config_from_wire)
    return reader.finish(lambda: DerivedScalarSpec(dst=dst, config=config))


def derive_request_to_wire(request: DeriveRequest) -> pb.DeriveRequest:
    """The message of a request to derive."""
    message = pb.DeriveRequest(
        request_id=request.request_id,
        model=request.model,
        ablation_specs=map(ablation_spec_to_wire, request.ablation_specs),
        autoencoders=request.autoencoders,
        config=dst_config_to_wire(request.config),
        derived_scalars=map(derived_scalar_spec_to_wire, request.derived_scalars),
        element_type=TENSOR_ELEMENT_TYPE.to_wire(request.element_type),
        encoding=TENSOR_ENCODING.to_wire(request.encoding),
    )
    if request.prompt is not None:
        message.prompt.CopyFrom(prompt_to_wire(request.prompt))
    if request.loss_fn_config is not None:
        message.loss_fn_config.CopyFrom(loss_fn_config_to_wire(request.loss_fn_config))
    if request.trace_config is not None:
        message.trace_config.CopyFrom(trace_config_to_wire(request.trace_config))
    return message


def derive_request_from_wire(message: pb.DeriveRequest) -> DeriveRequest:
    """The request to derive, whose prompt is required. Raises InvalidRequest."""
    return _derive_request(message, prompt_is_required=True)


def _derive_request_to_resolve(message: pb.DeriveRequest) -> DeriveRequest:
    return _derive_request(message, prompt_is_required=False)


def _derive_request(message: pb.DeriveRequest, *, prompt_is_required: bool) -> DeriveRequest:
    reader = Reader(message)
    prompt = reader.child("prompt", prompt_from_wire)
    if prompt_is_required and not message.HasField("prompt"):
        reader.note("prompt", "is required")
    loss_fn_config = reader.child("loss_fn_config", loss_fn_config_from_wire)
    trace_config = reader.child("trace_config", trace_config_from_wire)
    ablation_specs = reader.children("ablation_specs", ablation_spec_from_wire)
    config = reader.child("config", dst_config_from_wire) or DstConfig()
    derived_scalars = reader.children("derived_scalars", derived_scalar_spec_from_wire)
    element_type = reader.enum("element_type", TENSOR_ELEMENT_TYPE, TensorElementType.FLOAT32)
    encoding = reader.enum("encoding", TENSOR_ENCODING, TensorEncoding.DENSE)
    return reader.finish(
        lambda: DeriveRequest(
            prompt=prompt,
            derived_scalars=derived_scalars,
            request_id=message.request_id,
            model=reader.present("model"),
            loss_fn_config=loss_fn_config,
            trace_config=trace_config,
            ablation_specs=ablation_specs,
            autoencoders=tuple(message.autoencoders),
            config=config,
            element_type=element_type,
            encoding=encoding,
        )
    )


def resolve_request_to_wire(request: ResolveRequest) -> resolution_pb2.ResolveRequest:
    """The message of a request to resolve."""
    return resolution_pb2.ResolveRequest(request=derive_request_to_wire(request.request), load=request.load)


def resolve_request_from_wire(message: resolution_pb2.ResolveRequest) -> ResolveRequest:
    """The request to resolve, whose prompt may be absent. Raises InvalidRequest, with paths below `request`."""
    reader = Reader(message)
    request = reader.required_child("request", _derive_request_to_resolve, _ANY_REQUEST)
    return reader.finish(lambda: ResolveRequest(request=request, load=message.load))


def derive_stream_request_from_wire(message: pb.DeriveStreamRequest) -> DeriveRequest:
    """The request in a message of DeriveStream. Raises InvalidRequest, with paths relative to the DeriveRequest."""
    if not message.HasField("request"):
        raise InvalidRequest.of("request", _NOTHING_KNOWN)
    return derive_request_from_wire(message.request)


def resolve_stream_request_from_wire(message: resolution_pb2.ResolveStreamRequest) -> ResolveRequest:
    """The request in a message of ResolveStream. Raises InvalidRequest, with paths relative to the ResolveRequest."""
    if not message.HasField("request"):
        raise InvalidRequest.of("request", _NOTHING_KNOWN)
    return resolve_request_from_wire(message.request)
