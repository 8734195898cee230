"""One layer of the local replacement model: attention, skip connection and what the MLP reads, which are linear. They
carry gradients back, and changes of the residual on.

With the pattern P [H, T, U], the norm before attention at scale s [U] and the norm after it at scale r [T] constant,
attention's write to the residual is linear in the residual x [U, d] that enters the layer, but for biases:

    write[t] = sum over h, u of  P[h, t, u] / (r[t] s[u])  unit(x[u]) WV[h] unit'(WO[h])

where unit and unit' are the norms at scale 1 (`Norm.unit`). Scales are multiplied into the pattern, and norms at scale
1 into the weights, so that a gradient is carried back by two products with matrices and one with the pattern.

Shapes: n gradient, T and U token, d residual channel, F neuron, H head, G group of heads that share values, s head of
a group, c channel of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.autoencoders import ModelNorm
from dst_grpc.domain.components import AttentionTraceType
from dst_grpc.engine.layer import unit_read, unit_write
from dst_grpc.engine.norm import wide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.engine.layer import Layer
    from dst_grpc.graphs.recording import RecordedLayer

PATTERN_BYTES = 64 << 20
"""Most bytes of a pattern that are made at once, unless those of one group of heads take more."""
KEYS_AT_ONCE = 512
"""Keys that are multiplied at once."""


@dataclass(frozen=True, slots=True, eq=False)
class FrozenInput:
    """What the MLP of a layer, or its transcoder, reads of the residual, with the scale of the norm frozen."""

    layer: Layer
    """The weights of the layer."""
    norm: ModelNorm = ModelNorm.NONE
    """The norm that it reads through."""
    scale: torch.Tensor | None = None
    """The scale of that norm, [T, 1]; None if there is none."""

    def read(self, rows: torch.Tensor, tokens: slice | torch.Tensor) -> torch.Tensor:
        """Gradients [..., d] at the residual, from those at what is read, *rows* [..., d], at *tokens*."""
        return self.scaled(self.at_unit_scale(rows), tokens)

    def scaled(self, rows: torch.Tensor, tokens: slice | torch.Tensor) -> torch.Tensor:
        """*rows* [..., d] at *tokens* divided by the scale there, if there is one."""
        return rows if self.scale is None else rows / self.scale[tokens]

    def at_unit_scale(self, rows: torch.Tensor) -> torch.Tensor:
        """*rows* [..., d] that what is read is projected on, as what the residual is, at scale 1."""
        match self.norm:
            case ModelNorm.NONE:
                return rows
            case ModelNorm.MLP_NORM:
                return self.layer.mlp_norm.unit_transposed(rows)
            case ModelNorm.MLP_NORM_WITHOUT_GAIN:
                return self.layer.mlp_norm.centred(rows)


@dataclass(frozen=True, slots=True, eq=False)
class FrozenMlp:
    """The MLP of a layer as its units see it: linear, with `Layer.neuron_ratios` and the scales of norms frozen."""

    input: FrozenInput
    """What it reads."""
    residual: torch.Tensor
    """The residual that it reads, [T, d]."""
    scale: torch.Tensor | None
    """The scale of the norm of its output, [T, 1]; None if there is no such norm."""

    def of_neurons(self, neurons: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The gradients [n, d] of *neurons* [n] at *tokens* [n], at the residual."""
        return self.input.read(self.input.layer.frozen_neuron_rows(neurons, self._normed(tokens)), tokens)

    def through_neurons(self, gradients: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The gradients [n, d] at the residual, from those at neurons, *gradients* [n, F], at *tokens* [n]."""
        return self.input.read(self.input.layer.frozen_mlp_rows(gradients, self._normed(tokens)), tokens)

    def through_output(self, gradients: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The gradients [n, F] at neurons, from those at what the MLP writes, *gradients* [n, d], at *tokens* [n]."""
        layer = self.input.layer
        outputs = unit_read(gradients, layer.mlp_post_norm)
        return (outputs if self.scale is None else outputs / self.scale[tokens]) @ wide(layer.mlp_out).t()

    def written(self, outputs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """What terms of the output, *outputs* [n, d] at *tokens* [n], are in the residual stream: [n, d]."""
        outputs = unit_write(outputs, self.input.layer.mlp_post_norm)  # no longer two of them when divided
        return outputs if self.scale is None else outputs / self.scale[tokens]

    def _normed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.input.layer.mlp_norm(self.residual[tokens])


class FrozenLayer:
    """A layer with its pattern and the scales of its norms frozen."""

    def __init__(self, layer: Layer, recorded: RecordedLayer, skip: torch.Tensor | None, *, keeps: bool) -> None:
        """Freeze a layer.

        Args:
            layer: its weights.
            recorded: what is constant in it.
            skip: the skip connection Wskip [d, d] of its transcoder, if it has one.
            keeps: whether the pattern is kept once it is made; if not, it is made head by head whenever it is needed.
        """
        self._layer, self._recorded, self._input = layer, recorded, recorded.input
        values = wide(layer.value_weight)
        self.n_groups, self._n_channels = values.shape[1:]
        """Groups of heads that share values (G)."""
        self._read = layer.attn_norm.unit_transposed(values.flatten(1).t())  # [G c, d]
        self._write_transposed = unit_write(wide(layer.attn_out), layer.attn_post_norm).flatten(0, 1).t()  # [d, H c]
        self._skip = None if skip is None else self._input.at_unit_scale(wide(skip))
        self._keeps = keeps

    @torch.no_grad()
    def through_attention(self, gradients: torch.Tensor, n_dense: int, tokens: torch.Tensor) -> None:
        """Add to *gradients* [n, T, d] at the residual, in place, what they are at the residual before attention.

        Args:
            gradients: contiguous.
            n_dense: how many of them, the first ones, may be other than 0 at any token.
            tokens: the one token at which each of the others is other than 0, [n - n_dense].
        """
        own = torch.arange(n_dense, len(gradients), device=gradients.device)
        self.through_heads(gradients, n_dense, tokens, self.of_heads(gradients[own, tokens]))

    @torch.no_grad()
    def through_heads(
        self, gradients: torch.Tensor, n_dense: int, tokens: torch.Tensor, sparse_of_heads: torch.Tensor
    ) -> None:
        """As `through_attention`, given what sparse gradients are at the weighted sums of values of heads at their
        tokens, *sparse_of_heads* [n - n_dense, G, s, c], which may be of some heads alone."""
        n_tokens, width = gradients.shape[1:]
        dense, sparse = gradients[:n_dense].view(-1, width), gradients[n_dense:]
        of_heads = self.of_heads(dense).unflatten(0, (n_dense, n_tokens))
        mixed = dense.new_empty(n_dense, n_tokens, self.n_groups, self._n_channels)
        # What each head would add to a sparse gradient at a token that it attends to with weight 1.
        read = self._read.view(self.n_groups, self._n_channels, width)
        full = torch.einsum("ngsc,gcd->ngsd", sparse_of_heads, read)
        for groups, pattern in self._patterns(n_tokens):
            if n_dense:
                seen = of_heads[:, :, groups].permute(2, 3, 1, 0, 4).flatten(3)
                for some, sent in _sent_back(pattern, seen):
                    mixed[:, some, groups] = sent.unflatten(2, (n_dense, -1)).permute(2, 1, 0, 3)
            if len(sparse):
                rows = pattern[:, :, tokens].permute(2, 3, 0, 1).flatten(2)  # [n, U, heads]
                sparse.baddbmm_(rows, full[:, groups].flatten(1, 2))
        dense.addmm_(mixed.flatten(2).flatten(0, 1), self._read)

    @torch.no_grad()
    def attention_write(self, change: torch.Tensor) -> torch.Tensor:
        """The change of attention's write, [T, d], given the *change* [T, d] of the residual that enters the layer."""
        return self.head_changes(change).permute(2, 0, 1, 3).flatten(1) @ self._write_transposed.t()

    @torch.no_grad()
    def head_changes(self, change: torch.Tensor) -> torch.Tensor:
        """The changes of the weighted sums of values of heads, [G, s, T, c], given the *change* [T, d] of the residual
        that enters the layer; divided by the scale of the norm after attention, if there is one."""
        return torch.cat([self._mixed(change, groups, pattern) for groups, pattern in self._patterns(len(change))])

    @torch.no_grad()
    def head_gradients(self, gradients: torch.Tensor) -> torch.Tensor:
        """The gradients at the residual that enters the layer through each head alone, [H, T, d], from those at
        attention's write, [T, d]."""
        of_heads = self.of_heads(gradients)
        read = self._read.view(self.n_groups, self._n_channels, -1)
        found = []
        for groups, pattern in self._patterns(len(gradients)):
            sent = torch.einsum("gstu,tgsc->gsuc", pattern, of_heads[:, groups])
            found.append(torch.einsum("gsuc,gcd->gsud", sent, read[groups]).flatten(0, 1))
        return torch.cat(found)

    @torch.no_grad()
    def skip_write(self, change: torch.Tensor) -> torch.Tensor | None:
        """The change of the skip connection's write, [T, d], given the *change* [T, d] of the residual that the
        transcoder reads; None if there is none."""
        if self._skip is None:
            return None
        return self._input.scaled(change, slice(len(change))) @ self._skip.t()

    def _mixed(self, change: torch.Tensor, groups: slice, pattern: torch.Tensor) -> torch.Tensor:
        """The change of the weighted sums of values of the heads of *groups*, [G, s, T, c]."""
        read = self._read.view(self.n_groups, self._n_channels, -1)[groups]
        values = torch.einsum("ud,gcd->ugc", change, read)
        return torch.einsum("gstu,ugc->gstc", pattern, values)

    def of_heads(self, gradients: torch.Tensor) -> torch.Tensor:
        """The gradients [..., G, s, c] at the weighted sums of values of heads, from those at the residual [..., d]; as
        if the scale of the norm after attention were 1."""
        return (gradients @ self._write_transposed).unflatten(-1, (self.n_groups, -1, self._n_channels))

    def _patterns(self, n_tokens: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """The pattern, its scales included, among the first *n_tokens*: groups, and what it is of them [G, s, T, U]."""
        if self._keeps:
            yield slice(None), self._pattern[:, :, :n_tokens, :n_tokens]
        else:
            yield from self._made_patterns(n_tokens)

    @cached_property
    def _pattern(self) -> torch.Tensor:
        return torch.cat([part for _, part in self._made_patterns(len(self._recorded.entering))])

    def _made_patterns(self, n_tokens: int) -> Iterator[tuple[slice, torch.Tensor]]:
        layer, residual = self._layer, self._recorded.entering[:n_tokens]
        n_heads = self._write_transposed.shape[1] // self._n_channels
        of_group = n_heads // self.n_groups
        normed, scale = layer.attn_norm(residual), layer.attn_norm.scale(residual).t()  # [1, U]
        if self._recorded.attn_scale is not None:
            scale = scale * self._recorded.attn_scale[:n_tokens]  # [T, U]
        step = max(PATTERN_BYTES // (of_group * n_tokens**2 * scale.itemsize), 1)
        for first in range(0, self.n_groups, step):
            groups = slice(first, min(first + step, self.n_groups))
            heads = torch.arange(groups.start * of_group, groups.stop * of_group, device=residual.device)
            q, k = (layer.inputs_of_heads(part, heads, normed) for part in (AttentionTraceType.Q, AttentionTraceType.K))
            scores = layer.attn_scores(q, k).movedim(-1, 0)
            # With an axis of one head at the end, what is summed over lies in one place.
            probs = wide(layer.attn_probs(scores.unsqueeze(-1))).squeeze(-1)
            yield groups, probs.div_(scale).unflatten(0, (-1, of_group))

    @torch.no_grad()
    def through_skip(self, gradients: torch.Tensor) -> torch.Tensor | None:
        """What *gradients* [n, T, d] at the MLP's write are at the residual that the transcoder reads, through its skip
        connection; None if it has none."""
        if self._skip is None:
            return None
        return self._input.scaled(gradients, slice(gradients.shape[1])) @ self._skip


def _sent_back(pattern: torch.Tensor, seen: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Some keys U, and the sum over queries and heads of *pattern* [G, s, T, U] there times *seen* [G, s, T, m]:
    [G, U, m]. Queries before all of these keys do not attend to them, and are left out."""
    for first in range(0, pattern.shape[3], KEYS_AT_ONCE):
        some = slice(first, first + KEYS_AT_ONCE)
        own = pattern[:, :, first:, some].flatten(1, 2).transpose(1, 2)
        yield some, torch.bmm(own, seen[:, :, first:].flatten(1, 2))
