"""Planning of Circuit: estimates, blocks of pairs, and what is the same question."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.measure import peak_bytes
from dst_grpc.causal.circuit_runs import CutRuns
from dst_grpc.causal.cut_edges import CutRow
from dst_grpc.causal.writes import Alternative, record
from dst_grpc.client import make_circuit_request, make_pair
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.errors import InvalidRequest
from dst_grpc.pipeline.circuit_planner import CircuitPlan, plan_circuit
from dst_grpc.pipeline.pair_planner import BLOCK_TOKENS
from tests import models
from tests.unit.pipeline.planning import WORLD

CORRUPT = (3, 1, 8, 1, 2, 9)


def plan(n_pairs: int = 1, clean: tuple[int, ...] = models.TOKENS, **arguments: Any) -> CircuitPlan:
    pairs = [make_pair(clean, CORRUPT[: len(clean)], target=[2]) for _ in range(n_pairs)]
    return plan_circuit(make_circuit_request(pairs=pairs, **arguments), WORLD.registry)


def test_pairs_are_recorded_in_blocks_that_have_them_all() -> None:
    asked = plan(3 * BLOCK_TOKENS // len(models.TOKENS))
    blocks = list(asked.blocks())
    assert [i for block in blocks for i in block] == list(range(len(asked.pairs)))
    assert len(blocks) > 2
    assert max(len(block) * asked.longest for block in blocks) <= BLOCK_TOKENS


def test_a_search_keeps_all_pairs_and_a_curve_a_block_of_them() -> None:
    def bytes_of(n_pairs: int, **arguments: Any) -> int:
        return plan(n_pairs, **arguments).peak_bytes

    several, many = (n * BLOCK_TOKENS // len(models.TOKENS) for n in (1, 3))
    assert bytes_of(several) == bytes_of(many)
    assert bytes_of(several, acdc_threshold=0.1) < bytes_of(many, acdc_threshold=0.1)
    assert bytes_of(1) < bytes_of(several)


def test_a_pass_takes_no_more_memory_than_is_estimated() -> None:
    asked = plan(8)
    base, other = (record([prompt] * 8, WORLD.decoder) for prompt in (models.TOKENS, CORRUPT))
    runs = CutRuns(WORLD.decoder, asked.graph, base, Alternative.of(other.writes, WORLD.decoder, len(models.TOKENS)))
    rng = np.random.default_rng(0)
    kept = asked.graph.mask & (rng.random(asked.graph.mask.shape) < 0.5)
    row = CutRow.of_circuit(asked.graph, kept, 0)
    rows = [replace(row, prompt=i) for i in range(8) for _ in range(2 + len(asked.fractions))]
    # The model of the tests has numbers of 8 bytes, twice those that are estimated for.
    assert peak_bytes(lambda: runs.logits(rows)) <= 2 * asked.peak_bytes


def test_a_stored_tensor_is_looked_up_and_has_to_fit() -> None:
    class Store:
        def get(self, handle: str) -> RequestTensor:
            return RequestTensor(tensor=np.ones((len(handle), 2), np.float32))

    asked = plan(scores=RequestTensor(handle="ab"))
    with pytest.raises(InvalidRequest, match=r"curve\.scores"):
        asked.with_tensors(Store())
    with pytest.raises(InvalidRequest, match="no tensors are kept here"):
        asked.with_tensors(None)
    assert plan().with_tensors(None).request.curve is not None


def test_the_digest_is_that_of_the_question_alone() -> None:
    asked = plan()
    same, other = plan(request_id="mine"), plan(fractions=[0.5])
    assert same.digest("m", ()) == asked.digest("m", ())
    assert other.digest("m", ()) != asked.digest("m", ())
    assert asked.digest("n", ()) != asked.digest("m", ())
