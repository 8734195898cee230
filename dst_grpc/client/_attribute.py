"""Attribute of CausalService."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

from dst_grpc._gen.dst.v1.causal_service_pb2_grpc import CausalServiceStub
from dst_grpc.client._attribute_requests import AttributeArguments, make_attribute_request
from dst_grpc.client._attributions import AttributionAnswer, AttributionCollector
from dst_grpc.client._calls import Calls
from dst_grpc.client._inference import answer_of
from dst_grpc.client._requests import PromptLike
from dst_grpc.domain.attribute_answers import AttributeProgress
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.wire.codec import to_wire

if TYPE_CHECKING:
    # For the type checker only.
    from dst_grpc._gen.dst.v1.causal_service_pb2_grpc import CausalServiceAsyncStub


class AttributeCalls(Calls):
    """Attribute."""

    @cached_property
    def _attribute_stub(self) -> CausalServiceAsyncStub:
        return CausalServiceStub(self._channel)

    async def attribute(
        self,
        clean: PromptLike | None = None,
        corrupt: PromptLike | None = None,
        *,
        on_progress: Callable[[AttributeProgress], None] | None = None,
        timeout: float | None = None,
        **arguments: Unpack[AttributeArguments],
    ) -> AttributionAnswer:
        """Score nodes, edges or tokens by how much a metric depends on each, to first order.

        Args:
            clean: The prompt with the behaviour: a text, token ids, or a Prompt. None if *pairs* has all.
            corrupt: The prompt without it, of as many tokens.
            on_progress: Called with how far the work is; by a sync client, on another thread.
            timeout: Seconds after which the server stops working and the call fails; None = never.
            **arguments: *target* and *distractor* (a token or several, as texts or ids) or *loss*: the metric. *pairs*:
                further pairs. *nodes*, *edges*, *by_position*: what to score. *method*, *rule*, *steps*, ...: how.
                *verify*: how many of the best edges to patch exactly. See AttributeArguments.

        Returns:
            The answer: `answer.edges["a0.h1->m2"]`, `answer.edges.top(10)`, `answer["head"]`, `answer.tokens`.

        Raises:
            InvalidRequest: If a field is bad; it lists every one.
            NotFound: If a name is unknown; it lists the nearest.
            PreconditionFailed: If latents are scored and no autoencoder is named.
            DstError: Any other failure of a call; see dst_grpc.errors.
        """
        request = make_attribute_request(clean, corrupt, **arguments)
        return await self.attribute_request(request, on_progress=on_progress, timeout=timeout)

    async def attribute_request(
        self,
        request: AttributeRequest,
        *,
        on_progress: Callable[[AttributeProgress], None] | None = None,
        timeout: float | None = None,
    ) -> AttributionAnswer:
        """Answer one request of Attribute; see `attribute`.

        Raises:
            DstError: If it fails, or if the answer is truncated or damaged.
        """
        responses = self._responses(self._attribute_stub.Attribute, to_wire(request), timeout)
        return await answer_of(responses, AttributionCollector(request.request_id, on_progress))
