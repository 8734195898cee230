"""Nodes of attribution graphs: their kinds, their names, and tables of them.

A name says what a node is, whatever its number: `f3.120@5` is feature 120 of layer 3 at token 5, `n3.120@5` a neuron,
`h3.2@5` a head, `m3.l120@5` a latent of the MLP's autoencoder, `a3.l120@5` and `r3.l120@5` those of attention's and of
the residual's; `e3@5` is the error of layer 3 there, `a3.error@5` and `r3.error@5` those of attention's autoencoder and
of the residual's; `t5` the embedding of token 5, `logit:464` the logit of token 464, `target:NAME` a direction that the
request calls NAME. No two nodes of a graph share a name.

Features, neurons, heads and latents are *units*: what others act on, and what acts on others.
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

_DIRECTION = "target:"


class GraphNodeKind(StrEnum):
    """Kinds of nodes."""

    FEATURE = "feature"
    """A feature of a transcoder at a token."""
    ERROR = "error"
    """What nothing explains of the output of a layer's MLP at a token: what its transcoder or autoencoder misses, or
    all."""
    EMBEDDING = "embedding"
    """The embedding of a token."""
    TARGET = "target"
    """The logit of a token, or a direction."""
    NEURON = "neuron"
    """A neuron of an MLP at a token."""
    HEAD = "head"
    """What an attention head writes at a token."""
    MLP_LATENT = "mlp_latent"
    """A latent of the autoencoder of an MLP at a token."""
    ATTENTION_LATENT = "attention_latent"
    """A latent of the autoencoder of what attention writes at a token."""
    RESIDUAL_LATENT = "residual_latent"
    """A latent of the autoencoder of a residual at a token."""
    ATTENTION_ERROR = "attention_error"
    """What the autoencoder of what attention writes misses at a token."""
    RESIDUAL_ERROR = "residual_error"
    """What the autoencoder of a residual misses at a token."""

    @property
    def number(self) -> int:
        """Its number in a column of kinds, from 1: that of its message."""
        return _NUMBERS[self]

    @staticmethod
    def numbered(number: int) -> GraphNodeKind:
        """The kind of that *number*; raises KeyError if there is none."""
        return _KINDS[number]


_NUMBERS = {kind: number for number, kind in enumerate(GraphNodeKind, start=1)}
_KINDS = {number: kind for kind, number in _NUMBERS.items()}
_K = GraphNodeKind
UNIT_KINDS = (_K.FEATURE, _K.NEURON, _K.HEAD, _K.MLP_LATENT, _K.ATTENTION_LATENT, _K.RESIDUAL_LATENT)
"""Kinds of nodes that others act on and that act on others."""
ERROR_KINDS = (_K.ERROR, _K.ATTENTION_ERROR, _K.RESIDUAL_ERROR)
"""Kinds of nodes that stand for what is not explained."""
RECTIFIED_KINDS = (_K.FEATURE, _K.MLP_LATENT, _K.ATTENTION_LATENT, _K.RESIDUAL_LATENT)
"""Kinds of units whose activations are not below 0."""

_FORMS = {
    _K.FEATURE: "f{layer}.{feature}@{token}",
    _K.NEURON: "n{layer}.{feature}@{token}",
    _K.HEAD: "h{layer}.{feature}@{token}",
    _K.MLP_LATENT: "m{layer}.l{feature}@{token}",
    _K.ATTENTION_LATENT: "a{layer}.l{feature}@{token}",
    _K.RESIDUAL_LATENT: "r{layer}.l{feature}@{token}",
    _K.ERROR: "e{layer}@{token}",
    _K.ATTENTION_ERROR: "a{layer}.error@{token}",
    _K.RESIDUAL_ERROR: "r{layer}.error@{token}",
    _K.EMBEDDING: "t{token}",
}
"""Names of nodes."""
_NUMBER = "(?P<{}>0|[1-9][0-9]{{0,8}})"
_NUMBERED = {name: _NUMBER.format(name) for name in ("layer", "feature", "token")}
_PATTERNS = {kind: re.compile(form.replace(".", r"\.").format(**_NUMBERED)) for kind, form in _FORMS.items()}
_LOGIT = re.compile("logit:" + _NUMBERED["feature"])


@dataclass(frozen=True, slots=True)
class GraphNode:
    """What a node is."""

    kind: GraphNodeKind
    """Its kind."""
    layer: int = -1
    """The layer of a unit or error, else -1."""
    token: int = -1
    """The position of its token; -1 for targets, which are all at the last."""
    feature: int = -1
    """The number of a unit within its layer; the token id of a logit; else -1."""
    direction: str = ""
    """What the request calls a direction, else empty."""

    def __str__(self) -> str:
        """Its name."""
        if self.kind in _FORMS:
            return _FORMS[self.kind].format(layer=self.layer, feature=self.feature, token=self.token)
        return f"{_DIRECTION}{self.direction}" if self.feature < 0 else f"logit:{self.feature}"

    @classmethod
    def named(cls, name: str) -> Self:
        """The node of that name; raises ValueError if it is no name of a node."""
        for kind, pattern in _PATTERNS.items():
            if found := pattern.fullmatch(name):
                numbers = {part: int(number) for part, number in found.groupdict().items()}
                return cls(kind, numbers.get("layer", -1), numbers["token"], numbers.get("feature", -1))
        if found := _LOGIT.fullmatch(name):
            return cls(_K.TARGET, feature=int(found["feature"]))
        if name.startswith(_DIRECTION) and name != _DIRECTION:
            return cls(_K.TARGET, direction=name.removeprefix(_DIRECTION))
        raise ValueError(
            f"{name!r} is no node: a feature is f3.120@5 (layer, feature, token), a neuron n3.120@5, a head h3.2@5, a "
            "latent m3.l120@5, a3.l120@5 or r3.l120@5, an error e3@5, a3.error@5 or r3.error@5, an embedding t5, a "
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
    """The layer of a unit or error, else -1; int32 [m]."""
    tokens: Array
    """The position of the token, which for targets is the last; int32 [m]."""
    features: Array
    """The number of a unit within its layer; the id of the token of an embedding or of a logit; else -1; int32 [m]."""
    activations: Array
    """The activation of a unit, else 0; float32 [m]."""
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
        kinds: Array,
        activations: Array,
        errors: Sequence[tuple[GraphNodeKind, int]],
        token_ids: Sequence[int],
        target_ids: Sequence[int],
        target_names: Sequence[str],
    ) -> Self:
        """All nodes of a graph, in their order: units, errors, embeddings, targets.

        Args:
            features: layer, token and number of each unit, in the order of nodes; [k, 3].
            kinds: the numbers of their kinds [k].
            activations: their activations [k].
            errors: the kind and layer of errors, of which there is one at each token.
            token_ids: the prompt (T).
            target_ids: the token id of each target; -1 for a direction.
            target_names: what each direction is called; those of tokens are not read.
        """
        n_tokens, n_features, n_targets = len(token_ids), len(features), len(target_ids)
        positions = np.arange(n_tokens)
        error_kinds = np.repeat([kind.number for kind, _ in errors], n_tokens)
        error_layers = np.repeat([layer for _, layer in errors], n_tokens)
        counts = n_features, len(errors) * n_tokens, n_tokens, n_targets
        no_layer, last = np.full(n_tokens + n_targets, -1), np.full(n_targets, n_tokens - 1)
        named = [
            *(
                GraphNode(_K.numbered(kind), *place)
                for kind, place in zip(kinds.tolist(), features[:, [0, 1, 2]].tolist(), strict=True)
            ),
            *(GraphNode(kind, layer, token) for kind, layer in errors for token in range(n_tokens)),
            *(GraphNode(_K.EMBEDDING, token=token) for token in range(n_tokens)),
            *(
                GraphNode(_K.TARGET, feature=token, direction=name if token < 0 else "")
                for token, name in zip(target_ids, target_names, strict=True)
            ),
        ]
        of_others = np.repeat([_K.EMBEDDING.number, _K.TARGET.number], counts[2:])
        return cls(
            nodes=np.arange(sum(counts), dtype=np.int32),
            kinds=_column(kinds, error_kinds, of_others),
            layers=_column(features[:, 0], error_layers, no_layer),
            tokens=_column(features[:, 1], np.tile(positions, len(errors) + 1), last),
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
        if wanted.kind in UNIT_KINDS:
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

    def has_kind(self, *kinds: GraphNodeKind) -> Array:
        """Which rows are of one of *kinds*, bool [m]."""
        return np.isin(self.kinds, [kind.number for kind in kinds])

    def allowed(self, layers: Iterable[int], tokens: Iterable[int], kinds: Iterable[GraphNodeKind]) -> Array:
        """Which rows are left, bool [m]; restrictions that are empty leave all.

        Args:
            layers: units and errors of other layers are left out.
            tokens: nodes at other positions are left out.
            kinds: nodes of other kinds are left out.
        """
        left = np.ones(len(self), dtype=bool)
        if wanted := [*layers]:
            left &= (self.layers < 0) | np.isin(self.layers, wanted)
        if wanted := [*tokens]:
            left &= np.isin(self.tokens, wanted)
        if wanted_kinds := [*kinds]:
            left &= self.has_kind(*wanted_kinds)
        return left

    @property
    def depths(self) -> Array:
        """Numbers [m] that are smaller for the source of an edge than for its target: a unit's own, as units are in the
        order in which a pass comes to them; -1 for errors and embeddings, which nothing acts on, and one more than all
        for targets."""
        depths = np.where(self.has_kind(*UNIT_KINDS), self.nodes, -1)
        return np.where(self.has_kind(_K.TARGET), self.nodes.max(initial=0) + 1, depths)


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
