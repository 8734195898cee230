"""The Python client and the command line against a real server with the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dst_grpc.client import (
    AblationSpec,
    ActivationIndex,
    ActivationLocationType,
    Answer,
    AsyncClient,
    Client,
    ContextState,
    DerivedScalarType,
    DstConfig,
    ResolveRequest,
    ServingStatus,
    make_request,
)
from dst_grpc.errors import InvalidRequest, NotFound, PreconditionFailed, Reason

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "When Mary and John went to the store, John gave a drink to"
NEURONS = "mlp_write_to_final_residual_grad"
HEADS = "unflattened_attn_write_to_final_residual_grad"


@pytest.fixture(name="client")
def _client(embedded_address: str) -> Iterator[Client]:
    with Client(embedded_address) as client:
        yield client


def test_the_model_says_mary(client: Client) -> None:
    """Indirect object identification, the behaviour that the README explains."""
    answer = client.derive(PROMPT, "logits", target=" Mary", distractor=" John")
    (guess,) = answer["logits"].top(1, at=len(answer.tokens) - 1)
    assert guess.node is not None
    assert client.detokenize([guess.node]) == " Mary"
    assert answer.loss is not None
    assert answer.loss > 0


def test_shapes_are_those_that_resolving_announces(client: Client) -> None:
    types = [DerivedScalarType.LOGITS, NEURONS, HEADS, "attn_act_times_grad", "token_attribution"]
    resolution = client.resolve(PROMPT, types, target=" Mary")
    answer = client.derive(PROMPT, types, target=" Mary")
    for announced, scalar in zip(resolution.scalars, answer, strict=True):
        assert scalar.dst is announced.dst
        assert tuple(scalar) == (announced.layer_indices or (None,))
        for tensor in scalar.values():
            assert tensor.axes == announced.axes


PARTS = [
    "resid_post_embedding_proj_to_final_residual_grad",
    "attn_layer_write_to_final_residual_grad",
    "mlp_layer_write_to_final_residual_grad",
]


def test_direct_effects_are_shares_of_the_loss(client: Client) -> None:
    """With the final norm frozen, but for what its bias adds."""
    answer = client.derive(PROMPT, PARTS, target=" Mary", distractor=" John")
    effects = np.concatenate([answer[part].stack()[:, -1, 0] for part in PARTS])
    assert answer.detach_final_layer_norm_scale
    assert "loss=14.72, final norm frozen" in repr(answer)
    assert effects.sum() == pytest.approx(answer.loss, rel=0.05)


def test_direct_effects_add_up_to_nothing_if_the_final_norm_is_not_frozen(client: Client) -> None:
    """The last norm undoes any change of the residual's length, so the gradient is orthogonal to the sum of writes."""
    answer = client.derive(PROMPT, PARTS, target=" Mary", distractor=" John", detach_final_layer_norm_scale=False)
    effects = np.concatenate([answer[part].stack()[:, -1, 0] for part in PARTS])
    assert "final norm not frozen" in repr(answer)
    assert abs(effects.sum()) < 1e-4 * np.abs(effects).sum()


def test_a_residual_s_projection_ends_in_no_false_0(client: Client) -> None:
    """The last layer's is 0 by definition, and says so; all others are of the model."""
    dst = "resid_post_mlp_proj_to_final_residual_grad"
    layers = client.derive(PROMPT, dst, target=" Mary", distractor=" John")[dst]
    assert [tensor.zero_by_definition for tensor in layers.values()] == [False, False, False, True]
    assert np.isnan(layers.stack()[-1]).all()
    assert np.isfinite(layers.stack()[:-1]).all()
    assert not np.asarray(layers[3]).any()


def test_an_ablation_changes_the_answer(client: Client) -> None:
    head = ActivationIndex(
        activation_location_type=ActivationLocationType.ATTN_QK_PROBS, layer_index=1, tensor_indices=(None, None, 1)
    )
    probs = client.derive(PROMPT, "attn_qk_probs", ablations=[AblationSpec(index=head, value=0.0)])["attn_qk_probs"]
    assert not np.asarray(probs[1])[:, :, 1].any()
    assert np.asarray(probs[1])[:, :, 0].any()


def test_sparse_latents_equal_dense_ones(client: Client) -> None:
    (name, *_) = [info.name for info in client.autoencoders() if info.dst == "mlp_post_act"]
    latents = "online_mlp_autoencoder_latent"
    dense = client.derive(PROMPT, latents, autoencoders=name)[latents]
    sparse = client.derive(PROMPT, latents, autoencoders=name, encoding="sparse_latents")[latents]
    for layer, tensor in sparse.items():
        assert tensor.is_sparse
        np.testing.assert_allclose(np.asarray(tensor), np.asarray(dense[layer]), rtol=1e-5, atol=1e-6)


def test_gradients(client: Client) -> None:
    answer = client.derive(PROMPT, "mlp_post_act", target=" Mary", config=DstConfig(derive_gradients=True))
    product = np.asarray(answer["mlp_post_act"][1]) * np.asarray(answer["mlp_post_act"].backward[1])
    other = client.derive(PROMPT, "mlp_act_times_grad", target=" Mary")["mlp_act_times_grad"][1]
    np.testing.assert_allclose(product, np.asarray(other), rtol=1e-4, atol=1e-6)


async def test_a_batch_equals_its_items_alone(embedded_address: str) -> None:
    prompts = ["Mary", PROMPT, "The dog that chased the cats"]
    async with AsyncClient(embedded_address) as client:
        batch = [make_request(prompt, NEURONS, target=" Mary", request_id=prompt) for prompt in prompts]
        answers = {request_id: answer async for request_id, answer in client.derive_stream(batch)}
        for prompt in prompts:
            together, alone = answers[prompt], await client.derive(prompt, NEURONS, target=" Mary")
            assert isinstance(together, Answer)
            for layer, tensor in alone[NEURONS].items():
                np.testing.assert_allclose(
                    np.asarray(together[NEURONS][layer]), np.asarray(tensor), rtol=1e-3, atol=1e-5
                )


def test_a_bad_item_does_not_end_the_stream(client: Client) -> None:
    good, bad = make_request(PROMPT, "logits", request_id="good"), make_request(PROMPT, NEURONS, request_id="bad")
    answers = dict(client.derive_stream([bad, good]))
    assert isinstance(answers["good"], Answer)
    error = answers["bad"]
    assert isinstance(error, PreconditionFailed)
    assert error.reason is Reason.ORIGIN_REQUIRED


def test_resolving_many(client: Client) -> None:
    requests = [ResolveRequest(request=make_request(None, "logits", model=name)) for name in ("embedded", "embeded")]
    answers = dict(client.resolve_stream(requests))
    assert not isinstance(answers["0"], Exception)
    error = answers["1"]
    assert isinstance(error, NotFound)
    assert "embedded" in error.nearest


def test_errors_name_the_field(client: Client) -> None:
    with pytest.raises(InvalidRequest) as raised:
        client.derive(PROMPT, "logits", target="Mary and John")
    assert raised.value.reason is Reason.NOT_ONE_TOKEN
    assert raised.value.violations[0].field.startswith("loss_fn_config.target_tokens")


def test_the_catalogue(client: Client) -> None:
    assert client.health() is ServingStatus.SERVING
    assert [info.dst for info in client.derived_scalar_types()] == list(DerivedScalarType)
    assert client.model().default_model
    assert {info.model for info in client.autoencoders()} == {client.model().name}
    tokens = client.tokenize(PROMPT)
    assert client.detokenize(tokens.ids) == PROMPT
    assert "".join(tokens.strings) == PROMPT


def test_loading_and_unloading(client: Client) -> None:
    (name, *_) = [info.name for info in client.autoencoders()]
    assert client.load_context(name).state is ContextState.AVAILABLE
    assert any(status.handle.startswith(f"{name}@") for status in client.contexts())
    assert client.unload_context(name).state is ContextState.NOT_LOADED
    assert not any(status.handle.startswith(f"{name}@") for status in client.contexts())


def test_the_command_line_says_the_same(embedded_address: str, client: Client) -> None:
    command = [sys.executable, "-m", "dst_grpc.cli", "derive", PROMPT, "--server", embedded_address, "--json"]
    options = ["--target", " Mary", "--distractor", " John", "-t", HEADS, "--top", "1"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=True)
    (entry,) = json.loads(done.stdout)["derived_scalars"][0]["top"]
    (expected,) = client.derive(PROMPT, HEADS, target=" Mary", distractor=" John")[HEADS].top(1)
    assert tuple(entry["indices"]) == expected.indices
    assert entry["value"] == pytest.approx(expected.value, rel=1e-4)


def test_the_demo_runs() -> None:
    """It starts a server of its own, and stops it; every command that it shows is one that it ran."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.demo"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    steps = (
        "A server is running",
        "$ dst-grpc explain",
        "goes on with ' Mary'",
        "were off?",
        "With ",
        "Go on from here",
    )
    places = [done.stdout.index(step) for step in steps]
    assert places == sorted(places)
