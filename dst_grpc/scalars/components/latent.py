"""Latents of autoencoders: those of one that is spliced into the run, and those computed offline from recorded taps.

A latent j writes h[t,j] D[j]: D is the decoder, followed by the output matrix for an autoencoder of neurons or of
heads' values (specification, 7.4). Autoencoders of attention's or the MLP's write read it after the post-norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self, cast

from dst_grpc.domain.components import Component as Kind
from dst_grpc.domain.components import LocationWithinLayer, NodeType, PreOrPostAct
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.autoencoder_input import autoencoder_input, normed
from dst_grpc.errors import require
from dst_grpc.scalars.components.attention_head import HeadAtToken
from dst_grpc.scalars.components.base import COMPONENTS, LayerOfRun, registered
from dst_grpc.scalars.components.neuron import Neuron
from dst_grpc.scalars.components.nodes import NodeComponent
from dst_grpc.scalars.components.scaled import ScaledComponent, ScaledWrites
from dst_grpc.scalars.components.stored import StoredWrites
from dst_grpc.scalars.stored_directions import StoredDirections
from dst_grpc.scalars.write_directions import LatentDirections, WriteDirections

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from dst_grpc.domain.autoencoder_inputs import AutoencoderInput
    from dst_grpc.domain.locations import ActivationLocationType
    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.stored_transcoder import StoredTranscoder
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.task import Task
    from dst_grpc.scalars.topology import Topology


@dataclass(frozen=True)
class _Latents(ScaledComponent):
    """The latents, at every token, of the autoencoders of one input."""

    node_type: NodeType
    """Type of the latents."""

    @classmethod
    def of_task(cls, task: Task) -> Self:
        """The latents that *task* is about."""
        return cls(task.topology, task.facts.autoencoder or task.facts.node_type)

    @property
    def input(self) -> AutoencoderInput:
        """The input of the autoencoders."""
        return require(self.topology.inputs.of(self.node_type))

    @property
    def location(self) -> LocationWithinLayer:
        """The place of their autoencoders' input within the layer."""
        return self.topology.location_of_latents(self.node_type)

    @property
    def _behind(self) -> Neuron | HeadAtToken | None:
        """The component whose activations are reconstructed; None if the input is a vector of the residual stream."""
        kind = self.input.written_as
        return None if kind is None else cast("type[Neuron | HeadAtToken]", COMPONENTS[kind])(self.topology)

    @property
    def output_norm_scale(self) -> ActivationLocationType | None:
        """That of the component whose activations are reconstructed."""
        return None if self._behind is None else self._behind.output_norm_scale

    def directions(self, run: LayerOfRun) -> WriteDirections:
        """D [Z, d]."""
        autoencoder = self.autoencoder(run)
        if not isinstance(autoencoder, Autoencoder):
            return StoredDirections(autoencoder, tuple(autoencoder.written))
        behind = None if self._behind is None else self._behind.directions(run)
        return LatentDirections(autoencoder, behind)

    def autoencoder(self, run: LayerOfRun) -> Autoencoder | StoredTranscoder:
        """The layer's."""
        return run.model.autoencoder(self.node_type, run.layer)

    def scaled_write_factor(self, run: LayerOfRun, read: torch.Tensor) -> torch.Tensor | None:
        """The post-norm's factor times the scale at which the autoencoder decodes inputs *read* [T, n_in]."""
        factor, scale = super().write_factor(run), self.autoencoder(run).write_scale(read)
        if factor is None or scale is None:
            return scale if factor is None else factor
        return factor * scale


@registered(Kind.LATENT)
class Latent(_Latents, NodeComponent):
    """A latent of an autoencoder that is spliced into the run."""

    @classmethod
    def of_nodes(cls, node_type: NodeType, topology: Topology) -> Self:
        """The latents that are *node_type*."""
        return cls(topology, node_type)

    @property
    def reads_one_token(self) -> bool:
        """Whether their autoencoder is one of the MLPs, or of the residual stream, spliced in."""
        return self.input.is_of_stream or (self.input.is_of_mlp and self.input.is_traced)

    def site(self, layer: int | None) -> Site:
        """The site of the latents [T, Z]."""
        return self.input.latent_tap, layer

    def scale_sites(self, layer: int | None) -> Iterator[Site]:
        """The scale of the post-norm that their writes pass, and the input, if the autoencoder scales its output by
        it."""
        yield from super().scale_sites(layer)
        if self.input in self.topology.inputs.scaled:
            yield self.topology.input_site(self.input, layer)

    def write_factor(self, run: LayerOfRun) -> torch.Tensor | None:
        """[T, 1]."""
        autoencoder = self.autoencoder(run)
        if not autoencoder.has_write_scale:
            return super().write_factor(run)
        read = run.recorded.value(self.topology.input_site(self.input, run.layer))
        return self.scaled_write_factor(run, autoencoder_input(autoencoder, read, run.block))

    def recompute(
        self, model: ExplainedModel, layer: int, rho: torch.Tensor, *, at: PreOrPostAct, detach_scale: bool
    ) -> torch.Tensor:
        """[T, Z]."""
        if self.input.is_of_stream:
            # The only norm between the residual and the latent is that of the autoencoder's input.
            loaded = model.loaded(self.node_type, layer)
            pre = loaded.pre_activation(rho, detach_scale=detach_scale)
            return loaded.activate(pre) if at is PreOrPostAct.POST else pre
        autoencoder, block = model.autoencoder(self.node_type, layer), model.decoder.layers[layer]
        if self.input.output is None:
            read = self._input_from(block, rho, detach_scale=detach_scale)
        else:
            read = normed(autoencoder.input_norm, rho, block, detach_scale=detach_scale)
        return autoencoder.encode(read) if at is PreOrPostAct.POST else autoencoder.pre_activation(read)

    def pre_activations(
        self, model: ExplainedModel, layer: int, rho: torch.Tensor, which: torch.Tensor
    ) -> torch.Tensor:
        """As of any nodes."""
        if self.input.output is None:
            return super().pre_activations(model, layer, rho, which)
        autoencoder = model.autoencoder(self.node_type, layer)
        read = normed(autoencoder.input_norm, rho, model.decoder.layers[layer], detach_scale=True)
        return autoencoder.pre_activations_of(read, which)

    def bind(self, run: LayerOfRun) -> ScaledWrites:
        """The latents of one layer of one run."""
        return ScaledWrites(self, run) if isinstance(self.autoencoder(run), Autoencoder) else StoredWrites(self, run)

    def _input_from(self, block: Layer, rho: torch.Tensor, *, detach_scale: bool) -> torch.Tensor:
        """What an autoencoder reconstructs, [T, n_in], recomputed from the residual *rho* [T, d] before it."""
        if self.input.is_of_attention_write:
            q, k, v = block.qkv(block.attn_norm(rho, detach_scale=detach_scale))
            mixed = block.attn_mix(block.attn_probs(block.attn_scores(q, k)), v)
            return block.attn_write(mixed, detach_scale=detach_scale)
        acts = block.mlp_acts(block.mlp_norm(rho, detach_scale=detach_scale))
        return acts if self.input.written_as is Kind.NEURON else block.mlp_write(acts, detach_scale=detach_scale)


@registered(Kind.OFFLINE_LATENT)
class OfflineLatent(_Latents):
    """A latent computed after the run from recorded taps (specification, 7.3)."""

    @property
    def source(self) -> ScaledComponent | None:
        """The component whose writes the autoencoder reads; None if it reads a tap as it is."""
        kind = self.input.offline_component
        return None if kind is None else cast("type[ScaledComponent]", COMPONENTS[kind])(self.topology)

    def activation_sites(self, layer: int | None) -> Iterator[Site]:
        """The tap that the autoencoder reads, or the taps that its input is computed from."""
        if self.source is None:
            yield self.topology.input_site(self.input, layer)
        else:
            yield from self.source.activation_sites(layer)
            yield from self.source.scale_sites(layer)

    def bind(self, run: LayerOfRun) -> OfflineLatentWrites:
        """The latents of one layer of one run."""
        is_loaded = isinstance(self.autoencoder(run), Autoencoder)
        return OfflineLatentWrites(self, run) if is_loaded else _StoredOfflineWrites(self, run)


class OfflineLatentWrites(ScaledWrites):
    """h [T, Z] computed from recorded taps; [P H, Z] of the writes of heads at pairs of tokens."""

    component: OfflineLatent

    @cached_property
    def read(self) -> torch.Tensor:
        """The autoencoder's input, [T, n_in] or [P H, n_in]."""
        component, run = self.component, self.run
        if component.source is not None:
            return component.source.bind(run).autoencoder_input()
        (site,) = component.activation_sites(run.layer)
        block = None if run.layer is None else run.block
        return autoencoder_input(component.autoencoder(run), run.recorded.value(site), block)

    @cached_property
    def value(self) -> torch.Tensor:
        """[T, Z]."""
        return self.component.autoencoder(self.run).encode(self.read)

    @cached_property
    def factor(self) -> torch.Tensor | None:
        """[T, 1]."""
        return self.component.scaled_write_factor(self.run, self.read)


class _StoredOfflineWrites(StoredWrites, OfflineLatentWrites):
    """The same of an autoencoder that stays in its files."""

    component: OfflineLatent
