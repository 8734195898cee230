"""Patch of CausalService."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

from dst_grpc._gen.dst.v1.causal_service_pb2_grpc import CausalServiceStub
from dst_grpc.client._calls import Calls
from dst_grpc.client._inference import answer_of
from dst_grpc.client._patch_requests import PatchArguments, make_patch_request
from dst_grpc.client._patched import PatchAnswer, PatchCollector, PatchProgress
from dst_grpc.client._requests import PromptLike
from dst_grpc.domain.patch import PatchRequest
from dst_grpc.wire.codec import to_wire

if TYPE_CHECKING:
    # For the type checker only.
    from dst_grpc._gen.dst.v1.causal_service_pb2_grpc import CausalServiceAsyncStub


class PatchCalls(Calls):
    """Patch."""

    @cached_property
    def _patch_stub(self) -> CausalServiceAsyncStub:
        return CausalServiceStub(self._channel)

    async def patch(
        self,
        clean: PromptLike | None = None,
        corrupt: PromptLike | None = None,
        *,
        on_progress: Callable[[PatchProgress], None] | None = None,
        timeout: float | None = None,
        **arguments: Unpack[PatchArguments],
    ) -> PatchAnswer:
        """Change one place in a run at a time, and return what the metric then is: patching, ablation, paths.

        Args:
            clean: The prompt with the behaviour: a text, token ids, or a Prompt. None if *pairs* has all.
            corrupt: The prompt without it, of as many tokens.
            on_progress: Called with how far the work is; by a sync client, on another thread.
            timeout: Seconds after which the server stops working and the call fails; None = never.
            **arguments: *target* and *distractor* (a token or several, as texts or ids) or *loss*: the metric. *pairs*:
                further pairs. *nodes*, *all_positions*, *layers*, *positions*, *heads*: grids of nodes. *senders*,
                *receivers*, *through_mlps*, *edges*: path patching. *cells*: interventions of your own. *orientation*,
                *alternative*: what takes the place of what. See PatchArguments.

        Returns:
            The answer: `answer["resid_pre"].recovery` by layer and position, `answer["head"].metric`, `answer.base`.

        Raises:
            InvalidRequest: If a field is bad; it lists every one.
            NotFound: If a name is unknown; it lists the nearest.
            DstError: Any other failure of a call; see dst_grpc.errors.
        """
        request = make_patch_request(clean, corrupt, **arguments)
        return await self.patch_request(request, on_progress=on_progress, timeout=timeout)

    async def patch_request(
        self,
        request: PatchRequest,
        *,
        on_progress: Callable[[PatchProgress], None] | None = None,
        timeout: float | None = None,
    ) -> PatchAnswer:
        """Answer one request of Patch; see `patch`.

        Raises:
            DstError: If it fails, or if the answer is truncated or damaged.
        """
        responses = self._responses(self._patch_stub.Patch, to_wire(request), timeout)
        return await answer_of(responses, PatchCollector(request.request_id, on_progress))
