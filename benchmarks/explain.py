"""Explaining, beside the bare forward and backward pass of the same decoder to the activations."""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, cast
from unittest.mock import patch

from benchmarks import subjects
from benchmarks.deriving import bare
from benchmarks.measure import conditions, interleaved, peak_bytes
from dst_grpc._gen.dst.v1.explain_pb2 import ExplainFrame
from dst_grpc.contexts.model import ModelContext
from dst_grpc.domain.components import LossFnName, TensorElementType
from dst_grpc.domain.explain import ExplainRequest, ExplainRun
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import Prompt
from dst_grpc.pipeline import scored_tokens
from dst_grpc.pipeline.explain_plan import ExplainPlan
from dst_grpc.pipeline.explain_planner import plan_explain
from dst_grpc.pipeline.explanation_answer import ExplanationAnswer
from dst_grpc.pipeline.run import run
from dst_grpc.pipeline.store import RecordingStore
from dst_grpc.scalars.token_scoring import extreme_tokens
from dst_grpc.wire.frames import part_to_wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from dst_grpc.domain.explanations import ExplanationPart
    from dst_grpc.engine.tokenizer import Tokenizer
    from dst_grpc.scalars.token_scoring import TokenExtremes

ROUNDS = 7
_MIB = 1 << 20
_COLUMNS = 1024
"""Tokens of a bare product: faster than more, or all, at once."""
TABLES = (ExplainPart.NODE_TABLE, ExplainPart.COMPONENT_SUMS, ExplainPart.TOP_LOGITS)


def plan(n_tokens: int, *, parts: tuple[ExplainPart, ...] = (), second: int | None = None) -> ExplainPlan:
    """The default groups of a random prompt, k = 15; and of another, of which the last *second* tokens differ."""
    ids = cast("Prompt", subjects.request(n_tokens, ()).prompt).token_ids or ()
    prompts = [ids]
    if second is not None:
        other = tuple((token + 1) % subjects.GPT2_SMALL.vocab_size for token in ids)
        prompts.append(ids[: n_tokens - second] + other[n_tokens - second :])
    loss = LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(5,), distractor_token_ids=(9,))
    runs = tuple(ExplainRun(prompt=Prompt(token_ids=prompt), loss_fn_config=loss) for prompt in prompts)
    request = ExplainRequest(runs=runs, parts=parts)
    return plan_explain(request, subjects.one_model(subjects.GPT2_SMALL))


def model() -> ModelContext:
    """The decoder as the server would hold it."""
    return ModelContext(
        handle="random@0:float32:cpu",
        name="random",
        decoder=subjects.gpt2_small(),
        tokenizer=cast("Tokenizer", subjects.IdsOnly(subjects.GPT2_SMALL.vocab_size)),
        digest="0",
        device="cpu",
        element_type=TensorElementType.FLOAT32,
        parameter_bytes=0,
    )


def explain(asked: ExplainPlan) -> list[ExplanationPart]:
    """Run a plan as the server does: its runs in one batch, then every step."""
    store = RecordingStore()
    results = run([store.widened(one) for one in asked.plans], subjects.gpt2_small(), {})
    return [part for parts in ExplanationAnswer(asked, results, model(), {}).steps() for part in parts]


def ratios() -> Iterator[str]:
    """Time and memory over the bare pass, and bytes over the full tensors."""
    for name, parts, wanted in (("tables, sums and logits", TABLES, "; wanted: time x 1.3"), ("all parts", (), "")):
        yield (
            f"Explain, default groups, k = 15, {name}, GPT-2-small shape, over the bare forward + backward with the"
            f" logits of the last token, {conditions(ROUNDS)}{wanted}"
        )
        for n_tokens in (16, 64):
            asked = plan(n_tokens, parts=parts)
            reference, ours = partial(bare, subjects.gpt2_small(), asked.plans[0]), partial(explain, asked)
            both = [plan(n_tokens, parts=parts, second=differing) for differing in (2, n_tokens)]
            prompts = [one.token_ids for one in both[1].plans]
            work: dict[str, Callable[[], object]] = {
                "bare": reference,
                "ours": ours,
                "alike": partial(explain, both[0]),
                "unlike": partial(explain, both[1]),
                "two bare": partial(subjects.bare_pass, subjects.gpt2_small(), prompts, lambda x: x[:, 5].sum()),
            }
            found = interleaved(work, ROUNDS)
            memory = {"bare": peak_bytes(reference), "ours": peak_bytes(ours)}
            sent = sum(part_to_wire(ExplainFrame, part).ByteSize() for part in ours())
            full = asked.plans[0].cost.output_bytes
            yield (
                f"  {n_tokens:3} tokens: time x {found.over('ours', 'bare')},"
                f" {found.milliseconds('ours'):.0f} ms / {found.milliseconds('bare'):.0f} ms;"
                f" peak memory x {memory['ours'] / memory['bare']:.2f} (wanted: 2)"
                f" ({memory['ours'] / _MIB:.0f} MiB / {memory['bare'] / _MIB:.0f} MiB),"
                f" {sent / 1e3:.0f} kB sent, {sent / full:.1%} of the tensors"
            )
            yield (
                f"       two prompts, whose last 2 tokens differ, x {found.over('alike', 'ours')} of one (wanted: 1.7);"
                f" all tokens x {found.over('unlike', 'ours')}; two bare passes together"
                f" x {found.over('two bare', 'bare')} of one"
            )


def floor(asked: ExplainPlan) -> Iterator[str]:
    """Time of all parts over their floor: the bare pass, and bare products of the same vectors with the vocabulary."""
    scored: list[tuple[torch.Tensor, torch.Tensor]] = []

    def noted(vectors: torch.Tensor, matrix: torch.Tensor, count: int, **how: object) -> TokenExtremes:
        scored.append((vectors, matrix))
        return extreme_tokens(vectors, matrix, count, **how)  # type: ignore[arg-type]  # what it is given

    with patch.object(scored_tokens, "extreme_tokens", noted):
        explain(asked)

    def products() -> None:
        for vectors, matrix in scored:
            for start in range(0, matrix.shape[1], _COLUMNS):
                vectors @ matrix[:, start : start + _COLUMNS]

    work: dict[str, Callable[[], object]] = {
        "bare": partial(bare, subjects.gpt2_small(), asked.plans[0]),
        "products": products,
        "ours": partial(explain, asked),
    }
    found = interleaved(work, ROUNDS)
    took = {name: found.milliseconds(name) for name in work}
    yield (
        f"       all parts over their floor: x {found.over('ours', 'bare', 'products')} (wanted: 1.25),"
        f" {took['ours']:.0f} ms / (the bare pass {took['bare']:.0f} ms + products of"
        f" {sum(len(vectors) for vectors, _ in scored)} vectors with the vocabulary {took['products']:.0f} ms)"
    )


def where_the_time_goes() -> Iterator[str]:
    """Seconds until each kind of part, the pass included, of one request."""
    yield "Explain, where the time goes (ms)"
    for n_tokens in (16, 64):
        asked = plan(n_tokens)
        explain(asked)
        store, started = RecordingStore(), time.perf_counter()
        results = run([store.widened(one) for one in asked.plans], subjects.gpt2_small(), {})
        spent: dict[str, float] = defaultdict(float)
        spent["pass"] = time.perf_counter() - started
        before = time.perf_counter()
        for parts in ExplanationAnswer(asked, results, model(), {}).steps():
            now = time.perf_counter()
            name = "derive and choose"
            if parts:
                value = parts[0].value
                name = str(getattr(value, "part", parts[0].kind))
            spent[name] += now - before
            before = now
        yield f"  {n_tokens:3} tokens: " + ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in spent.items())


def report() -> Iterator[str]:
    """All of it."""
    yield from ratios()
    for n_tokens in (16, 64):
        yield f"Explain, {n_tokens} tokens"
        yield from floor(plan(n_tokens))
    yield from where_the_time_goes()
