"""All entries of one derived scalar of one run: its largest and smallest nodes, its sum, and its values at any nodes.

A type is derived once, some layers at a time, and only candidates and sums are kept: the memory is that of one layer,
however long the prompt, or a few MiB. To look nodes up, their layers are derived again, unless the type is so small
that it was kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import PassType
from dst_grpc.domain.entries import is_of_token_pairs, node_at
from dst_grpc.domain.explanations import MAX_TOKENS_OF_PAIR_SUMS
from dst_grpc.engine.element_types import out_of_range, why_out_of_range
from dst_grpc.scalars.extremes import extremes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.domain.scalar_facts import ScalarFacts
    from dst_grpc.scalars.derive import Derivation
    from dst_grpc.scalars.node_groups import NodeGroups

Ranked = list[tuple[float, "NodeIndex"]]
"""Nodes with their values, best first."""
STEP_BYTES = 4 << 20
"""Bytes of tensors that are searched together: those of many layers, if the prompt is short."""


class Entries:
    """One derived scalar of one run. Used on the device's thread only."""

    def __init__(self, derivation: Derivation) -> None:
        """Derive nothing yet."""
        self.derivation = derivation
        self.facts: ScalarFacts = derivation.task.facts
        self._best: dict[bool, Ranked] = {}
        self._sum: torch.Tensor | None = None
        self._kept: dict[int | None, torch.Tensor] = {}
        """Tensors of layers, if `scan` kept them."""

    @property
    def _layers(self) -> tuple[int | None, ...]:
        return self.derivation.task.layers

    def _tensor(self, layer: int | None) -> torch.Tensor:
        kept = self._kept.get(layer)
        return self.derivation.at(layer)[PassType.FORWARD] if kept is None else kept

    def scan(self, k: int, token: int | None, ends: Iterable[bool], *, is_kept: bool = False) -> None:
        """Derive all layers once: find the *k* best entries at each of *ends* (True = largest), and sum.

        Args:
            k: nodes to select at each end; more than there are means all.
            token: select only at this token; None = at every one.
            ends: which ends, largest or not.
            is_kept: whether to keep all layers, for `values_at`.

        Raises:
            OutOfRange: if there are entries that are not finite, which have no order.
        """
        found: dict[bool, list[tuple[float, int, _Layout]]] = {largest: [] for largest in ends}
        sums = None
        for layers, x in self._in_steps():
            if is_kept:
                self._kept.update(zip(layers, x, strict=True))
            hidden = x.isneginf() if self.facts.has_hidden_entries else None
            summed = self._summed(x if hidden is None else x.masked_fill(hidden, 0.0))
            sums = summed if sums is None else sums + summed
            rows = _rows(self.facts, x, token)
            layout = _Layout(self.facts, layers, token or 0, rows.shape[1:])
            for largest in found:
                # Scores of masked keys are -inf: they rank last at either end, and are left out.
                ranked = rows if hidden is None or largest else rows.masked_fill(rows.isneginf(), math.inf)
                values, positions = extremes(ranked.reshape(1, -1), k, largest=largest)
                pairs = zip(values[0].tolist(), positions[0].tolist(), strict=True)
                found[largest] += [(value, place, layout) for value, place in pairs if not math.isinf(value)]
        self._sum = sums
        if not math.isfinite(self.total):
            dtype = self.derivation.model.decoder.dtype
            problem = f"{self.facts.type} has values that are not finite: {why_out_of_range(dtype)}"
            raise out_of_range(problem, dtype)
        for largest, best in found.items():
            best.sort(key=lambda entry: entry[0], reverse=largest)
            self._best[largest] = [(value, layout.node(place)) for value, place, layout in best[:k]]

    def _in_steps(self) -> Iterator[tuple[Sequence[int | None], torch.Tensor]]:
        """Layers, and their tensors as one [layers, ...]: as many at once as take few bytes."""
        todo = list(self._layers)
        while todo:
            first = self._tensor(todo[0])
            layers = todo[: max(STEP_BYTES // max(first.nbytes, 1), 1)]
            rest = [self._tensor(layer) for layer in layers[1:]]
            yield layers, torch.stack([first, *rest]) if rest else first.unsqueeze(0)
            del first, rest, todo[: len(layers)]

    def best(self, k: int, *, largest: bool) -> Ranked:
        """The *k* best nodes at one end, found by `scan`."""
        return self._best[largest][:k]

    def _summed(self, x: torch.Tensor) -> torch.Tensor:
        """Sum [T] or [T, U] of the layers *x* [layers, ...] over all axes that are not of tokens, without keys later
        than their query."""
        if not is_of_token_pairs(self.facts):
            return x.flatten(2).sum(dim=2).sum(dim=0)
        x = x.sum(dim=0)
        if self.facts.is_flattened:
            n_tokens = _rows_of_triangle(len(x))
            t, u = torch.tril_indices(n_tokens, n_tokens, device=x.device)
            summed = x.new_zeros(n_tokens, n_tokens)
            summed[t, u] = x.flatten(1).sum(dim=1)
            return summed
        return x.flatten(2).sum(dim=2).tril()

    @property
    def sum(self) -> torch.Tensor:
        """Sum over layers and all axes but those of the tokens: [T] or [T, U]; long prompts have [T] only."""
        if self._sum is None:
            return torch.zeros(self.derivation.recorded.n_tokens)
        return sum_to_send(self._sum)

    @cached_property
    def total(self) -> float:
        """Sum over everything."""
        return 0.0 if self._sum is None else self._sum.double().sum().item()

    def values_at(self, nodes: NodeGroups, values: torch.Tensor) -> None:
        """Write the value at each node that is one of this type into *values* [nodes of the list]."""
        rank = len(self.facts.dimensions) + self.facts.is_flattened
        positions, found = [], []
        for layer in self._layers:
            group = nodes.of(self.facts.node_type, layer, rank)
            if group is not None:
                x = self._tensor(layer)
                inside, places = group.places_in(x.shape)
                positions.append(inside)
                found.append(x.take(places.to(x.device)))
        if found:
            values[torch.cat(positions)] = torch.cat(found).to("cpu", torch.float32)


def sum_to_send(summed: torch.Tensor) -> torch.Tensor:
    """A sum [T] or [T, U] as it is sent: [T] if the pairs of tokens are too many for a message."""
    return summed.sum(dim=1) if summed.ndim == 2 and len(summed) > MAX_TOKENS_OF_PAIR_SUMS else summed


@dataclass(frozen=True, slots=True)
class _Layout:
    """Maps the entries of some layers that may be selected to nodes."""

    facts: ScalarFacts
    layers: Sequence[int | None]
    first_token: int
    shape: tuple[int, ...]
    """Sizes of the axes of a layer: rows, as of `_rows`, and those after them."""

    def node(self, position: int) -> NodeIndex:
        """The node at a position, entries counted layer by layer and row by row."""
        entry = []
        for size in reversed(self.shape):
            position, index = divmod(position, size)
            entry.append(index)
        layer, row = self.layers[position], entry.pop()
        if is_of_token_pairs(self.facts):
            pair = row + self.first_token * (self.first_token + 1) // 2
            t = _rows_of_triangle(pair)
            entry += [pair - t * (t + 1) // 2, t]
        else:
            entry.append(row + self.first_token)
        return node_at(self.facts, layer, entry[::-1])


def _rows(facts: ScalarFacts, x: torch.Tensor, token: int | None) -> torch.Tensor:
    """The entries of layers that may be selected: of each a row per token, or per pair of tokens of the lower
    triangle."""
    if is_of_token_pairs(facts):
        return _triangle(x, is_flattened=facts.is_flattened, token=token)
    return x if token is None else x[:, token : token + 1]


def _triangle(x: torch.Tensor, *, is_flattened: bool, token: int | None) -> torch.Tensor:
    """Rows of the pairs of tokens (t, u <= t) of *x* [layers, T, U, ...], or of its flattened form, t-major."""
    if is_flattened:
        return x if token is None else x[:, token * (token + 1) // 2 :][:, : token + 1]
    if token is not None:
        return x[:, token, : token + 1]
    t, u = torch.tril_indices(x.shape[1], x.shape[2], device=x.device)
    return x[:, t, u]


def _rows_of_triangle(n_pairs: int) -> int:
    """The largest T whose T (T + 1) / 2 pairs are at most *n_pairs*."""
    return (math.isqrt(8 * n_pairs + 1) - 1) // 2
