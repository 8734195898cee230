"""Errors name what was typed: options, in the place of the fields that they fill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dst_grpc._gen.dst.v1 import (
    attribute_pb2,
    circuit_pb2,
    config_pb2,
    explain_pb2,
    graph_pb2,
    inference_pb2,
    patch_pb2,
)
from dst_grpc.cli._attribute import attribute
from dst_grpc.cli._circuit import circuit
from dst_grpc.cli._derive import derive
from dst_grpc.cli._explain import explain
from dst_grpc.cli._graph import graph
from dst_grpc.cli._option_names import HOLDERS, OPTIONS, in_options, option_of, options_of
from dst_grpc.cli._patch import patch
from dst_grpc.errors import FieldViolation, InvalidRequest, NotFound, PreconditionFailed, Reason
from tests.fake_service import FakeService
from tests.unit.cli.conftest import Run

MESSAGES = (
    attribute_pb2.AttributeRequest,
    circuit_pb2.CircuitCurve,
    circuit_pb2.CircuitRequest,
    config_pb2.DstConfig,
    explain_pb2.ExplainRequest,
    explain_pb2.ExplainRun,
    graph_pb2.GraphRequest,
    inference_pb2.DeriveRequest,
    patch_pb2.PatchRequest,
)


class NoDefaults(dict[str, Any]):
    """Values of a call that gives nothing."""

    def __missing__(self, name: str) -> list[str]:
        return []


def has_field(descriptor: Any, path: str) -> bool:
    name, _, rest = path.partition(".")
    field = descriptor.fields_by_name.get(name)
    return field is not None and (not rest or has_field(field.message_type, rest))


@pytest.mark.parametrize("field", OPTIONS)
def test_the_table_is_about_fields_and_options_that_there_are(field: str) -> None:
    assert any(has_field(message.DESCRIPTOR, field) for message in MESSAGES)
    commands = (attribute, circuit, derive, explain, graph, patch)
    known = {option for command in commands for option in options_of(command, NoDefaults())}
    assert set(OPTIONS[field]) <= known
    assert OPTIONS[field] != (f"--{field.replace('_', '-')}",), "that needs no entry"


def test_options_are_known_by_their_long_names() -> None:
    options = options_of(derive, NoDefaults(types=["logits"], prompt="a", model=None))
    assert options["--type"]
    assert options["PROMPT"]
    assert not options["--model"]
    assert not options["--target"]
    assert "--detach-final-layer-norm-scale" in options
    assert not set(HOLDERS) & {option.strip("-") for option in options if option != "--config"}


@pytest.mark.parametrize(
    ("path", "given", "name"),
    [
        ("steps", (), "--steps"),
        ("curve.steps", (), "--steps"),
        ("curve.fractions[3]", (), "--fraction"),
        ("request.loss_fn_config.name", (), "--loss"),
        ("runs[1].loss_fn_config", (), "--target"),
        ("loss_fn_config", ("--loss",), "--loss"),
        ("loss_fn_config", ("--loss", "--target"), "--target or --loss"),
        ("pairs", (), "--pairs"),
        ("pairs[0].clean.text", ("CLEAN",), "CLEAN"),
        ("pairs[0].corrupt", ("CLEAN",), "CORRUPT"),
        ("pairs[2].loss_fn_config.target_tokens[1]", ("CLEAN",), "--pairs row 2, target"),
        ("pairs[2].corrupt", (), "--pairs row 3, corrupt"),
        ("pairs[2]", (), "--pairs row 3"),
        ("request_id", (), "request_id"),
        ("curve", (), "curve"),
        ("", (), ""),
    ],
)
def test_a_field_goes_by_the_option_that_fills_it(path: str, given: tuple[str, ...], name: str) -> None:
    options = options_of(circuit, NoDefaults()) | dict.fromkeys(given, True)
    assert option_of(path, options) == name


def test_of_several_options_those_are_named_that_were_given() -> None:
    def named(*given: str) -> str:
        return option_of("interventions[0].at.axes[1]", options_of(derive, NoDefaults()) | dict.fromkeys(given, True))

    assert named() == "--ablate"
    assert named("--patch") == "--patch"
    assert named("--scale", "--patch") == "--scale or --patch"
    assert option_of("interventions[0].at", options_of(explain, NoDefaults()) | {"--scale": True}) == "--scale"


def test_sentences_name_options_and_their_values() -> None:
    options = options_of(attribute, NoDefaults())
    said = "must be absent for PROPAGATION_RULE_GIM with by_position, max_bytes, attn.qk_probs and NO_SUCH_NAME"
    lacks = PreconditionFailed([FieldViolation("nodes[0]", said)], reason=Reason.ORIGIN_REQUIRED)
    found = in_options(lacks, options)
    assert str(found) == (
        "--sites: must be absent for gim with --by-position, max_bytes, attn.qk_probs and NO_SUCH_NAME"
    )
    assert found.reason is Reason.ORIGIN_REQUIRED
    many = in_options(InvalidRequest([FieldViolation("steps", "is too large")], omitted=2), options)
    assert str(many) == "--steps: is too large; and 2 more"
    other = NotFound("unknown model 'x'", reason=Reason.MODEL_NOT_FOUND)
    assert in_options(other, options) is other


def test_a_tap_that_begins_as_an_option_is_called_stays_as_it_is() -> None:
    error = InvalidRequest.of("runs[0].trace_config", "mlp.post_act cannot be traced")
    assert str(in_options(error, options_of(explain, NoDefaults()))) == "--trace: mlp.post_act cannot be traced"


PAIR = ("a b", "c d", "--target", " x")


ASKED = [
    (("derive", ""), "PROMPT: must not be empty"),
    (("derive", "a", "-t", "logitz"), "--type: there is no 'logitz'; the nearest are logits"),
    (("derive", "a", "--loss", "nope"), "--loss: there is no 'nope'"),
    (("derive", "a", "--layer", "-1"), "--layer: must be 0 or more, not -1"),
    (("derive", "a", "--ablate", "mlp.post_act@1[1]=0"), "--ablate: 'mlp.post_act@1[1]=0': index.tensor_indices: "),
    (("derive", "a", "--trace", "mlp.post_act[1,2]"), "--trace: 'mlp.post_act[1,2]': of which layer?"),
    (("explain", "a", "--ablate", "2.n5@3=1e999"), "--ablate: '2.n5@3=1e999': value: must be finite"),
    (("graph", "a", "--nodes", "nope"), "--nodes: there is no 'nope'"),
    (("graph", "a", "--nodes", "neurons", "--transcoders", "t"), "--transcoders: must be absent"),
    (("attribute", *PAIR, "--sites", "heads,heads"), "--sites: names head more than once"),
    (("attribute", *PAIR, "--steps", "3"), "--steps: must be absent: attribution_patching has no path"),
    (("circuit", *PAIR, "--fraction", "2"), "--fraction: must be between 0 and 1, not 2.0"),
    (("patch", "", *PAIR[1:]), "CLEAN: must not be empty"),
    (("patch", *PAIR, "--layer", "-1"), "--layer: must be 0 or more, not -1"),
    (("patch", *PAIR, "--sites", "mlp", "--head", "1"), "--head: must be absent: the sites 'mlp' have no heads"),
    (("patch", *PAIR, "--sites", "input", "--layer", "1"), "--layer: must be absent: the sites 'input' have no"),
    (("patch", *PAIR, "--edge", "x"), "--edge: 'x' is not the name of an edge"),
    (("patch", "--target", " x"), "CLEAN: is required, or --pairs"),
]


@pytest.mark.parametrize(("arguments", "said"), ASKED)
def test_what_cannot_be_is_told_by_what_was_typed(
    run: Run, service: FakeService, arguments: tuple[str, ...], said: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert f"  {said}" in result.stderr
    assert service.calls == 0


def test_what_the_server_refuses_is_told_by_what_was_typed(run: Run, service: FakeService) -> None:
    service.error = InvalidRequest(
        [
            FieldViolation("grids[1].entries[0]", "must be below 4"),
            FieldViolation("pairs[0].corrupt", "has 3 tokens"),
            FieldViolation("paths[0].senders", "is of no option"),
        ]
    )
    assert run("patch", *PAIR, "--head", "9").stderr.splitlines()[1:] == [
        "  --head: must be below 4",
        "  CORRUPT: has 3 tokens",
        "  paths[0].senders: is of no option",
    ]


def test_what_is_wrong_twice_is_told_once(run: Run, service: FakeService) -> None:
    """`--layer` is of all sites that have layers."""
    twice = [FieldViolation(f"grids[{grid}].layers[0]", "must be below 4, not 9") for grid in range(2)]
    service.error = InvalidRequest([*twice, FieldViolation("grids[0].layers[1]", "must be below 4, not 8")], omitted=3)
    stderr = run("patch", *PAIR, "--layer", "9", "--layer", "8").stderr
    assert stderr.count("--layer: must be below 4, not 9") == stderr.count("--layer: must be below 4, not 8") == 1


@pytest.mark.parametrize(
    ("command", "said", "told"),
    [
        (derive, "a trace needs latents: name it in autoencoders", "a trace needs latents: name it in --autoencoder"),
        (graph, "name it in transcoders", "name it in --transcoders"),
        (derive, "name it in transcoders", "name it in transcoders"),
        (derive, "is named in autoencoders; x has y", "is named in --autoencoder; x has y"),
        (derive, "name it in multi_autoencoder_context", "name it in --read"),
        (patch, "may for 9 in all, in the run", "may for 9 in all, in the run"),
    ],
)
def test_fields_of_one_word_are_known_by_what_they_hold(command: Any, said: str, told: str) -> None:
    lacks = PreconditionFailed([FieldViolation("", said)], reason=Reason.AUTOENCODER_REQUIRED)
    assert str(in_options(lacks, options_of(command, NoDefaults()))) == told


def test_all_bad_rows_of_a_file_are_told(run: Run, service: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('clean,corrupt\n"",b\na,b\na,""\n"",c\n')
    assert run("patch", "--loss", "probs", "--pairs", str(path)).stderr.splitlines()[1:] == [
        "  --pairs row 1, clean: must not be empty",
        "  --pairs row 4, clean: must not be empty",
    ]
    result = run("patch", *PAIR, "--pairs", str(path))
    assert "--pairs row 4, clean: must not be empty" in result.stderr
    assert service.calls == 0
