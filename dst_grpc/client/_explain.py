"""Explain and TopK, whose answers are sent in parts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceStub
from dst_grpc.client._calls import Calls
from dst_grpc.client._explain_requests import (
    ExplainArguments,
    GroupsLike,
    TopKArguments,
    make_explain_request,
    make_top_k_request,
)
from dst_grpc.client._explanations import ExplanationCollector
from dst_grpc.client._inference import answer_of
from dst_grpc.client._requests import PromptLike
from dst_grpc.domain.explain import ExplainRequest, TopKRequest
from dst_grpc.domain.explanations import Explanation, ExplanationPart
from dst_grpc.errors import DataLoss, Reason
from dst_grpc.wire.codec import to_wire

if TYPE_CHECKING:
    # For the type checker only.
    from dst_grpc._gen.dst.v1.derived_scalar_service_pb2_grpc import DerivedScalarServiceAsyncStub


class ExplainCalls(Calls):
    """Explain and TopK of DerivedScalarService."""

    @cached_property
    def _explain_stub(self) -> DerivedScalarServiceAsyncStub:
        return DerivedScalarServiceStub(self._channel)

    async def explain(
        self, prompt: PromptLike, *, timeout: float | None = None, **arguments: Unpack[ExplainArguments]
    ) -> Explanation:
        """Explain why the model prefers one token over another, or why a node is active: which nodes caused it.

        Args:
            prompt: A text, token ids, or a Prompt.
            timeout: Seconds after which the server stops working and the call fails; None = never.
            **arguments: *target* and *distractor* (a token or several, as texts or ids) or *loss* or *trace*: what to
                explain. *ablate*: nodes to ablate. *beside*: further runs, to compare. *mlp*, *attention*,
                *autoencoders*: neurons and heads, or latents. *groups*, *k*, *parts* and more: see ExplainArguments.

        Returns:
            The explanation: `explanation.runs[0].node_table.group("direction_write")`, for instance.

        Raises:
            InvalidRequest: If a field is bad; it lists every one.
            NotFound: If a name is unknown; it lists the nearest.
            PreconditionFailed: If an origin or an autoencoder is needed that is not given.
            DstError: Any other failure of a call; see dst_grpc.errors.
        """
        return await self.explain_request(make_explain_request(prompt, **arguments), timeout=timeout)

    async def explain_request(self, request: ExplainRequest, *, timeout: float | None = None) -> Explanation:
        """Explain one request; see `explain`.

        Raises:
            DstError: If it fails, or if the answer is truncated or damaged.
        """
        responses = self._responses(self._explain_stub.Explain, to_wire(request), timeout)
        return await answer_of(responses, ExplanationCollector(request.request_id, len(request.runs)))

    async def explain_parts(
        self, request: ExplainRequest, *, timeout: float | None = None
    ) -> AsyncGenerator[ExplanationPart]:
        """Explain one request, part by part; leaving early stops the server's work.

        Args:
            request: What to explain.
            timeout: Seconds after which the call fails; None = never.

        Yields:
            Each part as soon as it has arrived: for each run a header, its table, and parts that refer to it; finally
            the trailer.

        Raises:
            DstError: If it fails, or if the answer is truncated or damaged, after the parts before.
        """
        collector = ExplanationCollector(request.request_id, len(request.runs))
        whole: Explanation | None = None
        responses = self._responses(self._explain_stub.Explain, to_wire(request), timeout)
        async with aclosing(responses):
            async for response in responses:
                for frame in response.frames:
                    part = collector.read(frame)
                    if part is not None:
                        whole = collector.take(part) or whole
                        yield part
        if whole is None:
            raise DataLoss("the answer is truncated: it has no trailer", reason=Reason.ANSWER_TRUNCATED)

    async def top_k(
        self,
        prompt: PromptLike,
        groups: GroupsLike,
        *,
        timeout: float | None = None,
        **arguments: Unpack[TopKArguments],
    ) -> Explanation:
        """Run one prompt and select the largest and smallest entries of derived scalars, on the server.

        Args:
            prompt: A text, token ids, or a Prompt.
            groups: What to select nodes by: types, TopKGroups, or, by the names of groups, types with different node
                types.
            timeout: Seconds after which the server stops working and the call fails; None = never.
            **arguments: *k*, *token_index* and *with_sums*, and those of `derive`; see TopKArguments.

        Returns:
            An explanation with a node table: `answer.runs[0].node_table.group("heads").values`.

        Raises:
            DstError: As `explain`.
        """
        return await self.top_k_request(make_top_k_request(prompt, groups, **arguments), timeout=timeout)

    async def top_k_request(self, request: TopKRequest, *, timeout: float | None = None) -> Explanation:
        """Select entries of one or more runs; see `top_k`.

        Raises:
            DstError: If it fails, or if the answer is truncated or damaged.
        """
        responses = self._responses(self._explain_stub.TopK, to_wire(request), timeout)
        return await answer_of(responses, ExplanationCollector(request.request_id, len(request.runs)))
