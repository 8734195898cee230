"""Sources of models and autoencoder sets: the registry file, the hub, and the cache folder of pulled files.

Handles names, folders and files; `contexts` opens the files. Without torch, so that `dst-grpc pull` starts quickly.
"""

from __future__ import annotations

from dst_grpc.sources.hub_cache import HubCache, default_folder
from dst_grpc.sources.registry_file import read_registry
from dst_grpc.sources.specs import AutoencoderSpec, EmbeddedSource, FolderSource, HubSource, ModelSpec, Source

__all__ = [
    "AutoencoderSpec",
    "EmbeddedSource",
    "FolderSource",
    "HubCache",
    "HubSource",
    "ModelSpec",
    "Source",
    "default_folder",
    "read_registry",
]
