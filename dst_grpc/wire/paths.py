"""Paths of fields as the wire spells them, for errors found in domain values.

Domain and wire name their fields alike; only where a list's absence has a meaning does the wire wrap it in a message,
so that its elements lie one level deeper.
"""

from __future__ import annotations

import re

_WRAPPED_ELEMENT = re.compile(
    r"(?<!\w)(?:(?<!layer_indices\.)layer_indices|multi_autoencoder_context|(?<=prompt\.)token_ids)\["
)
_WIRE_NAME = {
    "layer_indices[": "layer_indices.layer_indices[",
    "multi_autoencoder_context[": "multi_autoencoder_context.autoencoder_contexts[",
    "token_ids[": "token_ids.token_ids[",
}


def wire_path(path: str) -> str:
    """The wire's path of the field at a domain value's *path*; most are the same.

    Elements of wrapped lists lie one level deeper. A wrapped list as a whole keeps its path, which is that of the
    wrapping message. To apply this twice does no harm.
    """
    return _WRAPPED_ELEMENT.sub(lambda match: _WIRE_NAME[match[0]], path)
