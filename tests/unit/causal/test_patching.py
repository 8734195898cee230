"""Patched runs, against golden data; where they begin changes no number; what they read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dst_grpc.causal.patching import Cell, MeanOfRuns, PairRuns, PatchedRuns, record_pairs, start_of
from dst_grpc.domain.interventions import UNCHANGED, CopyFromRun, Intervention, ScaleValue, SetValue
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.pairs import SOURCE
from dst_grpc.domain.patch import MEAN
from dst_grpc.domain.selections import AxisSelection, PositionList, PositionRange, TapSelection
from dst_grpc.engine.interventions import RowIntervention
from dst_grpc.engine.taps import Site, Taps
from dst_grpc.errors import require
from tests.causal_goldens import CASES, DIRECTIONS, MODELS, GoldenCase, assert_golden, golden_case, golden_decoder

_L = ActivationLocationType
N_LAYERS, N_HEADS = 3, 4
TAPS = {
    "resid_mid": _L.RESID_POST_ATTN,
    "resid_post": _L.RESID_POST_MLP,
    "attn_out": _L.RESID_DELTA_ATTN,
    "mlp_out": _L.RESID_DELTA_MLP,
    "head": _L.ATTN_WEIGHTED_SUM_OF_VALUES,
    "q": _L.ATTN_QUERY,
    "k": _L.ATTN_KEY,
    "v": _L.ATTN_VALUE,
    "pattern": _L.ATTN_QK_PROBS,
}


def copied(name: str, layer: int, *axes: AxisSelection, run: str = SOURCE) -> Intervention:
    """What a node is in another run, at some of its entries."""
    location, at_layer = TAPS.get(name, _L.RESID_POST_MLP), layer
    if name == "resid_pre":
        location = _L.RESID_POST_MLP if layer else _L.RESID_POST_EMBEDDING
        at_layer = layer - 1
    at = TapSelection(
        activation_location_type=location, layer_index=None if location.has_no_layers else at_layer, axes=axes
    )
    return Intervention(at=at, action=CopyFromRun(run=run))


def sites_of(model: str) -> Iterator[Site]:
    yield _L.RESID_POST_EMBEDDING, None
    for name, location in TAPS.items():
        if (name, model) != ("resid_mid", "neox"):
            yield from ((location, layer) for layer in range(N_LAYERS))


def prompts_of(case: GoldenCase, direction: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The base prompt, and the source prompt."""
    return (case.clean, case.corrupt) if direction == "noise" else (case.corrupt, case.clean)


def recorded(case: GoldenCase, direction: str) -> PairRuns:
    base, source = prompts_of(case, direction)
    return record_pairs([base], [source], golden_decoder(case.model), sites_of(case.model))


def metrics(case: GoldenCase, runs: PairRuns, cells: list[Cell]) -> torch.Tensor:
    """The metric of each of *cells*."""
    found = torch.full((len(cells),), torch.nan)
    for places, read in PatchedRuns(golden_decoder(case.model), runs).batches(cells):
        assert found[places].isnan().all()
        found[places] = read.last[:, case.target] - read.last[:, case.distractor]
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CASES)
def test_patched_runs_are_those_of_the_golden_data(name: str, direction: str) -> None:
    case = golden_case(name)
    n_tokens = len(case.clean)
    cells: list[Cell] = []
    golden: list[torch.Tensor] = []

    def add(key: str, *changes: Intervention) -> None:
        cells.extend(Cell(0, (one,)) for one in changes)
        golden.append(case.tensors[f"patch.{key}.{direction}"].flatten())

    layers, heads, tokens = range(N_LAYERS), range(N_HEADS), range(n_tokens)
    for node in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"):
        if (node, case.model) != ("resid_mid", "neox"):
            add(node, *(copied(node, layer, t) for layer in layers for t in tokens))
    add("attn_out_all", *(copied("attn_out", layer) for layer in layers))
    add("head_all", *(copied("head", layer, None, h) for layer in layers for h in heads))
    add("head", *(copied("head", layer, t, h) for layer in layers for h in heads for t in tokens))
    for part in "qkv":
        add(part, *(copied(part, layer, None, h) for layer in layers for h in heads))
    add("pattern", *(copied("pattern", layer, None, None, h) for layer in layers for h in heads))
    assert_golden(metrics(case, recorded(case, direction), cells), torch.cat(golden))


@pytest.mark.parametrize("model", MODELS)
def test_where_a_run_begins_changes_no_number(model: str) -> None:
    """What is told to begin at the embedding and the first token, by a change that is none, gives the same."""
    case = golden_case(f"{model}_several")
    runs = recorded(case, "noise")
    n_tokens = len(case.clean)
    nothing = copied("resid_pre", 0, 0, run=UNCHANGED)
    changes = [
        copied("resid_post", 1, PositionList(positions=(1, 4))),
        copied("head", 1, PositionRange(start=2, stop=n_tokens), 2),
        copied("k", 2, PositionRange(start=3, stop=5), 1),
        copied("pattern", 1, 4, None, 0),
        copied("resid_post", 2, n_tokens - 1),
    ]
    early = metrics(case, runs, [Cell(0, (nothing, change)) for change in changes])
    late = metrics(case, runs, [Cell(0, (change,)) for change in changes])
    torch.testing.assert_close(late, early, atol=2e-5, rtol=2e-5)
    assert (late - metrics(case, runs, [Cell(0, ())])).abs().min() > 1e-3


def test_a_run_begins_at_what_it_changes_first() -> None:
    from_source = copied("head", 2, PositionRange(start=1, stop=6), 0)
    assert start_of([from_source], 3, 8, N_LAYERS) == (2, 3)
    assert start_of([from_source], 6, 8, N_LAYERS) == (2, 8)  # the source is no different there
    assert start_of([copied("resid_post", 2)], 3, 8, N_LAYERS) == (3, 3)
    assert start_of([copied("resid_pre", 0, 5)], 3, 8, N_LAYERS) == (0, 5)
    assert start_of([], 3, 8, N_LAYERS) == (N_LAYERS, 8)
    scaled = Intervention(at=from_source.at, action=ScaleValue(factor=2.0))
    assert start_of([scaled], 3, 8, N_LAYERS) == (2, 1)
    assert start_of([from_source, scaled], 6, 8, N_LAYERS) == (2, 1)
    listed = copied("k", 1, PositionList(positions=(7, 4)), run=MEAN)
    assert start_of([listed], 6, 8, N_LAYERS) == (1, 4)


def test_what_changes_nothing_is_not_run() -> None:
    case = golden_case("llama_single")
    runs = recorded(case, "noise")
    (differs,) = runs.differ_from
    before = [Cell(0, (copied("resid_post", layer, t),)) for layer in range(N_LAYERS) for t in range(differs)]
    batches = list(PatchedRuns(golden_decoder("llama"), runs).batches(before))
    assert [places for places, _ in batches] == [list(range(len(before)))]
    assert (batches[0][1].flat == runs.logits.flat).all()


@pytest.mark.parametrize("model", MODELS)
def test_logits_are_read_at_any_position_wherever_a_run_begins(model: str) -> None:
    """Beside another pair, of which others are read: what is before the first changed token is as it was."""
    cases = [golden_case(f"{model}_{kind}") for kind in ("single", "several")]
    decoder = golden_decoder(model)
    bases, sources = zip(*(prompts_of(case, "noise") for case in cases), strict=True)
    read_at = [tuple(range(len(bases[0]))), (2, len(bases[1]) - 1)]
    runs = record_pairs(bases, sources, decoder, sites_of(model), read_at=read_at)
    late = len(bases[1]) - 2
    cells = [
        *(Cell(0, (copied("resid_pre", 0, t),)) for t in range(len(bases[0]))),
        Cell(1, (copied("resid_post", 1, late),)),
        Cell(1, (copied("resid_post", 1),)),
        Cell(0, ()),
    ]
    found: dict[int, torch.Tensor] = {}
    for places, read in PatchedRuns(decoder, runs).batches(cells):
        assert len(read.last) == len(places)
        found.update(zip(places, read.rows, strict=True))
    for place, cell in enumerate(cells):
        tokens = torch.tensor([bases[cell.prompt]])
        interventions = [
            RowIntervention(
                row=0, intervention=one, n_tokens=tokens.shape[1], runs=runs.runs[cell.prompt], first_layer=0
            )
            for one in cell.interventions
        ]
        (logits,) = require(decoder.forward(tokens, Taps(interventions=interventions)))
        torch.testing.assert_close(found[place], logits[list(read_at[cell.prompt])], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("model", MODELS)
def test_prompts_of_other_lengths_in_the_batch_change_no_number(model: str) -> None:
    cases = [golden_case(f"{model}_{kind}") for kind in ("single", "several")]
    pairs = [prompts_of(case, "denoise") for case in cases]
    assert len({len(base) for base, _ in pairs}) == 2
    together = record_pairs([p[0] for p in pairs], [p[1] for p in pairs], golden_decoder(model), sites_of(model))

    def cells(prompt: int) -> list[Cell]:
        nodes = [("head", (None, 1)), ("k", (None, 2)), ("pattern", (None, None, 3)), ("mlp_out", (5,)), ("v", ())]
        return [Cell(prompt, (copied(node, layer, *axes),)) for node, axes in nodes for layer in range(N_LAYERS)]

    for i, case in enumerate(cases):
        of_both = metrics(case, together, [*cells(0), *cells(1)]).reshape(2, -1)[i]
        alone = metrics(case, recorded(case, "denoise"), cells(0))
        torch.testing.assert_close(of_both, alone, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_ablated_runs_are_those_of_the_golden_data(name: str) -> None:
    case = golden_case(name)
    decoder = golden_decoder(case.model)
    sites, layers = list(sites_of(case.model)), range(N_LAYERS)
    heads = [Cell(0, (copied("head", layer, None, h, run=MEAN),)) for layer in layers for h in range(N_HEADS)]
    mlps = [Cell(0, (copied("mlp_out", layer, run=MEAN),)) for layer in layers]
    for key, by_position in (("mean", False), ("mean_by_position", True)):
        mean = MeanOfRuns(by_position=by_position)
        for prompts in (case.facts["mean_set_ids"][:2], case.facts["mean_set_ids"][2:]):
            mean.add(prompts, decoder, sites)
        runs = record_pairs([case.clean], None, decoder, sites, means=[mean.mean(torch.float32)])
        assert_golden(metrics(case, runs, heads), case.tensors[f"ablate.head.{key}"].flatten())
        assert_golden(metrics(case, runs, mlps), case.tensors[f"ablate.mlp.{key}"])
    zero = [Cell(0, (Intervention(at=one.interventions[0].at, action=SetValue(scalar=0.0)),)) for one in heads]
    plain = record_pairs([case.clean], None, decoder, [])
    assert_golden(metrics(case, plain, zero), case.tensors["ablate.head.zero"].flatten())


def test_a_mean_by_position_is_over_the_prompts_that_are_long_enough() -> None:
    decoder = golden_decoder("gpt2")
    prompts = [(5, 6, 7, 8), (1, 2), (3, 4, 9)]
    site = (_L.ATTN_QK_PROBS, 1)
    values = []
    for prompt in prompts:
        taps = Taps(values=[site])
        decoder.forward(torch.tensor([prompt]), taps)
        values.append(taps.values[site][0])
    mean = MeanOfRuns(by_position=True)
    mean.add(prompts[:1], decoder, [site])
    mean.add(prompts[1:], decoder, [site])
    found = mean.mean(torch.float32)[site]
    torch.testing.assert_close(found[3], values[0][3])
    torch.testing.assert_close(found[2, :3], (values[0][2, :3] + values[2][2]) / 2)
    torch.testing.assert_close(found[1, :2], (values[0][1, :2] + values[1][1] + values[2][1, :2]) / 3)
