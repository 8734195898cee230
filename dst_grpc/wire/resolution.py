"""resolution.proto, the answers: what the server says about a request before running it.

Reading raises DataLoss; see `_reader.read_answer`. The request itself is read in `requests`.
"""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import resolution_pb2 as pb
from dst_grpc.domain.components import PassType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.resolution import (
    CostEstimate,
    LoadProgress,
    Resolution,
    ScalarResolution,
    TapUse,
    Validated,
)
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.wire._reader import Reader, read_answer
from dst_grpc.wire.catalog import (
    ANY_MODEL,
    autoencoder_info_to_wire,
    model_info_to_wire,
    read_autoencoder_info,
    read_model_info,
)
from dst_grpc.wire.config import dst_config_from_wire, dst_config_to_wire
from dst_grpc.wire.contexts import context_status_to_wire, read_context_status
from dst_grpc.wire.enums import ACTIVATION_LOCATION_TYPE, DERIVED_SCALAR_TYPE, PASS_TYPE
from dst_grpc.wire.tensors import axis_from_wire, axis_to_wire

_ANY_COST = CostEstimate(
    sequence_tokens=0, forward_passes=0, backward_passes=0, floating_point_operations=0, peak_bytes=0, output_bytes=0
)


def validated_to_wire(validated: Validated) -> pb.Validated:
    """The message that a request is well formed."""
    return pb.Validated(request_id=validated.request_id)


def validated_from_wire(message: pb.Validated) -> Validated:
    """That a request is well formed. Every message is valid."""
    return Validated(request_id=message.request_id)


def load_progress_to_wire(progress: LoadProgress) -> pb.LoadProgress:
    """The message of how far a load is."""
    return pb.LoadProgress(context=progress.context, bytes_done=progress.bytes_done, bytes_total=progress.bytes_total)


def load_progress_from_wire(message: pb.LoadProgress) -> LoadProgress:
    """How far a load is. Every message is valid."""
    return LoadProgress(context=message.context, bytes_done=message.bytes_done, bytes_total=message.bytes_total)


def tap_use_to_wire(use: TapUse) -> pb.TapUse:
    """The message of a tap to record."""
    return pb.TapUse(
        location=ACTIVATION_LOCATION_TYPE.to_wire(use.location), pass_type=PASS_TYPE.to_wire(use.pass_type)
    )


def _tap_use(message: pb.TapUse) -> TapUse:
    reader = Reader(message)
    location = reader.required_enum("location", ACTIVATION_LOCATION_TYPE, ActivationLocationType.LOGITS)
    pass_type = reader.required_enum("pass_type", PASS_TYPE, PassType.FORWARD)
    return reader.finish(lambda: TapUse(location=location, pass_type=pass_type))


def scalar_resolution_to_wire(scalar: ScalarResolution) -> pb.ScalarResolution:
    """The message of what deriving one type takes and gives."""
    return pb.ScalarResolution(
        dst=DERIVED_SCALAR_TYPE.to_wire(scalar.dst),
        config=dst_config_to_wire(scalar.config),
        requires_grad=scalar.requires_grad,
        taps=map(tap_use_to_wire, scalar.taps),
        pass_types=map(PASS_TYPE.to_wire, scalar.pass_types),
        layer_indices=scalar.layer_indices,
        axes=map(axis_to_wire, scalar.axes),
        output_bytes=scalar.output_bytes,
    )


def scalar_resolution_from_wire(message: pb.ScalarResolution) -> ScalarResolution:
    """What deriving one type takes and gives. Raises DataLoss."""
    return read_answer(_scalar_resolution, message)


def _scalar_resolution(message: pb.ScalarResolution) -> ScalarResolution:
    reader = Reader(message)
    dst = reader.required_enum("dst", DERIVED_SCALAR_TYPE, DerivedScalarType.LOGITS)
    config = reader.required_child("config", dst_config_from_wire, DstConfig())
    taps = reader.children("taps", _tap_use)
    pass_types = reader.enums("pass_types", PASS_TYPE)
    axes = reader.children("axes", axis_from_wire)
    return reader.finish(
        lambda: ScalarResolution(
            dst=dst,
            config=config,
            requires_grad=message.requires_grad,
            taps=taps,
            pass_types=pass_types,
            layer_indices=tuple(message.layer_indices),
            axes=axes,
            output_bytes=message.output_bytes,
        )
    )


def cost_estimate_to_wire(cost: CostEstimate) -> pb.CostEstimate:
    """The message of what a request is expected to cost."""
    return pb.CostEstimate(
        sequence_tokens=cost.sequence_tokens,
        forward_passes=cost.forward_passes,
        backward_passes=cost.backward_passes,
        floating_point_operations=cost.floating_point_operations,
        peak_bytes=cost.peak_bytes,
        output_bytes=cost.output_bytes,
    )


def cost_estimate_from_wire(message: pb.CostEstimate) -> CostEstimate:
    """What a request is expected to cost. Every message is valid."""
    return CostEstimate(
        sequence_tokens=message.sequence_tokens,
        forward_passes=message.forward_passes,
        backward_passes=message.backward_passes,
        floating_point_operations=message.floating_point_operations,
        peak_bytes=message.peak_bytes,
        output_bytes=message.output_bytes,
    )


def resolution_to_wire(resolution: Resolution) -> pb.Resolved:
    """The message of a request, checked and completed."""
    return pb.Resolved(
        config=dst_config_to_wire(resolution.config),
        device=resolution.device,
        model=model_info_to_wire(resolution.model),
        autoencoders=map(autoencoder_info_to_wire, resolution.autoencoders),
        scalars=map(scalar_resolution_to_wire, resolution.scalars),
        cost=cost_estimate_to_wire(resolution.cost),
        contexts=map(context_status_to_wire, resolution.contexts),
    )


def resolution_from_wire(message: pb.Resolved) -> Resolution:
    """The request, checked and completed. Raises DataLoss."""
    return read_answer(_resolution, message)


def _resolution(message: pb.Resolved) -> Resolution:
    reader = Reader(message)
    config = reader.required_child("config", dst_config_from_wire, DstConfig())
    model = reader.required_child("model", read_model_info, ANY_MODEL)
    autoencoders = reader.children("autoencoders", read_autoencoder_info)
    scalars = reader.children("scalars", _scalar_resolution)
    cost = reader.required_child("cost", cost_estimate_from_wire, _ANY_COST)
    contexts = reader.children("contexts", read_context_status)
    return reader.finish(
        lambda: Resolution(
            config=config,
            device=message.device,
            model=model,
            autoencoders=autoencoders,
            scalars=scalars,
            cost=cost,
            contexts=contexts,
        )
    )
