"""Parse bytes as messages; malformed bytes raise InvalidRequest. The content is checked elsewhere."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from dst_grpc.errors import InvalidRequest, Reason

M = TypeVar("M", bound=Message)


def parse(message_type: type[M], data: bytes) -> M:
    """Parse *data* as a message of *message_type*.

    Raises:
        InvalidRequest: with reason MALFORMED_MESSAGE, if the bytes are not such a message or nest too deeply.
    """
    try:
        return message_type.FromString(data)
    except (DecodeError, RecursionError):
        name = message_type.DESCRIPTOR.full_name
        raise InvalidRequest.of(
            "",
            f"the {len(data)} bytes are no {name}, or it nests deeper than 100 messages",
            reason=Reason.MALFORMED_MESSAGE,
        ) from None
