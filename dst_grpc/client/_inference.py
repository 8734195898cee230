"""Derive and Resolve, as calls and as streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import grpc.aio

from dst_grpc._gen.dst.v1 import derived_scalar_service_pb2 as inference_service
from dst_grpc._gen.dst.v1 import inference_pb2, resolution_pb2
from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.client._answer import Answer
from dst_grpc.client._calls import Calls
from dst_grpc.client._collectors import AnswerCollector, ResolutionCollector, TransferProgress
from dst_grpc.client._requests import PromptLike, RequestArguments, TypeLike, make_request
from dst_grpc.client._streams import DEFAULT_IN_FLIGHT, Collector, Exchange, ItemCancels
from dst_grpc.domain.requests import (
    CancelItem,
    DeriveRequest,
    DeriveStreamRequest,
    ResolveRequest,
    ResolveStreamRequest,
)
from dst_grpc.domain.resolution import LoadProgress, Resolution
from dst_grpc.errors import DataLoss, DstError, Reason
from dst_grpc.wire.codec import to_wire
from dst_grpc.wire.envelope import Received, received

if TYPE_CHECKING:
    # For the type checker only.
    from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceAsyncStub

_SERVICE = inference_service.DESCRIPTOR.services_by_name["DerivedScalarService"].full_name

AnswerT = TypeVar("AnswerT")
ResponseT = TypeVar("ResponseT")


class InferenceCalls(Calls):
    """DerivedScalarService."""

    @cached_property
    def _inference_stub(self) -> DerivedScalarServiceAsyncStub:
        return DerivedScalarServiceStub(self._channel)

    # The two RPCs that carry tensors parse their responses by hand, without copying chunks.

    @cached_property
    def _derive(self) -> grpc.aio.UnaryStreamMultiCallable[inference_pb2.DeriveRequest, Received]:
        return self._channel.unary_stream(
            f"/{_SERVICE}/Derive",
            request_serializer=inference_pb2.DeriveRequest.SerializeToString,
            response_deserializer=received,
        )

    @cached_property
    def _derive_stream(
        self,
    ) -> grpc.aio.StreamStreamMultiCallable[inference_pb2.DeriveStreamRequest, Received]:
        return self._channel.stream_stream(
            f"/{_SERVICE}/DeriveStream",
            request_serializer=inference_pb2.DeriveStreamRequest.SerializeToString,
            response_deserializer=received,
        )

    async def derive(
        self,
        prompt: PromptLike,
        types: TypeLike | Iterable[TypeLike] = (),
        *,
        on_progress: Callable[[TransferProgress], None] | None = None,
        timeout: float | None = None,
        **arguments: Unpack[RequestArguments],
    ) -> Answer:
        """Run one prompt and derive scalars of it.

        Args:
            prompt: A text, token ids, or a Prompt.
            types: What to derive: names, members of DerivedScalarType, or a DerivedScalarSpec with its own config.
            on_progress: Called with the bytes of the answer that have arrived; by a sync client, on another thread.
            timeout: Seconds after which the server stops working and the call fails; None = never.
            **arguments: *target* and *distractor* (a token or several, as texts or ids) or *loss* or *trace*: where the
                backward pass starts. *ablations*, *interventions*, *autoencoders*: changes of the run. *config*: how to
                derive. *model*, *element_type*, *encoding*, *request_id* and more: see RequestArguments.

        Returns:
            The answer: `answer["mlp_act_times_grad"][2]` is layer 2 of that derived scalar.

        Raises:
            InvalidRequest: If a field is bad; it lists every one.
            NotFound: If a name is unknown; it lists the nearest.
            PreconditionFailed: If a type needs an origin, an autoencoder or a field that is not given.
            DstError: Any other failure of a call; see dst_grpc.errors.
        """
        request = make_request(prompt, types, **arguments)
        return await self.derive_request(request, on_progress=on_progress, timeout=timeout)

    async def derive_request(
        self,
        request: DeriveRequest,
        *,
        on_progress: Callable[[TransferProgress], None] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Run one request; see `derive`.

        Raises:
            DstError: If it fails, or if the answer is truncated or damaged.
        """
        responses = self._responses(self._derive, to_wire(request), timeout)
        return await answer_of(responses, AnswerCollector(request.request_id, on_progress))

    async def derive_stream(
        self,
        requests: Iterable[DeriveRequest] | AsyncIterable[DeriveRequest],
        *,
        timeout: float | None = None,
        item_timeout: float | None = None,
        max_in_flight: int = DEFAULT_IN_FLIGHT,
        cancels: ItemCancels | None = None,
    ) -> AsyncGenerator[tuple[str, Answer | DstError]]:
        """Run many requests on one stream, batched together by the server; on one for each model, if they name several.

        The next request is taken only when fewer than *max_in_flight* are unanswered. A request counts as unanswered
        until the next answer is asked for, so neither side ever holds more than that many.

        Args:
            requests: The requests. One without an id gets its position as id: "0", "1", ...
            timeout: Seconds for the whole stream; None = no limit.
            item_timeout: Seconds for each request from its arrival; its answer is then DeadlineExceeded.
            max_in_flight: Most requests sent and not yet answered.
            cancels: Cancels single requests while the others go on.

        Yields:
            A request's id with its answer, or with its error, in order of arrival.

        Raises:
            DstError: If the stream itself fails.
        """
        exchange = Exchange(
            method=self._derive_stream,
            id_of_item=_id_of_derive,
            model_of_item=_model_of_derive,
            to_request=partial(_derive_item, timeout=item_timeout),
            item_of_response=_item_of,
            collector=AnswerCollector,
            to_cancel=_cancel_item,
        )
        answers = exchange.run(
            requests, self._connection, timeout=timeout, max_in_flight=max_in_flight, cancels=cancels
        )
        async with aclosing(answers):
            async for pair in answers:
                yield pair

    async def resolve(
        self,
        prompt: PromptLike | None = None,
        types: TypeLike | Iterable[TypeLike] = (),
        *,
        load: bool = False,
        on_progress: Callable[[LoadProgress], None] | None = None,
        timeout: float | None = None,
        **arguments: Unpack[RequestArguments],
    ) -> Resolution:
        """Check, complete and cost a request without running it.

        Args:
            prompt: As in `derive`; None plans for a prompt that fills the context window.
            types: As in `derive`.
            load: Whether to load the model and autoencoders that it needs. If not, no weights are read.
            on_progress: Called with the progress of loads; by a sync client, on another thread.
            timeout: As in `derive`.
            **arguments: As in `derive`.

        Returns:
            The canonical configs, the axes and sizes of every result, the passes, and the estimated cost.

        Raises:
            DstError: What `derive` would raise for the same arguments before running them.
        """
        request = ResolveRequest(request=make_request(prompt, types, **arguments), load=load)
        return await self.resolve_request(request, on_progress=on_progress, timeout=timeout)

    async def resolve_request(
        self,
        request: ResolveRequest,
        *,
        on_progress: Callable[[LoadProgress], None] | None = None,
        timeout: float | None = None,
    ) -> Resolution:
        """Check, complete and cost one request; see `resolve`.

        Raises:
            DstError: If it fails, or if the answer is truncated.
        """
        responses = self._responses(self._inference_stub.Resolve, to_wire(request), timeout)
        return await answer_of(responses, ResolutionCollector(on_progress))

    async def resolve_stream(
        self,
        requests: Iterable[ResolveRequest] | AsyncIterable[ResolveRequest],
        *,
        timeout: float | None = None,
        max_in_flight: int = DEFAULT_IN_FLIGHT,
    ) -> AsyncGenerator[tuple[str, Resolution | DstError]]:
        """Resolve many requests on one stream; the arguments, the ids and the errors are those of `derive_stream`.

        Yields:
            A request's id with its resolution, or with its error, in order of arrival.

        Raises:
            DstError: If the stream itself fails.
        """
        exchange = Exchange(
            method=self._inference_stub.ResolveStream,
            id_of_item=_id_of_resolve,
            model_of_item=_model_of_resolve,
            to_request=_resolve_item,
            item_of_response=_item_of,
            collector=lambda _: ResolutionCollector(),
        )
        answers = exchange.run(requests, self._connection, timeout=timeout, max_in_flight=max_in_flight)
        async with aclosing(answers):
            async for pair in answers:
                yield pair


async def answer_of(responses: AsyncGenerator[ResponseT], collector: Collector[ResponseT, AnswerT]) -> AnswerT:
    """The answer in the messages of one call; raises DataLoss if they end before it is complete."""
    answer: AnswerT | None = None
    async with aclosing(responses):
        # Read to the end: the status after the last message counts, and stopping earlier would cancel the call.
        async for response in responses:
            added = collector.add(response)
            answer = answer if added is None else added
    if answer is None:
        raise DataLoss("the answer is truncated: it ended before it was complete", reason=Reason.ANSWER_TRUNCATED)
    return answer


def _id_of_derive(request: DeriveRequest) -> str:
    return request.request_id


def _model_of_derive(request: DeriveRequest) -> str | None:
    return request.model


def _model_of_resolve(request: ResolveRequest) -> str | None:
    return request.request.model


def _id_of_resolve(request: ResolveRequest) -> str:
    return request.request.request_id


def _item_of(response: Received | resolution_pb2.ResolveStreamResponse) -> int:
    return response.item_index


def _derive_item(request: DeriveRequest, request_id: str, *, timeout: float | None) -> Any:
    item = request if request.request_id else replace(request, request_id=request_id)
    return to_wire(DeriveStreamRequest(message=item, timeout=timeout))


def _cancel_item(request_id: str) -> Any:
    return to_wire(DeriveStreamRequest(message=CancelItem(request_id=request_id)))


def _resolve_item(request: ResolveRequest, request_id: str) -> Any:
    message = to_wire(ResolveStreamRequest(message=request))
    message.request.request.request_id = request_id
    return message
