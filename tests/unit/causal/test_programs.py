"""Programs of known circuit: they answer as they say, and exactly the edges of their circuits have an effect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dst_grpc.domain.graph_nodes import Edge
from dst_grpc.engine.checkpoint import open_checkpoint
from dst_grpc.engine.decoder import Decoder
from tests.programs import PROGRAMS, Program
from tests.unit.causal.cutting import Pair

EVERY_PROGRAM = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
NOTHING = 1e-4
"""Above what rounding leaves of an effect that cancels, and far below any effect of a program."""


def decoder_of(program: Program, folder: Path) -> Decoder:
    return open_checkpoint(program.save(folder)).load("cpu", torch.float32)


@EVERY_PROGRAM
def test_a_program_answers_as_it_says(program: Program, tmp_path: Path) -> None:
    decoder = decoder_of(program, tmp_path)
    for example in program.examples:
        two = Pair(decoder, example.clean, example.corrupt)
        clean, corrupt = two.logits(example.clean), two.logits(example.corrupt)
        assert int(clean.argmax()) == example.target
        fall = (clean - corrupt)[[example.target, example.distractor]]
        assert fall[0] - fall[1] > 1


@EVERY_PROGRAM
def test_exact_patching_of_each_edge_finds_those_of_the_circuit(program: Program, tmp_path: Path) -> None:
    """An edge is cut alone: what its reader reads of its source is that of the other prompt."""
    decoder = decoder_of(program, tmp_path)
    for off, expected in program.cases:
        found: set[str] = set()
        for example in program.examples:
            two = Pair(decoder, example.clean, example.corrupt, tuple(one.intervention for one in off))
            edges = np.argwhere(two.graph.mask)
            whole, *logits = two.runs.logits([two.circuit(two.graph.mask), *(two.edge(s, r) for s, r in edges)])
            assert int(whole.argmax()) == example.target
            change = (torch.stack(logits) - whole)[:, [example.target, example.distractor]]
            effects = (change[:, 0] - change[:, 1]).tolist()
            assert all(abs(effect) < NOTHING or effect < -1 for effect in effects)
            names = [str(Edge(two.graph.sources[s], two.graph.readers[r])) for s, r in edges]
            found.update(name for name, effect in zip(names, effects, strict=True) if abs(effect) >= NOTHING)
        assert found == set(expected)
