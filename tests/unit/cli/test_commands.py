"""What each command prints, for people and for programs, and how it fails."""

from __future__ import annotations

import io
import json
import re
import socket
import sys

import grpc
import pytest
from rich.text import Text
from typer.testing import CliRunner

import dst_grpc
from dst_grpc.cli._app import app
from dst_grpc.cli._console import print_json
from dst_grpc.cli._tables import human_value
from dst_grpc.errors import Exhausted, FieldViolation, Internal, NotFound, PreconditionFailed, Reason, Unauthenticated
from tests.fake_answers import HANDLE
from tests.fake_service import FakeService
from tests.unit.cli.conftest import Run

PROMPT = "When Mary and John"


def test_the_version(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"dst-grpc {dst_grpc.__version__}\n")


def test_help_lists_every_command(run: Run) -> None:
    for command in (
        "serve",
        "derive",
        "resolve",
        "models",
        "types",
        "tokenize",
        "server-info",
        "contexts",
        "load",
        "unpin",
        "unload",
        "reload",
        "pull",
        "convert",
        "tokens",
    ):
        assert command in run("--help").stdout
        assert run(command, "--help").exit_code == 0


def test_a_time_before_now_is_no_time_limit(run: Run) -> None:
    result = run("types", "--timeout", "-1")
    assert result.exit_code == 2
    assert "Invalid value for '--timeout'" in result.stderr


def test_derive_shows_the_largest_of_each_type(run: Run) -> None:
    result = run("derive", PROMPT, "--target", " Mary", "-t", "mlp_act_times_grad", "-t", "attn_qk_probs", "--top", "2")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert result.stdout.startswith(f"4 tokens, {HANDLE}, loss +1.5000\n")
    assert ["mlp_act_times_grad,", "final", "norm", "frozen"] in lines
    assert ["attn_qk_probs"] in lines
    assert ["0", "+17.0000", "neuron", "4", "'", "John'", "(3)"] in lines
    assert ["0", "+29.0000", "head", "1", "'", "John'", "(3)", "<-", "'", "John'", "(3)"] in lines


def test_a_token_beyond_the_prompt_is_an_error(run: Run) -> None:
    result = run("derive", PROMPT, "--at", "99", "--model", "")
    assert result.exit_code == 1
    assert "--at: must be between" in result.stderr


def test_a_value_that_is_no_number_is_printed_as_nan() -> None:
    assert human_value(float("nan")) == "nan"


def test_zero_is_never_negative() -> None:
    assert human_value(-0.0) == human_value(0.0) == "+0.0000"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), '"NaN"'),
        ({"a": [float("inf"), -float("inf")]}, '{"a": ["Infinity", "-Infinity"]}'),
        (((1.5, {"b": float("nan")}),), '[[1.5, {"b": "NaN"}]]'),
    ],
)
def test_json_is_json_whatever_numbers_it_holds(
    value: object, written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    print_json(value)
    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == json.loads(written)


@pytest.mark.parametrize(("encoding", "written"), [("utf-8", "é 山"), ("latin-1", "\\u00e9 \\u5c71")])
def test_json_is_json_in_whatever_encoding_it_goes_out(
    encoding: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    print_json("é 山")
    assert out.buffer.getvalue().decode(encoding) == f'"{written}"\n'


def test_derive_without_a_type_explains_the_target(run: Run) -> None:
    result = run("derive", PROMPT, "--target", " Mary", "--distractor", " John")
    assert "mlp_write_to_final_residual_grad" in result.stdout
    assert "unflattened_attn_write_to_final_residual_grad" in result.stdout


def test_derive_without_a_target_shows_the_guess(run: Run) -> None:
    """The logits of the last token, by value, as text."""
    result = run("derive", PROMPT, "--top", "1")
    assert "logits" in result.stdout
    assert "' w6'" in result.stdout
    assert "+25.0000" in result.stdout


def test_derive_for_programs(run: Run) -> None:
    arguments = ("-t", "mlp_post_act", "--layer", "1", "--at", "0", "--by", "value", "--top", "1", "--gradients")
    answer = json.loads(run("derive", PROMPT, *arguments, "--json").stdout)
    assert answer["tokens"] == ["When", " Mary", " and", " John"]
    assert [part["pass_type"] for part in answer["derived_scalars"]] == ["forward", "backward"]
    (entry,) = answer["derived_scalars"][0]["top"]
    assert (entry["layer_index"], entry["token"], entry["node"], entry["value"]) == (1, 0, 4, 2.0)


def test_derive_with_everything(run: Run) -> None:
    result = run(
        *("derive", PROMPT, "--loss", "probs", "--target", " x", "-t", "mlp_post_act", "--model", "tiny"),
        *("--ablate", "attn.qk_probs@1[:,:,0]=0", "--ablate", "mlp.post_act[3,:]=-1.5e-1"),
        *("--autoencoder", "tiny/mlp_post_act", "--timeout", "30"),
    )
    assert result.exit_code == 0, result.output
    assert run("derive", PROMPT, "--trace", "mlp.post_act@1[3,2]").exit_code == 0


def test_resolve_shows_the_plan(run: Run) -> None:
    result = run("resolve", PROMPT, "--target", " Mary", "--load")
    assert result.exit_code == 0
    assert "sequence_tokens 4 x mlp_acts 5" in result.stdout
    assert "1 forward, 1 backward" in result.stdout
    assert f"{HANDLE} available" in result.stdout
    plan = json.loads(run("resolve", PROMPT, "--target", " Mary", "--json").stdout)
    assert plan["cost"]["sequence_tokens"] == 4


def test_models(run: Run) -> None:
    assert "tiny (default)" in run("models").stdout
    listed = json.loads(run("models", "--json").stdout)
    assert [model["name"] for model in listed["models"]] == ["other", "tiny", "zebra"]
    assert listed["autoencoders"][0]["dst"] == "mlp_post_act"


def test_models_tell_how_they_are_built_when_asked(run: Run) -> None:
    assert "gelu" not in run("models").stdout
    told = run("models", "--verbose", columns=400).stdout
    assert "layer norm, learned positions, gelu tanh" in told
    zebra = next(line for line in told.splitlines() if "rms norm" in line)
    for trait in (
        "rotary positions, none in layers 1, gated silu, 1 key-value heads, MLP beside attention",
        "normed queries and keys",
        "normed writes, scores capped at 50, logits capped at 30, window of 4 tokens in layers 0",
        "resid_post_attn, resid_post_attn_norm, resid_post_attn_proj_to_final_residual_grad",
    ):
        assert trait in zebra
    narrow = run("models", "-v", columns=60).stdout
    assert "resid_post_attn_norm" in narrow.replace("\n", " ")
    (listed,) = [one for one in json.loads(run("models", "--json").stdout)["models"] if one["name"] == "zebra"]
    assert listed["architecture"]["sliding_windows"] == [4, None]
    assert listed["unsupported"][0]["dst"] == "resid_post_attn"


def test_types(run: Run) -> None:
    result = run("types", "write", "norm", "attn")
    assert "attn_write_norm " in result.stdout
    assert "P H" in result.stdout
    assert "mlp_write_norm" not in result.stdout
    assert len(json.loads(run("types", "--json").stdout)) == 109
    assert run("types", "nonesuch").exit_code == 1


def test_tokenize(run: Run) -> None:
    assert "'Mary'" in run("tokenize", PROMPT).stdout
    assert json.loads(run("tokenize", "a b", "--json").stdout) == {"token_ids": [0, 1], "tokens": ["a", "b"]}


def test_the_server_says_what_it_is(run: Run) -> None:
    result = run("server-info")
    assert result.exit_code == 0
    assert "dst.v1, version 1" in result.stdout
    assert "alice, who may ask and operate" in result.stdout
    assert json.loads(run("server-info", "--json").stdout)["protocol_version"] == 1


def test_the_cache(run: Run) -> None:
    assert HANDLE in run("contexts").stdout
    assert "available" in run("load", "tiny").stdout
    assert "pinned" not in run("load", "tiny").stdout
    assert "pinned" in run("load", "tiny", "--pin").stdout
    assert json.loads(run("load", "tiny", "--pin", "--json").stdout)[0]["pinned"] is True
    assert "available" in run("unpin", "tiny").stdout
    assert "not_loaded" in run("unload", "tiny").stdout
    (status,) = json.loads(run("contexts", "--json").stdout)
    assert status["error"] is None
    assert status["bytes_total"] == 1000


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120, 300])
@pytest.mark.parametrize("command", ["derive", "resolve", "models", "types", "contexts", "tokenize", "server-info"])
def test_every_line_fits_the_terminal(run: Run, command: str, columns: int) -> None:
    arguments = {"derive": (PROMPT, "--target", " Mary"), "resolve": (PROMPT,), "tokenize": (PROMPT,)}
    result = run(command, *arguments.get(command, ()), columns=columns)
    assert result.exit_code == 0
    assert max(Text(line).cell_len for line in result.stdout.splitlines()) <= columns


def test_no_colours_without_a_terminal(run: Run) -> None:
    assert "\x1b" not in run("derive", PROMPT, "--target", " Mary").output
    assert "\x1b" not in run("derive", PROMPT, "-t", "nonesuch").output


def test_bad_options_are_reported_together(run: Run, service: FakeService) -> None:
    result = run("derive", PROMPT, "-t", "logitz", "-t", "mlp_pos_act")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0] == "error: the request is not valid:"
    assert lines[1].startswith("  --type: there is no 'logitz'; the nearest are logits")
    assert lines[2].startswith("  --type: there is no 'mlp_pos_act'")
    assert service.calls == 0


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--ablate=attn.qk_probs", "is not of the form"),
        ("--ablate=nonesuch@1[0]=1", "there is no 'nonesuch'"),
        ("--ablate=attn.qk_probs@1[x0,:,:]=1", "is not of the form"),
        ("--ablate=attn.qk_probs@1[1:1,:,:]=1", "must be above start"),
        ("--ablate=attn.qk_probs@1[0]=1", "must name every one of the 3 axes"),
        ("--trace=mlp.post_act", "is neither a node"),
        ("--trace=resid.post_mlp@1[0,0]", "cannot be traced"),
        ("--target=", ""),
    ],
)
def test_a_mistyped_node_says_how_it_is_written(run: Run, option: str, text: str) -> None:
    result = run("derive", PROMPT, option)
    assert text in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (
            PreconditionFailed([FieldViolation("loss_fn_config", "is needed")], reason=Reason.ORIGIN_REQUIRED),
            ["error: the request lacks something:", "  loss_fn_config: is needed"],
        ),
        (
            NotFound("unknown model 'x'", nearest=["tiny"], reason=Reason.MODEL_NOT_FOUND),
            ["error: unknown model 'x'", "  the nearest are tiny"],
        ),
        (
            NotFound.unknown("model", "tyni", ["tiny"], reason=Reason.MODEL_NOT_FOUND),
            ["error: unknown model 'tyni'; the nearest are 'tiny'"],
        ),
        (Exhausted("the queue is full", retry_after_seconds=1.5), ["error: the queue is full", "  try again in 1.5 s"]),
    ],
)
def test_errors_are_told_in_lines(run: Run, service: FakeService, error: NotFound, lines: list[str]) -> None:
    service.error = error
    result = run("models")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == lines
    assert result.stdout == ""


def test_an_internal_error_names_its_id(run: Run, service: FakeService) -> None:
    service.error = Internal("something broke", error_id="abc123")
    assert "under the id abc123" in run("models").stderr


def test_errors_for_programs(run: Run, service: FakeService) -> None:
    service.error = NotFound.unknown("model", "tyni", ["tiny"], reason=Reason.MODEL_NOT_FOUND)
    result = run("models", "--json")
    error = json.loads(result.stderr)["error"]
    assert (error["kind"], error["reason"], error["nearest"]) == ("NotFound", "MODEL_NOT_FOUND", ["tiny"])
    assert result.exit_code == 1
    service.error = Exhausted("full", retry_after_seconds=2.0)
    assert json.loads(run("models", "--json").stderr)["error"]["retry_after_seconds"] == 2.0
    violations = json.loads(run("derive", "a", "-t", "x", "--json").stderr)["error"]["violations"]
    assert violations[0]["field"] == "--type"


@pytest.mark.parametrize("command", ["attribute", "circuit", "derive", "explain", "graph", "patch", "resolve"])
def test_options_say_what_they_take_in_words(command: str) -> None:
    """Without a name for its value, an option shows the type that Python has for it."""
    printed = CliRunner().invoke(app, [command, "--help"]).stdout
    assert "Options:" in printed
    assert not re.search(r"--[a-z-]+ +<(int|float|list|str|path)", printed)


def test_no_server_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(app, ["models", "--server", target])
    assert result.exit_code == 1
    assert result.stderr == f"error: no server answers at {target}; start one with `dst-grpc serve`\n"


def test_a_token_comes_from_the_environment(service: FakeService) -> None:
    environment = {"DST_SERVER": service.target, "DST_CLIENT_TOKEN": "s3cret"}
    assert CliRunner().invoke(app, ["models"], env=environment).exit_code == 0
    assert service.metadata["authorization"] == "Bearer s3cret"
    result = CliRunner().invoke(app, ["models"], env=environment | {"DST_CLIENT_CA": "absent.pem"})
    assert "there is no file absent.pem" in result.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"DST_SERVER": "http://127.0.0.1:1"}, "--server: give HOST:PORT without http://"),
        (
            {"DST_SERVER": "https://127.0.0.1:1"},
            "--server: give HOST:PORT without https://; Tls(root_certificates=...)",
        ),
        ({"DST_SERVER": "https://127.0.0.1:1"}, "the command trusts the authorities in DST_CLIENT_CA"),
        ({"DST_SERVER": "127.0.0.1:65536"}, "--server: must have a port of at most 65535, not 65536"),
        ({"DST_SERVER": "[::1]:99999"}, "--server: must have a port of at most 65535, not 99999"),
        ({"DST_CLIENT_TOKEN": "a b"}, "DST_CLIENT_TOKEN: must be printable ASCII without spaces"),
        ({"DST_CLIENT_CA": "absent.pem"}, "DST_CLIENT_CA: there is no file absent.pem"),
        ({"DST_CLIENT_CERT": "absent.pem"}, "DST_CLIENT_CERT: there is no file absent.pem"),
        ({"DST_CLIENT_CERT": "absent.pem"}, "DST_CLIENT_KEY: is required, as there is a certificate"),
        ({"DST_CLIENT_KEY": "absent.pem"}, "DST_CLIENT_CERT: is required, as there is a key"),
    ],
)
def test_what_a_server_cannot_be_reached_with_is_told_by_where_it_stands(
    environment: dict[str, str], said: str
) -> None:
    """`derive` has an option --target, which is no address."""
    result = CliRunner().invoke(app, ["derive", "a", "--target", " b"], env=environment)
    assert result.exit_code == 1
    assert f"  {said}" in result.stderr


def test_a_misspelt_variable_of_the_client_is_told(service: FakeService) -> None:
    environment = {"DST_SERVER": service.target, "DST_CLIENT_TOKENS": "s3cret", "DST_CLIENT_CERTS": "a.pem"}
    result = CliRunner().invoke(app, ["models"], env=environment)
    assert result.exit_code == 1
    assert "DST_CLIENT_TOKENS: is no variable of ours; did you mean DST_CLIENT_TOKEN?" in result.stderr
    assert "DST_CLIENT_CERTS: is no variable of ours; did you mean DST_CLIENT_CERT?" in result.stderr
    assert "s3cret" not in result.output


def test_who_is_not_known_is_told_how_to_be(run: Run, service: FakeService) -> None:
    service.error = Unauthenticated("this server wants a token")
    assert "DST_CLIENT_TOKEN" in run("models").stderr


def test_a_proxy_s_refusal_is_no_traceback(run: Run, service: FakeService) -> None:
    service.bare = (grpc.StatusCode.PERMISSION_DENIED, "rbac: denied")
    assert run("models").stderr == "error: rbac: denied\n"
