"""Attention heads: at a pair of tokens, and at a query token summed over keys.

A pair writes A[t,u,h] v[u,h] W_O[h]: its coefficient is the attention probability, and its direction the key's value
through the head's output matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from dst_grpc.domain.components import AttentionTraceType, LocationWithinLayer, NodeType, PreOrPostAct
from dst_grpc.domain.components import Component as Kind
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.layer import unit_write
from dst_grpc.errors import require
from dst_grpc.scalars.components.base import EVERY_TOKEN, LayerOfRun, Writer, Writes, registered, times
from dst_grpc.scalars.components.nodes import NodeComponent
from dst_grpc.scalars.components.scaled import ScaledWrites
from dst_grpc.scalars.write_directions import HeadChannels, ValueDirections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.taps import Site
    from dst_grpc.scalars.explained_model import ExplainedModel
    from dst_grpc.scalars.token_vectors import TokenVectors

_L = ActivationLocationType


@registered(Kind.HEAD_PAIR)
class HeadPair(NodeComponent):
    """A head h at a query token t and a key token u."""

    through: ClassVar[AttentionTraceType] = AttentionTraceType.QK
    """The inputs of the head that depend on the residual in a recomputation; the others are constants."""
    tap = _L.ATTN_QK_PROBS
    node_type = NodeType.ATTENTION_HEAD
    location = LocationWithinLayer.ATTN
    post_norm_scale = _L.ATTN_OUTPUT_LAYER_NORM_SCALE

    def activation_sites(self, layer: int | None) -> Iterator[Site]:
        """Probabilities and values."""
        yield _L.ATTN_QK_PROBS, layer
        yield _L.ATTN_VALUE, layer

    def directions(self, run: LayerOfRun) -> ValueDirections:
        """v[u,h] W_O[h], [U, H, d]."""
        return ValueDirections(run.block, run.value(_L.ATTN_VALUE))

    def bind(self, run: LayerOfRun) -> HeadPairWrites:
        """The heads of one layer of one run."""
        return HeadPairWrites(self, run)

    def recompute(
        self, model: ExplainedModel, layer: int, rho: torch.Tensor, *, at: PreOrPostAct, detach_scale: bool
    ) -> torch.Tensor:
        """Probabilities [T, U, H], or before the softmax the scores."""
        block = model.decoder.layers[layer]
        q, k, _ = heads(block, rho, self.through, detach_scale=detach_scale)
        scores = block.attn_scores(q, k)
        return block.attn_probs(scores) if at is PreOrPostAct.POST else scores


class HeadPairWrites(ScaledWrites):
    """A [T, U, H] times v W_O [U, H, d]."""

    directions: ValueDirections

    def activation(self, tokens: slice = EVERY_TOKEN) -> torch.Tensor:
        """A v [T, U, H, c]."""
        return self.value[tokens].unsqueeze(-1) * self.directions.values

    def autoencoder_input(self) -> torch.Tensor:
        """A row per pair of tokens and head, [P H, d], without computing the upper triangle."""
        t, u = torch.tril_indices(*self.coefficients.shape[:2], device=self.coefficients.device)
        writes = self.coefficients[t, u].unsqueeze(-1) * self.directions.matrix()[u]
        return writes.flatten(0, 1)


@registered(Kind.QUERY)
class Query(HeadPair):
    """A head at a pair of tokens, as reached through its query."""

    through = AttentionTraceType.Q


@registered(Kind.KEY)
class Key(HeadPair):
    """A head at a pair of tokens, as reached through its key."""

    through = AttentionTraceType.K


@registered(Kind.VALUE)
class Value(HeadPair):
    """A head at a pair of tokens, as reached through its value: the activation of an edge is A[t,u,h] v[u,h].

    Its gradient is that of the weighted sum of values, [T, H, c], of which it is a term.
    """

    tap = _L.ATTN_WEIGHTED_SUM_OF_VALUES
    through = AttentionTraceType.V

    def edge_end(
        self, model: ExplainedModel, layer: int, rho: torch.Tensor, gradient: torch.Tensor | None, *, detach_scale: bool
    ) -> torch.Tensor:
        """A[t,u,h] v[u,h] . gradient[t,h], [T, U, H]; the probabilities are constants."""
        block = model.decoder.layers[layer]
        q, k, v = heads(block, rho, self.through, detach_scale=detach_scale)
        probs = block.attn_probs(block.attn_scores(q, k))
        return probs * torch.einsum("uhc,thc->tuh", v, require(gradient))


@registered(Kind.HEAD_AT_TOKEN)
class HeadAtToken(Writer):
    """A head h at a query token t, summed over keys: writes o[t,h] W_O[h], o the weighted sum of values."""

    tap = _L.ATTN_WEIGHTED_SUM_OF_VALUES
    location = LocationWithinLayer.ATTN
    post_norm_scale = _L.ATTN_OUTPUT_LAYER_NORM_SCALE

    def directions(self, run: LayerOfRun) -> HeadChannels:
        """W_O [H c, d]."""
        return HeadChannels(run.block)

    def bind(self, run: LayerOfRun) -> HeadAtTokenWrites:
        """The heads of one layer of one run."""
        return HeadAtTokenWrites(self, run)


class HeadAtTokenWrites(Writes):
    """o [T, H, c] times W_O [H, c, d], head by head."""

    @property
    def _written(self) -> torch.Tensor:
        """The weighted sums of values times the write factor, [T, H, c]."""
        return times(self.value, self.component.write_factor(self.run))

    def write(self, tokens: slice = EVERY_TOKEN) -> torch.Tensor:
        """[T, H, d]."""
        block = self.run.block
        written = torch.einsum("thc,hcd->thd", self._written[tokens], block.attn_out)
        return unit_write(written, block.attn_post_norm)

    def write_norm(self) -> torch.Tensor:
        """[T, H]."""
        triangle = self.run.block.attn_out_triangle
        return torch.linalg.vector_norm(torch.einsum("hij,thj->thi", triangle, self._written), dim=-1)

    def project(self, direction: TokenVectors) -> torch.Tensor:
        """[T, H]."""
        written, used = self._written, direction.tokens
        result = written.new_zeros(written.shape[:2])
        if len(used):
            read = direction.read_by(HeadChannels(self.run.block))
            result[used] = (written[used] * read.unflatten(-1, written.shape[1:])).sum(dim=-1)
        return result


def heads_through(through: AttentionTraceType) -> type[HeadPair]:
    """Heads at pairs of tokens, as reached through some of their inputs."""
    return next(heads for heads in (HeadPair, Query, Key, Value) if heads.through is through)


def heads(
    layer: Layer, rho: torch.Tensor, through: AttentionTraceType, *, detach_scale: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys [T, H, c] and values [U, H, c] of the residual *rho* [T, d]; only *through* passes gradient."""
    q, k, v = layer.qkv(layer.attn_norm(rho, detach_scale=detach_scale))
    if through in {AttentionTraceType.K, AttentionTraceType.V}:
        q = q.detach()
    if through in {AttentionTraceType.Q, AttentionTraceType.V}:
        k = k.detach()
    return q, k, v
