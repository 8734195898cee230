"""What comes next, as the pictures show it: the likeliest tokens, and whether one of them is what was meant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dst_grpc.client import ExplainRequest, RunExplanation

SMALLEST_SHARE = 0.005
"""Probability below which a guess would be shown as 0%."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A token that might come next."""

    token_id: int
    """The token."""
    token: str
    """Its text."""
    share: float
    """Its probability, among all tokens of the vocabulary."""


def guesses_of(run: RunExplanation) -> list[Guess]:
    """The tokens that come next and are listed, the likeliest first; none if the run has no logits."""
    table = run.top_logits
    if table is None or table.log_normalizer is None:
        return []
    shares = table.probabilities
    return [
        Guess(table.nodes[i].tensor_indices[-1] or 0, table.vocab_tokens[i], float(shares[i]))
        for i in np.argsort(-shares, kind="stable")
    ]


def twin_of(run: RunExplanation, targets: Iterable[str]) -> tuple[str, str] | None:
    """A target, and the likelier token that differs from it by a leading space alone; None if there is none."""
    shares = {guess.token: guess.share for guess in guesses_of(run)}
    for target in targets:
        twin = target[1:] if target.startswith(" ") else f" {target}"
        # What is not listed is less likely than most that is, or than all.
        if twin not in targets and shares.get(twin, 0.0) > max(shares.get(target, 0.0), SMALLEST_SHARE):
            return target, twin
    return None


def hint_of(request: ExplainRequest, run: RunExplanation) -> str:
    """What somebody may have mistyped, in a sentence; empty if there is no sign of it."""
    loss = request.runs[0].loss_fn_config
    found = None if loss is None else twin_of(run, loss.target_tokens)
    return "" if found is None else hint_text(*found)


def hint_text(target: str, twin: str) -> str:
    """What is said of a target that differs by a space from what the model says."""
    return f"The model rather says {twin!r} than {target!r}: did you mean --target {twin!r}?"


def guessing_at(run: RunExplanation) -> int:
    """The token that the guesses come after: the traced node's, else the last."""
    nodes = () if run.top_logits is None else run.top_logits.nodes
    at = nodes[0].tensor_indices[0] if nodes else None
    return len(run.header.token_strings) - 1 if at is None else at


def changed_guesses(before: RunExplanation, after: RunExplanation, count: int) -> list[tuple[str, float, float]]:
    """The likeliest tokens of either run, of those that both list: text, share before, share after."""
    were = {guess.token_id: guess for guess in guesses_of(before)}
    are = {guess.token_id: guess for guess in guesses_of(after)}
    listed = dict.fromkeys([*list(were)[:count], *list(are)[:count]])
    return [(were[i].token, were[i].share, are[i].share) for i in listed if i in were and i in are]


def percent(share: float) -> str:
    """A probability for people: never 0% or 100% of what is merely close."""
    if 0 < share < SMALLEST_SHARE:
        return "<1%"
    return ">99%" if 1 - SMALLEST_SHARE <= share < 1 else f"{share:.0%}"
