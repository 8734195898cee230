"""`dst-grpc patch` against a server that answers by heart: what it asks and prints, its heat maps, how it fails."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dst_grpc.cli._heat_maps import MAX_ROWS, SITES
from dst_grpc.cli._patch import heat_maps
from dst_grpc.cli._pictures import Paper
from dst_grpc.client import (
    Alternative,
    AttributedNode,
    Client,
    Orientation,
    PatchAxis,
    PatchedGrid,
    PatchGrid,
    PatchGridInfo,
    PatchGridKind,
    make_patch_request,
)
from tests.fake_service import FakeService
from tests.unit.cli.conftest import Run

ASKED = ("patch", "John gave to", "Mary gave to", "--target", " Mary", "--distractor", " John")


def test_it_shows_a_heat_map_of_recoveries(run: Run, service: FakeService) -> None:
    result = run(*ASKED)
    assert result.exit_code == 0, result.output
    assert "The clean prompt is run (+1.000), one place as in the corrupt one (+3.000)." in result.stdout
    assert "mlp out, all positions at once: recovery, layer" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()[-2:]]
    assert [(line[:2], line[-1]) for line in lines] == [(["layer", "0"], "0%"), (["layer", "1"], "+50%")]
    asked = service.patch_asked
    assert asked is not None
    assert asked.grids == (
        PatchGrid(node=AttributedNode.RESID_PRE),
        PatchGrid(node=AttributedNode.HEAD, all_positions=True),
    )
    assert (asked.orientation, asked.alternative) == (Orientation.NOISING, Alternative.PATCHING)


def test_options_are_asked(run: Run, service: FakeService) -> None:
    result = run(
        *(*ASKED, "--denoising", "--sites", "heads, resid_post", "--by-position", "--layer", "1", "--position", "2"),
        *("--head", "0", "--edge", "a0.h0->m1", "--alternative", "zero"),
    )
    assert result.exit_code == 0, result.output
    asked = service.patch_asked
    assert asked is not None
    assert asked.grids == (
        PatchGrid(node=AttributedNode.HEAD, layers=(1,), positions=(2,), entries=(0,)),
        PatchGrid(node=AttributedNode.RESID_POST, layers=(1,), positions=(2,)),
    )
    assert asked.edges is not None
    assert asked.edges.edges == ("a0.h0->m1",)
    assert (asked.orientation, asked.alternative) == (Orientation.DENOISING, Alternative.ZERO)


def test_programs_get_numbers_with_named_axes(run: Run) -> None:
    result = run(*ASKED, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (grid,) = document["grids"]
    assert (grid["axes"], grid["labels"]) == (["layer"], [["0", "1"]])
    assert (grid["metric"], grid["recovery"]) == ([1.0, 2.0], [0.0, 0.5])
    assert (document["base"], document["source"]) == (1.0, 3.0)


def test_unknown_sites_are_refused_with_the_nearest(run: Run) -> None:
    result = run(*ASKED, "--sites", "resid,hed")
    assert result.exit_code != 0
    assert "--sites: there is no 'hed'; the nearest are head, heads" in result.output


def test_a_site_that_is_like_none_is_told_all(run: Run) -> None:
    said = " ".join(run(*ASKED, "--sites", "nope").stderr.split())
    assert f"--sites: there is no 'nope'; known are {', '.join([*SITES, *AttributedNode])}" in said


@pytest.mark.parametrize(("name", "single"), [("neuron", "mlp.post_act@"), ("latent", "_autoencoder_latent@")])
def test_sites_of_which_a_layer_has_many_are_refused_with_what_takes_single_ones(
    run: Run, name: str, single: str
) -> None:
    result = run(*ASKED, "--sites", name)
    assert result.exit_code != 0
    assert single in result.output


def drawn(
    address: str, shape: tuple[tuple[str, int], ...], values: Any, *, has_recovery: bool = True, base: float = 1.0
) -> str:
    """What is printed of a grid of *values* with axes of these names and sizes, where the metric was *base*."""
    axes = tuple(PatchAxis(name=name, labels=tuple(map(str, range(n))), indices=tuple(range(n))) for name, n in shape)
    info = PatchGridInfo(kind=PatchGridKind.NODES, node=AttributedNode.HEAD, axes=axes, cell_count=values.size)
    grid = PatchedGrid(info, values[None], values, np.full(values.shape, np.nan))
    request = make_patch_request("a", "b", target="c")
    with Client(address) as client:
        answer = client.patch_request(request)
    pairs = tuple(replace(pair, has_recovery=has_recovery, metric=base) for pair in answer.pairs)
    answer = replace(answer, grids=(grid,), pairs=pairs)
    out = Console(width=60, force_terminal=False)
    with out.capture() as captured:
        for picture in heat_maps(request, answer, Paper(60, is_plain=True)):
            out.print(picture)
    return captured.get()


def test_what_does_not_fit_is_left_out_and_said(service: FakeService) -> None:
    tall = np.arange(200.0)[None, :] + 1
    text = drawn(service.target, (("layer", 1), ("position", 200)), tall)
    rows = [line for line in text.splitlines() if "'" in line]
    assert len(rows) == MAX_ROWS
    assert rows[-1].split()[0] == "199"
    assert "+200.00" in rows[-1]
    wide = drawn(service.target, (("layer", 30), ("position", 2)), np.ones((30, 2)))
    assert "more columns do not fit" in wide
    deep = drawn(service.target, (("layer", 2), ("head", 2), ("position", 1)), np.ones((2, 2, 1)))
    assert "layer 1" in deep


def test_metrics_that_are_all_0_are_shown(service: FakeService) -> None:
    text = drawn(service.target, (("layer", 2), ("position", 1)), np.zeros((2, 1)), has_recovery=False)
    assert text.splitlines()[-1].split()[-2:] == ["0", "0"]
    assert "Both metrics are the same" in " ".join(text.split())


def test_a_metric_that_rounds_to_0_is_not_negative(service: FakeService) -> None:
    assert "The clean prompt is run (+0.000)" in drawn(service.target, (("layer", 1),), np.ones(1), base=-0.0001)
