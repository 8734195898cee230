"""The local replacement model run forward with units of every kind, one node changed: what edges are compared with.

What units stand for stays as in the unchanged run, but for what the change adds to it; what they read is computed from
what would have been there. It shares nothing with the engine of graphs but the classes of nodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dst_grpc.domain.autoencoders import InputNormalization
from dst_grpc.domain.graph_node_table import GraphNodeKind
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.scalar_types import DerivedScalarType as D
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.norm import Norm
from dst_grpc.engine.taps import Site, site_entering
from dst_grpc.graphs.nodes import GraphNodes
from dst_grpc.graphs.sources import Sources

from .frozen_run import CONSTANT, Watched

_K = GraphNodeKind
TAPS = {
    D.RESID_DELTA_ATTN: L.RESID_DELTA_ATTN,
    D.RESID_POST_ATTN: L.RESID_POST_ATTN,
    D.MLP_POST_ACT: L.MLP_POST_ACT,
    D.RESID_DELTA_MLP: L.RESID_DELTA_MLP,
    D.RESID_POST_MLP: L.RESID_POST_MLP,
}
_PLACES = {D.MLP_POST_ACT: L.RESID_DELTA_MLP}
"""Where latents write to the residual stream, where that is not what they read."""
_OF_KIND = {
    _K.ATTENTION_LATENT: (D.RESID_DELTA_ATTN,),
    _K.ATTENTION_ERROR: (D.RESID_DELTA_ATTN,),
    _K.MLP_LATENT: (D.MLP_POST_ACT, D.RESID_DELTA_MLP),
    _K.ERROR: (D.MLP_POST_ACT, D.RESID_DELTA_MLP),
    _K.RESIDUAL_LATENT: (D.RESID_POST_ATTN, D.RESID_POST_MLP),
    _K.RESIDUAL_ERROR: (D.RESID_POST_ATTN, D.RESID_POST_MLP),
}


class _Pass(Watched):
    """A pass in which what is constant, and what units stand for, is as in the unchanged run, plus *writes*."""

    def __init__(self, run: FrozenUnits, embedding: torch.Tensor, writes: dict[Site, torch.Tensor]) -> None:
        super().__init__()
        self._run, self._embedding, self._writes = run, embedding, writes
        self.arriving: dict[Site, torch.Tensor] = {}
        """What would have been at each tap."""
        self.neurons: dict[int, torch.Tensor] = {}
        """The changes of the neurons of layers, once they are asked for, [T, F]."""

    def visit(self, location: L, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        site = (location, layer)
        self.arriving[site] = x[0]
        if location in CONSTANT:
            x = self._run.base[site][None]
        elif location is L.RESID_POST_EMBEDDING:
            x = x + self._embedding
        elif site in self._run.replaced:
            x = self._run.base[site][None] + self._writes.get(site, 0.0)
            if location is L.RESID_DELTA_MLP and layer is not None:
                x = x + self._run.skipped(layer, self.seen)
        return super().visit(location, layer, x)


class FrozenUnits:
    """A prompt's unchanged run, what each node writes in it, and by how much each differs in another."""

    def __init__(self, decoder: Decoder, sources: Sources, nodes: GraphNodes, n_zeroed: int) -> None:
        self._decoder, self._sources, self._nodes, self._n_zeroed = decoder, sources, nodes, n_zeroed
        watched = Watched()
        decoder.forward(torch.from_numpy(nodes.token_ids)[None], watched)
        self.base = watched.seen
        layers = range(decoder.config.n_layers)
        self.replaced = {(L.RESID_DELTA_MLP, layer) for layer in layers}
        if sources.has_heads:
            self.replaced |= {(L.RESID_DELTA_ATTN, layer) for layer in layers}
        for dst, by_layer in sources.autoencoders.items():
            self.replaced |= {(_PLACES.get(dst, TAPS[dst]), layer) for layer in by_layer}

    def column(self, node: int) -> Any:
        """What *node* adds to what every node reads, [n]."""
        nodes = self._nodes
        embedding, writes = torch.zeros(()), dict[Site, torch.Tensor]()
        if nodes.kind(node) is _K.EMBEDDING:
            token = nodes.embedding(node)
            embedding = self._at(token, self._decoder.embed(torch.tensor(nodes.token_ids[token])))
        else:
            writes = self.writes(node)
        taps = _Pass(self, embedding, writes)
        self._decoder.forward(torch.from_numpy(nodes.token_ids)[None], taps)
        last = (L.RESID_POST_MLP, self._decoder.config.n_layers - 1)
        norm, scale = self._decoder.final_norm, self.base[L.RESID_FINAL_LAYER_NORM_SCALE, None]
        final = norm.apply(taps.seen[last], scale)[-1] - norm.apply(self.base[last], scale)[-1]
        targets = torch.from_numpy(nodes.targets.vectors).double() @ final
        units = [float(self._read(one, taps)) for one in range(nodes.n_features)]
        return np.array([*units, *[0.0] * (nodes.first_target - nodes.first_error), *targets])

    def writes(self, node: int) -> dict[Site, torch.Tensor]:
        """What a unit or an error adds to each site, [T, d]."""
        nodes, kind = self._nodes, self._nodes.kind(node)
        if node >= nodes.first_error:
            layer, token = nodes.error(node)
            site = {_K.ATTENTION_ERROR: L.RESID_DELTA_ATTN, _K.ERROR: L.RESID_DELTA_MLP}.get(kind)
            missed = self._missed(kind, layer)
            return {(site or self._place(kind, layer), layer): self._at(token, missed[token])}
        layer, token, number = nodes.feature(node)
        activation = float(nodes.activations[nodes.selected[node]])
        block = self._decoder.layers[layer]
        match kind:
            case _K.FEATURE:
                transcoders, one = self._sources.transcoders, torch.tensor([number])
                assert transcoders is not None
                return {
                    (L.RESID_DELTA_MLP, written): self._at(
                        token, activation * transcoders.decoder_rows(layer, one, written)[0]
                    )
                    for written in transcoders.written_layers(layer)
                }
            case _K.NEURON:
                value = self.base[L.MLP_POST_ACT, layer][token, number]
                assert float(value) == np.float32(activation) or abs(float(value) - activation) < 1e-6
                row = self._through(
                    block.mlp_post_norm, L.MLP_OUTPUT_LAYER_NORM_SCALE, layer, token, block.mlp_out[number]
                )
                return {(L.RESID_DELTA_MLP, layer): self._at(token, value * row)}
            case _K.HEAD:
                return {(L.RESID_DELTA_ATTN, layer): self._at(token, self._head_write(self.base, layer, token, number))}
        dst, autoencoder, x = self._autoencoder(kind, layer)
        row = autoencoder.decoder[:, number] * autoencoder.encode(x)[token, number]
        scale = autoencoder.write_scale(x)
        return {
            (_PLACES.get(dst, TAPS[dst]), layer): self._at(
                token, self._out(dst, layer, token, row if scale is None else row * scale[token])
            )
        }

    def skipped(self, layer: int, seen: dict[Site, torch.Tensor]) -> torch.Tensor | float:
        """The change of the write of a skip connection."""
        transcoders = self._sources.transcoders
        if transcoders is None or not transcoders.has_layer(layer) or transcoders.skip(layer) is None:
            return 0.0
        skip = transcoders.skip(layer)
        assert skip is not None
        return self._input_change(layer, seen) @ skip.t()

    def _read(self, node: int, taps: _Pass) -> torch.Tensor:
        """The change of what a unit reads."""
        layer, token, number = self._nodes.feature(node)
        kind = self._nodes.kind(node)
        match kind:
            case _K.FEATURE:
                assert self._sources.transcoders is not None
                row = self._sources.transcoders.encoder_rows(layer, torch.tensor([number]))[0]
                return self._input_change(layer, taps.seen)[token] @ row
            case _K.NEURON:
                return self._neurons(layer, taps)[token, number]
            case _K.HEAD:
                own = self._head_write(self.base, layer, token, number)
                change = self._head_write(taps.arriving, layer, token, number) - own
                return change @ torch.nn.functional.normalize(own, dim=0)
        dst, autoencoder, x = self._autoencoder(kind, layer)
        if dst in {D.MLP_POST_ACT, D.RESID_DELTA_MLP}:
            change = self._neurons(layer, taps)[token]
            if dst is D.RESID_DELTA_MLP:
                change = self._out(D.MLP_POST_ACT, layer, token, change)
        else:
            change = (taps.arriving[TAPS[dst], layer] - self.base[TAPS[dst], layer])[token]
        if autoencoder.normalization in {InputNormalization.CENTRED, InputNormalization.LAYER_NORM}:
            change = change - change.mean()
        if autoencoder.normalization is InputNormalization.LAYER_NORM:
            change = change / (x[token].std() + 1e-5)
        if autoencoder.normalization is InputNormalization.CONSTANT_NORM:
            change = change / (x[token].norm() / len(change) ** 0.5)
        return change @ autoencoder.encoder[number]

    def _neurons(self, layer: int, taps: _Pass) -> torch.Tensor:
        """The changes of neurons, [T, F], each factor of which changes in proportion to what it is made of."""
        if layer not in taps.neurons:
            taps.neurons[layer] = self._neurons_of(layer, taps.seen)
        return taps.neurons[layer]

    def _neurons_of(self, layer: int, seen: dict[Site, torch.Tensor]) -> torch.Tensor:
        block, scale = self._decoder.layers[layer], self.base[L.MLP_INPUT_LAYER_NORM_SCALE, layer]
        before, after = (block.mlp_norm.apply(one[self._mlp_site(layer)], scale) for one in (self.base, seen))
        pre, up = block.mlp_pre_act(before), block.mlp_up(before)
        act = block.mlp_act(pre)
        of_act = act * (block.mlp_pre_act(after) - pre) / pre
        later = block.mlp_up(after)
        return of_act if up is None or later is None else (of_act * up + act * (later - up)) / 2

    def _head_write(self, taps: dict[Site, torch.Tensor], layer: int, token: int, head: int) -> torch.Tensor:
        block = self._decoder.layers[layer]
        row = taps[L.ATTN_WEIGHTED_SUM_OF_VALUES, layer][token, head] @ block.attn_out[head]
        return self._through(block.attn_post_norm, L.ATTN_OUTPUT_LAYER_NORM_SCALE, layer, token, row)

    def _through(self, norm: Norm | None, scale: L, layer: int, token: int, row: torch.Tensor) -> torch.Tensor:
        """*row* [d] through a norm of what is written, with its scale as it was."""
        if norm is None:
            return row
        at = self.base[scale, layer][token]
        return norm.apply(row, at) - norm.apply(0 * row, at)

    def _out(self, dst: D, layer: int, token: int, row: torch.Tensor) -> torch.Tensor:
        """A *row* of what an autoencoder reads, as it is in the residual stream."""
        if dst is not D.MLP_POST_ACT:
            return row
        block = self._decoder.layers[layer]
        return self._through(block.mlp_post_norm, L.MLP_OUTPUT_LAYER_NORM_SCALE, layer, token, row @ block.mlp_out)

    def _missed(self, kind: GraphNodeKind, layer: int) -> torch.Tensor:
        """Errors of a layer, [T, d]."""
        found = self._find(kind, layer)
        if found is None:
            missed = self.base[L.RESID_DELTA_MLP, layer].clone()
            transcoders = self._sources.transcoders
            if transcoders is not None and transcoders.has_layer(layer):
                missed -= transcoders.bias(layer)
                skip = transcoders.skip(layer)
                if skip is not None:
                    missed -= self._input(layer, self.base) @ skip.t()
                for node in np.flatnonzero(self._nodes.feature_kinds == _K.FEATURE.number):
                    missed -= self.writes(int(node)).get((L.RESID_DELTA_MLP, layer), torch.zeros(()))
            missed[: self._n_zeroed] = 0
            return missed
        dst, autoencoder, x = found
        missed = x - autoencoder.decode(autoencoder.encode(x), x)
        if autoencoder.normalization in {InputNormalization.CENTRED, InputNormalization.LAYER_NORM}:
            missed = missed + x.mean(dim=1, keepdim=True)
        return torch.stack([self._out(dst, layer, token, row) for token, row in enumerate(missed)])

    def _autoencoder(self, kind: GraphNodeKind, layer: int) -> tuple[D, Autoencoder, torch.Tensor]:
        found = self._find(kind, layer)
        assert found is not None
        return found

    def _find(self, kind: GraphNodeKind, layer: int) -> tuple[D, Autoencoder, torch.Tensor] | None:
        """The autoencoder of a node, and what it reads [T, x]; None if there is none."""
        for dst in _OF_KIND[kind]:
            if layer in self._sources.autoencoders.get(dst, {}):
                return dst, self._sources.autoencoders[dst][layer], self.base[TAPS[dst], layer]
        return None

    def _place(self, kind: GraphNodeKind, layer: int) -> L:
        return TAPS[self._autoencoder(kind, layer)[0]]

    def _mlp_site(self, layer: int) -> Site:
        return site_entering(layer) if self._decoder.config.parallel else (L.RESID_POST_ATTN, layer)

    def _input(self, layer: int, seen: dict[Site, torch.Tensor]) -> torch.Tensor:
        """What the transcoder of *layer* reads, without a norm."""
        return seen[self._mlp_site(layer)]

    def _input_change(self, layer: int, seen: dict[Site, torch.Tensor]) -> torch.Tensor:
        return self._input(layer, seen) - self._input(layer, self.base)

    def _at(self, token: int, row: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(self._nodes.n_tokens, self._decoder.config.d_model, dtype=torch.float64)
        found[token] = row
        return found
