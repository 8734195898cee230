"""Builds the registry from settings, at start and at each reload."""

from __future__ import annotations

import shlex

from dst_grpc.contexts.registry import Registry
from dst_grpc.rpc.settings import Settings
from dst_grpc.sources import HubCache, default_folder, read_registry


def build_registry(settings: Settings, previous: Registry | None = None) -> Registry:
    """The registry of the settings and their registry file; unchanged entries are taken over from *previous*.

    Entries that cannot be served are listed as failed; it is an error if they could be served before, or if the
    settings are strict.

    Raises:
        InvalidRequest: if the file is wrong, or a source does not exist; lists everything.
        DataLoss: if a checkpoint is corrupt, or has another digest than is registered; names the file.
    """
    options = [f"--registry {shlex.quote(str(settings.registry))}"]
    if settings.hub_cache is not None:
        options.append(f"--hub-cache {shlex.quote(str(settings.hub_cache))}")
    registry = Registry.build(
        models=settings.models,
        specs=read_registry(settings.registry) if settings.registry is not None else (),
        hub=HubCache(settings.hub_cache or default_folder()),
        pull_command=" ".join(["dst-grpc pull", *options]),
        autoencoder_roots=settings.autoencoder_roots,
        device=settings.device,
        include_embedded=settings.registry is None,
        default_model=settings.default_model,
        omit_dead_latents=settings.omit_dead_latents,
        previous=previous,
    )
    if settings.strict or previous is not None:
        registry.check_served(previous)
    return registry
