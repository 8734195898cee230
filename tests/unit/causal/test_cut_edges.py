"""Cut edges: golden data, and what must hold whatever the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dst_grpc.causal.alternative_scores import AlternativePath
from dst_grpc.causal.circuit_runs import CutRuns
from dst_grpc.causal.circuits import pruned
from dst_grpc.causal.cut_edges import CutRow
from dst_grpc.causal.writes import Alternative, MeanWrites, Writes, record
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.interventions import Intervention, SetValue
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.selections import TapSelection
from dst_grpc.engine.decoder import Decoder
from dst_grpc.scalars.origins import LossOrigin
from tests import models
from tests.causal_goldens import CASES, DIRECTIONS, assert_golden
from tests.unit.causal.cutting import GoldenPair, Pair

ARCHITECTURES = pytest.mark.parametrize("name", models.ARCHITECTURES)
CORRUPT = (3, 1, 8, 1, 2, 9)
METRIC = LossOrigin(LossFnConfig(name=LossFnName.LOGIT_DIFF, target_token_ids=(2,), distractor_token_ids=(7,)))


def pair(name: str) -> Pair:
    """A float64 model with two prompts."""
    return Pair(models.decoder(config=models.ARCHITECTURES[name]), models.TOKENS, CORRUPT)


def random_circuit(two: Pair, seed: int, share: float = 0.5) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """A random part of the edges."""
    return two.graph.mask & (np.random.default_rng(seed).random(two.graph.mask.shape) < share)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CASES)
def test_every_single_edge_is_patched_as_in_the_golden_data(name: str, direction: str) -> None:
    two = GoldenPair.of(name)
    edges = np.argwhere(two.graph.mask)
    runs = two.runs if direction == "noise" else two.reverse
    found = two.metric(runs.logits([two.edge(s, r) for s, r in edges]))
    golden = two.case.tensors[f"path.exact.{direction}"]
    assert golden.isnan().logical_not().equal(torch.from_numpy(two.graph.mask))
    assert_golden(found, golden[tuple(edges.T)])


@pytest.mark.parametrize("name", CASES)
def test_circuits_of_every_alternative_are_as_in_the_golden_data(name: str) -> None:
    two = GoldenPair.of(name)
    facts = two.case.facts["circuit"]
    circuits = [two.first("circuit.order", count) for count in facts["counts"]]
    for alternative, values in two.alternatives().items():
        runs = CutRuns(two.decoder, two.graph, two.base, values)
        for kept, key in ((circuits, alternative), ([pruned(two.graph, c) for c in circuits], f"{alternative}.pruned")):
            found = runs.logits([two.circuit(one, is_zero=alternative == "zero") for one in kept])
            assert_golden(two.metric(found), torch.tensor(facts["metric"][key]))


@ARCHITECTURES
def test_a_circuit_without_edges_is_the_other_run_and_one_of_all_edges_the_run_itself(name: str) -> None:
    two = pair(name)
    nothing, everything = two.runs.logits([two.circuit(two.graph.mask & part) for part in (False, True)])
    torch.testing.assert_close(nothing, two.logits(CORRUPT))
    assert torch.equal(everything, two.logits(models.TOKENS))


@ARCHITECTURES
def test_pruning_changes_nothing_under_patching(name: str) -> None:
    two = pair(name)
    for seed in range(3):
        kept = random_circuit(two, seed, share=0.3)
        whole, short = two.runs.logits([two.circuit(kept), two.circuit(pruned(two.graph, kept))])
        torch.testing.assert_close(whole, short)


@ARCHITECTURES
def test_a_source_whose_edges_are_all_cut_is_a_source_that_is_patched(name: str) -> None:
    two = pair(name)
    for layer in range(two.graph.n_layers):
        source = two.graph.sources_before(layer) + 1
        kept = two.graph.mask.copy()
        kept[source] = False
        heads = two.base.writes.heads[layer].clone()
        heads[:, :, 1] = two.other.writes.heads[layer][:, :, 1]
        patched = two.decoder.layers[layer].attn_write(heads) - two.decoder.layers[layer].attn_write(
            two.base.writes.heads[layer]
        )
        expected = _after_adding(two, layer, patched)
        torch.testing.assert_close(two.runs.logits([two.circuit(kept)])[0], expected)


def _after_adding(two: Pair, layer: int, change: torch.Tensor) -> torch.Tensor:
    """Logits after the attention of *layer* of the clean run wrote *change* in addition."""
    decoder = two.decoder
    x = two.base.residuals[layer]
    middle = x + decoder.layers[layer].attn_write(two.base.writes.heads[layer]) + change
    read = x if two.graph.is_parallel else middle
    one = decoder.layers[layer]
    after = middle + one.mlp_write(one.mlp_acts(one.mlp_norm(read)))
    logits = decoder.forward(two.base.tokens, entering=(layer + 1, after))
    assert logits is not None
    return logits[0, -1]


@ARCHITECTURES
def test_few_and_many_cut_edges_are_summed_to_the_same(name: str) -> None:
    two = pair(name)
    kept = random_circuit(two, 5)
    expected = two.runs.logits([two.circuit(kept)])
    sources, readers = np.nonzero(two.graph.mask & ~kept)
    torch.testing.assert_close(two.runs.logits([CutRow.of_edges((sources, readers), 0)]), expected)
    torch.testing.assert_close(two.runs.logits([two.circuit(kept, is_zero=True)]), expected)


@ARCHITECTURES
def test_rows_of_one_batch_are_what_they_are_alone(name: str) -> None:
    two = pair(name)
    rng = np.random.default_rng(0)
    edges = rng.permutation(np.argwhere(two.graph.mask))[:20]
    rows = [two.edge(s, r) for s, r in edges] + [two.circuit(random_circuit(two, seed)) for seed in range(3)]
    alone = torch.cat([two.runs.logits([row]) for row in rows])
    torch.testing.assert_close(two.runs.logits(rows), alone)


@ARCHITECTURES
def test_prompts_beside_longer_ones_are_what_they_are_alone(name: str) -> None:
    two = pair(name)
    prompts, others = [(4, 7, 2, 2, 1, 5, 9, 3), models.TOKENS], [(4, 7, 2, 6, 1, 5, 9, 3), CORRUPT]
    base, other = record(prompts, two.decoder), record(others, two.decoder)
    runs = CutRuns(two.decoder, two.graph, base, Alternative.of(other.writes, two.decoder, 8))
    kept = random_circuit(two, 1)
    row = CutRow.of_circuit(two.graph, kept, 1)
    beside = runs.logits(
        [CutRow.of_circuit(two.graph, kept, 0), row, CutRow.of_edges((np.array([0]), np.array([0])), 1)]
    )
    torch.testing.assert_close(beside[1], two.runs.logits([two.circuit(kept)])[0])
    torch.testing.assert_close(beside[2], two.runs.logits([two.edge(0, 0)])[0])


@ARCHITECTURES
def test_circuits_of_a_model_without_a_head_are_those_of_one_whose_weights_are_0(name: str) -> None:
    layer, head = 1, 2
    config = models.ARCHITECTURES[name]
    weights = models.weights(config=config)
    weights[f"layers.{layer}.attn.out.weight"].view(config.n_heads, -1, config.d_model)[head] = 0
    other = Pair(Decoder(config, weights), models.TOKENS, CORRUPT)
    heads = L.ATTN_WEIGHTED_SUM_OF_VALUES
    at = TapSelection(activation_location_type=heads, layer_index=layer, axes=(None, head))
    off = (Intervention(at=at, action=SetValue(scalar=0.0)),)
    without = Pair(models.decoder(config=config), models.TOKENS, CORRUPT, off)
    for seed in range(3):
        kept = random_circuit(without, seed)
        # Passes that begin before the head, in its layer, and after it.
        readers = [0, without.graph.first_reader_of(layer) + head, without.graph.first_reader_of(layer + 1)]
        rows = [without.circuit(kept), *(without.edge(0, reader) for reader in readers)]
        torch.testing.assert_close(without.runs.logits(rows), other.runs.logits(rows))
    scores = [
        AlternativePath(two.decoder, two.base, two.other.writes, [METRIC], steps=3).edge_scores(two.graph)[0]
        for two in (without, other)
    ]
    torch.testing.assert_close(*scores)


def test_a_mean_of_one_prompt_is_that_prompt_and_a_mean_over_positions_is_the_mean_of_its_tokens() -> None:
    two = pair("gemma")
    means = []
    for by_position in (True, False):
        mean = MeanWrites(by_position=by_position)
        mean.add(two.other)
        means.append(mean.mean(torch.float64))
    for found, over_all, own in zip(*(_tensors(one) for one in (*means, two.other.writes)), strict=True):
        torch.testing.assert_close(found, own)
        torch.testing.assert_close(over_all, own.mean(dim=1, keepdim=True))


@pytest.mark.parametrize("by_position", [False, True])
def test_pads_are_in_no_mean(by_position: bool) -> None:
    two = pair("gpt2")
    together, apart = (MeanWrites(by_position=by_position) for _ in range(2))
    together.add(record([CORRUPT, (4, 7)], two.decoder))
    for prompt in ((4, 7), CORRUPT):
        apart.add(record([prompt], two.decoder))
    for found, expected in zip(*(_tensors(one.mean(torch.float64)) for one in (together, apart)), strict=True):
        torch.testing.assert_close(found, expected)
    if by_position:
        short, long = (_tensors(record([prompt], two.decoder).writes) for prompt in ((4, 7), CORRUPT))
        for found, a, b in zip(_tensors(together.mean(torch.float64)), short, long, strict=True):
            torch.testing.assert_close(found[:, :2], (a + b[:, :2]) / 2)
            torch.testing.assert_close(found[:, 2:], b[:, 2:])


def _tensors(writes: Writes) -> list[torch.Tensor]:
    return [writes.embedding, *writes.heads, *writes.mlps]


@ARCHITECTURES
def test_a_pass_begins_at_the_first_layer_with_a_changed_reader(name: str) -> None:
    two = pair(name)
    n_layers = two.graph.n_layers
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1

    runs = CutRuns(two.decoder, two.graph, two.base, two.alternative(two.other.writes), check=check)
    found = []
    for layer in range(n_layers + 1):
        checks = 0
        runs.logits([two.edge(0, two.graph.first_reader_of(layer))])
        found.append(checks)
    # One check before the pass, and as many in each layer that runs.
    per_layer = found[-2] - found[-1]
    assert per_layer > 0
    assert found == [1 + per_layer * (n_layers - layer) for layer in range(n_layers + 1)]


def test_logits_at_any_position_are_those_of_the_circuit() -> None:
    two = pair("gemma")
    whole, other = two.graph.mask, np.zeros_like(two.graph.mask)
    for kept, tokens in ((whole, models.TOKENS), (other, CORRUPT)):
        ((_, ran),) = two.runs.batches([two.circuit(kept)])
        logits = two.decoder.forward(torch.tensor([tokens]))
        assert logits is not None
        torch.testing.assert_close(ran.logits(0, (1, 4)), logits[0, [1, 4]])
        torch.testing.assert_close(ran.last[0], logits[0, -1])
