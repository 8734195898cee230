"""Parts to put behind a server whose own behaviour is under test: no model, no torch, every step in the test's hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from dst_grpc.domain.architecture import ModelDimensions
from dst_grpc.domain.attribute_answers import (
    AttributePart,
)
from dst_grpc.domain.attribute_requests import AttributeRequest
from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.domain.callers import Caller, Grants, Priority
from dst_grpc.domain.circuit import (
    CircuitPart,
    CircuitRequest,
)
from dst_grpc.domain.components import Dimension, NodeType, PassType, TensorElementType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.explain import ExplainRequest, TopKRequest
from dst_grpc.domain.explanations import ExplanationPart, NodeTable, PartKind
from dst_grpc.domain.graph import GraphRequest
from dst_grpc.domain.graph_answers import GraphPart, KeptGraph
from dst_grpc.domain.graph_probe_answers import GraphProbePart
from dst_grpc.domain.graph_probes import ProbeGraphRequest
from dst_grpc.domain.graph_queries import QueryGraphRequest
from dst_grpc.domain.patch import PatchRequest
from dst_grpc.domain.patch_answers import (
    PatchPart,
)
from dst_grpc.domain.readings import ContextsReading, DeviceReading, MemoryKind, MemoryReading
from dst_grpc.domain.requests import DeriveRequest, ResolveRequest
from dst_grpc.domain.resolution import (
    AutoencoderInfo,
    ContextKind,
    ContextState,
    ContextStatus,
    CostEstimate,
    ModelInfo,
    RegistryChange,
    Resolution,
    Validated,
)
from dst_grpc.domain.results import (
    AnswerHeader,
    Axis,
    DenseTensor,
    RunHeader,
    RunSummary,
    TensorInfo,
)
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.sender import HERE, Sender
from dst_grpc.domain.server_info import DeviceLoad
from dst_grpc.domain.work import OnLoad, OnWork
from dst_grpc.errors import InvalidRequest, NotFound, Reason, Violations, join_path
from dst_grpc.rpc.parts import Parts
from dst_grpc.rpc.ports import AnswerPart, InfoT, Make, Stage
from tests.fake_causal import attribute_parts, circuit_parts, patch_parts
from tests.fake_graphs import KEPT, graph_parts, probe_parts, query_parts
from tests.fake_runs import MODEL_HANDLE, SUMMARY

T = TypeVar("T")
Script = Callable[[DeriveRequest], AsyncGenerator[Sequence[AnswerPart], None]]
"""What to do instead of answering, step by step."""
PatchScript = Callable[[PatchRequest], AsyncGenerator[Sequence[PatchPart | RunSummary], None]]
AttributeScript = Callable[[AttributeRequest], AsyncGenerator[Sequence[AttributePart | RunSummary], None]]
CircuitScript = Callable[[CircuitRequest], AsyncGenerator[Sequence[CircuitPart | RunSummary], None]]
ProbeScript = Callable[[ProbeGraphRequest], AsyncGenerator[Sequence[GraphProbePart | RunSummary], None]]
GraphScript = Callable[[GraphRequest | QueryGraphRequest], AsyncGenerator[Sequence[GraphPart | RunSummary], None]]
DIMENSIONS = ModelDimensions(
    n_layers=2, d_model=8, n_heads=2, n_key_value_heads=2, d_head=4, d_mlp=16, vocab_size=100, context_window=32
)


def model_info(name: str = "tiny") -> ModelInfo:
    return ModelInfo(
        name=name,
        handle=f"{name}@0123456789ab:float32:cpu",
        family="gpt2",
        dimensions=DIMENSIONS,
        element_type=TensorElementType.FLOAT32,
        device="cpu",
        digest="0" * 64,
        parameter_bytes=1000,
        source="test",
        default_model=name == "tiny",
        state=ContextState.NOT_LOADED,
        autoencoders=(f"{name}/mlp",),
    )


def autoencoder_info(name: str, model: str) -> AutoencoderInfo:
    return AutoencoderInfo(
        name=name,
        handle=f"{name}@0123456789ab:float32:cpu",
        model=model,
        dst=DerivedScalarType.MLP_POST_ACT,
        node_type=NodeType.MLP_AUTOENCODER_LATENT,
        layer_indices=(0, 1),
        n_latents=32,
        activations=(AutoencoderActivation.RELU,),
        spliceable=True,
        parameter_bytes=500,
        digest="1" * 64,
        state=ContextState.NOT_LOADED,
    )


def context_status(
    handle: str = MODEL_HANDLE,
    state: ContextState = ContextState.AVAILABLE,
    kind: ContextKind = ContextKind.MODEL,
) -> ContextStatus:
    return ContextStatus(
        handle=handle,
        kind=kind,
        state=state,
        bytes_total=1000,
        bytes_loaded=1000 if state is ContextState.AVAILABLE else 0,
        device="cpu",
        pins=0,
        hits=0,
        idle_duration=0.0,
    )


def device_reading() -> DeviceReading:
    return DeviceReading(
        device="cpu",
        waiting={Priority.INTERACTIVE: 3, Priority.BATCH: 0},
        oldest_seconds=0.5,
        expected_wait=0.25,
        busy_seconds=2.0,
        store_hits=5,
        store_misses=7,
        memory=(),
    )


def tensor(tensor_id: int, values: Sequence[float] | np.ndarray) -> DenseTensor:
    array = np.asarray(values, np.float32)
    info = TensorInfo(
        tensor_id=tensor_id,
        dst=DerivedScalarType.MLP_POST_ACT,
        pass_type=PassType.FORWARD,
        layer_index=0,
        axes=(Axis(Dimension.MLP_ACTS, len(array)),),
    )
    return DenseTensor(info, array)


def answer(tensors: Iterable[DenseTensor] = ()) -> list[AnswerPart]:
    """The parts of a whole answer."""
    whole = list(tensors)
    header = AnswerHeader(
        model=MODEL_HANDLE, token_ids=(1, 2), token_strings=("a", "b"), tensors=tuple(t.info for t in whole)
    )
    return [header, *whole, SUMMARY]


def resolution() -> Resolution:
    return Resolution(
        config=DstConfig(),
        device="cpu",
        model=model_info(),
        autoencoders=(),
        scalars=(),
        cost=CostEstimate(
            sequence_tokens=2,
            forward_passes=1,
            backward_passes=0,
            floating_point_operations=10,
            peak_bytes=100,
            output_bytes=12,
        ),
    )


ExplainScript = Callable[[ExplainRequest | TopKRequest], AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]]


def explained(n_runs: int = 1) -> list[ExplanationPart | RunSummary]:
    """The parts of a whole answer about runs: of each a header and an empty table."""
    header = RunHeader(model=MODEL_HANDLE, token_ids=(1, 2), token_strings=("a", "b"), loss=1.5)
    table = NodeTable(nodes=(), groups=())
    parts: list[ExplanationPart | RunSummary] = []
    for i in range(n_runs):
        parts.append(ExplanationPart(kind=PartKind.HEADER, value=header, run_index=i))
        parts.append(ExplanationPart(kind=PartKind.NODE_TABLE, value=table, run_index=i))
    return [*parts, SUMMARY]


class FakePipeline:
    """Runs the script that a test gave for a request's id, or answers a small tensor, or an empty table."""

    def __init__(self) -> None:
        self.explain_scripts: dict[str, ExplainScript] = {}
        self.patch_scripts: dict[str, PatchScript] = {}
        self.attribute_scripts: dict[str, AttributeScript] = {}
        self.circuit_scripts: dict[str, CircuitScript] = {}
        self.graph_scripts: dict[str, GraphScript] = {}
        self.probe_scripts: dict[str, ProbeScript] = {}
        self.kept = [KEPT]
        self.described: list[str] = []
        """Handles of the graphs that were described."""
        """The graphs that are kept."""
        self.scripts: dict[str, Script] = {}
        self.resolve_scripts: dict[str, Callable[[ResolveRequest], AsyncGenerator[Stage, None]]] = {}
        self.running: set[str] = set()
        self.most_running = 0
        self.started: list[str] = []
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.is_closed = False
        self.sender = HERE
        """Who sent the last request of Derive."""
        self.grants = Grants()
        self.observers: list[OnWork] = []
        """Those who want to know what devices do."""

    def waiting(self, caller: Caller, request_bytes: int) -> AbstractContextManager[object]:
        del caller, request_bytes
        return nullcontext()

    async def derive(
        self,
        request: DeriveRequest,
        known: Violations | None = None,
        *,
        root: str = "",
        sender: Sender = HERE,
        make: Make | None = None,
    ) -> AsyncGenerator[Sequence[AnswerPart], None]:
        del make  # nothing is made of answers
        self.sender = sender
        problems = known or Violations()
        problems.check(request.prompt is not None, join_path(root, "prompt"), "is required")
        problems.raise_if_any()
        async with aclosing(
            self._scripted(request, None, self.scripts, lambda: answer([tensor(0, [1.0, 2.0, 3.0])]))
        ) as steps:
            async for step in steps:
                yield step

    def kept_answer(self, request: DeriveRequest, *, sender: Sender = HERE) -> None:
        """No answers are kept."""

    async def resolution(
        self,
        request: ResolveRequest,
        known: Violations | None = None,
        *,
        root: str = "",
        sender: Sender = HERE,
    ) -> Resolution:
        stages = [stage async for stage in self.resolve(request, known, root=root, sender=sender)]
        assert isinstance(stages[-1], Resolution)
        return stages[-1]

    async def resolve(
        self,
        request: ResolveRequest,
        known: Violations | None = None,
        *,
        root: str = "",
        sender: Sender = HERE,
    ) -> AsyncGenerator[Stage, None]:
        (known or Violations()).raise_if_any()
        request_id = request.request.request_id
        self._enter(request_id)
        try:
            script = self.resolve_scripts.get(request_id)
            if script is None:
                yield Validated()
                yield resolution()
                return
            async for stage in script(request):
                yield stage
        finally:
            self._leave(request_id)

    def explain(
        self,
        request: ExplainRequest | TopKRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        return self._scripted(request, known, self.explain_scripts, lambda: explained(len(request.runs)))

    def graph(
        self,
        request: GraphRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[GraphPart | RunSummary], None]:
        return self._scripted(request, known, self.graph_scripts, lambda: [*graph_parts(), SUMMARY])

    def query_graph(
        self,
        request: QueryGraphRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[GraphPart | RunSummary], None]:
        return self._scripted(request, known, self.graph_scripts, lambda: [*query_parts(), SUMMARY])

    def probe_graph(
        self,
        request: ProbeGraphRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[GraphProbePart | RunSummary], None]:
        return self._scripted(request, known, self.probe_scripts, lambda: [*probe_parts(), SUMMARY])

    def graph_handles(self, caller: Caller) -> Sequence[str]:
        return sorted(graph.handle for graph in self.kept)

    def kept_graph(self, handle: str) -> KeptGraph:
        self.described.append(handle)
        return next(graph for graph in self.kept if graph.handle == handle)

    def drop_graph(self, handle: str, *, sender: Sender = HERE) -> None:
        left = [graph for graph in self.kept if graph.handle != handle]
        if len(left) == len(self.kept):
            raise NotFound.unknown("graph", handle, [], reason=Reason.GRAPH_NOT_FOUND)
        self.kept = left

    def memory(self) -> MemoryReading:
        return MemoryReading(kind=MemoryKind.KEPT_GRAPHS, used_bytes=sum(graph.byte_count for graph in self.kept))

    def readings(self) -> Sequence[DeviceReading]:
        return [device_reading()]

    def observe(self, observer: OnWork) -> None:
        self.observers.append(observer)

    def patch(
        self,
        request: PatchRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[PatchPart | RunSummary], None]:
        return self._scripted(request, known, self.patch_scripts, lambda: patch_parts(len(request.pairs)))

    def attribute(
        self,
        request: AttributeRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[AttributePart | RunSummary], None]:
        return self._scripted(request, known, self.attribute_scripts, lambda: attribute_parts(len(request.pairs)))

    def circuit(
        self,
        request: CircuitRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[CircuitPart | RunSummary], None]:
        return self._scripted(request, known, self.circuit_scripts, lambda: circuit_parts(len(request.pairs)))

    def top_k(
        self,
        request: TopKRequest,
        known: Violations | None = None,
        *,
        sender: Sender = HERE,
    ) -> AsyncGenerator[Sequence[ExplanationPart | RunSummary], None]:
        return self.explain(request, known, sender=sender)

    def use_grants(self, grants: Grants) -> None:
        self.grants = grants

    def loads(self) -> Sequence[DeviceLoad]:
        return [DeviceLoad(device="cpu", expected_wait=0.25, waiting_requests=3)]

    async def close(self) -> None:
        self.is_closed = True

    async def _scripted(
        self,
        request: Any,
        known: Violations | None,
        scripts: Mapping[str, Callable[[Any], AsyncGenerator[Sequence[T], None]]],
        answer_of: Callable[[], Sequence[T]],
    ) -> AsyncGenerator[Sequence[T], None]:
        """The steps of the request's script, or the whole answer in one step if it has none."""
        (known or Violations()).raise_if_any()
        self._enter(request.request_id)
        try:
            script = scripts.get(request.request_id)
            if script is None:
                yield answer_of()
                return
            async with aclosing(script(request)) as steps:
                async for step in steps:
                    yield step
        finally:
            self._leave(request.request_id)

    def _enter(self, request_id: str) -> None:
        self.started.append(request_id)
        self.running.add(request_id)
        self.most_running = max(self.most_running, len(self.running))

    def _leave(self, request_id: str) -> None:
        self.running.discard(request_id)
        self.ended.put_nowait(request_id)


def failing(error: BaseException) -> Script:
    """A script that fails before its header."""

    async def script(_request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        nothing: list[list[AnswerPart]] = []
        for step in nothing:
            yield step
        raise error

    return script


def failing_after_header(error: BaseException) -> Script:
    async def script(_request: DeriveRequest) -> AsyncGenerator[Sequence[AnswerPart], None]:
        yield answer([tensor(0, [1.0])])[:1]
        raise error

    return script


class FakeTokenizer:
    """One token per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        for i, token in enumerate(ids):
            if token >= 1000:
                raise InvalidRequest.of(f"token_ids[{i}]", "must be below 1000")
        return "".join(map(chr, ids))

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        return [chr(token) for token in ids]


class FakeRegistry:
    """Models `tiny` and `model-000` and so on, each with one set of autoencoders."""

    preload: tuple[str, ...] = ()

    def __init__(self, n_models: int = 1) -> None:
        names = ["tiny", *(f"model-{i:03d}" for i in range(n_models - 1))]
        self._models = {name: model_info(name) for name in sorted(names)}
        self.sets = {f"{name}/mlp": autoencoder_info(f"{name}/mlp", name) for name in self._models}
        """What a test may change."""

    def models(self) -> list[ModelInfo]:
        return list(self._models.values())

    def model(self, ref: str) -> ModelInfo:
        name = (ref or "tiny").partition("@")[0]
        if name not in self._models:
            raise NotFound.unknown("model", name, self._models, reason=Reason.MODEL_NOT_FOUND)
        return self._models[name]

    def autoencoders(self, model: str | None = None) -> list[AutoencoderInfo]:
        models = self.models() if model is None else [self.model(model)]
        return [self.sets[f"{info.name}/mlp"] for info in models]

    def model_name(self, ref: str) -> str:
        return self.model(ref).name

    def tokenizer(self, ref: str) -> FakeTokenizer:
        self.model(ref)
        return FakeTokenizer()


class FakeCache:
    """Loads at once, and tells its watchers."""

    def __init__(self, registry: FakeRegistry | None = None) -> None:
        self.registry = registry or FakeRegistry()
        self.contexts: dict[str, ContextStatus] = {}
        self.watchers: set[asyncio.Queue[ContextStatus]] = set()
        self.load_error: Exception | None = None
        self.asked = asyncio.Event()
        """Set by the first load."""
        self.gate: asyncio.Event | None = None
        """What every load waits for."""
        self.is_closed = False

    def adopt(self, registry: FakeRegistry) -> RegistryChange:
        before, now = ({model.name for model in one.models()} for one in (self.registry, registry))
        self.registry = registry
        return RegistryChange(added=tuple(sorted(now - before)), removed=tuple(sorted(before - now)))

    def tell(self, status: ContextStatus) -> None:
        self.contexts[status.handle] = status
        for watcher in self.watchers:
            watcher.put_nowait(status)

    async def load(self, ref: str, *, pin: bool = False) -> AsyncGenerator[ContextStatus, None]:
        self.asked.set()
        if self.load_error is not None:
            raise self.load_error
        if self.gate is not None:
            await self.gate.wait()
        handle = f"{ref}@0123456789ab:float32:cpu"
        for state in (ContextState.LOADING, ContextState.AVAILABLE):
            status = replace(context_status(handle, state), pinned=pin and state is ContextState.AVAILABLE)
            self.tell(status)
            yield status

    def unpin(self, ref: str) -> ContextStatus:
        for handle, status in self.contexts.items():
            if ref in {handle, handle.partition("@")[0]}:
                self.tell(replace(status, pinned=False))
                return self.contexts[handle]
        raise NotFound.unknown("context", ref, self.contexts, reason=Reason.CONTEXT_NOT_FOUND)

    async def unload(self, ref: str) -> ContextStatus:
        for handle, status in self.contexts.items():
            if ref in {handle, handle.partition("@")[0]}:
                ended = replace(status, state=ContextState.NOT_LOADED)
                self.tell(ended)
                return ended
        raise NotFound.unknown("context", ref, self.contexts, reason=Reason.CONTEXT_NOT_FOUND)

    def statuses(self) -> list[ContextStatus]:
        return [self.contexts[handle] for handle in sorted(self.contexts)]

    def status(self, ref: str) -> ContextStatus:
        handle = self.registry.model(ref).handle
        return self.contexts.get(handle, context_status(handle, ContextState.NOT_LOADED))

    def describe(self, info: InfoT) -> InfoT:
        status = self.contexts.get(info.handle)
        return info if status is None else replace(info, state=status.state)

    def readings(self) -> ContextsReading:
        return ContextsReading(by_state={"available": len(self.contexts)}, bytes_of={}, memory=())

    def observe(self, observer: OnLoad) -> None: ...

    async def watch(self) -> AsyncGenerator[ContextStatus, None]:
        changes: asyncio.Queue[ContextStatus] = asyncio.Queue()
        self.watchers.add(changes)
        try:
            for status in self.statuses():
                yield status
            while True:
                yield await changes.get()
        finally:
            self.watchers.discard(changes)

    async def close(self) -> None:
        self.is_closed = True


class FakeParts:
    """All together, typed as what they are. A reload takes the registry that a test puts in `next_registry`."""

    def __init__(self, n_models: int = 1) -> None:
        self.pipeline = FakePipeline()
        self.registry = FakeRegistry(n_models)
        self.next_registry: FakeRegistry | Exception = self.registry
        self.cache = FakeCache(self.registry)

    def build_registry(self) -> FakeRegistry:
        if isinstance(self.next_registry, Exception):
            raise self.next_registry
        return self.next_registry

    @property
    def parts(self) -> Parts:
        return Parts.of(self.pipeline, self.cache, self.build_registry)
