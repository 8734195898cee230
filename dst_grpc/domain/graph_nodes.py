"""Names of the nodes and edges of a model's computational graph: who writes to the residual stream, and who reads it.

A source writes, a reader reads the sum of the sources before it, and an edge is one source's part in what one reader
reads. Names are those of the EAP-IG library (https://github.com/hannamw/EAP-IG) and of the Mechanistic Interpretability
Benchmark: `input`, `a3.h7`, `m3`, `a3.h7<q>`, `logits`, `a0.h1->a2.h0<q>`. Those of spliced autoencoders are ours:
`m3.l17` is a latent of the MLP's, `a3.error` the reconstruction error of attention's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from dst_grpc.domain.components import AttentionTraceType
from dst_grpc.errors import Violations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

_NUMBER = r"(\d{1,9})"
_HEAD = re.compile(rf"a{_NUMBER}\.h{_NUMBER}")
_HEAD_INPUT = re.compile(rf"a{_NUMBER}\.h{_NUMBER}<([qkv])>")
_MLP = re.compile(rf"m{_NUMBER}")
_PART = re.compile(rf"([amr]){_NUMBER}(?:\.(?:l{_NUMBER}|error))?")
_REMEMBERED = 1 << 13
"""Names of sources, and of readers, that are remembered: those of edges name the same ones again and again."""


@dataclass(frozen=True, slots=True)
class Source:
    """A node that writes to the residual stream: the token embedding, a head, an MLP."""

    layer: int | None = None
    """Its layer; None for the token embedding, without positions."""
    head: int | None = None
    """Its head; None for an MLP, and for the embedding."""

    def __str__(self) -> str:
        """Its name."""
        if self.layer is None:
            return "input"
        return f"m{self.layer}" if self.head is None else f"a{self.layer}.h{self.head}"

    @classmethod
    @lru_cache(_REMEMBERED)
    def named(cls, name: str) -> Self:
        """The source of that name; raises ValueError if it is no name of a source."""
        if name == "input":
            return cls()
        if found := _HEAD.fullmatch(name):
            return cls(int(found[1]), int(found[2]))
        if found := _MLP.fullmatch(name):
            return cls(int(found[1]))
        raise ValueError(f"{name!r} is not input, a head such as a0.h1, or an MLP such as m0")


@dataclass(frozen=True, slots=True)
class Part:
    """A node of an autoencoder that is spliced into a layer: a latent, the reconstruction error, or all of these."""

    place: str
    """What is reconstructed: "a", what attention writes, "m", the MLP, "r", the residual stream."""
    layer: int
    """The layer."""
    latent: int | None = None
    """Which latent; None for the error, and for all."""
    is_error: bool = False
    """Whether it is the error."""

    def __str__(self) -> str:
        """Its name."""
        all_parts = f"{self.place}{self.layer}"
        if self.is_error:
            return f"{all_parts}.error"
        return all_parts if self.latent is None else f"{all_parts}.l{self.latent}"

    @classmethod
    def named(cls, name: str) -> Self:
        """The node of that name; raises ValueError if it is no name of one."""
        found = _PART.fullmatch(name)
        if found is None:
            raise ValueError(f"{name!r} is not a latent such as m0.l17, an error such as a0.error, or all, such as r0")
        latent = None if found[3] is None else int(found[3])
        return cls(found[1], int(found[2]), latent, name.endswith(".error"))


Node = Source | Part


def node_named(name: str) -> Node:
    """The node of that name; "m0" is the source. Raises ValueError if it is no name of a node."""
    try:
        return Source.named(name)
    except ValueError as error:
        try:
            return Part.named(name)
        except ValueError:
            raise ValueError(f"{error}, nor a latent such as m0.l17 or an error such as m0.error") from None


@dataclass(frozen=True, slots=True)
class Reader:
    """A node that reads the residual stream: the query, key or value of a head, an MLP, the logits."""

    layer: int | None = None
    """Its layer; None for the logits."""
    head: int | None = None
    """Its query head; None for an MLP, and for the logits."""
    part: AttentionTraceType | None = None
    """Which input of the head: Q, K or V. Query heads that share a key or value each have a copy of their own."""

    def __str__(self) -> str:
        """Its name."""
        if self.layer is None:
            return "logits"
        if self.head is None or self.part is None:
            return f"m{self.layer}"
        return f"a{self.layer}.h{self.head}<{self.part.value.lower()}>"

    @classmethod
    @lru_cache(_REMEMBERED)
    def named(cls, name: str) -> Self:
        """The reader of that name; raises ValueError if it is no name of a reader."""
        if name == "logits":
            return cls()
        if found := _HEAD_INPUT.fullmatch(name):
            return cls(int(found[1]), int(found[2]), AttentionTraceType(found[3].upper()))
        if found := _MLP.fullmatch(name):
            return cls(int(found[1]))
        raise ValueError(f"{name!r} is not an input of a head such as a0.h1<q>, an MLP such as m0, or logits")


@dataclass(frozen=True, slots=True)
class Edge:
    """What one source adds to the input of one reader."""

    source: Source
    reader: Reader

    def __str__(self) -> str:
        """Its name."""
        return f"{self.source}->{self.reader}"

    @classmethod
    def named(cls, name: str) -> Self:
        """The edge of that name; raises ValueError if it is no name of an edge."""
        source, arrow, reader = name.partition("->")
        if not arrow:
            raise ValueError(f"{name!r} is not the name of an edge, such as a0.h1->m2")
        return cls(Source.named(source), Reader.named(reader))


def check_named(problems: Violations, field: str, names: Sequence[str], named: Callable[[str], object]) -> None:
    """Note those of the *names* in a field that *named* raises ValueError for."""
    for i, name in enumerate(names):
        try:
            named(name)
        except ValueError as error:
            problems.add(f"{field}[{i}]", str(error))
