"""Memory: weights as registered, peaks as estimated, given back afterwards, and what happens when it runs out."""

from __future__ import annotations

import gc
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks import subjects
from benchmarks.deriving import derive
from benchmarks.measure import interleaved
from dst_grpc.domain.components import TensorElementType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.sender import HERE, Sender
from dst_grpc.errors import Exhausted, Reason
from dst_grpc.pipeline.planner import make_plan
from dst_grpc.pipeline.run import run
from dst_grpc.pipeline.tensor_answer import to_numpy
from scripts.gpu_check.findings import Finding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dst_grpc.domain.requests import DeriveRequest
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.pipeline.plan import Plan
    from scripts.gpu_check.device import Device, Served

_MIB = 1 << 20
_SPARE = 512 * _MIB
_ROUNDS = 5
_ROUNDING = 2 * _MIB
"""Blocks are rounded up, to 512 bytes or more each."""
_ESTIMATE = (0.7, 1.3)
"""Right values of a measured peak over its estimate."""


async def weights(served: Served) -> AsyncIterator[Finding]:
    """What a model's weights take, against the cache's count, and what is left of them once it is unloaded."""
    before = served.device.allocated()
    registered = 0
    async with aclosing(served.cache.load("small")) as statuses:
        async for status in statuses:
            registered = status.bytes_total
    after = served.device.allocated()
    await served.cache.unload("small")
    gc.collect()
    left = served.device.allocated()
    if before is None or after is None or left is None:
        yield Finding(
            check="memory",
            what="weights of a model",
            got="a CPU does not count them",
            wanted=f"{registered / _MIB:.1f} MiB",
            is_right=None,
        )
        return
    yield _bytes("weights of a model", after - before, registered, within=_ROUNDING)
    yield _bytes("left of them once unloaded", left - before, 0, within=_ROUNDING)


def _bytes(what: str, got: int, wanted: int, *, within: int) -> Finding:
    return Finding(
        check="memory",
        what=what,
        got=f"{got / _MIB:.1f} MiB",
        wanted=f"{wanted / _MIB:.1f} MiB",
        is_right=abs(got - wanted) <= within,
    )


async def peaks(served: Served) -> AsyncIterator[Finding]:
    """The peak of a pass and its derivation, over its estimate."""
    async with served.cache.lease(served.registry.model_entry("small")) as lease:
        decoder = lease.model.decoder
        for what, types, n_tokens in (
            ("act x grad, write norm, direct effect", subjects.NEURONS_AND_HEADS, 64),
            ("act x grad, write norm, direct effect", subjects.NEURONS_AND_HEADS, 512),
            ("logits of every token", (DerivedScalarType.LOGITS,), 512),
            ("writes of heads at pairs of tokens", (DerivedScalarType.ATTN_WRITE,), 64),
        ):
            plan = make_plan(subjects.request(n_tokens, types), served.registry)

            work = partial(_run_and_derive, plan, decoder)
            work()
            ratio = served.device.peak(work) / plan.cost.peak_bytes
            yield Finding(
                check="memory",
                what=f"peak over estimate: {what}, {n_tokens} tokens",
                got=f"{ratio:.2f} of {plan.cost.peak_bytes / _MIB:.0f} MiB",
                wanted=f"{_ESTIMATE[0]} to {_ESTIMATE[1]}",
                is_right=_ESTIMATE[0] <= ratio <= _ESTIMATE[1],
            )


def _run_and_derive(plan: Plan, decoder: Decoder) -> None:
    (result,) = run([plan], decoder, {})
    derive(result)


async def out_of_memory(served: Served) -> AsyncIterator[Finding]:
    """A request that does not fit is refused as such, and the next one is served."""
    small = subjects.request(16, subjects.NEURONS_AND_HEADS)
    huge = subjects.request(1024, (DerivedScalarType.ATTN_WRITE,))  # some 36 GiB a layer
    await ask(served, small)
    before = served.device.allocated()
    with served.device.short_of_memory(_SPARE):
        reason = None
        try:
            await ask(served, huge)
        except Exhausted as error:
            reason = error.reason
        yield Finding(
            check="out of memory",
            what="a request for more than there is",
            got=f"refused: {reason}" if reason else "answered",
            wanted=f"refused: {Reason.OUT_OF_MEMORY}",
            is_right=reason is Reason.OUT_OF_MEMORY,
        )
        n_bytes = await ask(served, small)
    yield Finding(
        check="out of memory",
        what="the next request, with as little memory",
        got=f"{n_bytes / _MIB:.1f} MiB of tensors",
        wanted="an answer",
        is_right=n_bytes > 0,
    )
    gc.collect()
    after = served.device.allocated()
    if before is not None and after is not None:
        yield _bytes("left behind by the refused one", after - before, 0, within=_ROUNDING)


async def ask(served: Served, request: DeriveRequest, sender: Sender = HERE) -> int:
    """Ask as *sender*, and read the whole answer; its bytes."""
    n_bytes = 0
    async with aclosing(served.pipeline.derive(request, sender=sender)) as steps:
        async for ready in steps:
            n_bytes += sum(one.values.nbytes for one in ready if hasattr(one, "values"))
    return n_bytes


def pinned_copies(device: Device) -> Iterator[Finding]:
    """Answers come to the host unchanged, through pinned memory, and no slower than without."""
    x = torch.arange(1 << 26, dtype=torch.float32, device=device.name)  # 256 MiB
    is_equal = torch.equal(torch.from_numpy(to_numpy(x, TensorElementType.FLOAT32)), x.cpu())
    yield Finding(
        check="copies",
        what="256 MiB to the host",
        got="equal" if is_equal else "different",
        wanted="equal",
        is_right=is_equal,
    )
    if not device.is_gpu:
        yield Finding(check="copies", what="pinned over pageable rate", got="no GPU", wanted=">= 1.0", is_right=None)
        return
    found = interleaved({"pinned": partial(to_numpy, x, TensorElementType.FLOAT32), "pageable": x.cpu}, _ROUNDS)
    ratio = found.over("pageable", "pinned").median
    rate = x.nbytes / found.milliseconds("pinned") / 1e6
    yield Finding(
        check="copies",
        what="pinned over pageable rate",
        got=f"{ratio:.2f} ({rate:.1f} GB/s)",
        wanted=">= 1.0",
        is_right=ratio >= 1.0,
    )
