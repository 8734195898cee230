"""Texts that can travel: UTF-8, so without lone surrogates, which Python makes of undecodable arguments and names."""

from __future__ import annotations

from dst_grpc.errors import Violations


def check_text(problems: Violations, field: str, text: str) -> None:
    """Note that *text* is none which UTF-8 can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problems.add(field, f"has no UTF-8 form: character {error.start} is a lone surrogate")
