"""Plans: a request, checked and completed, with all that a run needs but weights. Plain values."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from dst_grpc.domain.components import PassType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.resolution import CostEstimate, ScalarResolution, TapUse
from dst_grpc.domain.results import Axis
from dst_grpc.pipeline.sizes import BYTES_OF_FLOAT32, Sizes, most_latents
from dst_grpc.scalars.task import Task

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from dst_grpc.domain.config import DstConfig
    from dst_grpc.domain.requests import DeriveRequest
    from dst_grpc.domain.resolution import AutoencoderInfo, ModelInfo
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.runs import Run
    from dst_grpc.scalars.origins import LossOrigin, TraceOrigin

_L = ActivationLocationType


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedScalar:
    """One derived scalar of the request, ready to be computed."""

    spec_index: int
    """Its position in the request."""
    task: Task
    """What it is about."""
    config: DstConfig
    """The canonical config."""
    sets: tuple[AutoencoderInfo, ...]
    """The autoencoders that its config names."""
    axes: tuple[Axis, ...]
    """Axes of one layer's tensor."""
    reads: frozenset[tuple[PassType, Site]]
    """Taps that it reads."""

    @property
    def output_bytes(self) -> int:
        """Bytes of all its tensors, dense float32."""
        count = len(self.task.layers) * len(self.task.passes)
        for axis in self.axes:
            count *= axis.size
        return BYTES_OF_FLOAT32 * count

    @property
    def requires_grad(self) -> bool:
        """Whether it reads a gradient of the origin."""
        return any(pass_type is PassType.BACKWARD for pass_type, _ in self.reads)

    def resolution(self) -> ScalarResolution:
        """What is said of it to the client."""
        taps = sorted({(site[0].value, pass_type.value) for pass_type, site in self.reads})
        return ScalarResolution(
            dst=self.task.facts.type,
            config=self.config,
            requires_grad=self.requires_grad,
            taps=tuple(TapUse(location=_L(tap), pass_type=PassType(pass_type)) for tap, pass_type in taps),
            pass_types=self.task.passes,
            layer_indices=tuple(layer for layer in self.task.layers if layer is not None),
            axes=self.axes,
            output_bytes=self.output_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request, checked and completed: everything that a run needs but weights."""

    request: DeriveRequest
    model: ModelInfo
    run: Run
    """The prompt, what is changed, and the origins."""
    token_strings: tuple[str, ...]
    loss: LossOrigin | None
    """The loss, if the request has one: one of the run's origins."""
    trace: TraceOrigin | None
    """The traced activation, if the request has one: another."""
    spliced: tuple[AutoencoderInfo, ...]
    """Autoencoders in the graph."""
    origin_sets: tuple[AutoencoderInfo, ...]
    """The autoencoders that a traced latent belongs to: those in the graph, else those of the shared config."""
    autoencoders: tuple[AutoencoderInfo, ...]
    """Every autoencoder in use, spliced or not, without repetition."""
    scalars: tuple[PlannedScalar, ...]
    values: frozenset[Site]
    """Sites whose value to record, besides what the origins read."""
    gradients: frozenset[Site]
    """Sites whose gradient to record."""
    config: DstConfig
    """The canonical shared config."""
    cost: CostEstimate

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt; empty if the request had none."""
        return self.run.token_ids

    @cached_property
    def stop_after_layer(self) -> int | None:
        """Last layer that has to run; None if logits are needed."""
        return None if self.run.needs_logits else last_layer_of(self.values | self.run.values)

    @cached_property
    def resolutions(self) -> tuple[ScalarResolution, ...]:
        """What is said of its derived scalars to the client, in order."""
        return tuple(scalar.resolution() for scalar in self.scalars)

    def also_recording(self, sites: Iterable[Site]) -> Plan:
        """This plan with the values at *sites* recorded too."""
        new = frozenset(sites) - self.values
        if not new:
            return self
        sizes = Sizes(self.model.dimensions, len(self.token_ids), self.model.architecture)
        latents = most_latents(self.spliced)
        recorded_bytes = sum(sizes.site_bytes(site, latents) for site in new)
        cost = replace(self.cost, peak_bytes=self.cost.peak_bytes + recorded_bytes)
        return replace(self, values=self.values | new, cost=cost)

    @property
    def run_key(self) -> Hashable:
        """Everything that determines what a run records, whatever is then derived from it."""
        sets = tuple(info.handle or info.name for info in (*self.spliced, *self.origin_sets))
        model = self.model.handle or self.model.name
        return model, sets, self.run.key

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the answer's numbers."""
        request = replace(self.request, request_id="", max_chunk_bytes=0, model=self.model.handle)
        handles = tuple(info.handle for info in self.autoencoders)
        return hashlib.sha256(repr((request, handles)).encode()).hexdigest()


def last_layer_of(sites: Iterable[Site]) -> int | None:
    """The last layer that has to run for *sites* to be recorded; None if what follows the layers has to run too."""
    last = -1
    for location, layer in sites:
        if location.facts.is_after_layers:
            return None
        last = max(last, -1 if layer is None else layer)
    return last
