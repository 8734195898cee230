"""`dst-grpc explain` against the embedded model: what it prints can be typed, and says what the other calls say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dst_grpc.cli._app import app
from dst_grpc.cli._explain import attention_of, explain_request_of
from dst_grpc.cli._facts import rows_of
from dst_grpc.cli._guesses import guesses_of
from dst_grpc.client import Client, NodeType

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "When Mary and John went to the store, John gave a drink to"
ASKED = (PROMPT, "--target", " Mary", "--distractor", " John")
LATENTS = {
    "mlp": "latents",
    "attention": "latents",
    "autoencoder": ["embedded/mlp_post_act", "embedded/resid_delta_attn"],
}


@pytest.fixture(name="client")
def _client(embedded_address: str) -> Iterator[Client]:
    with Client(embedded_address) as client:
        yield client


@pytest.mark.parametrize("options", [{}, LATENTS], ids=["parts", "latents"])
def test_every_kind_of_node_can_be_ablated_and_traced_as_it_is_printed(
    client: Client, options: dict[str, object]
) -> None:
    asked = {"target": [" Mary"], "distractor": [" John"], "k": 3, **options}
    request = explain_request_of(PROMPT, groups=["all"], **asked)  # type: ignore[arg-type]  # by case
    first = client.explain_request(request).runs[0]
    by_type = {row.index.node_type: row for row in rows_of(first, "direction_write")}
    assert len(by_type) == 3
    for node_type, row in by_type.items():
        ablated = explain_request_of(PROMPT, ablate=[row.text], **asked)  # type: ignore[arg-type]  # by case
        before, after = client.explain_request(ablated).runs
        assert before.header.loss == pytest.approx(first.header.loss, rel=1e-4)
        assert after.header.loss != before.header.loss
        if node_type is not NodeType.LAYER:
            traced = explain_request_of(PROMPT, trace=[row.text], **asked)  # type: ignore[arg-type]  # by case
            assert client.explain_request(traced).runs[0].header.activation_value is not None


def test_the_ablated_node_is_off(client: Client) -> None:
    request = explain_request_of(PROMPT, target=[" Mary"], distractor=[" John"])
    head = next(row for row in rows_of(client.explain_request(request).runs[0], "direction_write") if row.is_head)
    ablated = explain_request_of(PROMPT, target=[" Mary"], distractor=[" John"], ablate=[head.text])
    after = {row.text: row.value for row in rows_of(client.explain_request(ablated).runs[1], "direction_write")}
    assert abs(head.value) > 1
    assert after[head.text] == 0


def test_guesses_are_the_model_s_probabilities(client: Client) -> None:
    explanation = client.explain_request(explain_request_of("The key to the cabinets"))
    logits = np.asarray(client.derive("The key to the cabinets", "logits")["logits"][None])[-1].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    for guess in guesses_of(explanation.runs[0])[:10]:
        assert guess.share == pytest.approx(shares[guess.token_id], rel=1e-5)


def test_attention_is_that_of_the_head(client: Client) -> None:
    request = explain_request_of(PROMPT)
    found = attention_of(client, request, client.explain_request(request), [(2, 1), (0, 0), (2, 1)])
    whole = client.derive(PROMPT, "attn_qk_probs")["attn_qk_probs"]
    assert set(found) == {(2, 1), (0, 0)}
    for (layer, head), probabilities in found.items():
        np.testing.assert_allclose(probabilities, np.asarray(whole[layer])[:, :, head], atol=1e-6)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_whole_program(embedded_address: str, tmp_path: Path) -> None:
    arguments = ["explain", *ASKED, "--server", embedded_address]

    def said(*options: str) -> str:
        done = CliRunner().invoke(app, [*arguments, *options])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    command = [sys.executable, "-m", "dst_grpc.cli", *arguments, "--ablate", "2.h1", "--head", "2.1"]
    command += ["--trace", "3.n172@13"]
    seen = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "To explain: the pre-activation of 3.n172@13" in seen
    assert "With 2.h1=0" in seen
    assert "Attention of 2.h1" in seen
    messages = [json.loads(line) for line in said("--json").splitlines()]
    assert messages[0]["header"]["tokenStrings"][-1] == " to"
    assert messages[-1]["trailer"]["frameCount"] == len(messages)
    said("--html", str(tmp_path / "why.html"))
    assert (tmp_path / "why.html").stat().st_size < 2**20
