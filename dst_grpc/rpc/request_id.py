"""The id of a call: by which its caller, the proxies between and the server's log know it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from random import getrandbits
from typing import Final

REQUEST_ID_KEY: Final = "x-request-id"
"""The key of the metadata that has it, of calls and of their answers."""
_USABLE = re.compile(r"[!-~]{1,128}")
"""What is written to the log as it is: visible ASCII, and little of it."""


def request_id_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The id in the *metadata* of a call; a new one if it has none, or one that is not 1 to 128 visible characters."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _USABLE.fullmatch(value):
            return value
    return f"{getrandbits(64):016x}"  # a number, no secret
