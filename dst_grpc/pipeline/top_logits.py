"""The largest and smallest output logits of runs, as tables of the vocabulary's tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.components import NodeType
from dst_grpc.domain.explanations import Completeness, GroupValues, NodeTable
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.element_types import out_of_range, why_out_of_range
from dst_grpc.pipeline.explain_plan import logits_are_changed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.pipeline.explain_plan import ExplainPlan
    from dst_grpc.pipeline.run import RunResult

_L = ActivationLocationType
LOGITS_GROUP = "logits"


def top_logits(asked: ExplainPlan, results: Sequence[RunResult], model: ModelContext) -> list[NodeTable]:
    """The table of each run, at its token; runs that share nodes, and the token, have the same list.

    Raises:
        OutOfRange: if a logit is not finite.
    """
    found = [_logits(result, token, model.decoder) for result, token in zip(results, asked.logit_tokens, strict=True)]
    rows = torch.stack(found).float()
    count = min(asked.top_logit_count, rows.shape[1])
    tops, bottoms = (rows.topk(count, largest=largest).indices.tolist() for largest in (True, False))
    chosen = [(top, bottom[::-1]) for top, bottom in zip(tops, bottoms, strict=True)]
    is_shared = asked.is_shared and len(set(asked.logit_tokens)) == 1
    everyone = [token for top, bottom in chosen for token in (*top, *bottom)]
    tables = []
    for row, result, at, (top, bottom) in zip(rows, results, asked.logit_tokens, chosen, strict=True):
        ids = list(dict.fromkeys(everyone if is_shared else (*top, *bottom)))
        numbers = {token: number for number, token in enumerate(ids)}
        values = row[ids].cpu()
        log_normalizer = row.double().logsumexp(dim=0).item()
        if not math.isfinite(log_normalizer):
            dtype = model.decoder.dtype
            raise out_of_range(f"logits are not finite: {why_out_of_range(dtype)}", dtype, {"token_index": at})
        group = GroupValues(
            group_id=LOGITS_GROUP,
            values=values.numpy(),
            top=tuple(numbers[token] for token in top),
            bottom=tuple(numbers[token] for token in bottom),
            completeness=Completeness(
                listed=values.double().sum().item(), total=row.double().sum().item(), target=result.target
            ),
        )
        nodes = tuple(NodeIndex(node_type=NodeType.VOCAB_TOKEN, tensor_indices=(at, token)) for token in ids)
        texts = tuple(model.tokenizer.token_strings(ids))
        tables.append(NodeTable(nodes=nodes, groups=(group,), vocab_tokens=texts, log_normalizer=log_normalizer))
    return tables


def _logits(result: RunResult, token: int, decoder: Decoder) -> torch.Tensor:
    """Logits [V] of one run at *token*: those that its loss was of, recorded if they were changed, else of the last
    residual."""
    taps, known = result.recording.taps, result.recording.logits.get(token)
    if known is not None:
        return known
    if logits_are_changed(result.plan):
        return taps.value((_L.LOGITS, None))[token]
    last = taps.value(result.plan.topology.final_residual(None).site)[token]
    return decoder.unembed(decoder.final_norm(last))
