"""What a server says of itself: version, limits, features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc import __version__
from dst_grpc.domain.server_info import PROTOCOL_VERSION, ServerInfo, ServerLimits
from dst_grpc.wire.envelope import MESSAGE_BYTES

if TYPE_CHECKING:
    from dst_grpc.rpc.settings import Settings


def server_info(settings: Settings) -> ServerInfo:
    """The description of a server with *settings*."""
    features = {"autoencoder_paths": bool(settings.autoencoder_roots), "reflection": settings.reflection}
    return ServerInfo(
        version=__version__,
        protocol_version=PROTOCOL_VERSION,
        limits=ServerLimits(
            max_request_bytes=settings.max_message_bytes,
            max_response_bytes=MESSAGE_BYTES,
            max_queued_requests=settings.max_queued_requests,
            max_items_in_flight_per_stream=settings.max_items_in_flight_per_stream,
            max_items_per_stream=settings.max_items_per_stream,
            max_run_bytes=settings.max_run_bytes,
            max_put_tensor_bytes=settings.max_put_tensor_bytes,
            max_put_tensor_ttl=settings.put_tensor_ttl_seconds,
            max_queued_requests_per_caller=settings.max_queued_requests_per_caller,
            patience=settings.patience_seconds,
        ),
        features=tuple(name for name, is_on in features.items() if is_on),
    )
