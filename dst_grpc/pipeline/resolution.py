"""Descriptions of plans for clients: canonical configs, taps, outputs and cost.

A context whose files have no known digest yet is given by name instead of handle.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from dst_grpc.contexts.threads import Threads
from dst_grpc.domain.components import PassType
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.resolution import Resolution, ScalarResolution, TapUse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dst_grpc.contexts.cache import ContextCache
    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.contexts.registry import Registry
    from dst_grpc.domain.config import DstConfig
    from dst_grpc.domain.trace import TraceConfig
    from dst_grpc.pipeline.plan import Plan, PlannedScalar

_MANY = 50
"""Derived scalars whose description takes longer than a change of threads."""
_LATEST_SECONDS = 0.05
"""How long a description is told again. Only since when a context is used by nobody, and by how many it is, may have
changed since."""


class Resolver:
    """Describes plans: large ones on a thread. Used on the event loop only."""

    def __init__(self, cache: ContextCache, taken: Callable[[int], int]) -> None:
        """Describe contexts as *cache* does; the process takes *taken* of the bytes of tensors."""
        self._cache, self._taken = cache, taken
        self._threads = Threads("dst-describe", at_once=1)
        self._kept: WeakKeyDictionary[Plan, Resolution] = WeakKeyDictionary()
        """The unchanging part of the descriptions of plans whose handles are all known."""
        self._latest: WeakKeyDictionary[Plan, tuple[Resolution, object, float]] = WeakKeyDictionary()
        """Their latest descriptions: of which version of the cache, and until when they are told again."""

    async def resolution(self, plan: Plan, registry: Registry) -> Resolution:
        """The description of *plan*, which was made with *registry*: the present one or, if nothing was loaded or
        unloaded since, one that was made just before, the very same object."""
        latest, now = self._latest.get(plan), time.monotonic()
        if latest is not None and latest[1] == self._cache.version and now < latest[2]:
            return latest[0]
        entries = (plan.model, *plan.autoencoders)
        told = self._kept.get(plan)
        if told is None:
            if len(plan.scalars) > _MANY:
                told = await self._threads.run(_resolution, plan, registry, self._taken)
            else:
                told = _resolution(plan, registry, self._taken)
            if all(entry.files.known_digest for entry in entries):
                self._kept[plan] = told
        present = replace(
            told,
            model=self._cache.describe(told.model),
            autoencoders=tuple(map(self._cache.describe, told.autoencoders)),
            contexts=tuple(self._cache.status(entry.name) for entry in entries),
        )
        if plan in self._kept:
            self._latest[plan] = present, self._cache.version, now + _LATEST_SECONDS
        return present


def _resolution(plan: Plan, registry: Registry, taken: Callable[[int], int]) -> Resolution:
    """The description of a request, independent of what is loaded."""
    request = plan.request
    return Resolution(
        config=_canonical(request.config, plan, plan.shared_sets, request.trace_config, request.config.layer_indices),
        device=plan.model.device,
        model=registry.model(plan.model.name),
        autoencoders=tuple(entry.info() for entry in plan.autoencoders),
        scalars=tuple(_scalar_resolution(plan, scalar) for scalar in plan.scalars),
        cost=replace(plan.cost, peak_bytes=taken(plan.cost.peak_bytes)),
    )


def _scalar_resolution(plan: Plan, scalar: PlannedScalar) -> ScalarResolution:
    layers = tuple(layer for layer in scalar.layers if layer is not None)
    config = plan.request.config_of(plan.request.derived_scalars[scalar.spec_index])
    taps = sorted({(site[0].value, pass_type.value) for pass_type, site in scalar.taps})
    return ScalarResolution(
        dst=scalar.facts.type,
        config=_canonical(config, plan, scalar.sets, scalar.trace, layers),
        requires_grad=scalar.requires_grad,
        taps=tuple(TapUse(location=ActivationLocationType(tap), pass_type=PassType(name)) for tap, name in taps),
        pass_types=scalar.passes,
        layer_indices=layers,
        axes=scalar.axes,
        output_bytes=scalar.output_bytes,
    )


def _canonical(
    config: DstConfig,
    plan: Plan,
    sets: Sequence[AutoencoderEntry],
    trace: TraceConfig | None,
    layers: tuple[int, ...] | None,
) -> DstConfig:
    """*config* with every context and default filled in."""
    return replace(
        config,
        model_name=plan.model.name,
        model_context=plan.model.handle or plan.model.name,
        autoencoder_context=None,
        autoencoder_config=None,
        multi_autoencoder_context=tuple(entry.handle or entry.name for entry in sets) or None,
        trace_config=trace,
        layer_indices=layers or None,
        device_for_raw_activations=plan.model.device,
    )
