"""Answers of Explain made by hand: small, with every part, and the same whatever is asked but the runs and groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from dst_grpc._gen.dst.v1.explain_pb2 import ExplainFrame, ExplainResponse
from dst_grpc.client._explanations import ExplanationCollector
from dst_grpc.domain.components import NodeType
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, TopKRequest
from dst_grpc.domain.explanations import (
    Completeness,
    ExplainPart,
    Explanation,
    ExplanationPart,
    GroupValues,
    NodeTable,
    NodeTokenPairs,
    NodeTokens,
    PartKind,
    ResidualShares,
    RunsTrailer,
    ScalarSum,
    ScoredTokens,
    TokenPairs,
    TokenScore,
)
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.results import Provenance, RunHeader, RunStatistics, RunSummary
from dst_grpc.domain.scalars import FACTS
from dst_grpc.wire.frames import PartCutter

MODEL = "tiny@0123456789ab:float32:cpu"
TOKENS = ("When", " Mary", " saw", " John")
ATTENTION = np.tril(np.array([[1, 0, 0, 0], [0.75, 0.25, 0, 0], [0.5, 0.25, 0.25, 0], [0, 0.97, 0.03, 0]]))

NODES = (
    NodeIndex(node_type=NodeType.LAYER, tensor_indices=(1, 0)),
    NodeIndex(node_type=NodeType.ATTENTION_HEAD, tensor_indices=(3, 1, 1), layer_index=0),
    NodeIndex(node_type=NodeType.ATTENTION_HEAD, tensor_indices=(3, 2, 0), layer_index=1),
    NodeIndex(node_type=NodeType.MLP_NEURON, tensor_indices=(3, 4), layer_index=1),
    NodeIndex(node_type=NodeType.ATTENTION_AUTOENCODER_LATENT, tensor_indices=(3, 7), layer_index=1),
    NodeIndex(node_type=NodeType.MLP_AUTOENCODER_LATENT, tensor_indices=(2, 5), layer_index=0),
)
VALUES = np.array([0.25, 4.5, -2.25, 1.0, 0.5, np.nan], np.float32)
LOGITS = ((" Mary", 12.0), (" John", 10.0), ("\n", 2.0))
LISTED = 0.8
"""Their probabilities together; the rest is that of tokens that are not listed."""


def parts_of(
    request: ExplainRequest, *, tokens: tuple[str, ...] = TOKENS, scale: float = 1.0
) -> Iterator[ExplanationPart]:
    """The parts of an answer. Runs after the first are the first halved; *scale* multiplies the values of all."""
    count = 0
    for run_index, run in enumerate(request.runs):
        factor = scale / 2**run_index
        for kind, value in _run(request, tokens, factor, has_trace=run.trace_config is not None):
            count += 1
            yield ExplanationPart(kind=kind, value=value, run_index=run_index)
    trailer = RunsTrailer(
        frame_count=count + 1,
        statistics=RunStatistics(forward_passes=1, backward_passes=1),
        provenance=Provenance(model=MODEL, model_digest="0" * 64),
    )
    yield ExplanationPart(kind=PartKind.TRAILER, value=trailer)


def top_k_parts_of(request: TopKRequest) -> Iterator[ExplanationPart]:
    """The parts of an answer of TopK: the headers and tables of one of Explain about the same runs and groups."""
    runs = tuple(
        ExplainRun(prompt=run.prompt, loss_fn_config=run.loss_fn_config)
        for run in request.runs
        if run.prompt is not None
    )
    of_explain = ExplainRequest(runs=runs, groups=request.groups, request_id=request.request_id)
    kinds = {PartKind.HEADER, PartKind.NODE_TABLE} | ({PartKind.SCALAR_SUM} if request.with_sums else set())
    count = 0
    for part in parts_of(of_explain):
        if part.kind in kinds:
            count += 1
            yield part
        elif isinstance(part.value, RunsTrailer):
            yield replace(part, value=replace(part.value, frame_count=count + 1))


def explanation_of(request: ExplainRequest, *, tokens: tuple[str, ...] = TOKENS, scale: float = 1.0) -> Explanation:
    """The whole answer, put together as the client does it."""
    return collected(parts_of(request, tokens=tokens, scale=scale), request.request_id, len(request.runs))


def collected(parts: Iterable[ExplanationPart | RunSummary], request_id: str, n_runs: int) -> Explanation:
    """The explanation that *parts* make up, after they have travelled."""
    collector, cutter = ExplanationCollector(request_id, n_runs), PartCutter(ExplainFrame)
    whole = None
    for part in parts:
        frames = [ExplainFrame.FromString(b"".join(frame)) for frame in cutter.cut(part)]
        whole = collector.add(ExplainResponse(request_id=request_id, frames=frames))
    if whole is None:
        raise AssertionError("the answer has no trailer")
    return whole


def _run(
    request: ExplainRequest, tokens: tuple[str, ...], factor: float, *, has_trace: bool
) -> Iterator[tuple[PartKind, RunHeader | NodeTable | ScalarSum | ScoredTokens | TokenPairs]]:
    yield (
        PartKind.HEADER,
        RunHeader(
            model=MODEL,
            token_ids=tuple(range(len(tokens))),
            token_strings=tokens,
            loss=5.0 * factor,
            activation_value=3.0 * factor if has_trace else None,
            detach_final_layer_norm_scale=True,
        ),
    )
    complete = Completeness(listed=4.0 * factor, total=4.5 * factor, target=5.0 * factor)
    residuals = tuple(
        ResidualShares(
            layer_index=i, listed=factor, latents=2.0 * factor, error=-0.5 * factor, decoder_bias=0.25 * factor
        )
        for i in range(2)
    )
    again = Completeness(listed=0.0, total=0.0, target=None, residuals=residuals)
    groups = tuple(
        GroupValues(
            group_id=group.group_id,
            values=VALUES * factor,
            top=(1, 3),
            bottom=(2,),
            completeness=again if group.group_id.startswith("residual") else complete,
        )
        for group in request.effective_groups
    )
    yield PartKind.NODE_TABLE, NodeTable(nodes=NODES, groups=groups)
    size = len(tokens)
    for dst in dict.fromkeys(dst for group in request.effective_groups for dst in group.dsts):
        is_pairs = FACTS[dst].node_type is NodeType.ATTENTION_HEAD
        sums = np.zeros((size, size) if is_pairs else size, np.float32)
        sums[(3, 1) if is_pairs else 3] = 2 * factor
        sums[(3, 2) if is_pairs else 0] = -factor
        yield PartKind.SCALAR_SUM, ScalarSum(dst=dst, values=sums)
    scored = tuple(
        NodeTokens(
            node=i,
            top=(TokenScore(1, " Mary", 3.0, 1.0), TokenScore(4, "</script>", 1.0, 0.3)),
            bottom=(TokenScore(3, " John", -2.0, -0.7),),
        )
        for i in range(len(NODES))
    )
    for part in (ExplainPart.UPVOTED_OUTPUT_TOKENS, ExplainPart.INPUT_TOKENS_THAT_UPVOTE_MLP):
        wanted = scored if part is ExplainPart.UPVOTED_OUTPUT_TOKENS else scored[3:4]
        yield PartKind.SCORED_TOKENS, ScoredTokens(part=part, nodes=wanted)
    yield PartKind.TOKEN_PAIRS, TokenPairs(nodes=(NodeTokenPairs(node=4, attended_tokens=((1, 2.0), (0, 1.0))),))
    logits = np.array([logit for _, logit in LOGITS], np.float32)
    yield (
        PartKind.TOP_LOGITS,
        NodeTable(
            nodes=tuple(NodeIndex(node_type=NodeType.VOCAB_TOKEN, tensor_indices=(3, i)) for i in range(len(LOGITS))),
            groups=(GroupValues(group_id="logits", values=logits * factor, top=(0, 1, 2), bottom=()),),
            vocab_tokens=tuple(token for token, _ in LOGITS),
            log_normalizer=float(np.log(np.exp(logits.astype(np.float64) * factor).sum() / LISTED)),
        ),
    )
