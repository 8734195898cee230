"""Transcoders in runs over a socket: the sets of golden graphs, per layer and across layers, and by the command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dst_grpc.cli._app import app
from dst_grpc.client import Client
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L

SETS = (
    *(f"gpt2/{name}" for name in ("plt_relu", "plt_jumprelu_resid", "clt_relu")),
    *(f"llama/{name}" for name in ("plt_relu_skip", "clt_relu_normed", "clt_jumprelu")),
    *(f"gemma2/{name}" for name in ("plt_jumprelu", "plt_jumprelu_skip", "clt_jumprelu")),
    "qwen3/plt_jumprelu",
)
PROMPT = [3, 11, 27, 5, 8, 40]
ONLINE = "online_mlp_autoencoder_"
LAYER = 1
MARY = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module", name="client")
def _client(graphs_address: str) -> Iterator[Client]:
    with Client(graphs_address) as client:
        yield client


@pytest.mark.parametrize("name", SETS)
def test_latents_stand_for_what_the_mlp_writes(client: Client, name: str) -> None:
    """Logits stay the same, and a small change of a latent does what its gradient says."""
    ask: dict[str, Any] = {"model": name.split("/", maxsplit=1)[0], "target": [9], "distractor": [4]}
    ask |= {"detach_final_layer_norm_scale": False}
    plain = client.derive(PROMPT, "logits", **ask)
    found = client.derive(PROMPT, ["logits", ONLINE + "latent", ONLINE + "act_times_grad"], autoencoders=name, **ask)
    logits = np.asarray(plain["logits"][None])
    np.testing.assert_allclose(np.asarray(found["logits"][None]), logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    latents, effects = (np.asarray(found[ONLINE + what][LAYER]) for what in ("latent", "act_times_grad"))
    token, latent = (int(i) for i in np.unravel_index(np.abs(effects).argmax(), effects.shape))
    assert latents[token, latent] > 0
    step = 0.02
    index = ActivationIndex(
        activation_location_type=L.ONLINE_MLP_AUTOENCODER_LATENT, layer_index=LAYER, tensor_indices=(token, latent)
    )
    losses = [
        client.derive(
            PROMPT,
            "logits",
            autoencoders=name,
            ablations=[AblationSpec(index=index, value=float(latents[token, latent]) * (1 + change))],
            **ask,
        ).loss
        for change in (step, -step)
    ]
    assert None not in losses
    raised, lowered = (loss or 0.0 for loss in losses)
    assert (raised - lowered) / (2 * step) == pytest.approx(effects[token, latent], rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("explain", "--mlp", "latents", "--ablate", "3.z119@13"), "With 3.z119@13=0"),
        (("explain", "--mlp", "latents", "--trace", "3.z119@13"), "2.h1@13,1"),
        (("derive", "--type", "online_mlp_autoencoder_act_times_grad"), "online_mlp_autoencoder_act_times_grad"),
        (("derive", "--type", "logits", "--ablate", "online_mlp_autoencoder_latent@3[13,119]=0"), "logits"),
    ],
)
def test_the_embedded_transcoders_are_asked_about_by_the_command(
    embedded_address: str, arguments: tuple[str, ...], shown: str
) -> None:
    command, *options = arguments
    tokens = ("--target", " Mary", "--distractor", " John", "--autoencoder", "embedded/mlp_transcoders")
    result = CliRunner().invoke(app, [command, MARY, *tokens, *options], env={"DST_SERVER": embedded_address})
    assert result.exit_code == 0, result.output
    assert shown in result.output
