"""Loading: from an entry to a context. Blocks, so the cache calls it on a thread.

`FileLoader` reads files; `Loader` is its protocol, which tests of the cache implement without files.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from dst_grpc.contexts import self_check
from dst_grpc.contexts.autoencoders import AutoencoderContext
from dst_grpc.contexts.model import ModelContext
from dst_grpc.domain.components import Dimension
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.engine.autoencoder_input import autoencoder_input, input_site
from dst_grpc.engine.element_types import TORCH_TYPES
from dst_grpc.engine.formats.stored_file import StoredTranscoderFile
from dst_grpc.engine.taps import Taps
from dst_grpc.engine.transcoders import Transcoders
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
    from dst_grpc.domain.resolution import LayerCheck
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.stored_transcoder import StoredTranscoder
    from dst_grpc.engine.taps import Site

    OnProgress = Callable[[int], None]


class Loader(Protocol):
    """Loads what an entry describes. Called on several threads at once, for different entries."""

    def load_model(self, entry: ModelEntry, on_progress: OnProgress) -> ModelContext:
        """Load a model; calls *on_progress* with the bytes done so far, whose exceptions end the load."""
        ...

    def load_autoencoders(
        self, entry: AutoencoderEntry, model: ModelContext, on_progress: OnProgress
    ) -> AutoencoderContext:
        """Load a set and check it against its loaded *model*; progress as for a model."""
        ...


class FileLoader:
    """Loads from files."""

    def __init__(self, *, allow_failed_checks: bool = False) -> None:
        """With *allow_failed_checks*, sets are served even if their self-check fails; the figures are reported all the
        same."""
        self._allow_failed_checks = allow_failed_checks

    def load_model(self, entry: ModelEntry, on_progress: OnProgress) -> ModelContext:
        """Load the model; raises DataLoss if its files are corrupt, have changed, or have another digest than
        registered."""
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
        """Load the set; raises DataLoss as for a model, or if it fails its self-check."""
        try:
            return self._load_autoencoders(entry, model, on_progress)
        finally:
            entry.files.let_go()

    def _load_autoencoders(
        self, entry: AutoencoderEntry, model: ModelContext, on_progress: OnProgress
    ) -> AutoencoderContext:
        digest = entry.digest()
        samples = _Samples.recorded(entry, model)
        by_layer, transcoders, measured = _loaded(entry, samples, on_progress)
        entry.files.check_unchanged()
        if not (self._allow_failed_checks or entry.registered.allows_failed_checks):
            self_check.compare(entry.name, measured, entry.declared)
        return AutoencoderContext(
            handle=entry.handle_of(digest),
            name=entry.name,
            model=entry.model.name,
            dst=entry.dst,
            by_layer=by_layer,
            digest=digest,
            device=entry.device,
            parameter_bytes=entry.parameter_bytes,
            measured=tuple(measured),
            output=entry.output,
            transcoders=transcoders,
        )


_Loaded = tuple[dict[int | None, "Autoencoder"], "Transcoders | None", "list[LayerCheck]"]
"""Autoencoders by layer, the same as transcoders if they are any, and figures of each layer."""


def _loaded(entry: AutoencoderEntry, samples: _Samples | None, on_progress: OnProgress) -> _Loaded:
    if entry.stays_in_files:
        return _stored(entry, require(samples), on_progress)
    declared = {check.layer_index: check for check in entry.declared}
    by_layer: dict[int | None, Autoencoder] = {}
    measured: list[LayerCheck] = []
    done = 0
    for layer, file in entry.by_layer.items():
        if isinstance(file, StoredTranscoderFile):
            continue
        before = done
        candidates = file.load(
            entry.device,
            TORCH_TYPES[entry.element_type],
            lambda part, before=before: on_progress(before + part),  # type: ignore[misc]  # mypy sees no default
        )
        autoencoder = next(iter(candidates.values()))
        if samples is not None:
            number, sample_of = layer or 0, partial(samples.of, layer, file.header.output)
            autoencoder, check = self_check.choose(number, candidates, sample_of, declared.get(number))
            measured.append(check)
        by_layer[layer] = autoencoder
        done += autoencoder.parameter_bytes
    return by_layer, _transcoders(entry, by_layer), measured


def _stored(entry: AutoencoderEntry, samples: _Samples, on_progress: OnProgress) -> _Loaded:
    """Transcoders that stay in their files, measured as a whole: layers may explain a part of later ones."""
    layers: dict[int, StoredTranscoder] = {}
    for layer, file in entry.by_layer.items():
        if isinstance(file, StoredTranscoderFile) and layer is not None:
            layers[layer] = file.load(entry.device)
            on_progress(sum(one.parameter_bytes for one in layers.values()))
    transcoders = Transcoders(entry.model.dimensions.n_layers, layers)
    inputs = {layer: samples.of(layer, DerivedScalarType.RESID_DELTA_MLP, one) for layer, one in layers.items()}
    done = transcoders.parameter_bytes
    return {}, transcoders, self_check.measure_together(transcoders, inputs, lambda: on_progress(done))


def _transcoders(entry: AutoencoderEntry, by_layer: Mapping[int | None, Autoencoder]) -> Transcoders | None:
    """The autoencoders of *entry* as transcoders, if they are."""
    if not entry.is_of_transcoders:
        return None
    layers = {layer: autoencoder for layer, autoencoder in by_layer.items() if layer is not None}
    return Transcoders.per_layer(entry.model.dimensions.n_layers, layers)


class _Samples:
    """The activations that a set is measured on, recorded once for all its layers."""

    def __init__(self, decoder: Decoder, dst: DerivedScalarType, prompts: Sequence[dict[Site, torch.Tensor]]) -> None:
        self._decoder, self._dst, self._prompts = decoder, dst, prompts

    @classmethod
    def recorded(cls, entry: AutoencoderEntry, model: ModelContext) -> _Samples | None:
        """Run the self-check's sentences; None for a set whose input is not a tap."""
        facts = FACTS[entry.dst]
        if facts.tap is None or Dimension.ATTENDED_TO_SEQUENCE_TOKENS in facts.dimensions:
            return None
        architecture = model.decoder.config.architecture
        sites = [input_site(entry.dst, layer, architecture) for layer in entry.by_layer]
        sites += [
            input_site(file.header.output, layer, architecture)
            for layer, file in entry.by_layer.items()
            if file.header.output is not None
        ]
        window = model.decoder.config.context_window
        begin = model.tokenizer.begin_tokens()
        prompts = [[*begin, *model.tokenizer.encode(sentence)][:window] for sentence in self_check.SENTENCES]
        return cls(model.decoder, entry.dst, [record(model.decoder, sites, prompt) for prompt in prompts])

    def of(
        self, layer: int | None, output: DerivedScalarType | None, autoencoder: Autoencoder | StoredTranscoder
    ) -> self_check.Sample:
        """The input of *autoencoder* at *layer*, and its target: *output*, or, if that is None, the input."""
        block = None if layer is None else self._decoder.layers[layer]
        architecture = self._decoder.config.architecture
        read = input_site(self._dst, layer, architecture)
        predicted = None if output is None else input_site(output, layer, architecture)
        samples = []
        for values in self._prompts:
            x = autoencoder_input(autoencoder, values[read], block)
            samples.append(self_check.Sample(x, None if predicted is None else values[predicted]))
        return self_check.collect(samples)


def record(decoder: Decoder, sites: Sequence[Site], tokens: list[int]) -> dict[Site, torch.Tensor]:
    """The taps at *sites* for *tokens*, [T, ...]; writes include their biases."""
    taps = Taps(values=sites)
    last = max((layer for _, layer in sites if layer is not None), default=-1)
    decoder.forward(torch.tensor([tokens], device=decoder.device), taps, stop_after_layer=last)
    return {site: taps.values[site][0] for site in sites}
