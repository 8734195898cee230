"""Reject strings that protobuf cannot encode: lone surrogates, which Python makes of undecodable arguments and file
names."""

from __future__ import annotations

from dst_grpc.errors import Violations


def check_text(problems: Violations, field: str, text: str) -> None:
    """Note it if *text* cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problems.add(field, f"has no UTF-8 form: character {error.start} is a lone surrogate")
