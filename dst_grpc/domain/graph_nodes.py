"""Names of the nodes and edges of a model's computational graph: who writes to the residual stream, and who reads it.

A source writes, a reader reads the sum of the sources before it, and an edge is one source's part in what one reader
reads. Names are those of the EAP-IG library (https://github.com/hannamw/EAP-IG) and of the Mechanistic Interpretability
Benchmark: `input`, `a3.h7`, `m3`, `a3.h7<q>`, `logits`, `a0.h1->a2.h0<q>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.components import AttentionTraceType
from dst_grpc.errors import Violations

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

_HEAD = re.compile(r"a(\d+)\.h(\d+)")
_HEAD_INPUT = re.compile(r"a(\d+)\.h(\d+)<([qkv])>")
_MLP = re.compile(r"m(\d+)")


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


def check_named(problems: Violations, field: str, names: Sequence[str], kind: type[Source | Reader | Edge]) -> None:
    """Note those of the *names* in a field that are no names of that kind."""
    for i, name in enumerate(names):
        try:
            kind.named(name)
        except ValueError as error:
            problems.add(f"{field}[{i}]", str(error))
