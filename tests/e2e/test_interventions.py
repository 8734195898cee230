"""Runs that read others, on the embedded model over a socket: in Derive, TopK and Explain alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from dst_grpc.client import (
    Client,
    Intervention,
    LossFnConfig,
    LossFnName,
    Prompt,
    SourceRun,
    difference_of_means,
    hold,
    make_explain_run,
    mean_over,
    patch,
    project_out,
    scale,
)
from dst_grpc.errors import InvalidRequest

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
ASKED: dict[str, Any] = {"target": " Mary", "distractor": " John"}


@pytest.fixture(name="client")
def _client(embedded_address: str) -> Iterator[Client]:
    with Client(embedded_address) as client:
        yield client


def loss(client: Client, prompt: str, *changes: Intervention, **sources: str) -> float:
    found = client.derive(prompt, interventions=changes, source_runs=sources, **ASKED).loss
    assert found is not None
    return found


def test_a_run_is_patched_in_both_directions(client: Client) -> None:
    """All of the first residual makes it the other run, as does the last token's residual after the last layer."""
    clean, corrupt = loss(client, CLEAN), loss(client, CORRUPT)
    everywhere = patch("resid.post_emb", "other")
    assert loss(client, CORRUPT, everywhere, other=CLEAN) == pytest.approx(clean, rel=1e-4)
    assert loss(client, CLEAN, everywhere, other=CORRUPT) == pytest.approx(corrupt, rel=1e-4)
    last = client.model().dimensions.n_layers - 1
    end = patch("resid.post_mlp", "other", layer=last, at=[len(client.tokenize(CLEAN).ids) - 1])
    assert loss(client, CORRUPT, end, other=CLEAN) == pytest.approx(clean, rel=1e-4)
    assert loss(client, CORRUPT, patch("resid.delta_attn", "other", layer=last), other=CLEAN) > corrupt


def test_a_mean_over_one_run_is_that_run_and_what_is_held_stays(client: Client) -> None:
    mean = mean_over("attn.v_out", ["other"], layer=1, at=[None, 2])
    copied = patch("attn.v_out", "other", layer=1, at=[None, 2])
    assert loss(client, CLEAN, mean, other=CORRUPT) == pytest.approx(loss(client, CLEAN, copied, other=CORRUPT))
    gone = scale("resid.post_emb", 0.0)
    kept = hold("resid.post_mlp", layer=0)
    assert loss(client, CLEAN, gone, kept) == pytest.approx(loss(client, CLEAN), rel=1e-4)


def test_a_difference_without_direction_is_refused_at_its_field(client: Client) -> None:
    """Only a run finds that it is 0; the request says where it is, whoever asks."""
    steered = scale("mlp.post_act", 2.0, layer=0)
    nothing = project_out("resid.post_mlp", difference_of_means(["other"], ["other"], token=-1), layer=1)
    runs = {"other": CORRUPT}
    path = "interventions[1].project_out.direction"
    asking: list[tuple[str, Callable[[], object]]] = [
        (path, lambda: client.derive(CLEAN, interventions=[steered, nothing], source_runs=runs, **ASKED)),
        (
            f"runs[0].{path}",
            lambda: client.explain(CLEAN, interventions=[steered, nothing], source_runs=runs, **ASKED),
        ),
        (
            "source_runs[1].interventions[0].project_out.direction",
            lambda: client.derive(
                CLEAN,
                interventions=[patch("resid.post_mlp", "changed", layer=2)],
                source_runs=[
                    SourceRun(name="other", prompt=Prompt(text=CORRUPT)),
                    SourceRun(name="changed", interventions=(nothing,)),
                ],
                **ASKED,
            ),
        ),
        (
            "cells[1].interventions[0].project_out.direction",
            lambda: client.patch(
                CLEAN,
                CORRUPT,
                cells=[
                    steered,
                    project_out("resid.post_mlp", difference_of_means(["source"], ["source"], token=-1), layer=1),
                ],
                **ASKED,
            ),
        ),
    ]
    for field, ask in asking:
        with pytest.raises(InvalidRequest) as caught:
            ask()
        assert [one.field for one in caught.value.violations] == [field]


def test_an_explanation_says_in_a_line_what_it_is(client: Client) -> None:
    ranked = client.top_k(CLEAN, "mlp_act_times_grad", k=3, **ASKED)
    first, of_run = repr(ranked).split("\n")
    assert first == "<Explanation 1 run>"
    assert of_run.startswith("<RunExplanation embedded@")
    assert "loss=" in of_run
    table = ranked.runs[0].node_table
    assert f"node_table[{len(table.nodes) if table else 0}]" in of_run
    assert repr(table) == f"<NodeTable of {len(table.nodes) if table else 0} nodes, by mlp_act_times_grad>"
    assert len(repr(client.explain(CLEAN, **ASKED))) < 300


def test_topk_and_explain_rank_the_nodes_of_a_patched_run(client: Client) -> None:
    """The same numbers as of Derive, gradients too."""
    change = [patch("resid.post_mlp", "other", layer=0)]
    kind = "mlp_act_times_grad"
    arguments: dict[str, Any] = {"interventions": change, "source_runs": {"other": CORRUPT}}
    derived = client.derive(CLEAN, kind, **ASKED, **arguments)
    best = np.sort(derived[kind].stack().ravel())[:-4:-1]
    ranked = client.top_k(CLEAN, {"group": kind}, k=3, **ASKED, **arguments)
    run = make_explain_run(CLEAN, **ASKED, **arguments)
    explained = client.explain(CLEAN, beside=[run], groups={"group": kind}, k=3, node_scope="prompt", **ASKED)
    for table in (ranked.runs[0].node_table, explained.runs[1].node_table):
        assert table is not None
        (group,) = table.groups
        np.testing.assert_allclose(group.values[list(group.top)], best, rtol=1e-4)
    assert explained.runs[1].header.loss == pytest.approx(derived.loss, rel=1e-4)
    assert explained.runs[0].header.loss == pytest.approx(loss(client, CLEAN), rel=1e-4)


def test_what_is_wrong_with_a_run_that_is_read_is_said_at_its_path(client: Client) -> None:
    change = [patch("resid.post_mlp", "other", layer=0)]
    other = SourceRun(name="other", interventions=(patch("resid.post_mlp", "third", layer=99),))
    third = SourceRun(name="third", interventions=())
    with pytest.raises(InvalidRequest) as caught:
        client.explain(CLEAN, interventions=change, source_runs=[other, third], **ASKED)
    assert [one.field for one in caught.value.violations] == ["runs[0].source_runs[0].interventions[0].at.layer_index"]
    with pytest.raises(InvalidRequest) as caught:
        client.derive(CLEAN, interventions=change, source_runs={"other": CLEAN + " a"}, **ASKED)
    assert [one.field for one in caught.value.violations] == ["interventions[0].copy.run"]


def test_losses_of_other_kinds_travel(client: Client) -> None:
    """A divergence from a patched run, whose values are those of probabilities and entropies of logits sent too."""
    change = [patch("resid.post_mlp", "other", layer=0)]
    arguments: dict[str, Any] = {"interventions": change, "source_runs": {"other": CORRUPT}}
    logits = [
        np.asarray(client.derive(prompt, "logits", **more)["logits"][None])[-1].astype(np.float64)
        for prompt, more in ((CLEAN, arguments), (CORRUPT, {}))
    ]
    log_q, log_p = (one - np.logaddexp.reduce(one) for one in logits)
    found = {
        name: client.derive(CLEAN, loss=LossFnConfig(name=name, **fields), **arguments).loss
        for name, fields in (
            (LossFnName.KL_DIVERGENCE, {"reference_run": "other"}),
            (LossFnName.ENTROPY, {}),
            (LossFnName.LOG_PROB, {"target_tokens": (" Mary",)}),
        )
    }
    (mary,) = client.tokenize(" Mary").ids
    assert found[LossFnName.KL_DIVERGENCE] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(), rel=1e-4, abs=1e-5)
    assert found[LossFnName.ENTROPY] == pytest.approx(-(np.exp(log_q) * log_q).sum(), rel=1e-4, abs=1e-5)
    assert found[LossFnName.LOG_PROB] == pytest.approx(log_q[mary], rel=1e-4, abs=1e-5)
    with pytest.raises(InvalidRequest, match=r"loss_fn_config.token_index: must be between"):
        client.derive(CLEAN, loss=LossFnConfig(name=LossFnName.ENTROPY, token_index=99))
