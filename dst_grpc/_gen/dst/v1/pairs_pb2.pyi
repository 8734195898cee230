from dst_grpc._gen.dst.v1 import config_pb2 as _config_pb2
from dst_grpc._gen.dst.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Orientation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORIENTATION_UNSPECIFIED: _ClassVar[Orientation]
    ORIENTATION_NOISING: _ClassVar[Orientation]
    ORIENTATION_DENOISING: _ClassVar[Orientation]

class Alternative(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALTERNATIVE_UNSPECIFIED: _ClassVar[Alternative]
    ALTERNATIVE_PATCHING: _ClassVar[Alternative]
    ALTERNATIVE_MEAN_BY_POSITION: _ClassVar[Alternative]
    ALTERNATIVE_MEAN: _ClassVar[Alternative]
    ALTERNATIVE_ZERO: _ClassVar[Alternative]
    ALTERNATIVE_MEAN_BY_LENGTH: _ClassVar[Alternative]
ORIENTATION_UNSPECIFIED: Orientation
ORIENTATION_NOISING: Orientation
ORIENTATION_DENOISING: Orientation
ALTERNATIVE_UNSPECIFIED: Alternative
ALTERNATIVE_PATCHING: Alternative
ALTERNATIVE_MEAN_BY_POSITION: Alternative
ALTERNATIVE_MEAN: Alternative
ALTERNATIVE_ZERO: Alternative
ALTERNATIVE_MEAN_BY_LENGTH: Alternative

class PromptPair(_message.Message):
    __slots__ = ("clean", "corrupt", "loss_fn_config")
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    LOSS_FN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    clean: _inference_pb2.Prompt
    corrupt: _inference_pb2.Prompt
    loss_fn_config: _config_pb2.LossFnConfig
    def __init__(self, clean: _Optional[_Union[_inference_pb2.Prompt, _Mapping]] = ..., corrupt: _Optional[_Union[_inference_pb2.Prompt, _Mapping]] = ..., loss_fn_config: _Optional[_Union[_config_pb2.LossFnConfig, _Mapping]] = ...) -> None: ...
