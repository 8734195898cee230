"""What is estimated of a graph's memory."""

from __future__ import annotations

import pytest

from dst_grpc.errors import Exhausted
from dst_grpc.graphs.memory import GraphMemory
from dst_grpc.graphs.question import GraphQuestion
from dst_grpc.graphs.sources import Sources
from tests.graph_goldens import golden_model, golden_transcoders

DECODER, SOURCES = golden_model("gpt2").decoder, Sources(golden_transcoders("gpt2", "plt_relu"))


def memory(limit: int, n_tokens: int = 50) -> GraphMemory:
    question = GraphQuestion(token_ids=(0,) * n_tokens, memory_bytes=limit)
    return GraphMemory.of(question, DECODER, SOURCES, n_active=500, n_targets=5)


@pytest.mark.parametrize("n_tokens", [1, 9, 50, 2000])
@pytest.mark.parametrize("factor", [1.0, 1.3, 10.0, 1000.0])
def test_the_peak_is_between_what_is_needed_and_the_limit(n_tokens: int, factor: float) -> None:
    needed = memory(1, n_tokens).needed
    found = memory(int(factor * needed), n_tokens)
    found.check()
    assert found.needed <= found.peak <= found.limit
    with pytest.raises(Exhausted):
        memory(needed - 1, n_tokens).check()


def test_the_peak_is_that_of_the_largest_block() -> None:
    found = memory(1 << 40)
    blocks = [found.block_size(end) * (found.of_target + end * found.of_place) for end in range(1, found.n_tokens + 1)]
    assert found.peak == found.recording + found.rows + found.layers + max(blocks)
