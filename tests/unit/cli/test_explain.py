"""`dst-grpc explain` against a server that answers by heart: what it asks, prints and writes, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.json_format import Parse
from rich.text import Text

from dst_grpc._gen.dst.v1.explain_pb2 import ExplainFrame
from dst_grpc.client import ComponentTypeForAttention, ComponentTypeForMlp, ComponentTypeForResidual
from dst_grpc.errors import NotFound, Reason
from tests.fake_service import FakeService
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_terminal import on_a_terminal

PROMPT = "When Mary saw John"
ASKED = ("explain", PROMPT, "--target", " Mary", "--distractor", " John")


def test_it_shows_why(run: Run, service: FakeService) -> None:
    result = run(*ASKED)
    assert result.exit_code == 0, result.output
    assert "To explain: ' Mary' over ' John', +5.00." in result.stdout
    assert "The 5 listed nodes account for +4.00 of +5.00" in result.stdout
    assert service.explained is not None
    assert [group.group_id for group in service.explained.groups] == ["direction_write"]
    assert len(service.explained.runs) == 1


def test_what_is_switched_off_runs_beside_the_prompt_as_it_is(run: Run, service: FakeService) -> None:
    result = run(*ASKED, "--ablate", "0.h1@3,1", "--ablate", "1.n4=0.5", "--trace", "1.h0@3,2", "--k", "3")
    assert result.exit_code == 0, result.output
    assert "With 1.n4=0.5, 0.h1@3=0" in result.stdout
    assert service.explained is not None
    baseline, ablated = service.explained.runs
    assert (baseline.node_ablations, baseline.ablation_specs) == ((), ())
    assert (len(ablated.node_ablations), len(ablated.ablation_specs)) == (1, 1)
    assert baseline.trace_config == ablated.trace_config is not None
    assert service.explained.k == 3


def test_latents_and_groups(run: Run, service: FakeService) -> None:
    result = run(
        *(*ASKED, "--mlp", "latents", "--attention", "latents", "--autoencoder", "tiny/mlp_post_act"),
        *("--groups", "write_norm", "--groups", "act_times_grad"),
    )
    assert result.exit_code == 0, result.output
    request = service.explained
    assert request is not None
    assert request.component_type_for_mlp is ComponentTypeForMlp.AUTOENCODER_LATENT
    assert request.component_type_for_attention is ComponentTypeForAttention.AUTOENCODER_LATENT
    assert request.autoencoders == ("tiny/mlp_post_act",)
    assert [group.group_id for group in request.groups] == ["write_norm", "act_times_grad"]
    # Whatever the order they were named in, effects come first.
    assert result.stdout.index("Total effects (final norm frozen): ") < result.stdout.index("Writes: ")


def test_an_autoencoder_whose_latents_are_not_shown_is_told(run: Run) -> None:
    asked = (*ASKED, "--autoencoder", "tiny/resid_post_mlp")
    result = run(*asked)
    assert result.exit_code == 0, result.output
    assert "--autoencoder: its latents are not shown; add --mlp latents" in result.stderr
    assert "--residual latents" in result.stderr
    for shown in (("--residual", "latents"), ("--mlp", "latents"), ("--ablate", "1.r2@1")):
        assert "not shown" not in run(*asked, *shown).stderr


def test_the_residual_is_shown_beside_what_writes_to_it(run: Run, service: FakeService) -> None:
    asked = (*ASKED, "--residual", "latents", "--autoencoder", "tiny/resid_post_mlp")
    result = run(*asked)
    assert result.exit_code == 0, result.output
    request = service.explained
    assert request is not None
    assert request.component_type_for_residual is ComponentTypeForResidual.AUTOENCODER_LATENT
    assert [group.group_id for group in request.groups] == ["direction_write", "residual_direction_write"]
    of_writers, of_residual = result.stdout.split("Direct effects of the residual (final norm frozen): ")
    assert "account for +4.00 of +5.00" in of_writers
    assert "Layers do not add up." in of_residual
    rows = [line.split() for line in of_residual.splitlines()[-3:]]
    assert rows[0] == ["layer", "residual", "=", "latents", "+", "error", "+", "decoder", "bias", "listed"]
    assert rows[1] == ["0", "+1.75", "+2.00", "-0.50", "+0.25", "+1.00"]
    # Sums over layers would count the same thing again: no bars by token.
    result = run(*asked, "--groups", "residual_act_times_grad")
    assert "by token" not in result.stdout
    assert "Total effects of the residual" in result.stdout
    result = run(*ASKED, "--groups", "residual_activation")
    assert "there is no 'residual_activation'; there are direction_write, act_times_grad, write_norm, activation" in (
        result.stderr
    )


def test_without_a_target_activations_are_shown(run: Run, service: FakeService) -> None:
    assert "Activations: " in run("explain", PROMPT).stdout
    assert run("explain", PROMPT, "--groups", "all").exit_code == 0
    assert service.explained is not None
    assert [group.group_id for group in service.explained.groups] == ["write_norm", "activation"]


def test_attention_of_heads(run: Run) -> None:
    result = run(*ASKED, "--head", "0.1", "--head", "1.h0@3,2")
    assert "Attention of 0.h1" in result.stdout
    assert "Attention of 1.h0" in result.stdout
    result = run(*ASKED, "--head", "0.7")
    assert result.exit_code == 1
    assert "--head: layer 0 has heads 0 to 1, and no 7" in result.stderr


def test_for_programs_the_frames_are_printed_one_a_line(run: Run) -> None:
    lines = run(*ASKED, "--ablate", "0.h1", "--json").stdout.splitlines()
    kinds = [Parse(line, ExplainFrame()).WhichOneof("frame") for line in lines]
    assert (kinds[0], kinds[-1]) == ("header", "trailer")
    assert {json.loads(line).get("runIndex", 0) for line in lines} == {0, 1}


def test_a_page_is_written(run: Run, service: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "why.html"
    result = run(*ASKED, "--html", str(file))
    assert (result.exit_code, result.stdout) == (0, f"{file} is written\n")
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert '"0.h1":[' in text
    assert service.explained is not None
    assert len(service.explained.groups) == 4


def test_a_page_that_cannot_be_written(run: Run, service: FakeService, tmp_path: Path) -> None:
    result = run(*ASKED, "--html", str(tmp_path / "nowhere" / "why.html"))
    assert result.exit_code == 1
    assert "--html: cannot write" in result.stderr
    result = run(*ASKED, "--json", "--html", str(tmp_path / "why.html"))
    assert result.exit_code == 1
    assert "must be absent with --json" in result.stderr
    assert service.explained is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--trace", "2.h3"),
            "--trace: '2.h3': a head needs the token it is at and the token it reads, as in 2.n353@13",
        ),
        (("--ablate", "2.q3"), "--ablate: '2.q3' is neither a node, e.g. 2.h3@13"),
        (("--head", "two"), "--head: 'two' is not of the form LAYER.HEAD"),
        (("--groups", "direct"), "--groups: there is no 'direct'; there are direction_write"),
        (("--mlp", "heads"), "--mlp: 'heads' is none of neurons, latents"),
        (("--attention", "neurons"), "--attention: 'neurons' is none of heads, latents"),
    ],
)
def test_bad_options_say_what_is_expected(run: Run, service: FakeService, options: tuple[str, str], said: str) -> None:
    result = run(*ASKED, *options, columns=300)
    assert result.exit_code == 1
    assert said in result.stderr
    assert service.calls == 0


def test_what_the_server_refuses_is_reported(run: Run, service: FakeService) -> None:
    service.error = NotFound.unknown("model", "tin", ["tiny"], reason=Reason.MODEL_NOT_FOUND)
    result = run(*ASKED)
    assert result.exit_code == 1
    assert "error: " in result.stderr
    assert json.loads(run(*ASKED, "--json").stderr)["error"]["reason"] == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120, 300])
def test_every_line_fits_the_terminal(run: Run, columns: int) -> None:
    result = run(*ASKED, "--ablate", "0.h1", "--head", "0.1", columns=columns)
    assert result.exit_code == 0
    assert max(Text(line).cell_len for line in result.stdout.splitlines()) <= columns


def test_a_pipe_gets_neither_colours_nor_blocks(run: Run) -> None:
    assert run(*ASKED, "--ablate", "0.h1").stdout.isascii()


def test_a_terminal_gets_both(service: FakeService) -> None:
    seen, code = on_a_terminal(service, *ASKED)
    assert code == 0
    assert "\x1b[32m" in seen
    assert "█" in seen


def test_no_color_keeps_the_blocks(service: FakeService) -> None:
    seen, _ = on_a_terminal(service, *ASKED, NO_COLOR="1")
    assert "[32m" not in seen
    assert "█" in seen


def test_a_dumb_terminal_gets_neither(service: FakeService) -> None:
    seen, _ = on_a_terminal(service, *ASKED, TERM="dumb")
    assert "\x1b" not in seen
    assert "++++" in seen
    assert seen.isascii()
