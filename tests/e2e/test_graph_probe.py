"""ProbeGraph over a socket: edges are what runs do, of every family that golden graphs are of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dst_grpc.client import AsyncClient, DerivedScalarType, GraphAnswer, make_graph_intervention
from dst_grpc.errors import InvalidRequest, NotFound, OutOfRange
from tests.graph_goldens import golden_graph, golden_model, golden_transcoders

CASES = (
    "gpt2_plt_relu_whole",
    "llama_clt_relu_normed_whole",
    "qwen3_plt_jumprelu_whole",
    "gemma2_plt_jumprelu_skip_whole",
)


async def asked(client: AsyncClient, name: str) -> GraphAnswer:
    """The graph of a golden case, with all edges."""
    facts, tokens = golden_graph(name).facts, golden_graph(name).tensors["tokens"].tolist()
    transcoders = f"{facts['model']}/{facts['transcoders']}"
    return await client.graph(tokens, transcoders, model=facts["model"], edges="whole")


@pytest.mark.parametrize("name", CASES)
async def test_features_do_what_edges_say_while_all_else_is_held(graphs_address: str, name: str) -> None:
    async with AsyncClient(graphs_address) as client:
        graph = await asked(client, name)
        features = [row.name for row in graph.top(3)]
        runs = [
            make_graph_intervention(off=features[:2], with_features=True, name="two"),
            make_graph_intervention(factors={features[2]: 3.0}, with_features=True),
            make_graph_intervention({features[0]: 1.0}, first_free_layer=0),
        ]
        two, tripled, free = await client.intervene_on_graph(graph, runs)
        assert (two.name, two.index, tripled.index) == ("two", 0, 1)
        numbers = [graph.names.index(feature) for feature in features]
        for changes, relative in ((two, {numbers[0]: -1.0, numbers[1]: -1.0}), (tripled, {numbers[2]: 2.0})):
            edges = graph.adjacency[:, list(relative)] @ np.array(list(relative.values()))
            by_name = dict(zip(graph.names, edges, strict=True))
            size = float(np.abs(edges).max())
            assert len(changes.changes) == graph.header.feature_count + len(graph.header.targets)
            for one in changes.changes:
                assert one.predicted == pytest.approx(by_name[one.node], abs=1e-6 * size)
                assert one.measured == pytest.approx(one.predicted, abs=5e-4 * size)
        assert [one.node for one in free.changes] == [f"logit:{one.token_id}" for one in graph.header.targets]
        assert any(one.measured != pytest.approx(one.predicted, rel=1e-3) for one in free.changes)
        for found in await client.verify_graph(graph, 5, seed=1):
            assert found.held_deviation <= 5e-4 * found.size
            assert found.size > 0
            assert found.free_deviation > found.held_deviation


@pytest.mark.parametrize("name", CASES)
async def test_heads_and_pairs_add_up(graphs_address: str, name: str) -> None:
    async with AsyncClient(graphs_address) as client:
        graph = await asked(client, name)
        logit = f"logit:{graph.header.targets[0].token_id}"
        edge = next(one for one in graph.neighbours(logit, kinds=["embedding"]) if one.source != graph.names[-1])
        heads = await client.edge_heads(graph, edge.source, logit)
        size = sum(abs(one.last) + abs(one.first) for one in heads.heads) + abs(heads.without_heads)
        assert heads.weight == pytest.approx(edge.weight, abs=1e-5 * size)
        for parts in ([one.last for one in heads.heads], [one.first for one in heads.heads]):
            assert heads.without_heads + sum(parts) == pytest.approx(heads.weight, abs=1e-5 * size)
        last = len(graph.header.token_ids) - 1
        score = await client.attention_pairs(graph, 1, 0, last, last, k=7)
        assert len(score.pairs) == 7
        total = sum(pair.contribution for pair in score.pairs) + score.remainder
        assert total == pytest.approx(score.score, rel=1e-4, abs=1e-5)
        derived = await client.derive(
            list(graph.header.token_ids), [DerivedScalarType.ATTN_QK_PROBS], model=golden_graph(name).facts["model"]
        )
        probabilities = derived[DerivedScalarType.ATTN_QK_PROBS]
        assert score.probability == pytest.approx(float(probabilities[1][last, last, 0]), abs=1e-5)


@pytest.mark.parametrize("name", CASES)
async def test_tokens_of_features_are_those_of_their_vectors(graphs_address: str, name: str) -> None:
    case = golden_graph(name)
    model = golden_model(case.facts["model"])
    transcoders = golden_transcoders(case.facts["model"], case.facts["transcoders"])
    async with AsyncClient(graphs_address) as client:
        graph = await asked(client, name)
        names = [row.name for row in graph.top(4)]
        for found, node in zip(await client.feature_tokens(graph, names, k=3), names, strict=True):
            row = graph.node(node)
            assert found.node == node
            assert row.layer is not None
            one, decoder = torch.tensor([row.feature]), model.decoder
            to = transcoders.written_layers(row.layer)
            written = sum(transcoders.decoder_rows(row.layer, one, layer)[0] for layer in to)
            logits = decoder.final_norm.unit(torch.as_tensor(written)) @ decoder.unembedding
            logits -= logits.mean()
            wanted = logits.topk(3)
            assert [one.token_id for one in found.promoted] == wanted.indices.tolist()
            assert [one.score for one in found.promoted] == pytest.approx(wanted.values.tolist(), rel=1e-4, abs=1e-5)
            assert [one.token_id for one in found.suppressed] == (-logits).topk(3).indices.tolist()
            assert [one.token for one in found.read] == model.tokenizer.token_strings([t.token_id for t in found.read])
            assert len(found.read) == 3


async def test_wrong_calls_are_refused(graphs_address: str) -> None:
    async with AsyncClient(graphs_address) as client:
        with pytest.raises(NotFound, match="graph-none"):
            await client.verify_graph("graph-none")
        graph = await asked(client, CASES[0])
        with pytest.raises(InvalidRequest, match=r"settings\[0\].nodes\[0\]: there is no node f0.999@1"):
            await client.intervene_on_graph(graph, make_graph_intervention(off="f0.999@1"))
        feature = graph.top(1)[0].name
        for first_free in (None, 0):
            run = make_graph_intervention({feature: 1e300}, first_free_layer=first_free)
            with pytest.raises(OutOfRange, match="intervention 0 has values that are not finite"):
                await client.intervene_on_graph(graph, run)
        with pytest.raises(InvalidRequest, match=r"attention.layer: must be below 3"):
            await client.attention_pairs(graph, 3, 0, 1, 1)
        with pytest.raises(InvalidRequest, match=r"names no feature"):
            make_graph_intervention()
