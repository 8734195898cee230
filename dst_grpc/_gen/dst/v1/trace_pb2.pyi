from dst_grpc._gen.dst.v1 import component_pb2 as _component_pb2
from dst_grpc._gen.dst.v1 import index_pb2 as _index_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TraceConfig(_message.Message):
    __slots__ = ("node_index", "pre_or_post_act", "detach_layer_norm_scale", "attention_trace_type", "downstream_trace_config")
    NODE_INDEX_FIELD_NUMBER: _ClassVar[int]
    PRE_OR_POST_ACT_FIELD_NUMBER: _ClassVar[int]
    DETACH_LAYER_NORM_SCALE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_TRACE_TYPE_FIELD_NUMBER: _ClassVar[int]
    DOWNSTREAM_TRACE_CONFIG_FIELD_NUMBER: _ClassVar[int]
    node_index: _index_pb2.NodeIndex
    pre_or_post_act: _component_pb2.PreOrPostAct
    detach_layer_norm_scale: bool
    attention_trace_type: _component_pb2.AttentionTraceType
    downstream_trace_config: TraceConfig
    def __init__(self, node_index: _Optional[_Union[_index_pb2.NodeIndex, _Mapping]] = ..., pre_or_post_act: _Optional[_Union[_component_pb2.PreOrPostAct, str]] = ..., detach_layer_norm_scale: bool = ..., attention_trace_type: _Optional[_Union[_component_pb2.AttentionTraceType, str]] = ..., downstream_trace_config: _Optional[_Union[TraceConfig, _Mapping]] = ...) -> None: ...
