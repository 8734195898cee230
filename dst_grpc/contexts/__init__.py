"""What may be loaded (the registry) and what is loaded (the cache): models and autoencoder sets."""

from __future__ import annotations

from dst_grpc.contexts.autoencoders import AutoencoderContext
from dst_grpc.contexts.cache import ContextCache
from dst_grpc.contexts.lease import Lease
from dst_grpc.contexts.model import ModelContext
from dst_grpc.contexts.registry import Registry

__all__ = ["AutoencoderContext", "ContextCache", "Lease", "ModelContext", "Registry"]
