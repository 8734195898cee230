"""Scored tokens: the tokens of the vocabulary that a table's nodes promote, or that would raise them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.explanations import ExplainPart, NodeTokens, ScoredTokens, TokenScore
from dst_grpc.scalars.node_vectors import Vectors, mlp_input_vectors, score_input_vectors, written_vectors
from dst_grpc.scalars.token_scoring import TokenExtremes, extreme_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.pipeline.explain_plan import ExplainPlan
    from dst_grpc.pipeline.run import RunResult
    from dst_grpc.scalars.explained_model import ExplainedModel

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
            asked: the plan: how many tokens to select, and how input tokens are scored.
            results: the results of the runs.
            explained: the model of each run, with its spliced autoencoders.
            model: the model.
        """
        self._asked, self._results, self._explained, self._model = asked, results, explained, model
        self._score_inputs: dict[tuple[int, int], tuple[Vectors, Vectors]] = {}

    def scored(
        self, part: ExplainPart, tables: Sequence[Sequence[NodeIndex]], start: int, stop: int
    ) -> list[ScoredTokens]:
        """Scored tokens of the nodes from *start* to *stop* of each run's table, in one pass over the vocabulary."""
        vectors = [self._vectors(part, i, table[start:stop], start) for i, table in enumerate(tables)]
        decoder, is_output = self._model.decoder, part is _P.UPVOTED_OUTPUT_TOKENS
        directions = torch.cat([one.directions for one in vectors])
        directions = directions * (decoder.final_norm.gain if is_output else decoder.config.embedding_scale)
        found = extreme_tokens(
            directions,
            decoder.unembedding if is_output else decoder.embedding.t(),
            self._asked.scored_token_count,
            centred=is_output,
            lengths=decoder.embedding_lengths if self._asked.unit_length_embeddings and not is_output else None,
            check=self._results[0].check,
        )
        scored, first = [], 0
        for one in vectors:
            nodes = _node_tokens(one, found, first, start, self._model.tokenizer.token_strings)
            scored.append(ScoredTokens(part=part, nodes=nodes))
            first += len(one.directions)
        return scored

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


def _node_tokens(
    vectors: Vectors,
    found: TokenExtremes,
    first: int,
    start: int,
    texts: Callable[[Sequence[int]], list[str]],
) -> tuple[NodeTokens, ...]:
    """Scored tokens of each node: those of its direction times its coefficient; a negative one swaps the ends.

    Args:
        vectors: one run's vectors.
        found: the scored tokens of all directions.
        first: the row of this run's first direction in *found*.
        start: the number, in the table, of the first node of the list.
        texts: gives the text of a token.
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
            normalized = [score / largest if largest else 0.0 for score in of_end]
            ends.append(tuple(map(TokenScore, tokens, texts(tokens), of_end, normalized)))
        result.append(NodeTokens(node=start + node, top=ends[0], bottom=ends[1]))
    return tuple(result)
