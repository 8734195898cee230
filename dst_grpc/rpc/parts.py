"""What stands behind the services: the registry, the cache and the pipeline, made from the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from dst_grpc.domain.readings import BuildInfo
from dst_grpc.errors import DstError, InvalidRequest
from dst_grpc.rpc.ports import AdoptingCache, CachePort, NewRegistry, PipelinePort, RegistryPort
from dst_grpc.rpc.settings import Settings

RegistryT = TypeVar("RegistryT", bound=RegistryPort)

_log = logging.getLogger(__name__)


class StartupError(Exception):
    """The server cannot start: a port is taken, a file cannot be used, a context cannot be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The objects behind the services. The server closes them when it stops."""

    pipeline: PipelinePort
    """Runs requests."""
    cache: CachePort
    """The loaded contexts, and the registry."""
    build_registry: Callable[[], NewRegistry]
    """Builds the registry again from the same settings; runs on a thread."""
    build: BuildInfo = field(default_factory=BuildInfo)
    """What computes."""

    @classmethod
    def of(
        cls,
        pipeline: PipelinePort,
        cache: AdoptingCache[RegistryT],
        build_registry: Callable[[], RegistryT],
        build: BuildInfo = BuildInfo(),  # noqa: B008  frozen
    ) -> Parts:
        """Parts whose registry *build_registry* builds again and *cache* then adopts."""

        def built() -> NewRegistry:
            registry = build_registry()
            return NewRegistry(registry=registry, adopt=lambda: cache.adopt(registry))

        return cls(pipeline=pipeline, cache=cache, build_registry=built, build=build)


def build_parts(settings: Settings) -> Parts:
    """Wire the real parts. Loads no weights.

    Raises:
        StartupError: The registry is wrong, a model's or autoencoder's folder cannot be used, or the device is not
            there.
    """
    # Imported here, because they import torch, which tests with fakes do not need.
    from dst_grpc.contexts.cache import ContextCache
    from dst_grpc.contexts.device import HEAP_FACTOR, build_info, pick_device, return_freed_memory
    from dst_grpc.contexts.loading import FileLoader
    from dst_grpc.pipeline import Bounds, DeviceLimits, Limits, Pipeline
    from dst_grpc.rpc.registering import build_registry

    if settings.return_freed_memory:
        return_freed_memory()
    try:
        registry = build_registry(settings)
    except InvalidRequest as error:
        raise StartupError("\n  ".join(["the models cannot be served:", *map(str, error.violations)])) from error
    except DstError as error:
        raise StartupError(error.message) from error
    for failed in registry.failed:
        _log.error("cannot be served: %s", failed)
    loader = FileLoader(allow_failed_checks=settings.allow_failed_checks)
    cache = ContextCache(
        registry, budget_bytes=settings.budget_bytes, ttl_seconds=settings.context_ttl_seconds, loader=loader
    )
    keeps_freed = pick_device(settings.device) == "cpu" and not settings.return_freed_memory
    limits = Limits(
        bounds=Bounds(
            max_requests=settings.max_queued_requests,
            max_requests_per_caller=settings.max_queued_requests_per_caller,
            max_bytes=settings.max_queued_bytes,
        ),
        of_device=DeviceLimits(
            max_run_bytes=settings.max_run_bytes,
            patience=settings.patience_seconds,
            allocator_factor=HEAP_FACTOR if keeps_freed else 1.0,
        ),
        store_bytes=settings.store_bytes,
        share_recordings=settings.share_recordings,
        kept_graph_bytes=settings.kept_graph_bytes,
        kept_graph_seconds=settings.kept_graph_seconds,
    )
    pipeline = Pipeline(cache, limits)
    return Parts.of(pipeline, cache, lambda: build_registry(settings, previous=cache.registry), build_info())
