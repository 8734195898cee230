"""Patch over a socket: golden data of four families, many pairs, the embedded model, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dst_grpc.client import (
    AsyncClient,
    Client,
    PatchAnswer,
    PatchGrid,
    PatchGridKind,
    PatchProgress,
    make_pair,
    scale,
    set_value,
)
from dst_grpc.client import patch as copied
from dst_grpc.domain.attribute import AttributedNode
from dst_grpc.errors import InvalidRequest, NotFound
from tests.causal_goldens import CASES, MODELS, GoldenCase, golden_case

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
ORIENTATIONS = {"noise": "noising", "denoise": "denoising"}
BY_POSITION = {one: one for one in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head")}
AT_ONCE = {
    "attn_out": "attn_out_all",
    "mlp_out": "mlp_out_all",
    "head": "head_all",
    "query": "q",
    "key": "k",
    "value": "v",
    "pattern": "pattern",
}


def close(found: Any, golden: Any) -> bool:
    """The bound of float32 that the golden data has; NaN where it is."""
    found, golden = np.asarray(found, float), np.asarray(golden, float)
    assert found.shape == golden.shape
    is_near = np.abs(found - golden) <= 2e-5 * (1 + np.abs(golden))
    return bool((is_near | (np.isnan(found) & np.isnan(golden))).all())


def metric(pair: dict[str, Any]) -> dict[str, Any]:
    return {"target": [pair["target"]], "distractor": [pair["distractor"]]}


async def ask(client: AsyncClient, case: GoldenCase, **arguments: Any) -> PatchAnswer:
    asked = {"model": case.model, **metric(case.facts["metric"]), **arguments}
    return await client.patch(case.clean, case.corrupt, **asked)


def fields_of(error: InvalidRequest) -> list[str]:
    return [violation.field for violation in error.violations]


@pytest.mark.parametrize("direction", ORIENTATIONS)
@pytest.mark.parametrize("name", CASES)
async def test_nodes_are_patched_as_in_the_golden_data(golden_address: str, name: str, direction: str) -> None:
    case = golden_case(name)
    async with AsyncClient(golden_address) as client:
        for keys, at_once in ((BY_POSITION, False), (AT_ONCE, True)):
            golden = {node: case.tensors.get(f"patch.{key}.{direction}") for node, key in keys.items()}
            known = {node: values for node, values in golden.items() if values is not None}
            asked = {"nodes": list(known), "all_positions": at_once, "orientation": ORIENTATIONS[direction]}
            answer = await ask(client, case, **asked)
            assert answer.header.orientation == ORIENTATIONS[direction]
            clean, corrupt = case.facts["metric_clean"], case.facts["metric_corrupt"]
            base, source = (clean, corrupt) if direction == "noise" else (corrupt, clean)
            assert close([answer.base, answer.source], [base, source])
            for node, values in known.items():
                assert close(answer[node], values)
                assert answer[node].axes == (
                    *(("layer", "head") if values.dim() > 1 + (not at_once) else ("layer",)),
                    *(() if at_once else ("position",)),
                )
                recovery = (np.asarray(values) - base) / (source - base)
                np.testing.assert_allclose(answer[node].recovery, recovery, atol=1e-4)
        groups = [
            PatchGrid(node=node, all_positions=True, by_group=True)
            for node in (AttributedNode.KEY, AttributedNode.VALUE)
        ]
        answer = await ask(client, case, grids=groups, orientation=ORIENTATIONS[direction])
        for part, found in zip("kv", answer.grids, strict=True):
            grouped = case.tensors.get(f"patch.{part}_group.{direction}", case.tensors[f"patch.{part}.{direction}"])
            assert found.axes == ("layer", "group")
            assert close(found, grouped)


@pytest.mark.parametrize("name", CASES)
async def test_logits_other_metrics_and_divergences_are_as_in_the_golden_data(golden_address: str, name: str) -> None:
    case = golden_case(name)
    async with AsyncClient(golden_address) as client:
        for direction, orientation in ORIENTATIONS.items():
            asked: dict[str, Any] = {"nodes": ["head", "mlp_out"], "all_positions": True, "orientation": orientation}
            answer = await ask(client, case, **asked, all_logits=True, divergence=True, loss="probs")
            head, mlp = answer["head"], answer["mlp_out"]
            assert head.logits is not None
            assert mlp.logits is not None
            assert close(head.logits[0], case.tensors[f"patch.head_all.{direction}.last_logits"])
            assert close(mlp.logits[0], case.tensors[f"patch.mlp_out_all.{direction}.last_logits"])
            assert close(head, case.tensors[f"patch.head_all.{direction}.prob_diff"])
            assert close(head.divergence, case.tensors[f"patch.head_all.{direction}.kl_from_clean"])
            few = await ask(client, case, **asked, top_logits=3)
            assert few["head"].logits is not None
            assert few["head"].logit_ids is not None
            order = np.argsort(-head.logits, axis=-1, kind="stable")[..., :3]
            assert (few["head"].logit_ids == order).all()
            assert close(few["head"].logits, np.take_along_axis(head.logits, order, axis=-1))


@pytest.mark.parametrize("name", CASES)
async def test_nodes_are_ablated_as_in_the_golden_data(golden_address: str, name: str) -> None:
    case = golden_case(name)
    async with AsyncClient(golden_address) as client:
        for alternative in ("zero", "mean", "mean_by_position"):
            reference = () if alternative == "zero" else case.facts["mean_set_ids"]
            asked = {"nodes": ["head", "mlp_out"], "all_positions": True, "alternative": alternative}
            answer = await ask(client, case, **asked, reference=reference)
            assert close(answer["head"], case.tensors[f"ablate.head.{alternative}"])
            assert close(answer["mlp_out"], case.tensors[f"ablate.mlp.{alternative}"])
        for i, prompt in enumerate(case.facts["mean_set_ids"]):
            answer = await client.patch(
                case.clean,
                prompt,
                model=case.model,
                nodes=["head", "mlp_out"],
                all_positions=True,
                **metric(case.facts["metric"]),
            )
            assert close(answer["head"], case.tensors[f"ablate.head.resample{i}"])
            assert close(answer["mlp_out"], case.tensors[f"ablate.mlp.resample{i}"])


@pytest.mark.parametrize("name", CASES)
async def test_paths_are_patched_as_in_the_golden_data(golden_address: str, name: str) -> None:
    case = golden_case(name)
    heads = [source for source in case.facts["sources"] if source.startswith("a")]
    async with AsyncClient(golden_address) as client:
        for direction, orientation in ORIENTATIONS.items():
            answer = await ask(client, case, senders=(), receivers=(), orientation=orientation)
            exact = case.tensors[f"path.exact.{direction}"]
            assert answer["paths"].info.kind is PatchGridKind.DIRECT_PATHS
            assert list(answer["paths"].labels[0]) == case.facts["sources"]
            assert list(answer["paths"].labels[1]) == case.facts["dests"]
            assert close(answer["paths"], exact)
            named = ["input->a0.h1<k>", "a0.h2->logits", "m1->a2.h0<v>"]
            edges = (await ask(client, case, edges=named, orientation=orientation))["edges"]
            assert close(edges, [answer["paths"][name] for name in named])
            answer = await ask(client, case, senders=heads, receivers=(), through_mlps=True, orientation=orientation)
            golden = case.tensors[f"path.ioi.{direction}"].numpy()
            columns = [case.facts["dests"].index(name) for name in answer["paths"].labels[1]]
            assert answer["paths"].info.kind is PatchGridKind.PATHS_THROUGH_MLPS
            assert np.isnan(np.delete(golden, columns, axis=1)).all()
            assert close(answer["paths"], golden[:, columns])


@pytest.mark.parametrize("model", MODELS)
async def test_several_pairs_have_their_own_values_and_the_mean(golden_address: str, model: str) -> None:
    cases = [golden_case(f"{model}_{kind}") for kind in ("single", "several")]
    pairs = [make_pair(case.clean, case.corrupt, **metric(case.facts["metric"])) for case in cases]
    seen: list[PatchProgress] = []
    asked: dict[str, Any] = {"nodes": ["head", "mlp_out", "key"], "all_positions": True, "edges": ["a0.h1->m1"]}
    async with AsyncClient(golden_address) as client:
        alone = [await ask(client, case, **asked) for case in cases]
        together = await client.patch(pairs=pairs, model=model, **asked, on_progress=seen.append)
        for name in ("head", "mlp_out", "key", "edges"):
            each = np.stack([np.asarray(answer[name]) for answer in alone])
            assert close(together[name].metrics, each)
            assert close(together[name].metric, each.mean(axis=0))
            recoveries = np.stack([answer[name].recovery for answer in alone])
            np.testing.assert_allclose(together[name].recovery, recoveries.mean(axis=0), atol=1e-4)
        assert seen[-1] == (2 * (12 + 3 + 12 + 1),) * 2
        assert close(together.base, np.mean([answer.base for answer in alone]))
        short = await client.patch(pairs=pairs, model=model, nodes="resid_post", positions=[5])
        found = [(await ask(client, case, nodes="resid_post", positions=[5]))["resid_post"].metric for case in cases]
        assert close(short["resid_post"].metrics, np.stack(found))


async def test_cells_of_ones_own_are_any_interventions(golden_address: str) -> None:
    case = golden_case("llama_single")
    async with AsyncClient(golden_address) as client:
        cells = {
            "a head": copied("attn.v_out", "source", layer=1, at=[None, 2]),
            "scaled": scale("attn.v_out", 2.0, layer=2, at=[None, 3]),
            "nothing": [],
            "all": copied("resid.post_emb", "source"),
        }
        answer = await ask(client, case, cells=cells)
    found = answer["cells"]
    assert found.labels == (tuple(cells),)
    assert close(found["a head"], case.tensors["patch.head_all.noise"][1, 2])
    assert close(found["scaled"], case.tensors["scale.head.2.0"][2, 3])
    assert close(found["nothing"], answer.base)
    assert close(found["all"], answer.source)


def test_three_lines_of_python_patch_a_grid(embedded_address: str) -> None:
    with Client(embedded_address) as client:
        answer = client.patch(CLEAN, CORRUPT, target=" Mary", distractor=" John")
    grid = answer["resid_pre"]
    assert grid.axes == ("layer", "position")
    assert grid.labels[1] == answer.tokens
    assert grid.recovery.shape == (4, len(answer.tokens))
    (differs,) = [t for t, token in enumerate(answer.tokens) if token == " John" and t > 5]
    assert grid.recovery[0, differs] == pytest.approx(1, abs=1e-5)
    assert np.abs(grid.recovery[:, :differs]).max() == 0
    assert grid.top(1)[0].labels[1] == f"{differs} ' John'"


async def test_identities_of_the_residual_stream_hold(embedded_address: str) -> None:
    async with AsyncClient(embedded_address) as client:
        ask: dict[str, Any] = {"target": " Mary", "distractor": " John"}
        by_position = await client.patch(CLEAN, CORRUPT, nodes=["resid_pre", "resid_post", "input"], **ask)
        at_once = await client.patch(CLEAN, CORRUPT, nodes=["resid_pre", "input"], all_positions=True, **ask)
    assert (by_position["resid_pre"].metric[1:] == by_position["resid_post"].metric[:-1]).all()
    assert (by_position["resid_pre"].metric[0] == by_position["input"].metric).all()
    assert at_once["resid_pre"].metric[0] == pytest.approx(at_once.source, abs=1e-5)
    assert float(at_once["input"].metric) == pytest.approx(at_once.source, abs=1e-5)


async def test_spliced_autoencoders_change_no_cell_and_have_cells_of_their_own(embedded_address: str) -> None:
    name = "embedded/mlp_post_act"
    async with AsyncClient(embedded_address) as client:
        ask: dict[str, Any] = {"target": " Mary", "distractor": " John", "nodes": ["resid_post", "head", "mlp_out"]}
        plain, spliced = [await client.patch(CLEAN, CORRUPT, autoencoders=one, **ask) for one in ((), name)]
        for node in ask["nodes"]:
            np.testing.assert_allclose(spliced[node].metric, plain[node].metric, atol=2e-4)
        latents = PatchGrid(node=AttributedNode.LATENT, entries=(3, 5), all_positions=True, layers=(1,))
        answer = await client.patch(CLEAN, CORRUPT, target=" Mary", autoencoders=name, grids=[latents])
        assert answer["latent"].axes == ("layer", "latent")
        assert answer["latent"].shape == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({"nodes": "head", "layers": [0, 4]}, ["grids[0].layers[1]"]),
        ({"nodes": ["mlp_out", "head"], "heads": [9]}, ["grids[1].entries[0]"]),
        ({"nodes": "resid_pre", "positions": [3, 999]}, ["grids[0].positions[1]"]),
        ({"grids": [PatchGrid(node=AttributedNode.LATENT, entries=(1,))]}, ["grids[0].node"]),
        ({"nodes": "pattern", "alternative": "mean", "reference": [CLEAN]}, ["grids[0].node"]),
        ({"senders": ["a0.h9"], "receivers": ["logits", "m9"]}, ["paths[0].senders[0]", "paths[0].receivers[1]"]),
        ({"senders": ["m0"], "through_mlps": True}, ["paths[0].senders[0]"]),
        ({"senders": ["a3.h0"], "receivers": ["m0"]}, ["paths[0]"]),
        ({"edges": ["a0.h1->m1", "m1->m0"]}, ["edges.edges[1]"]),
        (
            {"cells": [set_value("attn.v_out", 0.0, layer=1, at=[None, 9])]},
            ["cells[0].interventions[0].at.axes[1]"],
        ),
        ({"corrupt": "When Mary and John went to the"}, ["pairs[0].corrupt"]),
        ({"pairs": [{"clean": "a b", "corrupt": "a c"}]}, ["pairs[1].clean"]),
        ({"alternative": "mean"}, ["reference"]),
        ({"target": " two tokens"}, ["loss_fn_config.target_tokens[0]"]),
        ({"alternative": "mean_by_position", "reference": ["short"]}, ["pairs[0].clean"]),
    ],
)
async def test_what_cannot_be_asked_is_refused_at_its_field(
    embedded_address: str, arguments: dict[str, Any], fields: list[str]
) -> None:
    asked = {"corrupt": CORRUPT, "target": " Mary", "distractor": " John"} | arguments
    async with AsyncClient(embedded_address) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.patch(CLEAN, **asked)
    assert fields_of(caught.value) == fields


async def test_too_many_cells_are_refused_with_their_number(embedded_address: str) -> None:
    grid = PatchGrid(node=AttributedNode.NEURON, entries=tuple(range(512)))
    async with AsyncClient(embedded_address) as client:
        with pytest.raises(InvalidRequest, match=r"asks for \d+ cells, and may for 100000") as caught:
            await client.patch(CLEAN * 6, CLEAN * 6, target=" Mary", grids=[grid])
        assert fields_of(caught.value) == ["grids[0]"]
        with pytest.raises(NotFound):
            await client.patch(CLEAN, CORRUPT, target=" Mary", model="elsewhere")


async def test_equal_prompts_have_no_recovery(embedded_address: str) -> None:
    async with AsyncClient(embedded_address) as client:
        answer = await client.patch(CLEAN, CLEAN, target=" Mary")
    assert not answer.pairs[0].has_recovery
    assert (answer["resid_pre"].metric == answer.base).all()
    assert np.isnan(answer["resid_pre"].recovery).all()
