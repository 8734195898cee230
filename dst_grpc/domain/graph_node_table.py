"""Nodes of attribution graphs: their kinds, their names, and tables of them.

A name says what a node is, whatever its number: `f3.120@5` is feature 120 of layer 3 at token 5, `e3@5` the error of
layer 3 there, `t5` the embedding of token 5, `logit:464` the logit of token 464, `target:NAME` a direction that the
request calls NAME. No two nodes of a graph share a name.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc.errors import Violations

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

Array = np.ndarray[Any, Any]

_NUMBER = "(0|[1-9][0-9]{0,8})"
_FEATURE = re.compile(rf"f{_NUMBER}\.{_NUMBER}@{_NUMBER}")
_ERROR = re.compile(f"e{_NUMBER}@{_NUMBER}")
_EMBEDDING = re.compile(f"t{_NUMBER}")
_LOGIT = re.compile(f"logit:{_NUMBER}")
_DIRECTION = "target:"


class GraphNodeKind(StrEnum):
    """Kinds of nodes."""

    FEATURE = "feature"
    """A feature of a transcoder at a token."""
    ERROR = "error"
    """What the transcoder of a layer misses of its MLP's output at a token."""
    EMBEDDING = "embedding"
    """The embedding of a token."""
    TARGET = "target"
    """The logit of a token, or a direction."""

    @property
    def number(self) -> int:
        """Its number in a column of kinds, from 1: that of its message."""
        return _NUMBERS[self]


_NUMBERS = {kind: number for number, kind in enumerate(GraphNodeKind, start=1)}
_KINDS = tuple(GraphNodeKind)


@dataclass(frozen=True, slots=True)
class GraphNode:
    """What a node is."""

    kind: GraphNodeKind
    """Its kind."""
    layer: int = -1
    """The layer of a feature or error, else -1."""
    token: int = -1
    """The position of its token; -1 for targets, which are all at the last."""
    feature: int = -1
    """The feature; the token id of a logit; else -1."""
    direction: str = ""
    """What the request calls a direction, else empty."""

    def __str__(self) -> str:
        """Its name."""
        match self.kind:
            case GraphNodeKind.FEATURE:
                return f"f{self.layer}.{self.feature}@{self.token}"
            case GraphNodeKind.ERROR:
                return f"e{self.layer}@{self.token}"
            case GraphNodeKind.EMBEDDING:
                return f"t{self.token}"
        return f"{_DIRECTION}{self.direction}" if self.feature < 0 else f"logit:{self.feature}"

    @classmethod
    def named(cls, name: str) -> Self:
        """The node of that name; raises ValueError if it is no name of a node."""
        if found := _FEATURE.fullmatch(name):
            return cls(GraphNodeKind.FEATURE, int(found[1]), int(found[3]), int(found[2]))
        if found := _ERROR.fullmatch(name):
            return cls(GraphNodeKind.ERROR, int(found[1]), int(found[2]))
        if found := _EMBEDDING.fullmatch(name):
            return cls(GraphNodeKind.EMBEDDING, token=int(found[1]))
        if found := _LOGIT.fullmatch(name):
            return cls(GraphNodeKind.TARGET, feature=int(found[1]))
        if name.startswith(_DIRECTION) and name != _DIRECTION:
            return cls(GraphNodeKind.TARGET, direction=name.removeprefix(_DIRECTION))
        raise ValueError(
            f"{name!r} is no node: a feature is f3.120@5 (layer, feature, token), an error e3@5, an embedding t5, a "
            "logit logit:464, a direction target:NAME"
        )


def label_of(name: str, labels: Mapping[str, str]) -> str:
    """The text that *labels* has for the node of that *name*, or for it without its token; empty if there is none."""
    return labels.get(name, labels.get(name.partition("@")[0], ""))


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphNodeTable:
    """Some of the nodes of a graph, a column for each property; m rows."""

    nodes: Array
    """Their numbers, int32 [m]."""
    kinds: Array
    """The numbers of their kinds, int32 [m]."""
    layers: Array
    """The layer of a feature or error, else -1; int32 [m]."""
    tokens: Array
    """The position of the token, which for targets is the last; int32 [m]."""
    features: Array
    """The feature; the id of the token of an embedding or of a logit; else -1; int32 [m]."""
    activations: Array
    """The activation of a feature, else 0; float32 [m]."""
    names: tuple[str, ...]
    """Their names (m)."""

    def __post_init__(self) -> None:
        """Check that all columns are as long; raises InvalidRequest."""
        check_columns(self)

    @classmethod
    def of(
        cls,
        *,
        features: Array,
        activations: Array,
        n_layers: int,
        token_ids: Sequence[int],
        target_ids: Sequence[int],
        target_names: Sequence[str],
    ) -> Self:
        """All nodes of a graph, in their order: features, errors, embeddings, targets.

        Args:
            features: layer, token and feature of each, ascending; [k, 3].
            activations: their activations [k].
            n_layers: layers of the model.
            token_ids: the prompt (T).
            target_ids: the token id of each target; -1 for a direction.
            target_names: what each direction is called; those of tokens are not read.
        """
        n_tokens, n_features, n_targets = len(token_ids), len(features), len(target_ids)
        positions = np.arange(n_tokens)
        counts = n_features, n_layers * n_tokens, n_tokens, n_targets
        no_layer, last = np.full(n_tokens + n_targets, -1), np.full(n_targets, n_tokens - 1)
        named = [
            *(GraphNode(GraphNodeKind.FEATURE, *place) for place in features[:, [0, 1, 2]].tolist()),
            *(GraphNode(GraphNodeKind.ERROR, layer, token) for layer in range(n_layers) for token in range(n_tokens)),
            *(GraphNode(GraphNodeKind.EMBEDDING, token=token) for token in range(n_tokens)),
            *(
                GraphNode(GraphNodeKind.TARGET, feature=token, direction=name if token < 0 else "")
                for token, name in zip(target_ids, target_names, strict=True)
            ),
        ]
        return cls(
            nodes=np.arange(sum(counts), dtype=np.int32),
            kinds=np.repeat([kind.number for kind in _KINDS], counts).astype(np.int32),
            layers=_column(features[:, 0], np.repeat(np.arange(n_layers), n_tokens), no_layer),
            tokens=_column(features[:, 1], np.tile(positions, n_layers + 1), last),
            features=_column(features[:, 2], np.full(counts[1], -1), token_ids, target_ids),
            activations=np.concatenate([activations, np.zeros(sum(counts[1:]))]).astype(np.float32),
            names=tuple(map(str, named)),
        )

    def __len__(self) -> int:
        """Rows."""
        return len(self.nodes)

    def rows(self, places: Array | slice) -> Self:
        """The rows at *places*."""
        columns = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "names"}
        names = tuple(self.names[i] for i in np.arange(len(self))[places])
        return type(self)(**{name: column[places] for name, column in columns.items()}, names=names)

    def place(self, name: str) -> int:
        """The row of the node of that *name*; raises KeyError if there is none."""
        return self._places[name]

    def has(self, name: str) -> bool:
        """Whether there is a node of that *name*."""
        return name in self._places

    def nearest(self, name: str, count: int = 3) -> tuple[str, ...]:
        """Names of nodes of the kind that *name* is of: for a target the most similar ones, else those that share most
        of layer, token and feature, the least distant first. Raises ValueError if *name* is no name of a node."""
        wanted = GraphNode.named(name)
        places = np.flatnonzero(self.has_kind(wanted.kind))
        if wanted.kind is GraphNodeKind.TARGET:
            names = [self.names[place] for place in places]
            return tuple(difflib.get_close_matches(name, names, n=count, cutoff=0.4) or names[:count])
        pairs = [(self.layers, wanted.layer), (self.tokens, wanted.token)]
        if wanted.kind is GraphNodeKind.FEATURE:
            pairs.append((self.features, wanted.feature))
        distances = [np.abs(column[places].astype(np.int64) - value) for column, value in pairs]
        order = np.lexsort((*reversed(distances), np.count_nonzero(distances, axis=0)))
        return tuple(self.names[place] for place in places[order[:count]])

    def missing(self, name: str) -> str:
        """The sentence that there is no node of that *name*, a possible one; with the nearest that there are."""
        nearest = ", ".join(self.nearest(name))
        hint = f"; the nearest are {nearest}" if nearest else f", nor any other of kind {GraphNode.named(name).kind}"
        return f"there is no node {name}{hint}"

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    def has_kind(self, kind: GraphNodeKind) -> Array:
        """Which rows are of *kind*, bool [m]."""
        return np.asarray(self.kinds == kind.number)

    def allowed(self, layers: Iterable[int], tokens: Iterable[int], kinds: Iterable[GraphNodeKind]) -> Array:
        """Which rows are left, bool [m]; restrictions that are empty leave all.

        Args:
            layers: features and errors of other layers are left out.
            tokens: nodes at other positions are left out.
            kinds: nodes of other kinds are left out.
        """
        left = np.ones(len(self), dtype=bool)
        if wanted := [*layers]:
            left &= (self.layers < 0) | np.isin(self.layers, wanted)
        if wanted := [*tokens]:
            left &= np.isin(self.tokens, wanted)
        if wanted := [kind.number for kind in kinds]:
            left &= np.isin(self.kinds, wanted)
        return left

    @property
    def depths(self) -> Array:
        """Numbers [m] that are smaller for the source of an edge than for its target: a feature's layer, -1 for errors
        and embeddings, which nothing acts on, and one more than all for targets."""
        depths = np.where(self.has_kind(GraphNodeKind.FEATURE), self.layers, -1)
        return np.where(self.has_kind(GraphNodeKind.TARGET), self.layers.max(initial=0) + 1, depths)


def check_columns(table: Any) -> None:
    """Raise InvalidRequest unless all columns of *table* are as long as its first."""
    problems = Violations()
    n_rows = len(table.nodes)
    for each in fields(table):
        n_found = len(getattr(table, each.name))
        problems.check(n_found == n_rows, each.name, f"must have {n_rows} rows as nodes has, not {n_found}")
    problems.raise_if_any()


def _column(*parts: Any) -> Array:
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
