"""Attribute over a socket: golden data of four families, many pairs, what is refused, the embedded model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dst_grpc.cli._app import app
from dst_grpc.client import AsyncClient, AttributeProgress, AttributionAnswer, Client, Dimension, make_pair
from dst_grpc.errors import InvalidRequest, NotFound, PreconditionFailed, Reason
from tests.causal_goldens import CASES, GoldenCase, assert_golden, golden_case

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
GRADIENT = {"of_largest": 1e-4}
NODES = {
    "input": "input",
    "resid_pre": "resid_pre",
    "resid_post": "resid_post",
    "head": "head",
    "mlp_out": "mlp_out",
    "attn_out": "attn_out",
    "query": "q",
    "key": "k",
    "value": "v",
    "pattern": "pattern",
}
EDGES: dict[str, dict[str, Any]] = {
    "eap.noise": {},
    "eap.denoise": {"orientation": "denoising"},
    "eap.clean_corrupt_average": {"method": "clean_corrupt"},
    "eap_ig.left": {"method": "integrated_inputs", "path_rule": "left"},
    "eap_ig.right": {"method": "integrated_inputs"},
    "eap_ig.middle": {"method": "integrated_inputs", "path_rule": "middle"},
    "eap_ig_activations.own_layer": {"method": "integrated_activations"},
    "eap_ig_activations.every_layer": {"method": "integrated_activations", "path_groups": "every_layer"},
}
RULES = {"atp": "plain", "atp_frozen": "frozen", "relp": "relp", "relp_ah": "relp_frozen_patterns", "gim": "gim"}
PATHS = {"left": "left", "right": "right", "middle": "middle", "trapezoid": "trapezoid", "gausslegendre": None}


def metric(pair: dict[str, Any]) -> dict[str, Any]:
    return {"target": [pair["target"]], "distractor": [pair["distractor"]]}


async def ask(client: AsyncClient, case: GoldenCase, **arguments: Any) -> AttributionAnswer:
    asked = {"model": case.model, **metric(case.facts["metric"]), **arguments}
    return await client.attribute(case.clean, case.corrupt, **asked)


def fields_of(error: InvalidRequest) -> list[str]:
    return [violation.field for violation in error.violations]


def as_tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values))


@pytest.mark.parametrize("name", CASES)
async def test_edges_are_as_in_the_golden_data(golden_address: str, name: str) -> None:
    case = golden_case(name)
    async with AsyncClient(golden_address) as client:
        for key, arguments in EDGES.items():
            variants = {"": None, ".raw_post_norm": "raw", ".frozen_post_norm": "frozen"}
            for suffix, post_norms in variants.items():
                if key + suffix in case.tensors:
                    answer = await ask(client, case, edges=True, post_norms=post_norms, **arguments)
                    assert answer.edges.axes == (Dimension.GRAPH_SOURCES, Dimension.GRAPH_READERS)
                    assert_golden(as_tensor(answer.edges), case.tensors[key + suffix], **GRADIENT)
        answer = await ask(client, case, edges=True)
        assert list(answer.header.sources) == case.facts["sources"]
        assert list(answer.header.readers) == case.facts["dests"]
        assert answer.header.edge_count == case.facts["n_edges"]
        (pair,) = answer.pairs
        assert pair.base == pytest.approx(case.facts["metric_clean"], rel=2e-5)
        assert pair.source == pytest.approx(case.facts["metric_corrupt"], rel=2e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CASES)
async def test_nodes_are_as_in_the_golden_data(golden_address: str, name: str, rule: str) -> None:
    case = golden_case(name)
    async with AsyncClient(golden_address) as client:
        for direction, orientation in (("noise", "noising"), ("denoise", "denoising")):
            golden = {node: case.tensors.get(f"{rule}.{key}.{direction}") for node, key in NODES.items()}
            known = {node: scores for node, scores in golden.items() if scores is not None}
            asked = {"nodes": list(known), "by_position": True, "rule": RULES[rule], "orientation": orientation}
            answer = await ask(client, case, **asked)
            assert answer.header.orientation == orientation
            for node, scores in known.items():
                assert_golden(as_tensor(answer[node]), scores, **GRADIENT)


@pytest.mark.parametrize("name", CASES)
async def test_both_repairs_of_atp_star_are_as_in_the_golden_data(golden_address: str, name: str) -> None:
    case = golden_case(name)
    async with AsyncClient(golden_address) as client:
        fixed = await ask(client, case, nodes=["query", "key"], qk_fix=True, by_position=True)
        dropped = await ask(client, case, nodes=["head", "mlp_out"], grad_drop=True, by_position=True)
    for answer, node, key in (
        (fixed, "query", "atpstar.q"),
        (fixed, "key", "atpstar.k"),
        (dropped, "head", "graddrop.head"),
        (dropped, "mlp_out", "graddrop.mlp_out"),
    ):
        assert_golden(as_tensor(answer[node]), case.tensors[f"{key}.noise"], **GRADIENT)
    assert dropped.header.meaning.startswith("magnitude of")


@pytest.mark.parametrize("name", CASES)
async def test_integrated_gradients_are_as_in_the_golden_data(golden_address: str, name: str) -> None:
    case = golden_case(name)
    arguments = {"model": case.model, "method": "integrated_gradients", **metric(case.facts["metric"])}
    async with AsyncClient(golden_address) as client:
        for baseline, corrupt in (("corrupt", case.corrupt), ("zero", None)):
            relative = 1e-4 if baseline == "zero" and case.model in {"llama", "gemma2"} else 2e-5
            for key, rule in PATHS.items():
                golden = case.tensors.get(f"ig.{baseline}.{key}")
                if golden is None:
                    with pytest.raises(InvalidRequest) as refused:
                        await client.attribute(case.clean, corrupt, baseline=baseline, path_rule=rule, **arguments)
                    assert fields_of(refused.value) == ["path_rule"]
                    continue
                answer = await client.attribute(case.clean, corrupt, baseline=baseline, path_rule=rule, **arguments)
                assert_golden(as_tensor(answer.tokens), golden, relative=relative, of_largest=1e-4)
                (pair,) = answer.pairs
                assert pair.source is not None
                assert pair.residual is not None
                assert pair.relative_residual == pytest.approx(pair.residual / (pair.base - pair.source))
                expected = pair.base - pair.source - np.asarray(answer.tokens).sum()
                assert pair.residual == pytest.approx(expected, abs=1e-4 * (1 + golden.abs().sum().item()))
        by_channel = await client.attribute(case.clean, case.corrupt, path_rule="middle", by_channel=True, **arguments)
    assert_golden(as_tensor(by_channel.tokens), case.tensors["ig.corrupt.middle.by_channel"], **GRADIENT)


@pytest.mark.parametrize("name", CASES)
async def test_scores_are_means_over_pairs_each_with_its_own_metric(golden_address: str, name: str) -> None:
    case = golden_case(name)
    pairs = [make_pair(pair["clean_ids"], pair["corrupt_ids"], **metric(pair)) for pair in case.facts["pairs"]]
    seen: list[AttributeProgress] = []
    async with AsyncClient(golden_address) as client:
        answer = await client.attribute(pairs=pairs, model=case.model, edges=True, on_progress=seen.append)
        along = await client.attribute(
            pairs=pairs, model=case.model, edges=True, method="integrated_inputs", path_rule="left"
        )
    assert len(answer.pairs) == answer.header.pair_count == 3
    assert (seen[-1].done, seen[-1].total) == (3, 3)
    assert_golden(as_tensor(answer.edges), case.tensors["eap.noise.mean_of_pairs"], **GRADIENT)
    assert_golden(as_tensor(along.edges), case.tensors["eap_ig.left.mean_of_pairs"], **GRADIENT)


@pytest.mark.parametrize("name", CASES)
async def test_the_best_edges_are_patched_exactly(golden_address: str, name: str) -> None:
    case = golden_case(name)
    exact = case.tensors["path.exact.noise"] - case.facts["metric_clean"]
    async with AsyncClient(golden_address) as client:
        answer = await ask(client, case, edges=True, method="integrated_inputs", verify=40)
    verified = answer.verified
    assert verified is not None
    assert len(verified.effects) == 40
    scores = np.asarray(answer.edges)
    magnitudes = np.sort(np.abs(scores).reshape(-1))[::-1][:40]
    np.testing.assert_array_equal(np.abs(np.array(verified.scores, np.float32)), magnitudes)
    effects = exact[list(verified.sources), list(verified.readers)]
    assert_golden(torch.tensor(verified.effects), effects.to(torch.float64), relative=5e-5)
    assert verified.correlation == pytest.approx(np.corrcoef(verified.scores, verified.effects)[0, 1])


async def test_edges_by_position_are_streamed_whole(golden_address: str) -> None:
    case = golden_case("gemma2_single")
    async with AsyncClient(golden_address) as client:
        together = await ask(client, case, edges=True)
        apart = await ask(client, case, edges=True, by_position=True)
    assert apart.edges.shape == (7, 16, 40)
    assert apart.edges.labels[0] == apart.header.token_strings
    np.testing.assert_allclose(np.asarray(apart.edges).sum(axis=0), together.edges, atol=1e-5)


async def test_what_does_not_fit_is_refused_by_its_path(golden_address: str) -> None:
    case = golden_case("neox_single")
    async with AsyncClient(golden_address) as client:

        async def refused(kind: type[InvalidRequest | PreconditionFailed] = InvalidRequest, **arguments: Any) -> Any:
            with pytest.raises(kind) as caught:
                await ask(client, case, **arguments)
            return caught.value

        assert fields_of(await refused(nodes=["head", "resid_mid"])) == ["nodes[1]"]
        longer = make_pair([*case.clean, 1], [*case.corrupt, 1])
        assert fields_of(await refused(edges=True, pairs=[longer], by_position=True)) == ["pairs[1].clean"]
        uneven = make_pair(case.clean, case.corrupt[:-1])
        assert fields_of(await refused(edges=True, pairs=[uneven])) == ["pairs[1].corrupt"]
        assert fields_of(await refused(edges=True, target=["not one token"])) == ["loss_fn_config.target_tokens[0]"]
        unlikely = make_pair([10_000], [1], target=[2])
        assert fields_of(await refused(pairs=[unlikely])) == ["pairs[1].clean.token_ids.token_ids[0]"]
        lacking = await refused(PreconditionFailed, nodes=["latent"])
        assert lacking.reason is Reason.AUTOENCODER_REQUIRED
        with pytest.raises(NotFound):
            await ask(client, case, model="gpt3")


@pytest.mark.parametrize("dst", ["resid_delta_mlp", "resid_delta_attn"])
def test_latents_and_errors_of_the_embedded_model_add_up(embedded_address: str, dst: str) -> None:
    with Client(embedded_address) as client:
        node = "mlp_out" if dst.endswith("mlp") else "attn_out"
        arguments: dict[str, Any] = {"target": " Mary", "distractor": " John", "autoencoders": f"embedded/{dst}"}
        answer = client.attribute(CLEAN, CORRUPT, nodes=["latent", "latent_error", node, "head"], **arguments)
        plain = client.attribute(CLEAN, CORRUPT, target=" Mary", distractor=" John", nodes="head")
    sums = np.asarray(answer["latent"]).sum(axis=-1) + np.asarray(answer["latent_error"])
    layers = [int(layer) for layer in answer["latent"].labels[0]]
    np.testing.assert_allclose(sums, np.asarray(answer[node])[layers], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(answer["head"], plain["head"], rtol=1e-3, atol=1e-4)
    assert answer["latent"].info.autoencoder.startswith(f"embedded/{dst}@")


def test_three_lines_of_the_client(embedded_address: str) -> None:
    with Client(embedded_address) as client:
        answer = client.attribute(CLEAN, CORRUPT, target=" Mary", distractor=" John", edges=True, verify=20)
    best = answer.edges.top(3)
    source, reader = best[0].labels
    assert answer.edges[f"{source}->{reader}"] == np.float32(best[0].score)
    assert answer.verified is not None
    assert answer.verified.correlation is not None
    assert answer.verified.correlation > 0.5
    assert answer.trailer.statistics.backward_passes == 1


def test_the_command_lists_what_the_client_tells(embedded_address: str) -> None:
    asked = ["attribute", CLEAN, CORRUPT, "--target", " Mary", "--distractor", " John", "--server", embedded_address]

    def said(*options: str) -> str:
        done = CliRunner().invoke(app, [*asked, *options], env={"COLUMNS": "100"})
        assert done.exit_code == 0, done.stderr
        return done.stdout

    with Client(embedded_address) as client:
        answer = client.attribute(CLEAN, CORRUPT, target=" Mary", distractor=" John", edges=True)
    best = answer.edges.top(1)[0]
    printed = said("--verify", "5")
    assert f"{best.score:+.2f}" in printed
    assert "->".join(best.labels) in printed
    assert "Patched, each alone: 5 edges" in printed
    document = json.loads(said("--sites", "heads", "--by-position", "--json"))
    (heads,) = document["scores"]
    assert heads["axes"] == ["layers", "attn_heads", "sequence_tokens"]
    assert heads["labels"][2] == document["tokens"] == list(answer.header.token_strings)
    assert "share in the metric" in said("--method", "integrated_gradients")
