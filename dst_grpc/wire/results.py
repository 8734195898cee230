"""The parts of an answer besides its tensors' bytes: infos of tensors, header, trailer. `frames` puts them in order.

Reading is done by clients, so what cannot be read is DataLoss; see `_reader.read_answer` about newer servers.
"""

from __future__ import annotations

from dst_grpc._gen.dst.v1 import inference_pb2 as pb
from dst_grpc.domain.components import PassType, TensorElementType, TensorEncoding
from dst_grpc.domain.results import (
    AnswerHeader,
    AnswerTrailer,
    Provenance,
    RunStatistics,
    TensorInfo,
)
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.wire._durations import duration_to_wire, seconds_from_wire
from dst_grpc.wire._reader import Reader, read_answer
from dst_grpc.wire.enums import DERIVED_SCALAR_TYPE, PASS_TYPE, TENSOR_ELEMENT_TYPE, TENSOR_ENCODING
from dst_grpc.wire.tensors import axis_from_wire, axis_to_wire, element_count

MAX_ELEMENTS = 2**62
"""More elements than any tensor has, dense or sparse, so that arithmetic on positions cannot overflow."""
MAX_AXES = 16
"""More axes than any derived scalar has."""

_ANY_STATISTICS = RunStatistics(forward_passes=0, backward_passes=0)
_ANY_PROVENANCE = Provenance(model="", model_digest="")


def tensor_info_to_wire(info: TensorInfo) -> pb.TensorInfo:
    """The message of a tensor's info; its byte length follows from the rest."""
    return pb.TensorInfo(
        tensor_id=info.tensor_id,
        dst=DERIVED_SCALAR_TYPE.to_wire(info.dst),
        pass_type=PASS_TYPE.to_wire(info.pass_type),
        layer_index=info.layer_index,
        axes=map(axis_to_wire, info.axes),
        element_type=TENSOR_ELEMENT_TYPE.to_wire(info.element_type),
        encoding=TENSOR_ENCODING.to_wire(info.encoding),
        byte_length=info.byte_length,
        nonzero_count=info.nonzero_count,
        spec_index=info.spec_index,
    )


def tensor_info_from_wire(message: pb.TensorInfo) -> TensorInfo:
    """The tensor's info. Raises DataLoss, also if its byte length is not that of its axes."""
    return read_answer(_tensor_info, message)


def _tensor_info(message: pb.TensorInfo) -> TensorInfo:
    reader = Reader(message)
    dst = reader.required_enum("dst", DERIVED_SCALAR_TYPE, DerivedScalarType.LOGITS)
    pass_type = reader.required_enum("pass_type", PASS_TYPE, PassType.FORWARD)
    element_type = reader.required_enum("element_type", TENSOR_ELEMENT_TYPE, TensorElementType.FLOAT32)
    encoding = reader.required_enum("encoding", TENSOR_ENCODING, TensorEncoding.DENSE)
    axes = reader.children("axes", axis_from_wire)
    info = TensorInfo(
        tensor_id=message.tensor_id,
        dst=dst,
        pass_type=pass_type,
        layer_index=reader.present("layer_index"),
        axes=axes,
        element_type=element_type,
        encoding=encoding,
        nonzero_count=reader.present("nonzero_count"),
        spec_index=message.spec_index,
    )
    _check_sizes(reader, info, message.byte_length)
    return reader.finish(lambda: info)


def _check_sizes(reader: Reader, info: TensorInfo, byte_length: int) -> None:
    """Note sizes that contradict one another, before anybody allocates what they say."""
    if any(reader.failed(field) for field in ("element_type", "encoding")):
        return
    is_sparse = info.encoding is TensorEncoding.SPARSE_LATENTS
    if is_sparse != (info.nonzero_count is not None):
        reader.note("nonzero_count", f"must be {'present' if is_sparse else 'absent'} for {info.encoding}")
        return
    # Sizes of 0 make a tensor empty however large its other axes claim to be; those are bounded too.
    bound = 1
    for axis in info.axes:
        bound *= max(axis.size, 1)
    if len(info.axes) > MAX_AXES or bound > MAX_ELEMENTS:
        reader.note("axes", f"describe {len(info.axes)} axes of more elements than any tensor has")
        return
    if info.nonzero_count is not None and info.nonzero_count > element_count(info):
        reader.note("nonzero_count", f"is {info.nonzero_count} of only {element_count(info)} elements")
    if byte_length != info.byte_length:
        reader.note("byte_length", f"is {byte_length}, but the axes make it {info.byte_length}")


def header_to_wire(header: AnswerHeader) -> pb.Header:
    """The message of an answer's header."""
    return pb.Header(
        model=header.model,
        token_ids=header.token_ids,
        token_strings=header.token_strings,
        loss=header.loss,
        activation_value=header.activation_value,
        tensors=map(tensor_info_to_wire, header.tensors),
    )


def header_from_wire(message: pb.Header) -> AnswerHeader:
    """The answer's header. Raises DataLoss."""
    return read_answer(_header, message)


def _header(message: pb.Header) -> AnswerHeader:
    reader = Reader(message)
    tensors = reader.children("tensors", _tensor_info)
    for i, info in enumerate(message.tensors):
        if info.tensor_id != i:
            reader.note(f"tensors[{i}].tensor_id", f"must be {i}, its position, not {info.tensor_id}")
    return reader.finish(
        lambda: AnswerHeader(
            model=message.model,
            token_ids=tuple(message.token_ids),
            token_strings=tuple(message.token_strings),
            tensors=tensors,
            loss=reader.present("loss"),
            activation_value=reader.present("activation_value"),
        )
    )


def statistics_to_wire(statistics: RunStatistics) -> pb.RunStatistics:
    """The message of what a run cost; times to the nearest nanosecond."""
    return pb.RunStatistics(
        forward_passes=statistics.forward_passes,
        backward_passes=statistics.backward_passes,
        queue_time=duration_to_wire(statistics.queue_seconds),
        pass_time=duration_to_wire(statistics.pass_seconds),
        derive_time=duration_to_wire(statistics.derive_seconds),
    )


def statistics_from_wire(message: pb.RunStatistics) -> RunStatistics:
    """What a run cost; an absent time is 0. Every message is valid."""
    return RunStatistics(
        forward_passes=message.forward_passes,
        backward_passes=message.backward_passes,
        queue_seconds=seconds_from_wire(message.queue_time),
        pass_seconds=seconds_from_wire(message.pass_time),
        derive_seconds=seconds_from_wire(message.derive_time),
    )


def provenance_to_wire(provenance: Provenance) -> pb.Provenance:
    """The message of what the numbers depend on. Its maps have no order and one value per key."""
    return pb.Provenance(
        model=provenance.model,
        model_digest=provenance.model_digest,
        autoencoder_digests=dict(provenance.autoencoder_digests),
        element_type=TENSOR_ELEMENT_TYPE.to_wire(provenance.element_type),
        device=provenance.device,
        library_versions=dict(provenance.library_versions),
        config_digest=provenance.config_digest,
        attention=provenance.attention,
        batch_size=provenance.batch_size,
    )


def provenance_from_wire(message: pb.Provenance) -> Provenance:
    """What the numbers depend on, with the pairs of its maps ascending by key. Raises DataLoss."""
    return read_answer(_provenance, message)


def _provenance(message: pb.Provenance) -> Provenance:
    reader = Reader(message)
    element_type = reader.required_enum("element_type", TENSOR_ELEMENT_TYPE, TensorElementType.FLOAT32)
    return reader.finish(
        lambda: Provenance(
            model=message.model,
            model_digest=message.model_digest,
            autoencoder_digests=tuple(sorted(message.autoencoder_digests.items())),
            element_type=element_type,
            device=message.device,
            library_versions=tuple(sorted(message.library_versions.items())),
            config_digest=message.config_digest,
            attention=message.attention,
            batch_size=message.batch_size,
        )
    )


def trailer_to_wire(trailer: AnswerTrailer) -> pb.Trailer:
    """The message of an answer's trailer."""
    return pb.Trailer(
        tensor_count=trailer.tensor_count,
        byte_count=trailer.byte_count,
        checksums=trailer.checksums,
        statistics=statistics_to_wire(trailer.statistics),
        provenance=provenance_to_wire(trailer.provenance),
    )


def trailer_from_wire(message: pb.Trailer) -> AnswerTrailer:
    """The answer's trailer. Raises DataLoss."""
    return read_answer(_trailer, message)


def _trailer(message: pb.Trailer) -> AnswerTrailer:
    reader = Reader(message)
    statistics = reader.required_child("statistics", statistics_from_wire, _ANY_STATISTICS)
    provenance = reader.required_child("provenance", _provenance, _ANY_PROVENANCE)
    return reader.finish(
        lambda: AnswerTrailer(
            tensor_count=message.tensor_count,
            byte_count=message.byte_count,
            checksums=tuple(message.checksums),
            statistics=statistics,
            provenance=provenance,
        )
    )
