"""The targets of a graph, from what a question says and what the model predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dst_grpc.engine.norm import wide
from dst_grpc.graphs.nodes import FREE_DIRECTION, GraphTargets
from dst_grpc.graphs.question import ChosenTarget, MostProbable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.engine.decoder import Decoder


def targets_of(asked: MostProbable | Sequence[ChosenTarget], logits: torch.Tensor, decoder: Decoder) -> GraphTargets:
    """The targets of a prompt.

    Args:
        asked: which.
        logits: of the prompt's last token, [V].
        decoder: the model.
    """
    probabilities = wide(logits).softmax(dim=-1)
    if isinstance(asked, MostProbable):
        chosen = [ChosenTarget(token_id=token) for token in _most_probable(asked, probabilities)]
    else:
        chosen = list(asked)
    weights = [
        one.weight if one.weight is not None else 1.0 if one.token_id is None else float(probabilities[one.token_id])
        for one in chosen
    ]
    return GraphTargets(
        token_ids=np.array([FREE_DIRECTION if one.token_id is None else one.token_id for one in chosen]),
        names=tuple(one.name if one.token_id is None else "" for one in chosen),
        weights=np.array(weights, dtype=np.float32),
        vectors=np.stack([_vector(one, decoder).float().cpu().numpy() for one in chosen]),
    )


def _most_probable(asked: MostProbable, probabilities: torch.Tensor) -> list[int]:
    """The tokens of largest probability: as few as have the desired probability together, at most so many."""
    top = probabilities.topk(min(asked.max_n_logits, len(probabilities)))
    wanted = torch.tensor(asked.desired_logit_prob, dtype=top.values.dtype, device=top.values.device)
    count = int(torch.searchsorted(top.values.cumsum(dim=0), wanted)) + 1
    return top.indices[:count].tolist()


def _vector(one: ChosenTarget, decoder: Decoder) -> torch.Tensor:
    """What a target projects on, [d]."""
    if one.vector is not None:
        return one.vector
    mean = decoder.mean_unembedding
    return decoder.unembedding[:, one.token_id].to(mean.dtype) - mean
