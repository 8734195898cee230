"""Circuit and Patch over a socket on programs of known circuit: what they find are exactly its edges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dst_grpc.client import AsyncClient, CircuitKind, make_pair
from tests.e2e.conftest import served
from tests.programs import PROGRAMS, Program


@pytest.fixture(scope="module", name="address")
def _address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a server with all programs."""
    folder = tmp_path_factory.mktemp("programs")
    with served(models={one.name: str(one.save(folder / one.name)) for one in PROGRAMS}) as address:
        yield address


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
async def test_the_search_and_the_best_edges_are_those_of_the_circuit(address: str, program: Program) -> None:
    pairs = [
        make_pair(one.clean, one.corrupt, target=[one.target], distractor=[one.distractor]) for one in program.examples
    ]
    async with AsyncClient(address) as client:
        for off, edges in program.cases:
            ask: dict[str, Any] = {"pairs": pairs, "model": program.name, "ablations": off}
            searched = await client.circuit(acdc_threshold=1e-3, **ask)
            assert sorted(map(str, searched.edges)) == sorted(edges)
            (found,) = searched.of_kind(CircuitKind.ACDC)
            # Before pruning, too: no edge but these has an effect.
            assert found.chosen_edge_count == len(edges)
            assert found.metric == pytest.approx(searched.whole, abs=1e-4)

            share = (len(edges) + 0.5) / searched.header.edge_count
            ranked = await client.circuit(fractions=[share], wanted_faithfulness=0.99, **ask)
            assert sorted(map(str, ranked.edges)) == sorted(edges)
            (best,) = ranked.of_kind(CircuitKind.CURVE)
            assert best.faithfulness == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
async def test_patching_each_edge_finds_those_of_the_circuit(address: str, program: Program) -> None:
    found = set()
    async with AsyncClient(address) as client:
        for one in program.examples:
            answer = await client.patch(
                one.clean,
                one.corrupt,
                target=[one.target],
                distractor=[one.distractor],
                senders=[],
                model=program.name,
            )
            paths = answer["paths"]
            sources, readers = paths.labels
            for source, reader in np.argwhere(np.abs(paths.metric - answer.base) > 1e-4):
                found.add(f"{sources[source]}->{readers[reader]}")
    assert found == set(program.edges.split())
