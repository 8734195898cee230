"""Whole debugging requests beside the reference's answers: in process, and through a live server with the client."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from dst_grpc.client import AsyncClient
from dst_grpc.contexts.cache import ContextCache
from dst_grpc.contexts.loading import FileLoader
from dst_grpc.pipeline import Pipeline
from dst_grpc.rpc.parts import Parts
from dst_grpc.rpc.server import running_server
from dst_grpc.rpc.settings import Settings
from tests.explanations import collected
from tests.parity.explain_cases import EXPLAIN_CASES, compare_explanation, load_explain_case

if TYPE_CHECKING:
    from collections.abc import Callable

    from dst_grpc.contexts.registry import Registry


@pytest.fixture
def parts(registry: Registry) -> Parts:
    """The server's parts on the reference's model, whose random autoencoders reconstruct nothing."""
    cache = ContextCache(registry, loader=FileLoader(allow_failed_checks=True))
    return Parts.of(Pipeline(cache), cache, lambda: registry)


def test_every_request_is_there() -> None:
    assert len(EXPLAIN_CASES) == 10


@pytest.mark.parametrize("name", EXPLAIN_CASES)
async def test_in_process(name: str, parts: Parts, count_row: Callable[[str, str], None]) -> None:
    """Every part of the answer is the reference's; all runs take one pass each way."""
    case = load_explain_case(name, "golden")
    async with aclosing(parts.pipeline.explain(case.request)) as steps:
        ready = [part async for step in steps for part in step]
    await parts.pipeline.close()
    found = collected(ready, name, len(case.request.runs))
    assert found.trailer.statistics.forward_passes == 1
    assert found.trailer.statistics.backward_passes == 1
    problems = compare_explanation(case, found)
    for wrong in problems.values():
        count_row("explain, in process", "different" if wrong else "equal")
    assert not {part: wrong for part, wrong in problems.items() if wrong}


async def test_over_the_wire(parts: Parts, count_row: Callable[[str, str], None]) -> None:
    """All requests of one client to one server, whose store of recordings they share."""
    wrong: dict[str, object] = {}
    async with running_server(Settings(port=0), parts) as server, AsyncClient(server.address) as client:
        for name in EXPLAIN_CASES:
            case = load_explain_case(name, "golden")
            found = await client.explain_request(case.request)
            assert found.request_id == name
            for part, problems in compare_explanation(case, found).items():
                count_row("explain, over the wire", "different" if problems else "equal")
                if problems:
                    wrong[f"{name}, {part}"] = problems
    assert not wrong
