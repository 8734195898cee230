"""Names of tokens: as the command prints them, and takes them as a target.

A name is the token's text. One that is only part of a character, of which the text is the same for all, goes by its
id, as tokens without text do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dst_grpc.client import Explanation, NodeTable, RunExplanation, ScoredTokens, TokenScore

_PART = "\N{REPLACEMENT CHARACTER}"
"""What stands in a text for bytes that are no character."""


def token_name(text: str, token_id: int) -> str:
    """The name of a token of this text."""
    return f"<{token_id}>" if _PART in text else text


def token_names(texts: Iterable[str], token_ids: Iterable[int]) -> tuple[str, ...]:
    """The name of each token."""
    return tuple(map(token_name, texts, token_ids))


def with_token_names(explanation: Explanation) -> Explanation:
    """The explanation with the name of every token in the place of its text."""
    return replace(explanation, runs=tuple(map(_run, explanation.runs)))


def _run(run: RunExplanation) -> RunExplanation:
    header = run.header
    return replace(
        run,
        header=replace(header, token_strings=token_names(header.token_strings, header.token_ids)),
        top_logits=_table(run.top_logits),
        scored_tokens=tuple(map(_scored, run.scored_tokens)),
    )


def _table(table: NodeTable | None) -> NodeTable | None:
    """A table of tokens."""
    if table is None:
        return None
    ids = [node.tensor_indices[-1] or 0 for node in table.nodes]
    return replace(table, vocab_tokens=token_names(table.vocab_tokens, ids))


def _scored(scored: ScoredTokens) -> ScoredTokens:
    nodes = (replace(one, top=_scores(one.top), bottom=_scores(one.bottom)) for one in scored.nodes)
    return replace(scored, nodes=tuple(nodes))


def _scores(scores: Iterable[TokenScore]) -> tuple[TokenScore, ...]:
    return tuple(replace(score, token=token_name(score.token, score.token_id)) for score in scores)
