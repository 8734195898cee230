"""Models and autoencoder sets: those that can be loaded (the registry) and those that are (the cache).

    registry      names -> entries: what is known of each model and set without its weights
    loading       entry -> context: the weights
    cache         who holds which context, what is loaded and evicted for them
      lifecycle   the records of the cache and their states
      budget      what fits in memory, and what goes to make room
      transfers   the tasks that load and unload

An autoencoder set goes through these types, each of which knows something that the one before cannot:

    AutoencoderSpec (`sources`), AutoencoderConfig (`domain`)   named: by the operator's registry file, by a request
    LayerFile (`engine.formats`)                                opened: one layer's file, its header and no weights
    AutoencoderEntry                                            known: a whole set that fits its model
    AutoencoderContext                                          loaded: an `engine` Autoencoder for each layer, or a
                                                                layer of a cross-layer transcoder
    AutoencoderInfo (`domain`)                                  told: the row of the catalogue, for clients
"""

from __future__ import annotations

from dst_grpc.contexts.autoencoders import AutoencoderContext
from dst_grpc.contexts.cache import ContextCache
from dst_grpc.contexts.lease import Lease
from dst_grpc.contexts.model import ModelContext
from dst_grpc.contexts.registry import Registry

__all__ = ["AutoencoderContext", "ContextCache", "Lease", "ModelContext", "Registry"]
