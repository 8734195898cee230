"""Which model a call is about, as metadata: a proxy in front of several servers sends a model's calls to one of them.

The servers take no notice of it.
"""

from __future__ import annotations

from google.protobuf.message import Message

ROUTING_KEY = "dst-model"
"""Key of the metadata that names the model of a call."""
DEFAULT_ROUTE = "default"
"""Its value where a call names none."""


def route_of(reference: str | None) -> str:
    """What stands for a model, given its name or handle: its name alone, so that both lead to the same server."""
    name = (reference or "").partition("@")[0]
    # Anything else is refused by the server, with better words than gRPC has for it.
    return name if name and name.isascii() and name.isprintable() else DEFAULT_ROUTE


def named_model(request: Message) -> str:
    """The model that a request names, or that its runs do; the context, if it is about one; else empty."""
    fields = request.DESCRIPTOR.fields_by_name
    for name in ("model", "context"):
        if name in fields and (found := str(getattr(request, name))):
            return found
    if "request" in fields:
        return named_model(request.request)  # type: ignore[attr-defined]  # the field was found
    if "runs" in fields:
        return next(filter(None, map(named_model, request.runs)), "")  # type: ignore[attr-defined]  # likewise
    return ""
