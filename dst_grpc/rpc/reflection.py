"""Server reflection, v1 and v1alpha, so that tools list and call the services without our protos.

grpcio-reflection has v1alpha only. v1 has the same messages under another package name, so the same servicer answers
both, and the description of v1 is made from that of v1alpha.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio

from dst_grpc.rpc.draining import DrainSignal, until_drained

SERVICE_V1ALPHA: Final[Any] = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
_V1 = "grpc.reflection.v1"


def service_v1() -> ServiceDescriptor:
    """The service grpc.reflection.v1.ServerReflection; added to the default pool unless it is there."""
    pool = descriptor_pool.Default()
    name = f"{_V1}.{SERVICE_V1ALPHA.name}"
    try:
        return pool.FindServiceByName(name)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        alpha = file.package
        file.name, file.package = "grpc/reflection/v1/reflection.proto", _V1
        file.ClearField("options")
        for field in (field for message in file.message_type for field in message.field):
            if field.type_name:
                field.type_name = field.type_name.replace(f".{alpha}.", f".{_V1}.")
        for method in (method for service in file.service for method in service.method):
            method.input_type = method.input_type.replace(f".{alpha}.", f".{_V1}.")
            method.output_type = method.output_type.replace(f".{alpha}.", f".{_V1}.")
        pool.Add(file)
        return pool.FindServiceByName(name)


class Reflection:
    """Describes services, and reflection itself, until the server drains."""

    def __init__(self, services: Iterable[str], drain: DrainSignal) -> None:
        """Describe *services*."""
        names = [*services, service_v1().full_name, SERVICE_V1ALPHA.full_name]
        # An asynchronous generator, which the package's types take for a coroutine.
        self._answer: Any = aio.ReflectionServicer(names).ServerReflectionInfo
        self._drain = drain

    async def ServerReflectionInfo(
        self, requests: AsyncIterable[reflection_pb2.ServerReflectionRequest], context: object
    ) -> AsyncGenerator[reflection_pb2.ServerReflectionResponse, None]:
        """Answer each request in order."""
        async for response in self._answer(until_drained(requests, self._drain), context):
            yield response
