"""A model that embeds more ids than its tokenizer has: every id is a token, for prompts, targets and answers alike."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from typer.testing import CliRunner

from dst_grpc.cli._app import app
from dst_grpc.client import Client
from dst_grpc.errors import InvalidRequest
from tests import checkpoints
from tests.e2e.conftest import served

SIZE = checkpoints.CONFIG["vocab_size"]
"""Of the embedding; the tokenizer has fewer."""
LAST = SIZE - 1


@pytest.fixture(name="address", scope="module")
def _address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = checkpoints.write_model(tmp_path_factory.mktemp("model") / "m")
    with served(models={"m": str(folder)}, default_model="m") as address:
        yield address


@pytest.fixture(name="client")
def _client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_prompts_and_texts(client: Client) -> None:
    answer = client.derive([5, LAST], "logits")
    assert answer.tokens[1] == f"<{LAST}>"
    assert answer["logits"][None].values.shape == (2, SIZE)
    assert client.token_strings([LAST, 5]) == (f"<{LAST}>", answer.tokens[0])
    assert client.detokenize([LAST, 5]) == f"<{LAST}>{answer.tokens[0]}"
    with pytest.raises(InvalidRequest, match=rf"token_ids\[1\]: must be below the vocabulary size {SIZE}, not {SIZE}"):
        client.derive([5, SIZE], "logits")
    with pytest.raises(InvalidRequest, match=rf"token_ids\[0\]: must be a token of this model, .*, not {SIZE}"):
        client.token_strings([SIZE])


def test_targets_and_means(client: Client) -> None:
    logits = np.asarray(client.derive([5, 7], "logits")["logits"][None])[-1].astype(np.float64)
    by_name = client.derive([5, 7], "mlp_post_act", target=f"<{LAST}>", distractor=[3]).loss
    assert by_name == pytest.approx(logits[LAST] - logits[3], rel=1e-5)
    over_mean = client.derive([5, 7], "mlp_post_act", target=LAST, loss="logit_minus_mean").loss
    assert over_mean == pytest.approx(logits[LAST] - logits.mean(), rel=1e-5)
    table = client.explain([5, 7], target=LAST).runs[0].top_logits
    assert table is not None
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    ids = [node.tensor_indices[-1] or 0 for node in table.nodes]
    assert max(ids) == LAST
    np.testing.assert_allclose(table.probabilities, shares[ids], rtol=1e-4)


def test_the_command_lists_the_largest_whether_they_have_texts_or_not(address: str, client: Client) -> None:
    def derived(*options: str) -> str:
        done = CliRunner().invoke(app, ("derive", "a", "--server", address, *options))
        assert done.exit_code == 0, done.output
        return done.stdout

    logits = np.asarray(client.derive("a", "logits")["logits"][None])[-1]
    found = json.loads(derived("--top", str(SIZE), "--json"))["derived_scalars"][0]["top"]
    assert [entry["node"] for entry in found] == np.argsort(-logits, kind="stable").tolist()
    texts = {entry["node"]: entry["vocabulary_token"] for entry in found}
    assert texts[LAST] == f"<{LAST}>"
    assert f"'<{LAST}>'" in derived("--top", str(SIZE))
