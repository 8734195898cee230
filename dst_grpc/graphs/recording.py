"""One pass of the model, and what the local replacement model keeps of it.

Shapes: T token, d residual channel, V token of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.engine.autoencoder_input import input_site
from dst_grpc.engine.norm import wide
from dst_grpc.engine.taps import Taps, site_entering
from dst_grpc.engine.transcoders import ActiveFeatures
from dst_grpc.errors import OutOfRange, require
from dst_grpc.graphs.frozen_layer import FrozenInput, FrozenMlp
from dst_grpc.graphs.latents import LatentUnits, kinds_of
from dst_grpc.graphs.units import FeatureUnits, HeadUnits, NeuronUnits, Stage, Units, head_writes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.cancellation import Check
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.taps import Site
    from dst_grpc.graphs.sources import Sources

_L = ActivationLocationType


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RecordedLayer:
    """What is constant in one layer of the local replacement model. Tensors are float32 or wider."""

    entering: torch.Tensor
    """The residual that enters the layer, [T, d], of the model's type: patterns follow from it."""
    attn_scale: torch.Tensor | None
    """The scale of the norm of attention's output, [T, 1]; None without such a norm."""
    input: FrozenInput
    """What the MLP of the layer, or its transcoder, reads."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Missed:
    """What units do not explain at one place."""

    kind: GraphNodeKind
    """The kind of the errors."""
    layer: int
    """The layer."""
    stage: Stage
    """Where in the layer."""
    error: torch.Tensor
    """The errors, [T, d]."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Recording:
    """What is constant in the local replacement model of one prompt."""

    tokens: torch.Tensor
    """Ids [T]."""
    layers: tuple[RecordedLayer, ...]
    """Its layers."""
    units: tuple[Units, ...]
    """The active units, as a pass comes to them."""
    missed: tuple[Missed, ...]
    """The errors, in the same order."""
    final_scale: torch.Tensor
    """The scale of the final norm at the last token, [1]."""
    logits: torch.Tensor
    """Of the last token, [V]."""

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.tokens)

    @cached_property
    def n_active(self) -> int:
        """Active units."""
        return sum(map(len, self.units))

    @property
    def n_errors(self) -> int:
        """Errors, one for each place and token."""
        return len(self.missed) * self.n_tokens

    def writing(self, layer: int, stage: Stage) -> list[Units]:
        """The units that write at a place."""
        return [one for one in self.units if one.stage is stage and layer in one.written and len(one)]

    def unit(self, place: int) -> tuple[Units, torch.Tensor]:
        """The unit at *place* among all active ones: the units that it is of, and which of them it is, [1]."""
        units = next(one for one in self.units if one.first <= place < one.first + len(one))
        return units, torch.tensor([place - units.first], device=self.tokens.device)

    def missed_at(self, layer: int, stage: Stage) -> tuple[int, Missed] | None:
        """The errors at a place, and which of all; None if nothing is missed there."""
        found = ((i, one) for i, one in enumerate(self.missed) if (one.layer, one.stage) == (layer, stage))
        return next(found, None)

    def has_residual(self, layer: int, stage: Stage) -> bool:
        """Whether units stand for the residual at a place, so that no path leads through it."""
        return stage in {Stage.POST_ATTENTION, Stage.END} and self.missed_at(layer, stage) is not None


@torch.no_grad()
def record(decoder: Decoder, sources: Sources, token_ids: Sequence[int], n_zeroed: int, check: Check) -> Recording:
    """Run a prompt.

    Args:
        decoder: the model.
        sources: what units are.
        token_ids: the prompt.
        n_zeroed: tokens, from the first, that have neither features of transcoders nor errors of MLPs.
        check: raises Cancelled to end the work.

    Raises:
        OutOfRange: if the run is not finite.
    """
    pass_ = _RecordedPass(decoder, sources, token_ids, check)
    units, missed, layers = list[Units](), list[Missed](), list[RecordedLayer]()
    for layer in range(decoder.config.n_layers):
        check()
        recorded = _RecordedUnits(pass_, sources, layer, n_zeroed, units)
        layers.append(recorded.layer())
        missed += recorded.add()
    final_scale = decoder.final_norm.scale(pass_.last_residual)
    return Recording(
        tokens=pass_.tokens,
        layers=tuple(layers),
        units=tuple(units),
        missed=tuple(missed),
        final_scale=final_scale,
        logits=pass_.logits,
    )


class _RecordedPass:
    """The pass, and the taps that it recorded."""

    def __init__(self, decoder: Decoder, sources: Sources, token_ids: Sequence[int], check: Check) -> None:
        """Run it; see `record`."""
        self.decoder = decoder
        config, indices = decoder.config, range(decoder.config.n_layers)
        locations = [_L.RESID_DELTA_MLP]
        if config.post_norms:
            locations += [_L.ATTN_OUTPUT_LAYER_NORM_SCALE, _L.MLP_OUTPUT_LAYER_NORM_SCALE]
        if sources.has_heads:
            locations.append(_L.ATTN_WEIGHTED_SUM_OF_VALUES)
        sites: list[Site] = [(location, layer) for location in locations for layer in indices]
        for layer in indices:
            found = (sources.autoencoder(layer, stage) for stage in Stage)
            sites += [(one[0].tap, layer) for one in found if one is not None]
        taps = Taps(values=[*sites, *map(site_entering, indices), *map(self.read, indices)], check=check)
        self.tokens = torch.tensor(token_ids, device=decoder.device)
        """Ids [T]."""
        last = torch.tensor([len(self.tokens) - 1], device=self.tokens.device)
        self.logits = require(decoder.forward(self.tokens[None], taps, logits_at=last))[0, 0]
        """Of the last token, [V]."""
        residual = require(taps.last_residual)[0]
        if not bool(residual.isfinite().all() and self.logits.isfinite().all()):
            raise OutOfRange("the run of the prompt has values that are not finite")
        self.last_residual = residual[-1]
        """Of the last token, [d]."""
        self.values: dict[Site, torch.Tensor] = {site: value[0] for site, value in taps.values.items()}
        """What taps recorded, [T, ...]."""

    def read(self, layer: int) -> Site:
        """The tap of the residual that the MLP of *layer* reads."""
        return input_site(DerivedScalarType.RESID_POST_ATTN, layer, self.decoder.config.architecture)

    def scale(self, location: ActivationLocationType, layer: int) -> torch.Tensor | None:
        """The scale of a norm of what *layer* writes; None without such a norm."""
        found = self.values.get((location, layer))
        return None if found is None else wide(found)


class _RecordedUnits:
    """The units of one layer, and what they do not explain."""

    def __init__(self, pass_: _RecordedPass, sources: Sources, layer: int, n_zeroed: int, units: list[Units]) -> None:
        """Take the pass, and the *units* of earlier layers, to which those of this one are added; see `record`."""
        self._pass, self._sources, self._layer, self._n_zeroed, self._units = pass_, sources, layer, n_zeroed, units
        self._weights = pass_.decoder.layers[layer]
        self._read = pass_.values[pass_.read(layer)]
        self._input = FrozenInput(self._weights, *self._norm())

    def _norm(self) -> tuple[ModelNorm, torch.Tensor | None]:
        """The norm through which the MLP's units read, and its scale."""
        sources, layer = self._sources, self._layer
        norm = ModelNorm.NONE
        if sources.has_transcoder(layer):
            norm = require(sources.transcoders).input_norm(layer)
        elif sources.has_neurons or sources.autoencoder(layer, Stage.MLP) is not None:
            norm = ModelNorm.MLP_NORM
        return norm, None if norm is ModelNorm.NONE else self._weights.mlp_norm.scale(self._read)

    def layer(self) -> RecordedLayer:
        """What is constant besides."""
        return RecordedLayer(
            entering=self._pass.values[site_entering(self._layer)],
            attn_scale=self._pass.scale(_L.ATTN_OUTPUT_LAYER_NORM_SCALE, self._layer),
            input=self._input,
        )

    def add(self) -> list[Missed]:
        """Add the units; returns what they miss."""
        found = list[Missed]()
        for stage in Stage:
            if self._sources.has_heads and stage is Stage.ATTENTION:
                self._units.append(self._heads())
            elif (autoencoder := self._sources.autoencoder(self._layer, stage)) is not None:
                latents = self._latents(stage, *autoencoder)
                self._units.append(latents)
                kind = kinds_of(autoencoder[0])[1]
                found.append(Missed(kind=kind, layer=self._layer, stage=stage, error=latents.error))
            elif self._sources.has_neurons and stage is Stage.MLP:
                self._units.append(self._neurons())
            elif stage is Stage.MLP:
                found.append(self._features())
        return found

    @property
    def _facts(self) -> dict[str, int]:
        n_tokens = len(self._pass.tokens)
        return {"layer": self._layer, "first": sum(map(len, self._units)), "n_tokens": n_tokens}

    def _features(self) -> Missed:
        """Add the features, if there are any; returns what they and those of earlier layers miss."""
        transcoders, layer = self._sources.transcoders, self._layer
        error = wide(self._pass.values[_L.RESID_DELTA_MLP, layer]).clone()
        if transcoders is not None and transcoders.has_layer(layer):
            x = transcoders.input(layer, self._read, self._weights)
            active = transcoders.active(layer, x, first=self._n_zeroed)
            units = FeatureUnits(
                kind=GraphNodeKind.FEATURE,
                stage=Stage.MLP,
                active=active,
                transcoders=transcoders,
                input=self._input,
                **self._facts,
            )
            self._units.append(units)
            explained = {one.layer: one.active for one in self._units if isinstance(one, FeatureUnits)}
            error -= transcoders.reconstruction(layer, explained, x)
        error[: self._n_zeroed] = 0
        return Missed(kind=GraphNodeKind.ERROR, layer=layer, stage=Stage.MLP, error=error)

    def _neurons(self) -> NeuronUnits:
        return NeuronUnits(
            kind=GraphNodeKind.NEURON,
            stage=Stage.MLP,
            active=ActiveFeatures.of(wide(self._weights.mlp_acts(self._weights.mlp_norm(self._read)))),
            tap=_L.MLP_POST_ACT,
            mlp=self._mlp,
            **self._facts,
        )

    def _heads(self) -> HeadUnits:
        mixed = self._pass.values[_L.ATTN_WEIGHTED_SUM_OF_VALUES, self._layer]
        scale = self._pass.scale(_L.ATTN_OUTPUT_LAYER_NORM_SCALE, self._layer)
        tokens = torch.arange(len(mixed), device=mixed.device)
        lengths = [
            torch.linalg.vector_norm(
                head_writes(self._weights, mixed, scale, tokens, torch.full_like(tokens, head)), dim=1
            )
            for head in range(mixed.shape[1])
        ]
        return HeadUnits(
            kind=GraphNodeKind.HEAD,
            stage=Stage.ATTENTION,
            active=ActiveFeatures.of(torch.stack(lengths, dim=1)),
            tap=_L.ATTN_WEIGHTED_SUM_OF_VALUES,
            weights=self._weights,
            mixed=mixed,
            scale=scale,
            **self._facts,
        )

    def _latents(self, stage: Stage, source: AutoencoderInput, autoencoder: Autoencoder) -> LatentUnits:
        x = self._pass.values[source.tap, self._layer]
        return LatentUnits(
            kind=kinds_of(source)[0],
            stage=stage,
            active=ActiveFeatures.of(wide(autoencoder.encode(x))),
            tap=source.tap,
            autoencoder=autoencoder,
            x=x,
            mlp=self._mlp,
            **self._facts,
        )

    @property
    def _mlp(self) -> FrozenMlp:
        return FrozenMlp(self._input, self._read, self._pass.scale(_L.MLP_OUTPUT_LAYER_NORM_SCALE, self._layer))
