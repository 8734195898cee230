"""Loading: from an entry to a context, blocking, on a thread of the cache's.

`Loader` is what the cache asks for, so that its tests can load nothing at will; `FileLoader` reads the files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from dst_grpc.contexts import self_check
from dst_grpc.contexts.autoencoders import SPLICEABLE, AutoencoderContext, node_type_of
from dst_grpc.contexts.model import ModelContext
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.engine.element_types import TORCH_TYPES
from dst_grpc.engine.formats.native import load_autoencoder
from dst_grpc.engine.taps import Taps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
    from dst_grpc.domain.resolution import LayerCheck
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.decoder import Decoder

    OnProgress = Callable[[int], None]


class Loader(Protocol):
    """Loads what an entry describes. Called on several threads at once, for different entries."""

    def load_model(self, entry: ModelEntry, on_progress: OnProgress) -> ModelContext:
        """The model; tells *on_progress* the bytes done so far, and lets through what that raises."""
        ...

    def load_autoencoders(
        self, entry: AutoencoderEntry, model: ModelContext, on_progress: OnProgress
    ) -> AutoencoderContext:
        """The set, checked against its loaded *model*; progress as for a model."""
        ...


class FileLoader:
    """Loads from files."""

    def __init__(self, *, allow_failed_checks: bool = False) -> None:
        """With *allow_failed_checks*, sets are served whatever their self-check says; it is reported all the same."""
        self._allow_failed_checks = allow_failed_checks

    def load_model(self, entry: ModelEntry, on_progress: OnProgress) -> ModelContext:
        """Read the model; raises DataLoss if its files are corrupt, changed, or not those that are registered."""
        digest = entry.digest()
        tokenizer = entry.tokenizer()
        decoder = entry.checkpoint.load(entry.device, TORCH_TYPES[entry.element_type], on_progress)
        return ModelContext(
            handle=entry.handle_of(digest),
            name=entry.name,
            decoder=decoder,
            tokenizer=tokenizer,
            digest=digest,
            device=entry.device,
            element_type=entry.element_type,
            parameter_bytes=decoder.parameter_bytes,
        )

    def load_autoencoders(
        self, entry: AutoencoderEntry, model: ModelContext, on_progress: OnProgress
    ) -> AutoencoderContext:
        """Read the set; raises DataLoss as for a model, or if it fails its self-check."""
        digest = entry.digest()
        by_layer: dict[int | None, Autoencoder] = {}
        done = 0
        for layer, header in entry.headers:
            before = done
            autoencoder = load_autoencoder(
                header.path,
                entry.device,
                TORCH_TYPES[entry.element_type],
                lambda part, before=before: on_progress(before + part),  # type: ignore[misc]  # mypy sees no default
                identity=header.identity,
                n_dropped=header.n_dropped,
            )
            by_layer[layer] = autoencoder
            done += autoencoder.parameter_bytes
        entry.files.check_unchanged()
        measured = _measure(entry, model, by_layer)
        if not (self._allow_failed_checks or entry.registered.allows_failed_checks):
            self_check.compare(entry.name, measured, entry.declared)
        return AutoencoderContext(
            handle=entry.handle_of(digest),
            name=entry.name,
            model=entry.model.name,
            dst=entry.dst,
            node_type=node_type_of(entry.dst),
            by_layer=by_layer,
            digest=digest,
            device=entry.device,
            parameter_bytes=done,
            measured=measured,
        )


def _measure(
    entry: AutoencoderEntry, model: ModelContext, by_layer: Mapping[int | None, Autoencoder]
) -> tuple[LayerCheck, ...]:
    tap = FACTS[entry.dst].tap
    if entry.dst not in SPLICEABLE or tap is None:
        return ()
    layers = {layer: autoencoder for layer, autoencoder in by_layer.items() if layer is not None}
    window = model.decoder.config.context_window
    prompts = [model.tokenizer.encode(sentence)[:window] for sentence in self_check.SENTENCES]
    return self_check.measure(recorder(model.decoder, tap, tuple(layers)), layers, prompts)


def recorder(
    decoder: Decoder, location: ActivationLocationType, layers: tuple[int, ...]
) -> Callable[[list[int]], dict[int, torch.Tensor]]:
    """A function from token ids to the tap at *location*, by layer [T, n]; a write has its bias in it."""

    def record(tokens: list[int]) -> dict[int, torch.Tensor]:
        taps = Taps(values=[(location, layer) for layer in layers])
        decoder.forward(torch.tensor([tokens], device=decoder.device), taps, stop_after_layer=max(layers))
        return {layer: taps.values[location, layer][0] for layer in layers}

    return record
