"""Interfaces that the services need. The real implementations are wired in `server`; tests use fakes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from dst_grpc.domain.attribute_answers import AttributePart
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.callers import Caller, Grants
from dst_grpc.domain.circuit import CircuitPart, CircuitRequest
from dst_grpc.domain.explain import ExplainRequest, TopKRequest
from dst_grpc.domain.explanations import ExplanationPart
from dst_grpc.domain.graph import GraphRequest
from dst_grpc.domain.graph_answers import GraphPart, KeptGraph
from dst_grpc.domain.graph_probe_answers import GraphProbePart
from dst_grpc.domain.graph_probes import ProbeGraphRequest
from dst_grpc.domain.graph_queries import QueryGraphRequest
from dst_grpc.domain.patch import PatchRequest
from dst_grpc.domain.patch_answers import PatchPart
from dst_grpc.domain.readings import ContextsReading, DeviceReading, MemoryReading
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
from dst_grpc.domain.results import AnswerHeader, DenseTensor, MadeAnswer, RunSummary, SparseTensor, TensorRows
from dst_grpc.domain.sender import HERE, Sender
from dst_grpc.domain.server_info import DeviceLoad
from dst_grpc.domain.work import OnLoad, OnWork
from dst_grpc.errors import Violations

InfoT = TypeVar("InfoT", ModelInfo, AutoencoderInfo)
RegistryT_contra = TypeVar("RegistryT_contra", contravariant=True)
AnswerPart = AnswerHeader | DenseTensor | TensorRows | SparseTensor | RunSummary
Stage = Validated | LoadProgress | Resolution
Make = Callable[[Sequence[AnswerPart]], MadeAnswer | None]
"""Makes a whole answer ready to be sent; None to be given it in parts. Called on any thread."""


class PipelinePort(Protocol):
    """Runs requests. Pull-based: closing a generator stops its work.

    *known* are the violations found by reading the request's message, if any; they are reported with those of planning.
    *root* is the path of the request in the message, and *sender* who sent it.
    """

    def waiting(self, caller: Caller, request_bytes: int) -> AbstractContextManager[object]:
        """Count a request that waits for something else than a device, such as to be read, for the time of the block;
        raises Exhausted if too many wait."""

    def resolve(
        self,
        request: ResolveRequest,
        known: Violations | None = None,
        *,
        root: str = "",
        sender: Sender = HERE,
    ) -> AsyncGenerator[Stage, None]:
        """Check, complete and cost a request."""

    async def resolution(
        self,
        request: ResolveRequest,
        known: Violations | None = None,
        *,
        root: str = "",
        sender: Sender = HERE,
    ) -> Resolution:
        """The last stage of `resolve`, without the others and without loading."""

    def derive(
        self,
        request: DeriveRequest,
        known: Violations | None = None,
        *,
        root: str = "",
        sender: Sender = HERE,
        make: Make | None = None,
    ) -> AsyncGenerator[Sequence[AnswerPart | MadeAnswer], None]:
        """Run a request; yields what is ready to be sent, step by step, or all of it as *make* makes it."""

    def kept_answer(self, request: DeriveRequest, *, sender: Sender) -> MadeAnswer | None:
        """What was made of the answer to an equal request, if it is kept."""

    def top_k(
        self,
        request: TopKRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        """Select nodes of a request's runs."""

    def explain(
        self,
        request: ExplainRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        """Explain a request's runs."""

    def attribute(
        self,
        request: AttributeRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[AttributePart | RunSummary], None]:
        """Score nodes, edges or tokens."""

    def patch(
        self,
        request: PatchRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[PatchPart | RunSummary], None]:
        """Change runs cell by cell."""

    def circuit(
        self,
        request: CircuitRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[CircuitPart | RunSummary], None]:
        """Evaluate circuits, and find them."""

    def graph(
        self,
        request: GraphRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[GraphPart | RunSummary], None]:
        """Compute the attribution graph of a prompt."""

    def query_graph(
        self,
        request: QueryGraphRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[GraphPart | RunSummary], None]:
        """Answer a question about a kept graph."""

    def probe_graph(
        self,
        request: ProbeGraphRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[GraphProbePart | RunSummary], None]:
        """Ask the model about a kept graph."""

    def graph_handles(self, caller: Caller) -> Sequence[str]:
        """The handles of the kept graphs that *caller* finds, in order."""

    def kept_graph(self, handle: str) -> KeptGraph:
        """What is told of a graph, whose handle `graph_handles` has just given."""

    def drop_graph(self, handle: str, *, sender: Sender = HERE) -> None:
        """Drop a kept graph; raises NotFound."""

    def memory(self) -> MemoryReading:
        """What kept graphs take. May be called on any thread."""

    def readings(self) -> Sequence[DeviceReading]:
        """What each device does that has been used, or that a model is for. May be called on any thread."""

    def observe(self, observer: OnWork) -> None:
        """From now on, tell *observer* what devices have done."""

    def use_grants(self, grants: Grants) -> None:
        """From now on, callers are granted what *grants* says."""

    def loads(self) -> Sequence[DeviceLoad]:
        """What waits for each device that has been used. May be called on any thread."""

    async def close(self) -> None:
        """Stop the workers."""


class TokenizerPort(Protocol):
    """Converts text to tokens and back."""

    def encode(self, text: str) -> list[int]:
        """Token ids of *text*."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of *ids*; raises InvalidRequest for ids outside the vocabulary."""

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token decoded alone."""


class RegistryPort(Protocol):
    """The models and sets that may be loaded. A snapshot: a reload makes another one."""

    preload: tuple[str, ...]
    """Contexts to load before the server is ready."""

    def models(self) -> list[ModelInfo]:
        """Every model, by name."""

    def autoencoders(self, model: str | None = None) -> list[AutoencoderInfo]:
        """Every autoencoder set, by name; those of *model* if given."""

    def model(self, ref: str) -> ModelInfo:
        """One model; raises NotFound."""

    def model_name(self, ref: str) -> str:
        """The name of a model, without opening a file; raises NotFound."""

    def tokenizer(self, ref: str) -> TokenizerPort:
        """A model's tokenizer; raises NotFound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRegistry:
    """A registry that was read and checked, but is not in use yet."""

    registry: RegistryPort
    """The registry."""
    adopt: Callable[[], RegistryChange]
    """Puts it in use; contexts that it no longer has are unloaded once unused. Called on the event loop."""


class CachePort(Protocol):
    """The loaded contexts. Used on the event loop only."""

    @property
    def registry(self) -> RegistryPort:
        """The current registry."""

    def load(self, ref: str, *, pin: bool = False) -> AsyncGenerator[ContextStatus, None]:
        """Load a context, and pin it; yields its status until it is available."""

    def unpin(self, ref: str) -> ContextStatus:
        """Unpin a context, so that it can be evicted or expire."""

    async def unload(self, ref: str) -> ContextStatus:
        """Unload a context."""

    def statuses(self) -> list[ContextStatus]:
        """Every context, by handle."""

    def status(self, ref: str) -> ContextStatus:
        """One context of the registry, loaded or not; raises NotFound."""

    def describe(self, info: InfoT) -> InfoT:
        """The registry's description of a context, completed by its state and by what loading it has shown."""

    def readings(self) -> ContextsReading:
        """How many contexts are in each state, and what they take. May be called on any thread."""

    def observe(self, observer: OnLoad) -> None:
        """From now on, tell *observer* what was loaded."""

    def watch(self) -> AsyncGenerator[ContextStatus, None]:
        """The status of every context now, then each change."""

    async def close(self) -> None:
        """Free everything."""


class AdoptingCache(CachePort, Protocol[RegistryT_contra]):
    """A cache that can adopt registries of its own type."""

    def adopt(self, registry: RegistryT_contra) -> RegistryChange:
        """Use another registry from now on; contexts that it no longer has are unloaded once unused."""
