"""Estimates of memory against what a process really takes, for twenty kinds of requests.

Each is run in a process of its own: the model is loaded, a short prompt of the same kind is run so that what is kept
for ever is there, and then the peak of resident memory (VmHWM) above that is compared with the estimate by which
requests are admitted. The constants of `pipeline/pass_memory.py` and `pipeline/answer_memory.py` were found on the
first ten kinds, and are judged by the others, on a model of another shape too.

What an allocator rounds and keeps, and threads that begin, is noise of a few MiB: estimates are judged by their ratio
where the peak is far above it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.contexts import settled_bytes, write_gpt2_small
from benchmarks.measure import forget_peak, resident_bytes
from benchmarks.subjects import DEBUGGING_REQUEST, NEURONS_AND_HEADS
from dst_grpc import embedded
from dst_grpc._gen.dst.v1 import explain_pb2
from dst_grpc.contexts import ContextCache, Registry
from dst_grpc.contexts.device import HEAP_FACTOR
from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.components import AttentionTraceType, LossFnName, NodeType, PreOrPostAct
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.explain import ExplainRequest, ExplainRun, TopKGroup, TopKRequest
from dst_grpc.domain.indices import NodeIndex
from dst_grpc.domain.interventions import CopyFromRun, Intervention
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt, SourceRun
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.selections import TapSelection
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.pipeline import DeviceLimits, Limits, Pipeline
from dst_grpc.pipeline.explain_planner import plan_explain, plan_top_k
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.rpc.answers import messages_of
from dst_grpc.wire.envelope import Buffers, Envelope
from dst_grpc.wire.frames import FrameCutter, PartCutter
from scripts.real_model.__main__ import ready_folder

_T, _L = DerivedScalarType, ActivationLocationType
_MIB = 1 << 20
_NOISE_MIB = 6
"""What differs from one run of the same request to the next."""
_RIGHT = 0.7, 1.3

Request = DeriveRequest | ExplainRequest | TopKRequest


@dataclass(frozen=True)
class Subject:
    """A model that is measured."""

    folder: str
    vocabulary: int
    n_tokens: int
    """Of a prompt that takes much memory."""

    def prompt(self, n_tokens: int, seed: int = 0) -> Prompt:
        """A random prompt."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, self.vocabulary, (n_tokens,), generator=generator).tolist()
        return Prompt(token_ids=tuple(ids))


LOSS = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(5,), distractor_token_ids=(7,))


def _derive(*types: DerivedScalarType, share: float = 1.0, loss: bool = True, **fields: Any) -> Callable[..., Request]:
    """A request for *types* of a prompt that is *share* of the subject's longest."""

    def make(subject: Subject, n_tokens: int) -> DeriveRequest:
        return DeriveRequest(
            prompt=subject.prompt(max(int(share * n_tokens), 1)),
            loss_fn_config=LOSS if loss else None,
            derived_scalars=tuple(DerivedScalarSpec(dst=dst) for dst in types),
            **fields,
        )

    return make


def _traced(*types: DerivedScalarType, node: NodeType = NodeType.MLP_NEURON) -> Callable[..., Request]:
    def make(subject: Subject, n_tokens: int) -> DeriveRequest:
        indices = (n_tokens - 1, 3) if node is NodeType.MLP_NEURON else (n_tokens - 1, 0, 3)
        trace = TraceConfig(
            node_index=NodeIndex(node_type=node, layer_index=3, tensor_indices=indices),
            pre_or_post_act=PreOrPostAct.POST,
            detach_layer_norm_scale=True,
            attention_trace_type=None if node is NodeType.MLP_NEURON else AttentionTraceType.QK,
        )
        return DeriveRequest(
            prompt=subject.prompt(n_tokens),
            trace_config=trace,
            derived_scalars=tuple(DerivedScalarSpec(dst=dst) for dst in types),
        )

    return make


def _patched(subject: Subject, n_tokens: int) -> DeriveRequest:
    """A residual of another prompt's run, put into this one."""
    change = Intervention(
        at=TapSelection(activation_location_type=_L.RESID_POST_MLP, layer_index=1), action=CopyFromRun(run="other")
    )
    return DeriveRequest(
        prompt=subject.prompt(n_tokens),
        loss_fn_config=LOSS,
        source_runs=(SourceRun(name="other", prompt=subject.prompt(n_tokens, seed=1)),),
        interventions=(change,),
        derived_scalars=(DerivedScalarSpec(dst=_T.MLP_ACT_TIMES_GRAD),),
    )


def _explained(n_runs: int = 1, share: float = 0.25, **fields: Any) -> Callable[..., Request]:
    def make(subject: Subject, n_tokens: int) -> ExplainRequest:
        length = max(int(share * n_tokens), 2)
        runs = tuple(ExplainRun(prompt=subject.prompt(length, seed=i), loss_fn_config=LOSS) for i in range(n_runs))
        return ExplainRequest(runs=runs, **fields)

    return make


def _chosen(subject: Subject, n_tokens: int) -> TopKRequest:
    group = TopKGroup(group_id="all", dsts=(_T.MLP_ACT_TIMES_GRAD, _T.UNFLATTENED_ATTN_ACT_TIMES_GRAD))
    run = DeriveRequest(prompt=subject.prompt(n_tokens), loss_fn_config=LOSS)
    return TopKRequest(runs=(run,), groups=(group,), k=20)


_GRADIENTS = DstConfig(derive_gradients=True)
CALIBRATED = {
    "neurons": _derive(_T.MLP_POST_ACT, loss=False),
    "neurons, act x grad": _derive(_T.MLP_ACT_TIMES_GRAD),
    "heads, act x grad": _derive(_T.UNFLATTENED_ATTN_ACT_TIMES_GRAD, share=0.5),
    "neurons and heads, three quantities": _derive(*NEURONS_AND_HEADS, share=0.5),
    "logits of every token": _derive(_T.LOGITS, share=0.5, loss=False),
    "attention, with gradients": _derive(_T.ATTN_QK_PROBS, share=0.5, config=_GRADIENTS),
    "writes of heads": _derive(_T.ATTN_WRITE, share=0.1, loss=False),
    "writes of neurons": _derive(_T.MLP_WRITE, share=0.1, loss=False),
    "explanation": _explained(),
    "token attribution": _derive(_T.TOKEN_ATTRIBUTION),
}
JUDGED = {
    "debugging request": _derive(*DEBUGGING_REQUEST, share=0.25),
    "residuals, with gradients": _derive(_T.RESID_POST_MLP, config=_GRADIENTS),
    "values, with gradients": _derive(_T.ATTN_VALUE, config=_GRADIENTS),
    "one neuron traced": _traced(_T.MLP_ACT_TIMES_GRAD, _T.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD),
    "one head traced": _traced(_T.UNFLATTENED_ATTN_ACT_TIMES_GRAD, node=NodeType.ATTENTION_HEAD),
    "logits, with gradients": _derive(_T.LOGITS, share=0.25, config=_GRADIENTS),
    "a residual of another run": _patched,
    "head writes summed": _derive(_T.ATTN_WRITE_SUM_HEADS, share=0.5, loss=False),
    "top k of neurons and heads": _chosen,
    "explanation of two runs, all nodes": _explained(n_runs=2, k=60, scored_token_count=40),
}


async def _answer(pipeline: Pipeline, request: Request) -> int:
    """Make the messages of the whole answer, and copy and drop each, as gRPC does; its bytes."""
    steps: Any
    cut: Callable[[Any], Iterator[Buffers]] = FrameCutter().cut
    if isinstance(request, DeriveRequest):
        steps = pipeline.derive(request)
    elif isinstance(request, TopKRequest):
        steps, cut = pipeline.top_k(request), PartCutter(explain_pb2.TopKFrame).cut
    else:
        steps, cut = pipeline.explain(request), PartCutter(explain_pb2.ExplainFrame).cut
    sent = 0
    async with aclosing(messages_of(steps, cut, Envelope("id"), Threads("benchmark", at_once=1))) as messages:
        async for message in messages:
            sent += len(bytearray(message))
    return sent


def _estimate(request: Request, registry: Registry, store_bytes: int) -> int:
    if isinstance(request, DeriveRequest):
        return make_plan(request, registry, store_bytes=store_bytes).cost.peak_bytes
    if isinstance(request, TopKRequest):
        return plan_top_k(request, registry, store_bytes=store_bytes).peak_bytes
    return plan_explain(request, registry).peak_bytes


async def _measure(kind: str, subject: Subject) -> tuple[int, int]:
    """Bytes above what was there before, and those that were estimated."""
    make = (CALIBRATED | JUDGED)[kind]
    registry = Registry.build(models={"a": Path(subject.folder)}, device="cpu", include_embedded=False)
    cache, limits = ContextCache(registry), Limits(of_device=DeviceLimits(allocator_factor=HEAP_FACTOR))
    pipeline = Pipeline(cache, limits)
    await _answer(pipeline, make(subject, 24))
    before = settled_bytes()
    forget_peak()
    request = make(subject, subject.n_tokens)
    await _answer(pipeline, request)
    peak = resident_bytes("VmHWM") - before
    await pipeline.close()
    await cache.close()
    return peak, limits.of_device.taken(_estimate(request, registry, limits.store_bytes))


def _child(kind: str, subject: Subject, answer: Connection) -> None:
    torch.set_num_threads(1)
    answer.send(asyncio.run(_measure(kind, subject)))


def _measured(kind: str, subject: Subject) -> tuple[int, int]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(kind, subject, theirs))
    process.start()
    theirs.close()
    try:
        found: tuple[int, int] = ours.recv()
    finally:
        process.join()
    return found


def _rows(kinds: Sequence[str], subject: Subject, counts: list[bool]) -> Iterator[str]:
    for kind in kinds:
        peak, estimate = _measured(kind, subject)
        ratio = peak / estimate
        is_right = _RIGHT[0] <= ratio <= _RIGHT[1] or abs(peak - estimate) <= _NOISE_MIB * _MIB
        counts.append(is_right)
        yield (
            f"  {kind:38} {peak / _MIB:7.1f} MiB, estimated {estimate / _MIB:7.1f}: x {ratio:4.2f}"
            f"{'' if is_right else '  WRONG'}"
        )


def report() -> Iterator[str]:
    """A table of ratios for each model."""
    yield (
        f"memory of a request (VmHWM above the loaded model) over its estimate: {_RIGHT[0]} to {_RIGHT[1]} is right,"
        f" or a difference within {_NOISE_MIB} MiB"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = write_gpt2_small(Path(name) / "gpt2", torch.float32)
        gpt2 = Subject(str(folder), 50257, 256)
        smollm2 = Subject(str(ready_folder()), 49152, 256)
        small = Subject(str(embedded.MODEL_FOLDER), 6000, 256)
        counts: list[bool] = []
        for title, kinds, subject in (
            ("GPT-2-small shape, calibrated", CALIBRATED, gpt2),
            ("GPT-2-small shape, judged", JUDGED, gpt2),
            ("SmolLM2-135M, judged", CALIBRATED | JUDGED, smollm2),
            ("embedded model, judged", CALIBRATED | JUDGED, small),
        ):
            yield title
            yield from _rows(list(kinds), subject, counts)
    yield f"{sum(counts)} of {len(counts)} are right"
