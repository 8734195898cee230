from dst_grpc._gen.dst.v1 import graph_pb2 as _graph_pb2
from dst_grpc._gen.dst.v1 import graph_probe_pb2 as _graph_probe_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
