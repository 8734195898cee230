"""The catalogue, health, the cache, resolving: everything that is not deriving."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from dst_grpc.client import (
    AsyncClient,
    Client,
    ContextState,
    ContextStatus,
    DerivedScalarType,
    LoadProgress,
    NodeType,
    RegistryChange,
    ServingStatus,
    Tokens,
)
from dst_grpc.errors import DataLoss, NotFound
from tests.fake_answers import AUTOENCODER, HANDLE, context_status, model_info
from tests.fake_service import FakeService


def test_models_of_every_page_are_listed(client: Client, service: FakeService) -> None:
    assert [model.name for model in client.models()] == ["other", "tiny", "zebra"]
    assert service.calls == 3


def test_one_model(client: Client) -> None:
    assert client.model() == model_info()
    with pytest.raises(NotFound) as raised:
        client.model("tyni")
    assert raised.value.nearest == ("tiny",)


def test_autoencoders(client: Client) -> None:
    assert client.autoencoders("tiny") == [AUTOENCODER]


def test_types_newer_than_the_client_are_left_out(client: Client) -> None:
    types = client.derived_scalar_types()
    assert [info.dst for info in types] == list(DerivedScalarType)[:-1]
    latent = next(info for info in types if info.dst is DerivedScalarType.ONLINE_MLP_AUTOENCODER_LATENT)
    assert latent.needs_autoencoder is NodeType.MLP_AUTOENCODER_LATENT
    assert types[0].needs_autoencoder is None


def test_tokens_there_and_back(client: Client) -> None:
    assert client.tokenize("a b") == Tokens((0, 1), ("a", "b"))
    assert client.detokenize([3, 4]) == "w3 w4"
    assert client.token_strings([3, 4]) == (" w3", " w4")


def test_health(client: Client) -> None:
    assert client.health() is ServingStatus.SERVING
    assert client.health("dst.v1.CatalogService") is ServingStatus.NOT_SERVING
    with pytest.raises(NotFound):
        client.health("other")


def test_a_load_tells_how_far_it_is(client: Client) -> None:
    seen: list[ContextStatus] = []
    last = client.load_context("tiny", on_progress=seen.append)
    assert [status.bytes_loaded for status in seen] == [0, 500, 1000]
    assert last.state is ContextState.AVAILABLE


def test_a_context_is_pinned_and_unpinned(client: Client) -> None:
    assert client.load_context("tiny", pin=True).pinned
    assert not client.load_context("tiny").pinned
    assert not client.unpin_context("tiny").pinned


def test_unloading_and_listing(client: Client) -> None:
    assert client.unload_context("tiny").state is ContextState.NOT_LOADED
    assert client.contexts() == [context_status(ContextState.AVAILABLE)]


def test_a_reload_tells_what_it_changed(client: Client) -> None:
    assert client.reload_registry() == RegistryChange(added=("new",), removed=("old", "old/mlp"), changed=("tiny",))


async def test_watching_until_one_closes_the_iterator(async_client: AsyncClient, service: FakeService) -> None:
    async with aclosing(async_client.watch_contexts()) as statuses:
        assert (await anext(statuses)).handle == HANDLE
    assert service.cancelled.wait(10)


def test_watching_without_asyncio(client: Client, service: FakeService) -> None:
    statuses = client.watch_contexts()
    assert next(statuses).state is ContextState.AVAILABLE
    statuses.close()
    assert service.cancelled.wait(10)


def test_resolving_says_what_it_would_take(client: Client) -> None:
    seen: list[LoadProgress] = []
    resolution = client.resolve("a b c", ["mlp_post_act", "logits"], load=True, on_progress=seen.append)
    assert [progress.bytes_done for progress in seen] == [0, 500, 1000]
    assert resolution.scalars[0].layer_indices == (0, 1)
    assert resolution.cost.sequence_tokens == 3
    assert client.resolve(types="logits").cost.sequence_tokens == 32


def test_a_resolution_that_does_not_come_is_an_error(client: Client, service: FakeService) -> None:
    service.scripts["truncated"] = lambda _: (_ for _ in ())  # type: ignore[assignment,return-value]  # only its key
    with pytest.raises(DataLoss, match="truncated"):
        client.resolve("a", "logits")
