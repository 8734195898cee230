"""The services of dst.v1: those of every `*_service.proto`, so that no list of them can lack one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from google.protobuf.descriptor import ServiceDescriptor

_PROTOS = Path(__file__).parents[1] / "protos" / "dst" / "v1"
SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    service
    for file in sorted(_PROTOS.glob("*_service.proto"))
    for service in import_module(f"dst_grpc._gen.dst.v1.{file.stem}_pb2").DESCRIPTOR.services_by_name.values()
)
"""Each once, by the name of its file."""
