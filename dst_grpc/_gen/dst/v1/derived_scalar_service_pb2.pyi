from dst_grpc._gen.dst.v1 import explain_pb2 as _explain_pb2
from dst_grpc._gen.dst.v1 import inference_pb2 as _inference_pb2
from dst_grpc._gen.dst.v1 import resolution_pb2 as _resolution_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
