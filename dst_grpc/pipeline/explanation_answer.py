"""The answer to TopK and Explain: parts about each run, then a summary.

Each step is short, so that parts leave as soon as they are there and other callers' work fits in between. What a step
needs of the earlier ones (tensors, the table's nodes) is kept until the end.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import NodeType
from dst_grpc.domain.explanations import (
    Completeness,
    ExplainPart,
    ExplanationPart,
    GroupValues,
    NodeTable,
    NodeTokenPairs,
    NodeTokens,
    PartKind,
    RunHeader,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
    TokenScore,
)
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.results import RunSummary
from dst_grpc.errors import InvalidRequest
from dst_grpc.pipeline.explain_plan import ends_of, logits_are_changed
from dst_grpc.pipeline.provenance import provenance_of
from dst_grpc.pipeline.run import RunResult, total_statistics
from dst_grpc.scalars.attended_tokens import attended_tokens
from dst_grpc.scalars.explained_model import ExplainedModel
from dst_grpc.scalars.node_groups import NodeGroups
from dst_grpc.scalars.node_vectors import Vectors, mlp_input_vectors, score_input_vectors, written_vectors
from dst_grpc.scalars.token_scoring import TokenExtremes, extreme_tokens
from dst_grpc.scalars.topk import Entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.domain.explain import TopKGroup
    from dst_grpc.domain.scalar_types import DerivedScalarType
    from dst_grpc.pipeline.explain_plan import ExplainPlan

_L = ActivationLocationType
_P = ExplainPart
LOGITS_GROUP = "logits"
_PAIRS_OF_A_MESSAGE = 50_000
Parts = list[ExplanationPart]


class ExplanationAnswer:
    """The answer to one request in the making."""

    def __init__(
        self,
        asked: ExplainPlan,
        results: Sequence[RunResult],
        model: ModelContext,
        sets: Mapping[str, AutoencoderContext],
    ) -> None:
        """Do nothing yet; *results* are of the plans of *asked*."""
        self._asked, self._results, self._model, self._sets = asked, results, model, sets
        self._explained = [
            ExplainedModel(model.decoder, result.plan.topology, tuple(sets[info.name] for info in result.plan.spliced))
            for result in results
        ]
        self._entries: list[dict[DerivedScalarType, Entries]] = []
        self._tables: list[tuple[NodeIndex, ...]] = []
        self._n_tokens = asked.plans[0].vocab_size
        self._score_inputs: dict[tuple[int, int], tuple[Vectors, Vectors]] = {}
        self._seconds = 0.0
        self._is_complete = False

    @property
    def is_complete(self) -> bool:
        """Whether there is no further step."""
        return self._is_complete

    def steps(self) -> Iterator[Parts]:
        """The parts of each step; some have none."""
        work = self._work()
        step: Callable[[], Parts] | None = next(work)
        while step is not None:
            started = time.perf_counter()
            with torch.no_grad():
                parts = step()
            self._seconds += time.perf_counter() - started
            step = next(work, None)
            self._is_complete = step is None
            yield parts

    def _work(self) -> Iterator[Callable[[], Parts]]:
        """What there is to do, in order; what comes later may depend on what the steps before found."""
        parts = self._asked.parts
        yield self._headers
        if _P.NODE_TABLE in parts or _P.COMPONENT_SUMS in parts:
            yield self._scan
        if _P.NODE_TABLE in parts:
            yield self._node_tables
        if _P.COMPONENT_SUMS in parts:
            yield self._component_sums
        if self._asked.with_sums and self._entries:
            yield from (partial(self._sums, i) for i in range(len(self._results)))
        self._entries.clear()
        if _P.TOP_LOGITS in parts:
            yield self._top_logits
        if _P.TOKEN_PAIRS in parts:
            yield from (partial(self._token_pairs, i) for i in range(len(self._results)))
        for part in ExplainPart:
            if part.scores_tokens and part in parts:
                yield from self._scoring(part)

    def summary(self) -> RunSummary:
        """What all runs cost together, and what the numbers depend on."""
        queue_duration = max(result.queue_duration for result in self._results)
        batches = [batch for result in self._results for batch in result.batches]
        statistics = replace(total_statistics(batches, queue_duration=queue_duration), derive_duration=self._seconds)
        return RunSummary(
            statistics=statistics,
            provenance=provenance_of(
                self._asked.plans,
                self._model,
                self._sets,
                digest=self._asked.digest(self._model.handle, [one.handle for one in self._sets.values()]),
                batch_size=max(result.batch_size for result in self._results),
            ),
        )

    def _part(
        self, kind: PartKind, run_index: int, value: RunHeader | NodeTable | ScalarSum | ScoredTokens | TokenPairs
    ) -> ExplanationPart:
        return ExplanationPart(kind=kind, value=value, run_index=run_index)

    def _headers(self) -> Parts:
        return [self._part(PartKind.HEADER, i, self._header(i)) for i in range(len(self._results))]

    def _header(self, i: int) -> RunHeader:
        result = self._results[i]
        return RunHeader(
            model=self._model.handle,
            token_ids=result.plan.token_ids,
            token_strings=result.plan.token_strings,
            loss=result.loss,
            activation_value=result.activation_value,
        )

    # Tables

    def _scan(self) -> Parts:
        """Go once through every type of every run."""
        asked = self._asked
        groups = (*(asked.groups if _P.NODE_TABLE in asked.parts else ()), *asked.component_groups)
        for i, result in enumerate(self._results):
            found = {s.facts.type: Entries(result.derivation(s)) for s in result.plan.scalars}
            for dst, entries in found.items():
                mine = [group for group in groups if dst in group.dsts]
                ends = {end for group in mine for end in ends_of(group.selection)}
                entries.scan(max(map(self._k, mine)), asked.token_indices[i], sorted(ends))
            self._entries.append(found)
        return []

    def _k(self, group: TopKGroup) -> int:
        return self._asked.k if group.k is None else group.k

    def _node_tables(self) -> Parts:
        tables = self._tables_of(self._asked.groups)
        self._tables = [table.nodes for table in tables]
        return [self._part(PartKind.NODE_TABLE, i, table) for i, table in enumerate(tables)]

    def _component_sums(self) -> Parts:
        tables = self._tables_of(self._asked.component_groups)
        return [self._part(PartKind.COMPONENT_SUMS, i, table) for i, table in enumerate(tables)]

    def _tables_of(self, groups: Sequence[TopKGroup]) -> list[NodeTable]:
        """The table of each run, of the nodes that it chose itself or, if shared, that any run chose."""
        chosen = [[self._chosen(i, group) for group in groups] for i in range(len(self._results))]
        lists = [[node for top, bottom in of_run for node in (*top, *bottom)] for of_run in chosen]
        if self._asked.is_shared:
            lists = [[node for nodes in lists for node in nodes]] * len(lists)
        tables: list[NodeTable] = []
        numbers: dict[NodeIndex, int] = {}
        places = NodeGroups(())
        for i, nodes in enumerate(lists):
            if i == 0 or not self._asked.is_shared:  # shared nodes are the same for every run
                numbers = {node: number for number, node in enumerate(dict.fromkeys(nodes))}
                self._check_count(len(numbers))
                places = NodeGroups(tuple(numbers))
            of_groups = [self._group_values(i, group, chosen[i][g], numbers, places) for g, group in enumerate(groups)]
            tables.append(NodeTable(nodes=tuple(numbers), groups=tuple(of_groups), vocab_tokens=self._texts(numbers)))
        return tables

    def _check_count(self, count: int) -> None:
        limit = self._asked.max_table_nodes
        if count > limit:
            raise InvalidRequest.of("k", f"the runs choose {count} nodes; a table holds at most {limit}")

    def _chosen(self, i: int, group: TopKGroup) -> tuple[list[NodeIndex], list[NodeIndex]]:
        """The largest and the smallest nodes of a group in one run, each list descending."""
        lists: dict[bool, list[NodeIndex]] = {True: [], False: []}
        for largest in ends_of(group.selection):
            ranked = [
                pair for dst in group.dsts for pair in self._entries[i][dst].best(self._k(group), largest=largest)
            ]
            ranked.sort(key=lambda pair: -pair[0])
            lists[largest] = [node for _, node in ranked]
        return lists[True], lists[False]

    def _group_values(
        self,
        i: int,
        group: TopKGroup,
        chosen: tuple[list[NodeIndex], list[NodeIndex]],
        numbers: Mapping[NodeIndex, int],
        places: NodeGroups,
    ) -> GroupValues:
        values = torch.full((places.count,), torch.nan)
        for dst in group.dsts:
            self._entries[i][dst].values_at(places, values)
        return GroupValues(
            group_id=group.group_id,
            values=values.numpy(),
            top=tuple(numbers[node] for node in chosen[0]),
            bottom=tuple(numbers[node] for node in chosen[1]),
            completeness=Completeness(
                listed=values.double().nansum().item(),
                total=sum(self._entries[i][dst].total for dst in group.dsts),
                target=self._results[i].target,
            ),
        )

    def _texts(self, nodes: Mapping[NodeIndex, int]) -> tuple[str, ...]:
        """Text of each node that is a token of the vocabulary; nothing if none is."""
        ids = [node.tensor_indices[-1] if node.node_type is NodeType.VOCAB_TOKEN else None for node in nodes]
        known = [token for token in ids if token is not None and token < self._n_tokens]
        if not known:
            return ()
        texts = dict(zip(known, self._model.tokenizer.token_strings(known), strict=True))
        return tuple(texts.get(token, "") if token is not None else "" for token in ids)

    def _sums(self, i: int) -> Parts:
        return [
            self._part(PartKind.SCALAR_SUM, i, ScalarSum(dst=dst, values=entries.sum.float().cpu().numpy()))
            for dst, entries in self._entries[i].items()
        ]

    # Logits

    def _top_logits(self) -> Parts:
        asked, count = self._asked, self._asked.top_logit_count
        rows = torch.stack([self._logits(i) for i in range(len(self._results))]).float()
        found: list[list[list[int]]] = [
            rows.topk(min(count, rows.shape[1]), largest=largest).indices.tolist() for largest in (True, False)
        ]
        lists = [(top, bottom[::-1]) for top, bottom in zip(*found, strict=True)]
        is_shared = asked.is_shared and len(set(asked.logit_tokens)) == 1
        everyone = [token for top, bottom in lists for token in (*top, *bottom)]
        parts = []
        for i, (top, bottom) in enumerate(lists):
            ids = list(dict.fromkeys(everyone if is_shared else (*top, *bottom)))
            numbers = {token: number for number, token in enumerate(ids)}
            values = rows[i][ids].cpu()
            group = GroupValues(
                group_id=LOGITS_GROUP,
                values=values.numpy(),
                top=tuple(numbers[token] for token in top),
                bottom=tuple(numbers[token] for token in bottom),
                completeness=Completeness(
                    listed=values.double().sum().item(),
                    total=rows[i].double().sum().item(),
                    target=self._results[i].target,
                ),
            )
            nodes = tuple(
                NodeIndex(node_type=NodeType.VOCAB_TOKEN, tensor_indices=(asked.logit_tokens[i], token))
                for token in ids
            )
            texts = tuple(self._model.tokenizer.token_strings(ids))
            parts.append(
                self._part(PartKind.TOP_LOGITS, i, NodeTable(nodes=nodes, groups=(group,), vocab_tokens=texts))
            )
        return parts

    def _logits(self, i: int) -> torch.Tensor:
        """Logits [V] of one run at its token: recorded if they were changed, else of the last residual."""
        result, token = self._results[i], self._asked.logit_tokens[i]
        taps, decoder = result.recording.taps, self._model.decoder
        if logits_are_changed(result.plan):
            return taps.value((_L.LOGITS, None))[token, : self._n_tokens]
        last = taps.value((_L.RESID_POST_MLP, decoder.config.n_layers - 1))[token]
        return decoder.unembed(decoder.final_norm(last))[: self._n_tokens]

    # Tokens

    def _token_pairs(self, i: int) -> Parts:
        nodes, count = self._tables[i], self._asked.token_pair_count
        found = attended_tokens(self._explained[i], self._results[i].recording.taps, nodes, count)
        pairs = [NodeTokenPairs(node=node, attended_tokens=tuple(tokens)) for node, tokens in found]
        step = max(_PAIRS_OF_A_MESSAGE // count, 1)
        return [
            self._part(PartKind.TOKEN_PAIRS, i, TokenPairs(nodes=tuple(pairs[start : start + step])))
            for start in range(0, max(len(pairs), 1), step)
        ]

    def _scoring(self, part: ExplainPart) -> Iterator[Callable[[], Parts]]:
        """One step for each message's worth of nodes, of all runs together so that the vocabulary is read once."""
        step = self._asked.nodes_of_a_message
        longest = max(map(len, self._tables))
        for start in range(0, max(longest, 1), step):
            yield partial(self._scored, part, start, start + step)

    def _vectors(self, part: ExplainPart, i: int, start: int, stop: int) -> Vectors:
        """What is scored of one run's nodes from *start* to *stop*."""
        model, taps = self._explained[i], self._results[i].recording.taps
        nodes = self._tables[i][start:stop]
        if part is _P.UPVOTED_OUTPUT_TOKENS:
            return written_vectors(model, taps, nodes)
        if part is _P.INPUT_TOKENS_THAT_UPVOTE_MLP:
            return mlp_input_vectors(model, taps, nodes)
        if (i, start) not in self._score_inputs:  # one pass finds them for queries and for keys
            self._score_inputs[i, start] = score_input_vectors(model, taps, nodes)
        of_queries, of_keys = self._score_inputs[i, start]
        return of_queries if part is _P.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q else of_keys

    def _scored(self, part: ExplainPart, start: int, stop: int) -> Parts:
        """Scored tokens of the nodes from *start* to *stop* of each run's table."""
        vectors = [self._vectors(part, i, start, stop) for i in range(len(self._results))]
        decoder, is_output = self._model.decoder, part is _P.UPVOTED_OUTPUT_TOKENS
        directions = torch.cat([one.directions for one in vectors])
        directions = directions * (decoder.final_norm.gain if is_output else decoder.config.embedding_scale)
        vocabulary = decoder.unembedding if is_output else decoder.embedding.t()
        found = extreme_tokens(
            directions, vocabulary[:, : self._n_tokens], self._asked.scored_token_count, centred=is_output
        )
        parts, first = [], 0
        for i, one in enumerate(vectors):
            nodes = _node_tokens(one, found, first, start, self._model.tokenizer.token_strings)
            parts.append(self._part(PartKind.SCORED_TOKENS, i, ScoredTokens(part=part, nodes=nodes)))
            first += len(one.directions)
        return parts


def _node_tokens(
    vectors: Vectors,
    found: TokenExtremes,
    first: int,
    start: int,
    texts: Callable[[Sequence[int]], list[str]],
) -> tuple[NodeTokens, ...]:
    """Scored tokens of each node: those of its direction times its coefficient, which may swap the ends.

    Args:
        vectors: one run's vectors.
        found: the tokens along all directions.
        first: where this run's directions begin there.
        start: the number, in the table, of the first node of the list.
        texts: gives tokens as texts.
    """
    scores = torch.stack((found.top, found.bottom)).tolist()
    ids = torch.stack((found.top_ids, found.bottom_ids)).tolist()
    result = []
    for node, row, coefficient in zip(vectors.nodes, vectors.rows, vectors.coefficients, strict=True):
        largest = max(abs(scores[0][first + row][0]), abs(scores[1][first + row][0])) * abs(coefficient)
        ends = []
        for end in (0, 1) if coefficient >= 0 else (1, 0):
            tokens = ids[end][first + row]
            of_end = [score * coefficient for score in scores[end][first + row]]
            ends.append(
                tuple(
                    TokenScore(token, text, score, score / largest if largest else 0.0)
                    for token, text, score in zip(tokens, texts(tokens), of_end, strict=True)
                )
            )
        result.append(NodeTokens(node=start + node, top=ends[0], bottom=ends[1]))
    return tuple(result)
