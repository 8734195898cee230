"""Taps: what to record, change and splice in during one forward pass and the gradient passes after it.

A `Taps` object is passed to the decoder, which offers it the tensor at every activation location. It is an argument,
never global state, and is used for one forward pass. At each location, in this order (specification, section 4):
forward interventions; the value is recorded; gradients are recorded as they arrive, before backward interventions
change what flows on; an autoencoder is spliced in. A site that is not touched costs nothing: the decoder takes its
fused path there. Whether the pass is cancelled is checked at every location, and in each gradient pass once per layer.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.pacing import Pacing
from dst_grpc.engine.propagation import PLAIN, Propagation
from dst_grpc.engine.splice import SplicedLatents
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dst_grpc.engine.interventions import RowIntervention
    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.norm import Norm
    from dst_grpc.engine.splice import Splice

_L = ActivationLocationType

Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values."""
Site = tuple[ActivationLocationType, int | None]
"""A location and its layer; the layer is None for a location that exists once per model."""

_AFTER_ALL_LAYERS = 2**31


def site_entering(layer: int) -> Site:
    """The site of the residual that enters *layer*."""
    return (_L.RESID_POST_MLP, layer - 1) if layer else (_L.RESID_POST_EMBEDDING, None)


def of_row(site: Site, x: torch.Tensor, row: int, n_tokens: int) -> torch.Tensor:
    """One row of the value *x* [b, ...] at *site*, without pads."""
    x = x[row]
    for axis in site[0].facts.token_axes:
        if x.shape[axis] != n_tokens:  # or a view of the same would be made for every tap of a prompt without pads
            x = x.narrow(axis, 0, n_tokens)
    return x


class Taps:
    """One pass's recording. Build it, pass it to `Decoder.forward`, then read it."""

    def __init__(
        self,
        *,
        values: Iterable[Site] = (),
        gradients: Iterable[Site] = (),
        interventions: Iterable[RowIntervention] = (),
        splices: Mapping[Site, Splice] | None = None,
        propagation: Propagation = PLAIN,
        check: Check = never_cancelled,
    ) -> None:
        """Plan the pass; nothing is recorded yet.

        Args:
            values: sites whose value to record.
            gradients: sites to record attached to the graph, so that gradients can be taken there.
            interventions: in the order in which they apply.
            splices: the autoencoders to splice in, by the site that each reconstructs.
            propagation: the propagation rule of gradients.
            check: raises Cancelled, wherever it is made, to end the pass.
        """
        self.check = check
        """Raises Cancelled if the pass is."""
        self._pacing = Pacing()
        self.propagation = propagation
        """The propagation rule of gradients."""
        self._wanted = frozenset(values)
        self._wanted_attached = frozenset(gradients)
        self.splices = dict(splices or {})
        """The autoencoders in the graph, by the site that each reconstructs."""
        self._interventions: dict[ActivationLocationType, list[RowIntervention]] = defaultdict(list)
        for one in interventions:
            self._interventions[one.location].append(one)
        self._recorded = self._wanted | self._wanted_attached
        self._gradient_pass = 0
        self._awaiting: dict[Site, torch.Tensor] = {}
        """What transcoders read whose splices are still to come, by the site that each reconstructs."""
        self._latents: dict[Site, SplicedLatents] = {}
        """Latents that write to layers that are still to come, by site."""
        self.values: dict[Site, torch.Tensor] = {}
        """Recorded values, detached, [b, ...]."""
        self.attached: dict[Site, torch.Tensor] = {}
        """Recorded values attached to the graph, [b, ...]."""
        self.last_residual: torch.Tensor | None = None
        """The residual [b, T, d] that the pass ended with, detached: not finite if any value before it was not."""

    @property
    def graph_starts_at_layer(self) -> int | None:
        """First layer whose tensors need a graph: -1 for the embedding, None if no gradients are recorded."""
        starts = [
            -1 if location is _L.RESID_POST_EMBEDDING else _AFTER_ALL_LAYERS if layer is None else layer
            for location, layer in self._wanted_attached
        ]
        return min(starts, default=None)

    def touches(self, location: ActivationLocationType, layer: int | None) -> bool:
        """Whether anything happens at a site, so that its tensor must be made."""
        site = (location, layer)
        if site in self._recorded or site in self.splices:
            return True
        return any(one.is_at(layer) for one in self._interventions.get(location, ()))

    def visit(self, location: ActivationLocationType, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        """Record, change and splice the tensor *x* [b, ...] of a site; the result takes its place in the forward
        pass."""
        self.check()
        site = (location, layer)
        if location is _L.RESID_POST_MLP:
            self._end_layer(x)
        if location in self._interventions:
            x = self._change_and_record(site, x)
        elif site in self._recorded:
            self._record(site, x)
        splice = self.splices.get(site)
        return x if splice is None else self._splice(splice, x)

    # What is read of the residual: a subclass may give readers inputs of their own.

    def qkv(self, index: int, layer: Layer, x: torch.Tensor, qkv: Qkv) -> Qkv:
        """Queries [b, T, H, c], keys and values [b, T, KV or H, c] of a layer that the residual *x* [b, T, d] enters.

        *qkv* are those that heads have which read *x*.
        """
        del index, layer, x
        return qkv

    def mlp_input(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """What the MLP of a layer reads, [b, T, d], where the residual is *x*."""
        del index
        return x

    def mlp_reads(
        self, index: int, norm: Norm, x: torch.Tensor, *, scale: torch.Tensor | None, normed: torch.Tensor
    ) -> None:
        """Remember what the transcoder of a layer reads, if one is spliced in.

        Args:
            index: the layer.
            norm: the norm before its MLP.
            x: the residual [b, T, d] that the norm is of.
            scale: the scale of the norm, if it was tapped.
            normed: what comes out of the norm, [b, T, d].
        """
        splice = self.splices.get((_L.RESID_DELTA_MLP, index))
        if splice is None or splice.input.output is None:
            return
        read = {ModelNorm.NONE: x, ModelNorm.MLP_NORM: normed}.get(splice.autoencoder.input_norm)
        if read is None:
            read = norm.without_gain(x, self.propagation.scale(norm, x) if scale is None else scale)
        self._awaiting[splice.site] = read

    def final_input(self, x: torch.Tensor) -> torch.Tensor:
        """What the final norm reads, [b, T, d], where the residual is *x*."""
        return x

    def _end_layer(self, x: torch.Tensor) -> None:
        """What is done once per layer with its output *x*, in the forward pass and in gradient passes."""
        if x.is_cuda:
            self._pacing.launched()
        if x.requires_grad:
            x.register_hook(self._checks_backward())

    def _checks_backward(self) -> Callable[[torch.Tensor], None]:
        """A hook that makes the check. It refers to no tensor, and so keeps no graph alive."""
        check, pacing = self.check, self._pacing

        def hook(gradient: torch.Tensor) -> None:
            check()
            if gradient.is_cuda:
                pacing.launched()

        return hook

    def _record(self, site: Site, x: torch.Tensor) -> None:
        if site in self._wanted:
            self.values[site] = x.detach()
        if site in self._wanted_attached:
            self.attached[site] = x

    def _change_and_record(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        here = [one for one in self._interventions[site[0]] if one.is_at(site[1])]
        forward = [one for one in here if one.gradient_pass is None]
        backward = [one for one in here if one.gradient_pass is not None]
        if forward:
            x = _changed(x, forward)
        arriving = x
        if backward and x.requires_grad:
            x.register_hook(lambda gradient: self._changed_gradient(gradient, backward))
            # A separate view, so that the recorded gradient is the one that arrives, before the hook changes it.
            arriving = x.view_as(x)
        self._record(site, arriving)
        return arriving

    def _changed_gradient(self, gradient: torch.Tensor, interventions: list[RowIntervention]) -> torch.Tensor:
        """*gradient* after the interventions of the current gradient pass."""
        mine = [one for one in interventions if one.gradient_pass == self._gradient_pass]
        return _changed(gradient, mine) if mine else gradient

    def _splice(self, splice: Splice, y: torch.Tensor) -> torch.Tensor:
        """Replace *y* by reconstruction plus error; equal to it unless latents or errors are changed."""
        taps, layer, site = splice.input, splice.layer, splice.latent_site
        x = y if taps.output is None else self._awaiting.pop(splice.site)
        made = splice.autoencoder.encode(x)
        # The error reads the untapped latents, so the tapped ones must be a tensor of their own in the graph.
        tapped = self.visit(taps.latent_tap, layer, made.view_as(made))
        if tapped.requires_grad:  # its backward pass may cost more than a layer's
            tapped.register_hook(self._checks_backward())
        latents = SplicedLatents(made, tapped, self._is_differentiated(site))
        if splice.is_read_later:
            self._latents[site] = latents
        earlier = {at: self._latents[taps.latent_tap, at] for at in splice.earlier}
        before, after = splice.decode({**earlier, layer: latents}, x)
        output = after + self.visit(require(taps.error_tap), layer, y - before)
        return output if taps.output_tap is None else self.visit(taps.output_tap, layer, output)

    def _is_differentiated(self, site: Site) -> bool:
        """Whether gradients at a site are recorded, or changed."""
        changes = (one for one in self._interventions.get(site[0], ()) if one.is_at(site[1]))
        return site in self._wanted_attached or any(one.gradient_pass is not None for one in changes)

    def gradients(
        self, origin: torch.Tensor, *, gradient_pass: int = 0, keeps_graph: bool = False
    ) -> dict[Site, torch.Tensor]:
        """Gradient of the scalar *origin* at every attached site that it depends on, [b, ...].

        Args:
            origin: the scalar to differentiate.
            gradient_pass: which pass it is; gradients are changed by its interventions.
            keeps_graph: whether another pass follows.
        """
        reached = {site: x for site, x in self.attached.items() if x.requires_grad}
        if not reached or not origin.requires_grad:
            return {}
        self._gradient_pass = gradient_pass
        found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
            origin, list(reached.values()), allow_unused=True, retain_graph=keeps_graph
        )
        return {site: gradient for site, gradient in zip(reached, found, strict=True) if gradient is not None}


def _changed(x: torch.Tensor, interventions: list[RowIntervention]) -> torch.Tensor:
    """A copy of *x* [b, ...] with *interventions* applied in order."""
    x = x.clone()
    for one in interventions:
        one.change(x)
    return x
