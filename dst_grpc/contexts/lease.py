"""Lease: the loaded contexts of one caller of the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dst_grpc.domain.handles import ContextRef
from dst_grpc.errors import NotFound, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.model import ModelContext


class Lease:
    """Contexts that stay loaded while the lease is open. No reference to them may be kept afterwards."""

    __slots__ = ("_autoencoders", "_model")

    def __init__(self, model: ModelContext, autoencoders: Mapping[str, AutoencoderContext]) -> None:
        """Made by `ContextCache.lease`."""
        self._model: ModelContext | None = model
        self._autoencoders = dict(autoencoders)

    @property
    def model(self) -> ModelContext:
        """The model; raises RuntimeError once the lease is over."""
        if self._model is None:
            raise RuntimeError("this lease is over")
        return self._model

    @property
    def autoencoders(self) -> Mapping[str, AutoencoderContext]:
        """The autoencoder sets, by registered name; empty once the lease is over."""
        return self._autoencoders

    def check(self, handles: Iterable[str]) -> None:
        """Raise NotFound if one of *handles* has the name of a context here, but is not its handle."""
        for handle in handles:
            name = ContextRef.parse(handle).name
            if name == self.model.name and handle != self.model.handle:
                raise NotFound.unknown("model", handle, [self.model.handle], reason=Reason.MODEL_NOT_FOUND)
            leased = self._autoencoders.get(name)
            if leased is not None and handle != leased.handle:
                raise NotFound.unknown("autoencoder", handle, [leased.handle], reason=Reason.AUTOENCODER_NOT_FOUND)

    def end(self) -> None:
        """Drop all references, so that a remaining reference to the lease does not keep weights in memory."""
        self._model = None
        self._autoencoders.clear()

    def __repr__(self) -> str:
        """Handles."""
        handles = [] if self._model is None else [self._model.handle]
        return f"Lease({', '.join([*handles, *(one.handle for one in self._autoencoders.values())])})"
