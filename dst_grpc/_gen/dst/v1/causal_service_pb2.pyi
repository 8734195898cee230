from dst_grpc._gen.dst.v1 import attribute_pb2 as _attribute_pb2
from dst_grpc._gen.dst.v1 import circuit_pb2 as _circuit_pb2
from dst_grpc._gen.dst.v1 import patch_pb2 as _patch_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
