"""The same rows once more through a live server: messages, frames, checksums and the Python client in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.client import AsyncClient
from dst_grpc.contexts.cache import ContextCache
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.pipeline import Pipeline
from dst_grpc.rpc.parts import Parts
from dst_grpc.rpc.server import running_server
from dst_grpc.rpc.settings import Settings
from tests.parity.cases import CASES, load_case
from tests.parity.comparison import Tensors, compare, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.client import Answer
    from dst_grpc.contexts.registry import Registry


async def test_every_case_on_one_stream(registry: Registry, count_row: Callable[[str, str], None]) -> None:
    """All cases sent on one DeriveStream give the reference's rows, whatever order they come back in."""
    cases = {name: load_case(name, "golden") for name in CASES}
    cache = ContextCache(registry, loader=FileLoader(allow_failed_checks=True))
    parts = Parts.of(Pipeline(cache), cache, lambda: registry)
    problems: list[str] = []
    async with running_server(Settings(port=0), parts) as server, AsyncClient(server.address) as client:
        async for request_id, answer in client.derive_stream([case.request for case in cases.values()]):
            case = cases.pop(request_id)
            if isinstance(answer, Exception):
                problems.append(f"{request_id}: {answer}")
                continue
            for index, row in enumerate(case.rows):
                wrong = compare(case, row, _tensors_of(answer, index), answer.loss, answer.activation_value)
                problems += [f"{row.name}: {problem}" for problem in wrong]
                count_row("over the wire", "different" if wrong else "on purpose" if rule_of(row) else "equal")
    assert not problems
    assert not cases


def _tensors_of(answer: Answer, spec_index: int) -> Tensors:
    """The tensors that one derived scalar of the request gave."""
    return {
        (tensor.pass_type, tensor.layer_index): tensor.values
        for tensor in answer.tensors
        if tensor.spec_index == spec_index
    }
