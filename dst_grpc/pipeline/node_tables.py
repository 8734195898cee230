"""Tables of the nodes that groups select in runs, and sums of whole derived scalars.

Every type of every run is derived once, for all groups together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import NodeType
from dst_grpc.domain.explanations import (
    Completeness,
    ExplainPart,
    GroupValues,
    NodeTable,
    ResidualShares,
    ScalarSum,
)
from dst_grpc.domain.scalars import FACTS
from dst_grpc.errors import InvalidRequest
from dst_grpc.pipeline.explain_plan import KEPT_BYTES, MAX_TABLE_NODES, ends_of
from dst_grpc.scalars.left_out import EffectsLeftOut, LeftOut
from dst_grpc.scalars.node_groups import NodeGroups
from dst_grpc.scalars.residual_shares import SharesOfResiduals
from dst_grpc.scalars.topk import Entries

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from dst_grpc.domain.explain import TopKGroup
    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.domain.scalar_types import DerivedScalarType
    from dst_grpc.engine.tokenizer import Tokenizer
    from dst_grpc.pipeline.explain_plan import ExplainPlan
    from dst_grpc.pipeline.run import RunResult
    from dst_grpc.scalars.residual_shares import Shares

_P = ExplainPart


_Ends = tuple[list["NodeIndex"], list["NodeIndex"]]
"""The largest and the smallest nodes, each list descending."""


@dataclass(frozen=True, slots=True)
class _LookedUp:
    """Values of nodes in one run."""

    places: Mapping[NodeIndex, int]
    """Where each node is."""
    values: Mapping[DerivedScalarType, torch.Tensor]
    """Of each type, NaN at nodes that are none of it, [nodes]."""


class NodeTables:
    """The selections of the groups of one request. Used on the device's thread only."""

    def __init__(self, asked: ExplainPlan, results: Sequence[RunResult], tokenizer: Tokenizer) -> None:
        """Derive nothing yet; *results* are those of the plans of *asked*."""
        self._asked, self._results, self._tokenizer = asked, results, tokenizer
        self._groups = (*(asked.groups if _P.NODE_TABLE in asked.parts else ()), *asked.component_groups)
        self._entries: list[dict[DerivedScalarType, Entries]] = []
        """The types of each run."""
        self._chosen: list[dict[TopKGroup, _Ends]] = []
        """What each group selected in each run."""
        self._looked_up: list[_LookedUp] = []
        """For each run what any table may list."""

    def scan(self) -> None:
        """Derive every type of every run once; sums and tables are then made from the candidates."""
        asked, left = self._asked, KEPT_BYTES
        for i, result in enumerate(self._results):
            sizes = {s.facts.type: s.output_bytes for s in result.plan.scalars}
            found = {s.facts.type: Entries(result.derivation(s)) for s in result.plan.scalars}
            for dst, entries in found.items():
                mine = [group for group in self._groups if dst in group.dsts]
                ends = {end for group in mine for end in ends_of(group.selection)}
                is_kept = sizes[dst] <= left
                left -= sizes[dst] if is_kept else 0
                entries.scan(max(map(self._k, mine)), asked.token_indices[i], sorted(ends), is_kept=is_kept)
            self._entries.append(found)
            self._chosen.append({group: self._chosen_by(found, group) for group in self._groups})

    def look_up(self) -> None:
        """Look up all nodes that any group selected, of all tables together: layers are derived again for it."""
        lists = [_listed(of_run.values()) for of_run in self._chosen]
        if self._asked.is_shared:
            everyone = dict.fromkeys(node for nodes in lists for node in nodes)
            lists = [everyone] * len(lists)
        places = NodeGroups(())
        for i, nodes in enumerate(lists):
            if i == 0 or not self._asked.is_shared:  # shared nodes are the same for every run
                places = NodeGroups(tuple(nodes))
            values = {dst: torch.full((places.count,), torch.nan) for dst in self._entries[i]}
            for dst, found in values.items():
                self._entries[i][dst].values_at(places, found)
            self._looked_up.append(_LookedUp({node: number for number, node in enumerate(nodes)}, values))

    def sums(self, i: int) -> list[ScalarSum]:
        """The sum of each type of one run."""
        return [
            ScalarSum(dst=dst, values=entries.sum.float().cpu().numpy()) for dst, entries in self._entries[i].items()
        ]

    def tables(self, groups: Sequence[TopKGroup]) -> list[NodeTable]:
        """The table of each run: the nodes that it selected itself or, if shared, that any run selected."""
        lists: list[dict[NodeIndex, None]] = []
        for of_run in self._chosen:
            nodes = _listed(of_run[group] for group in groups)
            if self._asked.is_shared and lists:
                lists[0].update(nodes)
                nodes = lists[0]
            self._check_count(len(nodes))
            lists.append(nodes)
        tables: list[NodeTable] = []
        for i, nodes in enumerate(lists):
            numbers = {node: number for number, node in enumerate(nodes)}
            places = torch.tensor([self._looked_up[i].places[node] for node in nodes], dtype=torch.long)
            of_groups = [self._group_values(i, group, numbers, places) for group in groups]
            tables.append(NodeTable(nodes=tuple(numbers), groups=tuple(of_groups), vocab_tokens=self._texts(numbers)))
        return tables

    def _k(self, group: TopKGroup) -> int:
        return self._asked.k if group.k is None else group.k

    def _check_count(self, count: int) -> None:
        if count > MAX_TABLE_NODES:
            raise InvalidRequest.of("k", f"the runs choose {count} nodes; a table holds at most {MAX_TABLE_NODES}")

    def _chosen_by(self, entries: Mapping[DerivedScalarType, Entries], group: TopKGroup) -> _Ends:
        """The largest and the smallest nodes of a group in one run, each list descending."""
        lists: dict[bool, list[NodeIndex]] = {True: [], False: []}
        for largest in ends_of(group.selection):
            ranked = [pair for dst in group.dsts for pair in entries[dst].best(self._k(group), largest=largest)]
            ranked.sort(key=lambda pair: -pair[0])
            lists[largest] = [node for _, node in ranked]
        return lists[True], lists[False]

    def _group_values(
        self, i: int, group: TopKGroup, numbers: Mapping[NodeIndex, int], places: torch.Tensor
    ) -> GroupValues:
        values = torch.full((len(numbers),), torch.nan)
        mine = {dst: self._entries[i][dst] for dst in group.dsts}
        again = [dst for dst, entries in mine.items() if _says_effects_again(entries)]
        added_up = [dst for dst in mine if dst not in again]
        for dst in added_up:
            values = self._with_values(i, dst, places, values)
        listed = values.double().nansum().item()
        for dst in again:
            values = self._with_values(i, dst, places, values)
        chosen = self._chosen[i][group]
        left_out = self._left_out(i, group)
        return GroupValues(
            group_id=group.group_id,
            values=values.numpy(),
            top=tuple(numbers[node] for node in chosen[0]),
            bottom=tuple(numbers[node] for node in chosen[1]),
            completeness=Completeness(
                listed=listed,
                total=sum(mine[dst].total for dst in added_up),
                target=self._results[i].target if added_up else None,
                reconstruction_error=sum(one.errors for one in left_out) if left_out else None,
                uncovered_layers=sum(one.uncovered for one in left_out) if left_out else None,
                skip_connections=next((one.skips for one in left_out if one.skips is not None), None),
                residuals=tuple(
                    ResidualShares(
                        layer_index=layer,
                        listed=_sum_of(values, numbers, [FACTS[each].node_type for each in again], layer),
                        latents=shares.latents,
                        error=shares.error,
                        decoder_bias=shares.decoder_bias,
                    )
                    for dst in again
                    for layer, shares in self._residuals(i, dst).items()
                ),
            ),
        )

    def _with_values(self, i: int, dst: DerivedScalarType, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """*values* [n] with those of a type at its nodes, of nodes that were looked up at *places* [n]."""
        found = self._looked_up[i].values[dst][places]
        return torch.where(found.isnan(), values, found)

    def _residuals(self, i: int, dst: DerivedScalarType) -> dict[int, Shares]:
        """The residual at each layer in terms of a type's latents; nothing if it is not about effects of these."""
        derivation = self._entries[i][dst].derivation
        shares = SharesOfResiduals.of(derivation.task)
        return {} if shares is None else shares.by_layer(derivation.model, derivation.recorded)

    def _left_out(self, i: int, group: TopKGroup) -> list[EffectsLeftOut]:
        """Direct effects of what the latents of each type of a group leave out; nothing if none stand for a part."""
        found = []
        for dst in group.dsts:
            derivation = self._entries[i][dst].derivation
            left_out = LeftOut.of(derivation.task)
            if left_out is not None:
                found.append(left_out.effects(derivation.model, derivation.recorded))
        return found

    def _texts(self, nodes: Mapping[NodeIndex, int]) -> tuple[str, ...]:
        """Text of each node that is a token of the vocabulary; nothing if none is."""
        ids = [node.tensor_indices[-1] if node.node_type is NodeType.VOCAB_TOKEN else None for node in nodes]
        known = [token for token in ids if token is not None]
        if not known:
            return ()
        texts = dict(zip(known, self._tokenizer.token_strings(known), strict=True))
        return tuple("" if token is None else texts[token] for token in ids)


def _listed(chosen: Iterable[_Ends]) -> dict[NodeIndex, None]:
    """All nodes of *chosen*, each once."""
    return dict.fromkeys(node for top, bottom in chosen for node in (*top, *bottom))


def _says_effects_again(entries: Entries) -> bool:
    """Whether a type is of effects of the residual stream, which are those of all that was written before."""
    return entries.facts.quantity.is_of_effects and entries.derivation.task.says_again


def _sum_of(
    values: torch.Tensor, numbers: Mapping[NodeIndex, int], node_types: Collection[NodeType], layer: int
) -> float:
    """Sum of the *values* of the listed nodes of some types at a layer."""
    places = [n for node, n in numbers.items() if node.layer_index == layer and node.node_type in node_types]
    return values[places].double().nansum().item()
