"""What the services need of the parts behind them. The real ones are wired in `server`; tests bring fakes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol, TypeVar

from dst_grpc.domain.explain import ExplainRequest, TopKRequest
from dst_grpc.domain.explanations import ExplanationPart
from dst_grpc.domain.requests import DeriveRequest, ResolveRequest
from dst_grpc.domain.resolution import (
    AutoencoderInfo,
    ContextStatus,
    LoadProgress,
    ModelInfo,
    RegistryChange,
    Resolution,
    Validated,
)
from dst_grpc.domain.results import AnswerHeader, DenseTensor, RunSummary, SparseTensor

InfoT = TypeVar("InfoT", ModelInfo, AutoencoderInfo)
AnswerPart = AnswerHeader | DenseTensor | SparseTensor | RunSummary
Stage = Validated | LoadProgress | Resolution


class PipelinePort(Protocol):
    """Runs requests. Pull-based: closing a generator stops its work."""

    def resolve(self, request: ResolveRequest) -> AsyncGenerator[Stage, None]:
        """Check, complete and cost a request."""

    def derive(self, request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        """Run a request; yields what is ready together."""

    def top_k(self, request: TopKRequest) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        """Choose nodes of a request's runs."""

    def explain(self, request: ExplainRequest) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        """Explain a request's runs."""

    async def close(self) -> None:
        """Stop the workers."""


class TokenizerPort(Protocol):
    """Turns text into tokens and back."""

    def encode(self, text: str) -> list[int]:
        """Token ids of *text*."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of *ids*; raises InvalidRequest for ids outside the vocabulary."""

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token decoded alone."""


class RegistryPort(Protocol):
    """Knows what may be loaded. A snapshot: a reload makes another one."""

    preload: tuple[str, ...]
    """What is to be loaded before the server calls itself ready."""

    def models(self) -> list[ModelInfo]:
        """Every model, by name."""

    def autoencoders(self, model: str | None = None) -> list[AutoencoderInfo]:
        """Every autoencoder set, by name; those of *model* if given."""

    def model(self, ref: str) -> ModelInfo:
        """One model; raises NotFound."""

    def tokenizer(self, ref: str) -> TokenizerPort:
        """A model's tokenizer; raises NotFound."""


class CachePort(Protocol):
    """Holds what is loaded. Touched on the event loop only."""

    @property
    def registry(self) -> RegistryPort:
        """What may be loaded now."""

    # Whoever builds the registry knows which class it is; a cache takes those of its own kind.
    def adopt(self, registry: Any) -> RegistryChange:
        """Serve another registry from now on; what that has no more goes once nobody uses it."""

    def load(self, ref: str, *, pin: bool = False) -> AsyncGenerator[ContextStatus, None]:
        """Load a context, and pin it; yields its status until it is available."""

    def unpin(self, ref: str) -> ContextStatus:
        """Let a context go when its time comes."""

    async def unload(self, ref: str) -> ContextStatus:
        """Unload a context."""

    def statuses(self) -> list[ContextStatus]:
        """Every context, by handle."""

    def status(self, ref: str) -> ContextStatus:
        """One context of the registry, loaded or not; raises NotFound."""

    def describe(self, info: InfoT) -> InfoT:
        """What the registry says of a context, with its state and what only loading it could tell."""

    def watch(self) -> AsyncGenerator[ContextStatus, None]:
        """Every context now, then each change."""

    async def close(self) -> None:
        """Free everything."""
