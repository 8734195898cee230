"""Circuit of CausalService."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

from dst_grpc._gen.dst.v1.causal_service_pb2_grpc import CausalServiceStub
from dst_grpc.client._calls import Calls
from dst_grpc.client._circuit_requests import CircuitArguments, make_circuit_request
from dst_grpc.client._circuits import CircuitAnswer, CircuitCollector
from dst_grpc.client._inference import answer_of
from dst_grpc.client._requests import PromptLike
from dst_grpc.domain.circuit import CircuitProgress, CircuitRequest
from dst_grpc.wire.codec import to_wire

if TYPE_CHECKING:
    # For the type checker only.
    from dst_grpc._gen.dst.v1.causal_service_pb2_grpc import CausalServiceAsyncStub


class CircuitCalls(Calls):
    """Circuit."""

    @cached_property
    def _circuit_stub(self) -> CausalServiceAsyncStub:
        return CausalServiceStub(self._channel)

    async def circuit(
        self,
        clean: PromptLike | None = None,
        corrupt: PromptLike | None = None,
        *,
        on_progress: Callable[[CircuitProgress], None] | None = None,
        timeout: float | None = None,
        **arguments: Unpack[CircuitArguments],
    ) -> CircuitAnswer:
        """Find which edges of the model's graph carry a behaviour, or evaluate circuits.

        Args:
            clean: The prompt with the behaviour: a text, token ids, or a Prompt. None if *pairs* has all.
            corrupt: The prompt without it, of as many tokens.
            on_progress: Called with how far the work is; by a sync client, on another thread.
            timeout: Seconds after which the server stops working and the call fails; None = never.
            **arguments: *target* and *distractor* (a token or several, as texts or ids) or *loss*: the metric. *pairs*:
                further pairs. *alternative*, *reference*: what cut edges carry. *circuits*: circuits to evaluate.
                *scores*, *selection*, *fractions*, ...: the curve of circuits of growing size, by EAP-IG unless given.
                *acdc_threshold*: search with ACDC. *latents*: circuits of nodes, such as latents of *autoencoders*. See
                CircuitArguments.

        Returns:
            The answer: `answer.edges`, with latents `answer.nodes`, are those of the smallest circuit that is faithful,
            `answer.fractions` and `answer.faithfulness` the curve, `answer.scores` a matrix by `answer.sources` and
            `answer.readers`.

        Raises:
            InvalidRequest: If a field is bad; it lists every one.
            NotFound: If a name is unknown; it lists the nearest.
            DstError: Any other failure of a call; see dst_grpc.errors.
        """
        request = make_circuit_request(clean, corrupt, **arguments)
        return await self.circuit_request(request, on_progress=on_progress, timeout=timeout)

    async def circuit_request(
        self,
        request: CircuitRequest,
        *,
        on_progress: Callable[[CircuitProgress], None] | None = None,
        timeout: float | None = None,
    ) -> CircuitAnswer:
        """Answer one request of Circuit; see `circuit`.

        Raises:
            DstError: If it fails, or if the answer is truncated or damaged.
        """
        responses = self._responses(self._circuit_stub.Circuit, to_wire(request), timeout)
        return await answer_of(responses, CircuitCollector(request.request_id, on_progress))
