"""Reject strings that protobuf cannot encode: lone surrogates, which Python makes of undecodable arguments and file
names."""

from __future__ import annotations

from typing import Any

from dst_grpc.errors import Violations


def check_texts(problems: Violations, field: str, texts: Any) -> None:
    """Note those of several texts that cannot be encoded as UTF-8.

    Raises:
        TypeError: If they are no texts. One text is none of them: its characters would each count as one.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{field} must be a tuple of texts, as (' Mary',), not {texts!r}")
    for i, text in enumerate(texts):
        check_text(problems, f"{field}[{i}]", text)


def check_text(problems: Violations, field: str, text: str) -> None:
    """Note it if *text* cannot be encoded as UTF-8; raises TypeError if it is no text."""
    if not isinstance(text, str):
        raise TypeError(f"{field} must be a text, not {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problems.add(field, f"has no UTF-8 form: character {error.start} is a lone surrogate")
