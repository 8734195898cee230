"""Circuit over a socket: the golden data of four families, the embedded model, what is refused, files of MIB."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dst_grpc.client import (
    AblationSpec,
    ActivationIndex,
    ActivationLocationType,
    AsyncClient,
    AttributedNode,
    CircuitKind,
    CircuitProgress,
    CircuitStage,
    Client,
    LossFnConfig,
    LossFnName,
    PatchGrid,
    PromptPair,
    make_circuit_request,
    make_pair,
    mib_json,
    read_mib_json,
)
from dst_grpc.domain.selections import PositionRange
from dst_grpc.errors import InvalidRequest, NotFound
from tests.causal_goldens import CASES, MODELS, GoldenCase, golden_case

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
KL = LossFnConfig(name=LossFnName.KL_DIVERGENCE)
ELSEWHERE = LossFnConfig(name=LossFnName.KL_DIVERGENCE, reference_run="elsewhere")
ALTERNATIVES = ("patching", "mean_by_position", "mean", "zero")


def close(found: Any, golden: Any) -> bool:
    """The bound of float32 that the golden data has."""
    found, golden = np.asarray(found, float), np.asarray(golden, float)
    return bool((np.abs(found - golden) <= 2e-5 * (1 + np.abs(golden))).all())


def question(case: GoldenCase, **arguments: Any) -> Any:
    arguments = {"target": [case.target], "distractor": [case.distractor], "model": case.model} | arguments
    return make_circuit_request(case.clean, case.corrupt, **arguments)


def by_order(case: GoldenCase, count: int, order: str = "circuit.order") -> list[str]:
    """Names of the first *count* edges of the golden order."""
    facts = case.facts
    return [f"{facts['sources'][s]}->{facts['dests'][r]}" for s, r in case.tensors[order][:count].tolist()]


def off(tap: str, layer: int) -> AblationSpec:
    """What sets all of a tap of two axes to 0."""
    location = ActivationLocationType(tap)
    index = ActivationIndex(activation_location_type=location, tensor_indices=(None, None), layer_index=layer)
    return AblationSpec(index=index, value=0.0)


@pytest.mark.parametrize("name", CASES)
async def test_given_circuits_are_evaluated_as_in_the_golden_data(golden_address: str, name: str) -> None:
    case = golden_case(name)
    facts = case.facts["circuit"]
    async with AsyncClient(golden_address) as client:
        for alternative in ALTERNATIVES:
            for prune in (False, True):
                reference = case.facts["mean_set_ids"] if "mean" in alternative else ()
                circuits = [by_order(case, count) for count in facts["counts"]]
                asked = question(case, circuits=circuits, alternative=alternative, reference=reference, prune=prune)
                answer = await client.circuit_request(asked)
                found = answer.of_kind(CircuitKind.GIVEN)
                assert [one.chosen_edge_count for one in found] == facts["counts"]
                key = f"{alternative}.pruned" if prune else alternative
                assert close([one.metric for one in found], facts["metric"][key])
                assert close([one.faithfulness for one in found], facts["faithfulness"][key])
                assert close(answer.whole, facts["metric"]["patching"][-1])


@pytest.mark.parametrize("name", CASES)
async def test_a_curve_by_given_scores_is_as_in_the_golden_data(golden_address: str, name: str) -> None:
    case = golden_case(name)
    scores = case.tensors["eap_ig.left"].numpy()
    async with AsyncClient(golden_address) as client:
        for selection, facts in (("absolute", case.facts["circuit"]), ("signed", case.facts["circuit"]["signed"])):
            answer = await client.circuit_request(question(case, scores=scores, selection=selection))
            assert answer.curve is not None
            assert answer.curve.cpr == pytest.approx(facts["cpr"], abs=1e-4)
            assert answer.curve.cmd == pytest.approx(facts["cmd"], abs=1e-4)
            assert answer.fractions.tolist()[-1] == 1
            assert answer.faithfulness[-1] == pytest.approx(1, abs=1e-5)
            mirrored = await client.circuit_request(
                question(case, scores=-scores, selection=selection, scores_orientation="denoising")
            )
            assert mirrored.faithfulness.tolist() == answer.faithfulness.tolist()


@pytest.mark.parametrize("name", CASES)
async def test_acdc_finds_the_circuit_of_the_golden_data(golden_address: str, name: str) -> None:
    case = golden_case(name)
    seen: list[CircuitProgress] = []
    async with AsyncClient(golden_address) as client:
        asked = question(case, acdc_threshold=case.facts["acdc"]["threshold"])
        answer = await client.circuit_request(asked, on_progress=seen.append)
    kept = {(answer.sources.index(edge.source), answer.readers.index(edge.reader)) for edge in answer.edges}
    golden = {(s, r) for s, r in case.tensors["acdc.kept"].nonzero().tolist()}
    (found,) = answer.of_kind(CircuitKind.ACDC)
    # Found edges are pruned, which changes nothing under patching.
    assert kept <= golden
    assert found.edge_count == len(kept)
    steps = [one for one in seen if one.stage is CircuitStage.SEARCH]
    assert [one.done for one in steps] == sorted(one.done for one in steps)
    assert (steps[-1].done, steps[-1].kept_edge_count) == (answer.header.edge_count, len(golden))
    assert steps[-1].metric == pytest.approx(case.facts["acdc"]["kl"], abs=2e-5)


@pytest.mark.parametrize("model", MODELS)
async def test_several_pairs_are_the_mean_of_each_and_prompts_may_be_of_different_lengths(
    golden_address: str, model: str
) -> None:
    cases = [golden_case(f"{model}_{kind}") for kind in ("single", "several")]
    assert len(cases[0].clean) != len(cases[1].clean)
    circuits = [by_order(cases[0], 40)]
    pairs = [make_pair(case.clean, case.corrupt, target=[case.target], distractor=[case.distractor]) for case in cases]
    async with AsyncClient(golden_address) as client:
        alone = [await client.circuit_request(question(case, circuits=circuits)) for case in cases]
        together = await client.circuit(pairs=pairs, circuits=circuits, model=model)
    (mean,) = together.of_kind(CircuitKind.GIVEN)
    assert close(mean.metrics, [answer.of_kind(CircuitKind.GIVEN)[0].metric for answer in alone])
    assert mean.metric == pytest.approx(np.mean(mean.metrics))
    gap = together.whole - together.empty
    assert mean.faithfulness == pytest.approx((mean.metric - together.empty) / gap)
    assert close(together.whole, np.mean([answer.whole for answer in alone]))


@pytest.mark.parametrize("model", MODELS)
async def test_a_search_by_the_metric_keeps_what_it_depends_on(golden_address: str, model: str) -> None:
    case = golden_case(f"{model}_single")
    async with AsyncClient(golden_address) as client:
        strict, loose = [
            await client.circuit_request(question(case, acdc_threshold=threshold, acdc_of_metric=True))
            for threshold in (-1e9, 1e9)
        ]
    assert strict.of_kind(CircuitKind.ACDC)[0].chosen_edge_count == strict.header.edge_count
    assert loose.of_kind(CircuitKind.ACDC)[0].chosen_edge_count == 0
    assert loose.of_kind(CircuitKind.ACDC)[0].metric == pytest.approx(loose.empty, abs=1e-5)


def test_three_lines_of_python_find_a_circuit(embedded_address: str) -> None:
    with Client(embedded_address) as client:
        answer = client.circuit(CLEAN, CORRUPT, target=" Mary", distractor=" John", with_scores=True)
    assert answer.curve is not None
    assert answer.curve.chosen_index is not None
    chosen = answer.of_kind(CircuitKind.CURVE)[answer.curve.chosen_index]
    assert len(answer.edges) == chosen.edge_count
    assert chosen.faithfulness is not None
    assert chosen.faithfulness >= 0.8
    assert answer.scores is not None
    assert answer.scores.shape == (len(answer.sources), len(answer.readers))
    assert [abs(edge.score) for edge in answer.edges] == sorted(
        (abs(edge.score) for edge in answer.edges), reverse=True
    )
    assert answer.trailer.statistics.backward_passes > 0
    _check_file(client_address=embedded_address, file=json.loads(json.dumps(mib_json(answer))), edges=answer.edges)


def _check_file(client_address: str, file: Any, edges: Any) -> None:
    """A file of MIB has the circuit, and its scores give the same curve."""
    assert file["cfg"] == {"n_layers": 4, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 128}
    circuit = read_mib_json(file)
    assert set(circuit.kept.edges) == {str(edge) for edge in edges}
    assert circuit.scores.shape == (1 + 4 * 5, 4 * 13 + 1)
    with Client(client_address) as client:
        ask: dict[str, Any] = {"target": " Mary", "distractor": " John"}
        again = client.circuit(
            CLEAN, CORRUPT, circuits=[circuit.kept], scores=circuit.scores, scores_orientation="denoising", **ask
        )
    assert {str(edge) for edge in again.edges} == set(circuit.kept.edges)
    (given,) = again.of_kind(CircuitKind.GIVEN)
    assert given.faithfulness is not None
    assert given.faithfulness >= 0.8


@pytest.mark.parametrize(
    "loss",
    [
        LossFnConfig(name=LossFnName.LOG_PROB, target_tokens=(" gave",), token_index=-5),
        LossFnConfig(name=LossFnName.SEQUENCE_LOG_PROB, target_tokens=(" drink", " to", " Mary")),
        LossFnConfig(name=LossFnName.CROSS_ENTROPY, span=PositionRange(start=10, stop=14)),  # where both are the same
        LossFnConfig(name=LossFnName.ENTROPY),
    ],
    ids=lambda loss: loss.name.value,
)
async def test_the_whole_and_the_empty_circuit_have_the_losses_of_both_prompts(
    embedded_address: str, loss: LossFnConfig
) -> None:
    async with AsyncClient(embedded_address) as client:
        answer = await client.circuit(CLEAN, CORRUPT, loss=loss, circuits=[["input", "m0"]])
        expected = [(await client.derive(prompt, loss=loss)).loss for prompt in (CLEAN, CORRUPT)]
    assert [answer.whole, answer.empty] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({"circuits": [["a9.h0->logits", "m0"]]}, ["circuits[0].edges[0]"]),
        ({"circuits": [["a0.h0", "m7"]]}, ["circuits[0].nodes[1]"]),
        ({"scores": np.zeros((3, 4))}, ["curve.scores"]),
        ({"scores": np.zeros(21), "selection": "greedy"}, ["curve.selection"]),
        ({"corrupt": "When Mary and John went to the"}, ["pairs[0].corrupt"]),
        ({"corrupt": ""}, ["pairs[0].corrupt.text"]),
        ({"alternative": "mean"}, ["reference"]),
        ({"reference": [CLEAN]}, ["reference"]),
        ({"alternative": "mean_by_position", "reference": ["too short"]}, ["pairs[0].clean"]),
        ({"target": " two tokens"}, ["loss_fn_config.target_tokens[0]"]),
        ({"target": None, "distractor": None}, ["pairs[0].loss_fn_config"]),
        ({"fractions": [0.5, 0.1, 2]}, ["curve.fractions[1]", "curve.fractions[2]"]),
        ({"curve": False}, [""]),
        ({"ablations": [off("resid.post_mlp", 0)]}, ["ablation_specs[0].index.activation_location_type"]),
        ({"ablations": [off("mlp.post_act", 7)]}, ["ablation_specs[0].index.layer_index"]),
        ({"loss": KL, "target": None, "distractor": None, "steps": 1}, ["curve.steps"]),
        ({"loss": ELSEWHERE, "target": None, "distractor": None}, ["loss_fn_config.reference_run"]),
    ],
)
async def test_what_cannot_be_asked_is_refused_at_its_field(
    embedded_address: str, arguments: dict[str, Any], fields: list[str]
) -> None:
    asked = {"corrupt": CORRUPT, "target": " Mary", "distractor": " John"} | arguments
    async with AsyncClient(embedded_address) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.circuit(CLEAN, **asked)
    assert [violation.field for violation in caught.value.violations] == fields


@pytest.mark.parametrize(("corrupt", "fractions"), [(CLEAN, (0.1, 0.5)), (CORRUPT, (0.5,))])
async def test_a_curve_without_extent_or_faithfulness_has_no_area(
    embedded_address: str, corrupt: str, fractions: tuple[float, ...]
) -> None:
    async with AsyncClient(embedded_address) as client:
        answer = await client.circuit(CLEAN, corrupt, target=" Mary", distractor=" John", fractions=fractions)
    assert answer.curve is not None
    assert (answer.curve.cpr, answer.curve.cmd) == (None, None)
    assert np.isnan(answer.faithfulness).all() == (corrupt == CLEAN)
    assert repr(answer) == f"<CircuitAnswer noising, patching, 1 pairs, {len(answer.edges)} of 479 edges>"


@pytest.mark.parametrize("orientation", ["noising", "denoising"])
async def test_a_divergence_is_a_metric_of_circuits(embedded_address: str, orientation: str) -> None:
    """From the clean run, the corrupt one diverges as Patch says."""
    async with AsyncClient(embedded_address) as client:
        ask: dict[str, Any] = {"loss": KL, "orientation": orientation}
        answer = await client.circuit(CLEAN, CORRUPT, **ask)
        patched = await client.patch(CLEAN, CORRUPT, nodes="input", all_positions=True, **ask)
        others = [
            await client.circuit(CLEAN, CORRUPT, orientation=orientation, loss=replace(KL, reference_run=run))
            for run in ("unchanged", "source")
        ]
    (pair,) = patched.pairs
    assert [answer.whole, answer.empty] == pytest.approx([pair.metric, pair.source_metric], abs=1e-5)
    assert float(patched["input"].metric) == pytest.approx(answer.empty, abs=1e-5)
    own = others[orientation == "denoising"]
    assert own.faithfulness.tolist() == pytest.approx(answer.faithfulness.tolist(), abs=1e-4)
    assert [other.whole < other.empty for other in others] == [True, False]
    assert answer.faithfulness[-1] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("orientation", ["noising", "denoising"])
async def test_signed_edges_of_a_divergence_are_those_that_it_depends_on(
    embedded_address: str, orientation: str
) -> None:
    """It grows as the behaviour is lost: few edges by sign keep more of it than few of the other sign."""
    async with AsyncClient(embedded_address) as client:
        ask: dict[str, Any] = {"loss": KL, "orientation": orientation, "fractions": [0.05, 1], "selection": "signed"}
        answer = await client.circuit(CLEAN, CORRUPT, with_scores=True, **ask)
        reverse = await client.circuit(CLEAN, CORRUPT, scores=answer.scores, scores_orientation=orientation, **ask)
        kept, wrong = answer.of_kind(CircuitKind.CURVE)[0], reverse.of_kind(CircuitKind.CURVE)[0]
        assert kept.faithfulness is not None
        assert wrong.faithfulness is not None
        assert kept.faithfulness > wrong.faithfulness
        # A search keeps what the divergence would rise without; with no rise allowed at all, more than with any.
        searched = [
            await client.circuit(
                CLEAN, CORRUPT, acdc_threshold=threshold, acdc_of_metric=True, loss=KL, orientation=orientation
            )
            for threshold in (0.05, 1e9)
        ]
    found = [one.of_kind(CircuitKind.ACDC)[0] for one in searched]
    assert found[1].edge_count == 0
    if orientation == "noising":
        assert found[0].edge_count > 0
        assert found[0].metric < found[1].metric


async def test_scores_of_an_earlier_position_are_those_of_the_prompt_up_to_there(embedded_address: str) -> None:
    tokens, at = ([7, 20, 31, 5, 80, 6], [7, 22, 31, 5, 81, 6]), 3
    async with AsyncClient(embedded_address) as client:
        early = LossFnConfig(name=LossFnName.ENTROPY, token_index=at)
        whole = await client.circuit(*tokens, loss=early, with_scores=True)
        cut = await client.circuit(*[one[: at + 1] for one in tokens], loss="entropy", with_scores=True)
    assert whole.scores is not None
    assert cut.scores is not None
    np.testing.assert_allclose(whole.scores, cut.scores, atol=1e-5 * float(np.abs(cut.scores).max()))
    assert whole.faithfulness.tolist() == pytest.approx(cut.faithfulness.tolist(), abs=1e-3)


async def test_a_model_that_there_is_not_is_not_found(embedded_address: str) -> None:
    async with AsyncClient(embedded_address) as client:
        with pytest.raises(NotFound):
            await client.circuit(CLEAN, CORRUPT, target=" Mary", model="elsewhere")


async def test_corrupt_prompts_are_not_needed_where_nothing_is_taken_from_them(embedded_address: str) -> None:
    async with AsyncClient(embedded_address) as client:
        pair = PromptPair(clean=make_pair(CLEAN).clean)
        ask: dict[str, Any] = {"target": " Mary", "distractor": " John", "alternative": "zero", "circuits": [["input"]]}
        answer = await client.circuit(pairs=[pair], **ask)
        assert answer.header.pair_count == 1
        curve = await client.circuit(CLEAN, curve=True, **ask)
        assert curve.faithfulness[-1] == pytest.approx(1, abs=1e-4)


async def test_latents_are_nodes_of_circuits(embedded_address: str) -> None:
    """By their names, over the wire; a circuit of all but one is the run with that one patched."""
    names, spliced = ("embedded/resid_delta_attn", "embedded/resid_delta_mlp"), "embedded/mlp_post_act"
    ask: dict[str, Any] = {"target": " Mary", "distractor": " John"}
    async with AsyncClient(embedded_address) as client:
        both = await client.circuit(CLEAN, CORRUPT, autoencoders=names, latents=True, curve=True, **ask)
        answer = await client.circuit(CLEAN, CORRUPT, autoencoders=spliced, latents=True, with_scores=True, **ask)
        assert answer.scores is not None
        nodes = [answer.node_name(i) for i in range(answer.header.node_count)]
        assert [answer.place_of(name) for name in nodes] == list(range(len(nodes)))
        assert len(set(nodes)) == len(nodes) == len(answer.scores)
        latent = max((abs(answer.scores[i]), i) for i, name in enumerate(nodes) if ".l" in name)[1]
        layer, entry = nodes[latent][1:].split(".l")
        keeps = np.ones(len(nodes))
        keeps[latent] = 0
        given = await client.circuit(
            CLEAN,
            CORRUPT,
            autoencoders=spliced,
            latents=True,
            circuits=[[*answer.sources, *(part.name for part in answer.header.parts)]],
            scores=keeps,
            fractions=[(len(nodes) - 0.5) / len(nodes)],
            **ask,
        )
        grid = PatchGrid(node=AttributedNode.LATENT, layers=(int(layer),), entries=(int(entry),), all_positions=True)
        patched = await client.patch(CLEAN, CORRUPT, grids=[grid], autoencoders=spliced, **ask)
    assert given.of_kind(CircuitKind.GIVEN)[0].metric == pytest.approx(given.whole, abs=1e-5)
    (cut,) = given.of_kind(CircuitKind.CURVE)
    assert cut.metric == pytest.approx(float(patched["latent"].metric.item()), abs=1e-5)
    assert abs(cut.metric - given.whole) > 1e-3
    assert both.curve is not None
    assert both.faithfulness[-1] == pytest.approx(1, abs=1e-5)
    assert {part.name for part in both.header.parts} == {f"{place}{layer}" for place in "am" for layer in range(4)}
    assert answer.curve is not None
    assert answer.curve.chosen_index is not None
    chosen = answer.of_kind(CircuitKind.CURVE)[answer.curve.chosen_index]
    assert len(answer.nodes) == chosen.node_count
    assert answer.edges == ()
    # A file has the nodes, and gives the same circuit again.
    kept = read_mib_json(json.loads(json.dumps(mib_json(answer)))).kept
    assert set(kept.nodes) == {str(node) for node in answer.nodes}
    async with AsyncClient(embedded_address) as client:
        again = await client.circuit(CLEAN, CORRUPT, autoencoders=spliced, latents=True, circuits=[kept], **ask)
    assert again.of_kind(CircuitKind.GIVEN)[0].metric == pytest.approx(chosen.metric, abs=1e-5)


async def test_spliced_autoencoders_change_no_circuit(embedded_address: str) -> None:
    names = ["embedded/mlp_post_act", "embedded/resid_delta_attn"]
    async with AsyncClient(embedded_address) as client:
        ask: dict[str, Any] = {"target": " Mary", "distractor": " John", "circuits": [["input", "m0", "a1.h2", "m2"]]}
        plain, spliced = [await client.circuit(CLEAN, CORRUPT, autoencoders=one, **ask) for one in ((), names)]
    for one, other in zip(plain.evaluations, spliced.evaluations, strict=True):
        assert other.metric == pytest.approx(one.metric, abs=1e-4)
    assert [handle.split("@")[0] for handle, _ in spliced.trailer.provenance.autoencoder_digests] == names
