"""The transcoders of a model's MLPs: per layer (PLT), or across layers (CLT), behind one interface.

With x_l [T, d] what layer l reads, the MLP's write to the residual stream at layer m is reconstructed as

    a_l = phi_l(x_l Wenc_l^T + b_l)                                        features of layer l, [T, F]
    y_m = sum over l that write to m of a_l D_l,m  +  b_dec,m  +  x_m Wskip_m^T

Features of a per-layer transcoder write to their own layer, those of a cross-layer transcoder to every layer from their
own on. Ameisen et al. 2025, "Circuit tracing", section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from dst_grpc.engine.autoencoder_input import normed
from dst_grpc.engine.norm import wide

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dst_grpc.domain.autoencoders import ModelNorm
    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.layer import Layer

ACTIVATIONS_AT_ONCE = 1 << 24
"""Activations that are in memory at once while the active ones are looked for, if a token has no more."""
_ROWS_AT_ONCE = 4096
"""Rows of decoders that a reconstruction reads at once."""


@dataclass(frozen=True, slots=True, eq=False)
class ActiveFeatures:
    """The features of one layer that are active, in order of token, then feature."""

    tokens: torch.Tensor
    """Tokens [n]."""
    features: torch.Tensor
    """Features [n]."""
    values: torch.Tensor
    """Activations [n], none of them 0; float32 or wider."""

    def __len__(self) -> int:
        """N."""
        return len(self.values)

    @classmethod
    def of(cls, activations: torch.Tensor) -> ActiveFeatures:
        """Those of dense *activations* [T, F]."""
        tokens, features = activations.nonzero(as_tuple=True)
        return cls(tokens, features, activations[tokens, features])


class TranscoderLayer(Protocol):
    """The features of one layer."""

    @property
    def n_features(self) -> int:
        """F."""

    @property
    def input_norm(self) -> ModelNorm:
        """The norm of the layer that is applied to the residual before it is read."""

    @property
    def written(self) -> range:
        """The layers whose MLP's write it reconstructs a part of."""

    @property
    def decoder_bias(self) -> torch.Tensor:
        """b_dec [d] of its own layer."""

    @property
    def skip(self) -> torch.Tensor | None:
        """Wskip [d, d] of its own layer; None if the write depends on the input only through the features."""

    @property
    def parameter_bytes(self) -> int:
        """Bytes of its weights in memory."""

    @property
    def file_bytes(self) -> int:
        """Bytes of its weights that stay in files."""

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [T, F] of inputs *x* [T, d], float32 or wider."""

    def active(self, x: torch.Tensor) -> ActiveFeatures:
        """The active ones of `activations`, which are never in memory as a whole if they are many."""

    def encoder_rows(self, features: torch.Tensor) -> torch.Tensor:
        """Wenc of *features* [n]: [n, d], float32 or wider."""

    def decoder_rows(self, features: torch.Tensor, written: int) -> torch.Tensor:
        """What *features* [n] write to layer *written* of `written` at an activation of 1: [n, d], float32 or wider."""


def active_in_parts(layer: TranscoderLayer, x: torch.Tensor, *, at_once: int = ACTIVATIONS_AT_ONCE) -> ActiveFeatures:
    """The active features of *layer* at inputs *x* [T, d], from the activations of some tokens, *at_once* or less."""
    n_at_once = max(1, at_once // layer.n_features)
    parts = [ActiveFeatures.of(layer.activations(some)) for some in x.split(n_at_once)]
    return ActiveFeatures(
        torch.cat([part.tokens + i * n_at_once for i, part in enumerate(parts)]),
        torch.cat([part.features for part in parts]),
        torch.cat([part.values for part in parts]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class PerLayerTranscoder:
    """An `Autoencoder` that predicts an MLP's write from its input, without a normalization of its own."""

    layer: int
    """Its layer."""
    autoencoder: Autoencoder
    """Its weights."""

    @property
    def n_features(self) -> int:
        """F."""
        return self.autoencoder.n_latents

    @property
    def input_norm(self) -> ModelNorm:
        """The norm of the layer that is applied to the residual before it is read."""
        return self.autoencoder.input_norm

    @property
    def written(self) -> range:
        """Its own layer."""
        return range(self.layer, self.layer + 1)

    @property
    def decoder_bias(self) -> torch.Tensor:
        """b_dec [d]."""
        return wide(self.autoencoder.output_bias)

    @property
    def skip(self) -> torch.Tensor | None:
        """Wskip [d, d], if it has one."""
        return None if self.autoencoder.skip is None else wide(self.autoencoder.skip)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of its weights."""
        return self.autoencoder.parameter_bytes

    @property
    def file_bytes(self) -> int:
        """0: all are in memory."""
        return 0

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [T, F] of inputs *x* [T, d]."""
        return wide(self.autoencoder.encode(x))

    def active(self, x: torch.Tensor) -> ActiveFeatures:
        """The active ones of them."""
        return active_in_parts(self, x)

    def encoder_rows(self, features: torch.Tensor) -> torch.Tensor:
        """Wenc of *features* [n]: [n, d]."""
        return _rows(self.autoencoder.encoder, features)

    def decoder_rows(self, features: torch.Tensor, written: int) -> torch.Tensor:  # noqa: ARG002  its own layer
        """What *features* [n] write: [n, d]."""
        return _rows(self.autoencoder.decoder.t(), features)


def _rows(matrix: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows of *matrix* at *indices* [n], float32 or wider, read in the order in which they lie in memory."""
    if matrix.stride(1) == 1:
        return wide(matrix.index_select(0, indices))
    return wide(matrix.t().index_select(1, indices).t())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Transcoders:
    """The transcoders of a model, at most one per layer. Weights are frozen, and nothing here holds state of a call."""

    n_layers: int
    """Layers of the model."""
    by_layer: Mapping[int, TranscoderLayer]
    """Those that there are."""

    @classmethod
    def per_layer(cls, n_layers: int, by_layer: Mapping[int, Autoencoder]) -> Transcoders:
        """Those of *by_layer* in a model of *n_layers*."""
        return cls(n_layers, {layer: PerLayerTranscoder(layer, one) for layer, one in by_layer.items()})

    @property
    def is_cross_layer(self) -> bool:
        """Whether features write to other layers than their own."""
        return any(len(one.written) > 1 for one in self.by_layer.values())

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return sum(one.parameter_bytes for one in self.by_layer.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of the weights that stay in files, and are read as they are needed."""
        return sum(one.file_bytes for one in self.by_layer.values())

    def has_layer(self, layer: int) -> bool:
        """Whether *layer* has a transcoder. The MLP's write is unexplained where none writes."""
        return layer in self.by_layer

    def n_features(self, layer: int) -> int:
        """F of *layer*; 0 if it has none."""
        return self.by_layer[layer].n_features if layer in self.by_layer else 0

    def input_norm(self, layer: int) -> ModelNorm:
        """The norm of *layer* that is applied to the residual between attention and MLP before it is read."""
        return self.by_layer[layer].input_norm

    def input(self, layer: int, residual: torch.Tensor, block: Layer) -> torch.Tensor:
        """What the transcoder of *layer* reads, [T, d].

        Args:
            layer: its layer.
            residual: what `input_site` of RESID_POST_ATTN records there, [T, d].
            block: the layer of the model.
        """
        return normed(self.input_norm(layer), residual, block)

    def activations(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Activations [T, F] of *layer* at inputs *x* [T, d], float32 or wider. `active` takes less memory."""
        return self.by_layer[layer].activations(x)

    def active(self, layer: int, x: torch.Tensor, *, first: int = 0) -> ActiveFeatures:
        """The active features of *layer* at inputs *x* [T, d]; none at the tokens before *first*."""
        found = self.by_layer[layer].active(x[first:])
        return ActiveFeatures(found.tokens + first, found.features, found.values) if first else found

    def encoder_rows(self, layer: int, features: torch.Tensor) -> torch.Tensor:
        """Wenc of *features* [n] of *layer*, at what `input` gives: [n, d], float32 or wider."""
        return self.by_layer[layer].encoder_rows(features)

    def written_layers(self, layer: int) -> range:
        """The layers to whose MLP's write the features of *layer* contribute; *layer* is the first."""
        return self.by_layer[layer].written

    def decoder_rows(self, layer: int, features: torch.Tensor, written: int) -> torch.Tensor:
        """What *features* [n] of *layer* write to layer *written* at an activation of 1: [n, d], float32 or wider."""
        return self.by_layer[layer].decoder_rows(features, written)

    def bias(self, layer: int) -> torch.Tensor:
        """b_dec [d] of *layer*."""
        return self.by_layer[layer].decoder_bias

    def skip(self, layer: int) -> torch.Tensor | None:
        """Wskip [d, d] of *layer*: x Wskip^T is added to the write. None if it has none."""
        return self.by_layer[layer].skip

    def reconstruction(self, written: int, active: Mapping[int, ActiveFeatures], x: torch.Tensor) -> torch.Tensor:
        """The MLP's write of layer *written* as features explain it, y [T, d], float32 or wider.

        Args:
            written: a layer that has a transcoder.
            active: the active features of all layers that write there; others are ignored.
            x: the input of the transcoder of *written*, [T, d].
        """
        x = wide(x)
        total = self.bias(written).to(x.dtype).repeat(len(x), 1)
        skip = self.skip(written)
        if skip is not None:
            total += x @ skip.to(x.dtype).t()
        for layer, found in active.items():
            if written in self.written_layers(layer):
                for rows, tokens, values in self._writes(layer, found, written):
                    total.index_add_(0, tokens, (values.unsqueeze(1) * rows).to(x.dtype))
        return total

    def _writes(
        self, layer: int, found: ActiveFeatures, written: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Rows, tokens and values of *found*, some at a time, in order of features, so that each row is read once."""
        order = found.features.argsort(stable=True)
        for some in order.split(_ROWS_AT_ONCE):
            features, inverse = torch.unique_consecutive(found.features[some], return_inverse=True)
            rows = self.decoder_rows(layer, features, written)
            yield rows[inverse], found.tokens[some], found.values[some]

    def __repr__(self) -> str:
        """Kind and sizes."""
        kind = "cross-layer" if self.is_cross_layer else "per-layer"
        return f"Transcoders({kind}, {len(self.by_layer)} of {self.n_layers} layers)"
