"""Names and handles of contexts.

A name ("embedded", "embedded/mlp_post_act") is what an operator registers. A handle adds revision, element type and
device, and so identifies one context exactly: `name@revision:element_type:device`, e.g.
`embedded@1f0c9a27:float32:cpu`. Wherever a context is expected, either may be given; a name means whatever the registry
maps it to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dst_grpc.domain.components import TensorElementType
from dst_grpc.errors import InvalidRequest

DIGEST_CHARACTERS = 12
"""How many characters of a digest handles contain and people are shown."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_REVISION = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?|mps(:\d{1,3})?")


def is_device(text: str) -> bool:
    """Whether *text* names a device: cpu, cuda, cuda:N, mps or mps:N."""
    return _DEVICE.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRef:
    """A reference to a model or autoencoder context: a name alone, or a full handle."""

    name: str
    """Registered name."""
    revision: str | None = None
    """Digest or revision of the files; None in a bare name."""
    element_type: TensorElementType | None = None
    """Element type of the weights; None in a bare name."""
    device: str | None = None
    """Device of the context; None in a bare name."""

    @classmethod
    def parse(cls, text: str) -> ContextRef:
        """Read a name or handle; raises InvalidRequest (field "") if it is neither."""
        name, at, rest = text.partition("@")
        if not _NAME.fullmatch(name):
            raise InvalidRequest.of("", f"{text!r} is not a name: letters, digits and . _ / - are allowed")
        if not at:
            return cls(name=name)
        parts = rest.split(":", 2)
        if len(parts) != 3 or not _REVISION.fullmatch(parts[0]) or not is_device(parts[2]):
            raise InvalidRequest.of("", f"{text!r} is not a handle of the form name@revision:element_type:device")
        try:
            element_type = TensorElementType(parts[1])
        except ValueError:
            raise InvalidRequest.of("", f"{text!r} names the unknown element type {parts[1]!r}") from None
        return cls(name=name, revision=parts[0], element_type=element_type, device=parts[2])

    @property
    def is_handle(self) -> bool:
        """Whether this names one context exactly."""
        return self.revision is not None

    def __str__(self) -> str:
        """The text form that `parse` reads."""
        if not self.is_handle:
            return self.name
        return f"{self.name}@{self.revision}:{self.element_type}:{self.device}"
