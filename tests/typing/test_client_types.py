"""What the type checker says of the client's API. mypy reads this file; nothing here runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, assert_type

import numpy as np

from dst_grpc.client import (
    Answer,
    AsyncClient,
    Client,
    ContextStatus,
    DerivedScalar,
    DerivedScalarTensor,
    DerivedScalarType,
    DerivedScalarTypeInfo,
    DeriveRequest,
    Entry,
    LossFnName,
    ModelInfo,
    RegistryChange,
    Resolution,
    ResolveRequest,
    ServingStatus,
    Tokens,
    make_request,
)
from dst_grpc.errors import DstError

if TYPE_CHECKING:

    def sync(client: Client, requests: list[DeriveRequest], others: list[ResolveRequest]) -> None:
        answer = client.derive("a", ["logits", DerivedScalarType.MLP_POST_ACT], target=" x", distractor=[1, " y"])
        assert_type(answer, Answer)
        assert_type(answer["logits"], DerivedScalar)
        assert_type(answer["logits"][2], DerivedScalarTensor)
        assert_type(answer.tensor("logits", 2).shape, tuple[int, ...])
        assert_type(answer["logits"].top(3), list[Entry])
        assert_type(answer.loss, float | None)
        assert_type(client.derive_request(requests[0], timeout=1.0), Answer)
        assert_type(client.derive_stream(requests), Generator[tuple[str, Answer | DstError]])
        assert_type(client.resolve("a", "logits", load=True), Resolution)
        assert_type(client.resolve_stream(iter(others)), Generator[tuple[str, Resolution | DstError]])
        assert_type(client.models(), list[ModelInfo])
        assert_type(client.derived_scalar_types(), list[DerivedScalarTypeInfo])
        assert_type(client.tokenize("a"), Tokens)
        assert_type(client.detokenize(np.array([1])), str)
        assert_type(client.load_context("x", on_progress=print), ContextStatus)
        assert_type(client.reload_registry(), RegistryChange)
        assert_type(client.watch_contexts(), Generator[ContextStatus])
        assert_type(client.health(), ServingStatus)
        with client as same:
            assert_type(same, Client)

    async def asynchronous(client: AsyncClient, requests: list[DeriveRequest]) -> None:
        async with client as same:
            assert_type(same, AsyncClient)
        assert_type(await client.derive([1, 2], "logits", loss=LossFnName.PROBS, target=3), Answer)
        assert_type(client.derive_stream(requests), AsyncGenerator[tuple[str, Answer | DstError]])
        async for request_id, answer in client.derive_stream(requests):
            assert_type(request_id, str)
            assert_type(answer, Answer | DstError)
        assert_type(await client.contexts(), list[ContextStatus])

    def mistakes(client: Client) -> None:
        # mypy reports an ignore that nothing needs, so each of these lines proves that the mistake is seen.
        client.derive("a", "logits", tarket=" x")  # type: ignore[call-arg]
        client.derive("a", "logits", target=1.5)  # type: ignore[arg-type]
        client.derive()  # type: ignore[call-arg]
        client.tokenize(1)  # type: ignore[arg-type]
        make_request("a", 3)  # type: ignore[arg-type]
