"""Deriving one prompt: what is sent, what comes back, and in which form."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

from dst_grpc._gen.dst.v1 import inference_pb2
from dst_grpc.client import (
    AsyncClient,
    Client,
    DerivedScalarSpec,
    DerivedScalarType,
    Dimension,
    DstConfig,
    PassType,
    TransferProgress,
)
from dst_grpc.domain.requests import DeriveRequest
from dst_grpc.errors import DataLoss, InvalidRequest, Reason
from tests.fake_answers import HANDLE, frames_of
from tests.fake_service import FakeService

PROMPT = "When Mary and John"
NEURONS = "mlp_write_to_final_residual_grad"
PAIRS = "attn_act_times_grad"


def test_an_answer_is_arrays_by_name_and_layer(client: Client) -> None:
    answer = client.derive(PROMPT, [NEURONS, PAIRS], target=" Mary", distractor=" John")

    assert answer.tokens == ("When", " Mary", " and", " John")
    assert answer.token_ids == (0, 1, 2, 3)
    assert (answer.loss, answer.activation_value) == (1.5, None)
    assert answer.model == HANDLE
    tensor = answer[NEURONS][1]
    assert tensor.shape == (4, 5)
    assert tensor.dimensions == (Dimension.SEQUENCE_TOKENS, Dimension.MLP_ACTS)
    np.testing.assert_array_equal(tensor.values, np.arange(20, dtype=np.float32).reshape(4, 5) - 2)
    assert answer[PAIRS][0].shape == (10, 2)
    assert list(answer[NEURONS]) == [0, 1]
    assert answer.statistics.queue_duration == 0.25
    assert answer.provenance.model == HANDLE


def test_a_type_without_layers_has_the_layer_none(client: Client) -> None:
    answer = client.derive(PROMPT, "logits")
    assert answer["logits"][None].shape == (4, 7)
    assert answer.tensor(DerivedScalarType.LOGITS) is answer.tensors[0]


def test_gradients_are_the_backward_pass(client: Client) -> None:
    answer = client.derive(PROMPT, "mlp_post_act", target=" x", config=DstConfig(derive_gradients=True))
    assert answer.tensor("mlp_post_act", 1, PassType.BACKWARD).pass_type is PassType.BACKWARD
    assert len(answer["mlp_post_act"].backward) == 2
    assert len(client.derive(PROMPT, "mlp_post_act")["mlp_post_act"].backward) == 0


def test_one_type_with_two_configs_is_found_by_position(client: Client) -> None:
    specs = [
        DerivedScalarSpec(dst=DerivedScalarType.MLP_POST_ACT, config=DstConfig(layer_indices=(layer,)))
        for layer in (0, 1)
    ]
    answer = client.derive(PROMPT, specs)
    assert list(answer[1]) == [1]
    assert [list(scalar) for scalar in answer] == [[0], [1]]
    with pytest.raises(KeyError, match="more than once"):
        answer["mlp_post_act"]


def test_what_is_not_there_is_a_key_error_that_says_what_is(client: Client) -> None:
    answer = client.derive(PROMPT, [NEURONS], target=" x")
    with pytest.raises(KeyError, match=f"no logits; it has {NEURONS}"):
        answer["logits"]
    with pytest.raises(KeyError, match="no layer 7; it has 0, 1"):
        answer[NEURONS][7]
    assert NEURONS in answer
    assert "logits" not in answer


@pytest.mark.parametrize("element_type", ["float32", "float16", "bfloat16"])
def test_every_element_type_arrives(client: Client, element_type: str) -> None:
    answer = client.derive(PROMPT, "mlp_post_act", element_type=element_type)
    values = answer["mlp_post_act"][0].values
    assert values.dtype == (np.float16 if element_type == "float16" else np.float32)
    np.testing.assert_array_equal(values.ravel(), np.arange(20) - 2)


def test_sparse_latents_can_be_made_dense(client: Client) -> None:
    types = "online_mlp_autoencoder_latent"
    dense = client.derive(PROMPT, types, autoencoders="tiny/mlp_post_act")[types][0]
    sparse = client.derive(PROMPT, types, autoencoders="tiny/mlp_post_act", encoding="sparse_latents")[types][0]
    assert sparse.is_sparse
    assert not dense.is_sparse
    assert sparse.values.shape == (23,)
    assert sparse.coordinates is not None
    np.testing.assert_array_equal(sparse.to_dense().values, dense.values)
    np.testing.assert_array_equal(np.asarray(sparse), dense.values)
    np.testing.assert_array_equal(sparse[2], dense[2])
    assert sparse.top(3) == dense.top(3)
    assert sparse.top(2, at=1) == dense.top(2, at=1)
    assert "23 nonzero" in repr(sparse)


def test_progress_is_told_up_to_the_last_byte(client: Client) -> None:
    seen: list[TransferProgress] = []
    client.derive(PROMPT, "mlp_post_act", on_progress=seen.append)
    assert seen[0].bytes_done == 0
    assert seen[-1] == TransferProgress(bytes_done=160, bytes_total=160)


async def test_token_ids_are_a_prompt_too(async_client: AsyncClient) -> None:
    answer = await async_client.derive(np.array([5, 6, 7]), "logits")
    assert answer["logits"][None].shape[0] == 3


async def test_a_domain_request_is_taken_whole(async_client: AsyncClient) -> None:
    from dst_grpc.client import Prompt

    answer = await async_client.derive_request(
        DeriveRequest(prompt=Prompt(text=PROMPT), request_id="mine", derived_scalars=())
    )
    assert answer.request_id == "mine"
    assert len(answer) == 0
    assert repr(answer) == f"<Answer 'mine', {HANDLE}, 4 tokens>"


def test_reprs_are_short_and_say_what_is_inside(client: Client, service: FakeService) -> None:
    answer = client.derive(PROMPT, [NEURONS, "logits"], target=" Mary")
    assert repr(answer) == f"<Answer {HANDLE}, 4 tokens, loss=1.5, final norm frozen, {NEURONS}[2], logits[1]>"
    assert repr(answer[NEURONS]) == f"<{NEURONS}: 2 layers of [4, 5]>"
    assert repr(answer["logits"]) == "<logits: one per model of [4, 7]>"
    assert repr(answer[NEURONS][1]) == f"<{NEURONS} layer 1 [sequence_tokens: 4, mlp_acts: 5] float32>"
    assert repr(client) == f"Client({service.target!r})"


def test_a_truncated_answer_is_an_error(client: Client, service: FakeService) -> None:
    async def script(request: DeriveRequest) -> AsyncIterator[inference_pb2.DeriveFrame]:
        for frame in list(frames_of(request))[:-1]:
            yield frame

    service.scripts["short"] = script
    with pytest.raises(DataLoss) as raised:
        client.derive("short", "mlp_post_act")
    assert raised.value.reason is Reason.ANSWER_TRUNCATED


def test_a_damaged_answer_is_an_error(client: Client, service: FakeService) -> None:
    async def script(request: DeriveRequest) -> AsyncIterator[inference_pb2.DeriveFrame]:
        for frame in frames_of(request):
            if frame.WhichOneof("frame") == "chunk":
                frame.chunk.data = bytes(len(frame.chunk.data))
            yield frame

    service.scripts["damaged"] = script
    with pytest.raises(DataLoss) as raised:
        client.derive("damaged", "mlp_post_act")
    assert raised.value.reason is Reason.ANSWER_CORRUPT


def test_an_empty_prompt_is_refused_before_anything_is_sent(client: Client, service: FakeService) -> None:
    with pytest.raises(InvalidRequest, match="must not be empty"):
        client.derive("", "logits")
    assert service.calls == 0
