"""What an attribution graph is asked of, and how large it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dst_grpc.domain.graph import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_LOGIT_PROB,
    DEFAULT_MAX_N_LOGITS,
    DEFAULT_UPDATE_INTERVAL,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import torch

DEFAULT_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MostProbable:
    """The logits of the most probable tokens after the prompt."""

    max_n_logits: int = DEFAULT_MAX_N_LOGITS
    """At most so many."""
    desired_logit_prob: float = DEFAULT_LOGIT_PROB
    """As few as have so much probability together."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ChosenTarget:
    """The logit of a token, or another projection of the residual after the final norm, at the last token."""

    token_id: int | None = None
    """The token; None for a free direction."""
    vector: torch.Tensor | None = None
    """The free direction [d]; None for a token."""
    name: str = ""
    """What a free direction is called."""
    weight: float | None = None
    """How much it counts; None for the probability of a token, and for 1 of a free direction."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GraphQuestion:
    """A prompt, the targets, and which features are nodes."""

    token_ids: tuple[int, ...]
    """The prompt; see `begun`."""
    targets: MostProbable | tuple[ChosenTarget, ...] = MostProbable()
    """What effects are traced back from; not empty."""
    max_feature_nodes: int | None = None
    """How many features are nodes: those of largest influence on the targets, as far as edges are known round by
    round. None for all that are active."""
    batch_size: int = DEFAULT_BATCH_SIZE
    """Features of a batch."""
    update_interval: int = DEFAULT_UPDATE_INTERVAL
    """Batches of a round, after which influences are computed again."""
    n_zeroed: int = 1
    """Tokens, from the first, that have neither active features nor errors. circuit-tracer: 1, and 4 for the chat
    models of Gemma 3, whose prompts begin with as many tokens of their template."""
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    """Bytes that the graph and its computation may take, beside weights."""


def begun(token_ids: Sequence[int], special: Collection[int], begin: Sequence[int | None]) -> tuple[int, ...]:
    """*token_ids*, with a special token first.

    Transcoders do not explain the first token, so circuit-tracer lets no token with a meaning be first.

    Args:
        token_ids: a prompt.
        special: all special tokens of the tokenizer.
        begin: special tokens that may be put first, the preferred ones before others; None for those that the tokenizer
            has not: its begin, padding and end token.

    Returns:
        *token_ids* themselves if the first is special, or there is none to put before it.
    """
    own = tuple(token_ids)
    if own and own[0] in special:
        return own
    first = next((one for one in (*begin, *sorted(special)) if one is not None), None)
    return own if first is None else (first, *own)
