"""What the fake service answers, of a tiny model that is nowhere: numbers that count, and facts that are made up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from dst_grpc._gen.dst.v1 import inference_pb2
from dst_grpc.domain.architecture import (
    ActivationFunction,
    Architecture,
    ModelDimensions,
    NormKind,
    PositionKind,
    unsupported_types,
)
from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.callers import Caller
from dst_grpc.domain.components import Dimension, NodeType, PassType, TensorElementType, TensorEncoding
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.domain.resolution import (
    AutoencoderInfo,
    ContextKind,
    ContextState,
    ContextStatus,
    CostEstimate,
    ModelInfo,
    Resolution,
    ScalarResolution,
    TapUse,
)
from dst_grpc.domain.results import (
    AnswerHeader,
    Axis,
    DenseTensor,
    Provenance,
    RunStatistics,
    RunSummary,
    SparseTensor,
    TensorInfo,
)
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.server_info import ServerInfo, ServerLimits
from dst_grpc.errors import DstError
from dst_grpc.wire.frames import FrameCutter

HANDLE = "tiny@0123456789ab:float32:cpu"
N_LAYERS = 2
SIZES = {
    Dimension.ATTN_HEADS: 2,
    Dimension.MLP_ACTS: 5,
    Dimension.RESIDUAL_STREAM_CHANNELS: 4,
    Dimension.VOCAB_SIZE: 7,
    Dimension.AUTOENCODER_LATENTS: 6,
    Dimension.SINGLETON: 1,
    Dimension.QUERY_AND_KEY_CHANNELS: 3,
    Dimension.VALUE_CHANNELS: 3,
}
SUMMARY = RunSummary(
    statistics=RunStatistics(forward_passes=1, backward_passes=1, queue_duration=0.25),
    provenance=Provenance(model=HANDLE, model_digest="0" * 64),
)


def tokens_of(request: DeriveRequest) -> tuple[str, ...]:
    """One token per word, the space belonging to the word after it."""
    if request.prompt is None or request.prompt.text is None:
        return ("?",) * len(request.prompt.token_ids or () if request.prompt else ())
    words = request.prompt.text.split(" ")
    return (words[0], *(f" {word}" for word in words[1:]))


def tensors_of(request: DeriveRequest) -> list[DenseTensor | SparseTensor]:
    """For each derived scalar a tensor per layer, whose elements count -2, -1, 0, ... in row-major order."""
    tensors: list[DenseTensor | SparseTensor] = []
    for spec_index, spec in enumerate(request.derived_scalars):
        facts, config = FACTS[spec.dst], request.config_of(spec)
        layers: Iterable[int | None] = (None,) if facts.once else (config.layer_indices or range(N_LAYERS))
        passes = [PassType.FORWARD, PassType.BACKWARD] if config.derive_gradients else [PassType.FORWARD]
        for pass_type in passes:
            for layer in layers:
                info = TensorInfo(
                    tensor_id=len(tensors),
                    dst=spec.dst,
                    pass_type=pass_type,
                    layer_index=layer,
                    axes=_axes(spec.dst, len(tokens_of(request))),
                    element_type=request.element_type,
                    spec_index=spec_index,
                )
                tensors.append(_filled(info, request.encoding))
    return tensors


def _axes(dst: DerivedScalarType, n_tokens: int) -> tuple[Axis, ...]:
    axes = [Axis(dimension, SIZES.get(dimension, n_tokens)) for dimension in FACTS[dst].dimensions]
    if FACTS[dst].is_flattened:
        axes[0] = Axis(axes[0].dimension, n_tokens * (n_tokens + 1) // 2)
    return tuple(axes)


def _filled(info: TensorInfo, encoding: TensorEncoding) -> DenseTensor | SparseTensor:
    whole = np.arange(np.prod(info.shape), dtype=np.float32).reshape(info.shape) - 2
    if encoding is TensorEncoding.SPARSE_LATENTS and info.axes[-1].dimension is Dimension.AUTOENCODER_LATENTS:
        where = np.argwhere(whole).astype(np.uint32)
        sparse = TensorInfo(
            tensor_id=info.tensor_id,
            dst=info.dst,
            pass_type=info.pass_type,
            layer_index=info.layer_index,
            axes=info.axes,
            encoding=encoding,
            nonzero_count=len(where),
            spec_index=info.spec_index,
        )
        return SparseTensor(sparse, whole[tuple(where.T)], where)
    if info.element_type is TensorElementType.FLOAT16:
        return DenseTensor(info, whole.astype(np.float16))
    if info.element_type is TensorElementType.BFLOAT16:
        return DenseTensor(info, (whole.view(np.uint32) >> 16).astype(np.uint16))
    return DenseTensor(info, whole)


def frames_of(request: DeriveRequest, *, chunk_bytes: int = 64) -> Iterator[inference_pb2.DeriveFrame]:
    """The whole answer, in small chunks."""
    tokens, tensors = tokens_of(request), tensors_of(request)
    cutter = FrameCutter(chunk_bytes=chunk_bytes)
    header = AnswerHeader(
        model=HANDLE,
        token_ids=tuple(range(len(tokens))),
        token_strings=tokens,
        tensors=tuple(tensor.info for tensor in tensors),
        loss=1.5 if request.loss_fn_config else None,
        activation_value=0.5 if request.trace_config else None,
        detach_final_layer_norm_scale=bool(request.detach_final_layer_norm_scale),
    )
    for part in (header, *tensors, SUMMARY):
        for frame in cutter.cut(part):
            yield inference_pb2.DeriveFrame.FromString(b"".join(frame))


ZEBRA = Architecture(
    norm=NormKind.RMS_NORM,
    positions=PositionKind.ROTARY,
    layers_without_positions=(1,),
    activation=ActivationFunction.SILU,
    gated=True,
    parallel=True,
    post_norms=True,
    qk_norm=True,
    attn_softcap=50.0,
    final_softcap=30.0,
    sliding_windows=(4, None),
)
"""As far from GPT-2 as can be; its keys and values are shared, too."""


def model_info(name: str = "tiny") -> ModelInfo:
    architecture = ZEBRA if name == "zebra" else Architecture()
    return ModelInfo(
        name=name,
        handle=HANDLE,
        family="gpt2",
        dimensions=ModelDimensions(
            n_layers=N_LAYERS,
            d_model=4,
            n_heads=2,
            n_key_value_heads=1 if name == "zebra" else 2,
            d_head=3,
            d_mlp=5,
            vocab_size=7,
            context_window=32,
        ),
        element_type=TensorElementType.FLOAT32,
        device="cpu",
        digest="0" * 64,
        parameter_bytes=123456,
        source="test",
        default_model=name == "tiny",
        state=ContextState.AVAILABLE,
        autoencoders=("tiny/mlp_post_act",),
        architecture=architecture,
        unsupported=unsupported_types(architecture),
    )


AUTOENCODER = AutoencoderInfo(
    name="tiny/mlp_post_act",
    handle="",
    model="tiny",
    dst=DerivedScalarType.MLP_POST_ACT,
    node_type=NodeType.MLP_AUTOENCODER_LATENT,
    layer_indices=(0, 1),
    n_latents=6,
    activations=(AutoencoderActivation.TOP_K,),
    spliceable=True,
    parameter_bytes=500,
    digest="1" * 64,
    state=ContextState.NOT_LOADED,
)


SERVER_INFO = ServerInfo(
    version="0.1.0",
    protocol_version=1,
    limits=ServerLimits(
        max_request_bytes=1 << 22,
        max_response_bytes=1 << 20,
        max_queued_requests=4096,
        max_queued_requests_per_caller=256,
        patience=30.0,
        max_items_in_flight_per_stream=16,
        max_items_per_stream=1000,
        max_run_bytes=1 << 33,
        max_put_tensor_bytes=1 << 28,
        max_put_tensor_ttl=3600.0,
    ),
    features=("paths",),
    caller=Caller(name="alice"),
)


def context_status(state: ContextState, bytes_loaded: int = 1000, error: DstError | None = None) -> ContextStatus:
    return ContextStatus(
        handle=HANDLE,
        kind=ContextKind.MODEL,
        state=state,
        bytes_total=1000,
        bytes_loaded=bytes_loaded,
        device="cpu",
        pins=0,
        hits=3,
        idle_duration=2.0,
        error=error,
    )


def resolution_of(request: DeriveRequest) -> Resolution:
    n_tokens = len(tokens_of(request)) or 32
    return Resolution(
        config=DstConfig(model_context=HANDLE),
        device="cpu",
        model=model_info(),
        autoencoders=(),
        scalars=tuple(
            ScalarResolution(
                dst=spec.dst,
                config=DstConfig(),
                requires_grad=FACTS[spec.dst].requires_grad_for_forward_pass,
                taps=(TapUse(location=ActivationLocationType.MLP_POST_ACT, pass_type=PassType.FORWARD),),
                pass_types=(PassType.FORWARD,),
                layer_indices=() if FACTS[spec.dst].once else tuple(range(N_LAYERS)),
                axes=_axes(spec.dst, n_tokens),
                output_bytes=2048,
            )
            for spec in request.derived_scalars
        ),
        cost=CostEstimate(
            sequence_tokens=n_tokens,
            forward_passes=1,
            backward_passes=1,
            floating_point_operations=1000,
            peak_bytes=4096,
            output_bytes=2048,
        ),
        contexts=(context_status(ContextState.AVAILABLE),),
    )
