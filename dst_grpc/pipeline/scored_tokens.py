"""Scored tokens: the tokens of the vocabulary that a table's nodes promote, or that would raise them."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.explanations import ExplainPart, NodeTokens, ScoredTokens, TokenScore
from dst_grpc.scalars.node_vectors import Vectors, mlp_input_vectors, score_input_vectors, written_vectors
from dst_grpc.scalars.token_scoring import TokenExtremes, extreme_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.pipeline.explain_plan import ExplainPlan
    from dst_grpc.pipeline.run import RunResult
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.node_vectors import Multiple

_P = ExplainPart


class TokenScorer:
    """Scores the tokens for the nodes of one request's runs. Used on the device's thread only."""

    def __init__(
        self,
        asked: ExplainPlan,
        results: Sequence[RunResult],
        explained: Sequence[ExplainedModel],
        model: ModelContext,
    ) -> None:
        """Score nothing yet.

        Args:
            asked: the plan: the parts, how many tokens to select, and how input tokens are scored.
            results: the results of the runs.
            explained: the model of each run, with its spliced autoencoders.
            model: the model.
        """
        self._asked, self._results, self._explained, self._model = asked, results, explained, model
        self._parts = [part for part in ExplainPart if part.scores_tokens and part in asked.parts]
        self._score_inputs: dict[tuple[int, int], tuple[Vectors, Vectors]] = {}
        self._start: int | None = None
        self._scored: dict[ExplainPart, list[ScoredTokens]] = {}
        """The parts about the nodes from `_start` that were not fetched yet."""

    def scored(
        self, part: ExplainPart, tables: Sequence[Sequence[NodeIndex]], start: int, stop: int
    ) -> list[ScoredTokens]:
        """Scored tokens of the nodes from *start* to *stop* of each run's table.

        All parts about these nodes are computed at the first of them, those of one matrix in one pass over it: the
        input and output tokens of a model with tied embeddings.
        """
        if self._start != start:
            self._start, self._scored = start, self._all_scored(tables, start, stop)
        return self._scored.pop(part)

    def _all_scored(
        self, tables: Sequence[Sequence[NodeIndex]], start: int, stop: int
    ) -> dict[ExplainPart, list[ScoredTokens]]:
        by_matrix: dict[tuple[int, bool], list[ExplainPart]] = {}
        for part in self._parts:
            matrix, lengths = self._matrix(part)
            by_matrix.setdefault((matrix.data_ptr(), lengths is not None), []).append(part)
        scored: dict[ExplainPart, list[ScoredTokens]] = {}
        for parts in by_matrix.values():
            matrix, lengths = self._matrix(parts[0])
            of_parts = [(part, i) for part in parts for i in range(len(tables))]
            vectors = [self._met(part, i, tables[i][start:stop], start) for part, i in of_parts]
            self._score_inputs.clear()
            multiples, counts = [one.multiples for one in vectors], [len(one.directions) for one in vectors]
            means = [self._means(part, one.directions) for (part, _), one in zip(of_parts, vectors, strict=True)]
            found = extreme_tokens(
                _joined(vectors), matrix, self._asked.scored_token_count, lengths=lengths, check=self._results[0].check
            ).minus(torch.cat(means))
            places = pairwise(accumulate(counts, initial=0))
            for (part, _), own, place in zip(of_parts, multiples, places, strict=True):
                nodes = _node_tokens(own, found.rows(*place), start, self._model.tokenizer.token_strings)
                scored.setdefault(part, []).append(ScoredTokens(part=part, nodes=nodes))
        return scored

    def _matrix(self, part: ExplainPart) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The matrix [d, V] that *part* is scored by, and what each token's scores are divided by."""
        decoder = self._model.decoder
        if part is _P.UPVOTED_OUTPUT_TOKENS:
            return decoder.unembedding, None
        return decoder.embedding.t(), decoder.embedding_lengths if self._asked.unit_length_embeddings else None

    def _means(self, part: ExplainPart, directions: torch.Tensor) -> torch.Tensor:
        """What is taken off the scores of each of *directions*, [M]: of output tokens the mean over the vocabulary."""
        if part is not _P.UPVOTED_OUTPUT_TOKENS:
            return torch.zeros(len(directions), device=directions.device)
        mean = self._model.decoder.mean_unembedding
        return (directions.to(mean.dtype) @ mean).float()

    def _met(self, part: ExplainPart, i: int, nodes: Sequence[NodeIndex], start: int) -> Vectors:
        """As `_vectors`, with directions as they meet the matrix of *part*."""
        decoder = self._model.decoder
        factor = decoder.final_norm.gain if part is _P.UPVOTED_OUTPUT_TOKENS else decoder.config.embedding_scale
        vectors = self._vectors(part, i, nodes, start)
        return replace(vectors, directions=vectors.directions * factor)

    def _vectors(self, part: ExplainPart, i: int, nodes: Sequence[NodeIndex], start: int) -> Vectors:
        """The vectors to score of *nodes* of one run, the first of which is at *start* of its table."""
        model, taps = self._explained[i], self._results[i].recording.taps
        if part is _P.UPVOTED_OUTPUT_TOKENS:
            return written_vectors(model, taps, nodes)
        if part is _P.INPUT_TOKENS_THAT_UPVOTE_MLP:
            return mlp_input_vectors(model, taps, nodes)
        if (i, start) not in self._score_inputs:  # one computation gives those of queries and of keys
            self._score_inputs[i, start] = score_input_vectors(model, taps, nodes)
        of_queries, of_keys = self._score_inputs[i, start]
        return of_queries if part is _P.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q else of_keys


def _joined(vectors: list[Vectors]) -> torch.Tensor:
    """The directions of all *vectors*, [N, d]; the list is emptied, so that they take their memory once."""
    directions = torch.cat([one.directions for one in vectors])
    vectors.clear()
    return directions


def _node_tokens(
    multiples: Iterable[Multiple],
    found: TokenExtremes,
    start: int,
    texts: Callable[[Sequence[int]], list[str]],
) -> tuple[NodeTokens, ...]:
    """Scored tokens of each node: those of its direction times its coefficient; a negative one swaps the ends.

    Args:
        multiples: one run's vectors.
        found: the scored tokens of their directions.
        start: the number, in the table, of the first node of the list.
        texts: gives the text of a token.
    """
    scores = torch.stack((found.top, found.bottom)).tolist()
    ids = torch.stack((found.top_ids, found.bottom_ids)).tolist()
    result = []
    for node, row, coefficient in multiples:
        largest = max(abs(scores[0][row][0]), abs(scores[1][row][0])) * abs(coefficient)
        ends = []
        for end in (0, 1) if coefficient >= 0 else (1, 0):
            tokens = ids[end][row]
            of_end = [score * coefficient for score in scores[end][row]]
            normalized = [score / largest if largest else 0.0 for score in of_end]
            ends.append(tuple(map(TokenScore, tokens, texts(tokens), of_end, normalized)))
        result.append(NodeTokens(node=start + node, top=ends[0], bottom=ends[1]))
    return tuple(result)
