"""What the sources of runs write to the residual stream: recorded, averaged over prompts, or nothing.

Shapes: p prompt, T token, H head, c channel of a head, d residual channel. Prompts are padded on the right; what is
written at pads means nothing, as no token attends to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.interventions import RowIntervention
from dst_grpc.engine.taps import Taps, site_entering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Site

_L = ActivationLocationType


@dataclass(frozen=True, slots=True, eq=False)
class Writes:
    """What the sources of p prompts write. An axis of prompts or tokens of size 1 stands for any number of them."""

    embedding: torch.Tensor
    """The token embeddings, without positions, [p, T, d]."""
    heads: tuple[torch.Tensor, ...]
    """By layer, the heads' weighted sums of values, [p, T, H, c]: what a head writes is linear in them."""
    mlps: tuple[torch.Tensor, ...]
    """By layer, what the MLP adds to the residual, [p, T, d]."""
    parts: Mapping[Site, torch.Tensor] = field(default_factory=dict)
    """Where they are nodes too, latents of autoencoders [p, T, Z] and their errors [p, T, n], by site."""

    @classmethod
    def zero(cls, decoder: Decoder, parts: Iterable[Site] = ()) -> Writes:
        """Nothing, for any prompts; also at the sites of *parts*."""
        config = decoder.config
        nothing = decoder.embedding.new_zeros(1, 1, config.d_model)
        heads = decoder.embedding.new_zeros(1, 1, config.n_heads, config.d_head)
        of_parts = dict.fromkeys(parts, decoder.embedding.new_zeros(1, 1, 1))
        return cls(nothing, (heads,) * config.n_layers, (nothing,) * config.n_layers, of_parts)

    @classmethod
    def stacked(cls, of_prompts: Sequence[Writes]) -> Writes:
        """Those of several prompts, each [1, T, ...] of its own length, or the same for all."""
        first = of_prompts[0]
        if all(one is first for one in of_prompts):
            return first
        n_tokens = max(one.embedding.shape[1] for one in of_prompts)

        def joined(*tensors: torch.Tensor) -> torch.Tensor:
            shape = (len(tensors), n_tokens, *tensors[0].shape[2:])
            found = tensors[0].new_zeros(shape)
            for row, x in zip(found, tensors, strict=True):
                row[: x.shape[1]] = x[0]
            return found

        return cls(
            joined(*(one.embedding for one in of_prompts)),
            tuple(joined(*each) for each in zip(*(one.heads for one in of_prompts), strict=True)),
            tuple(joined(*each) for each in zip(*(one.mlps for one in of_prompts), strict=True)),
            {site: joined(*(one.parts[site] for one in of_prompts)) for site in first.parts},
        )

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Writes:
        """These with every tensor changed."""
        of_parts = {site: change(x) for site, x in self.parts.items()}
        return Writes(change(self.embedding), tuple(map(change, self.heads)), tuple(map(change, self.mlps)), of_parts)

    def both(self, other: Writes, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Writes:
        """What *change* makes of every tensor and that of *other*, which has the same parts."""
        return Writes(
            change(self.embedding, other.embedding),
            tuple(change(*each) for each in zip(self.heads, other.heads, strict=True)),
            tuple(change(*each) for each in zip(self.mlps, other.mlps, strict=True)),
            {site: change(x, other.parts[site]) for site, x in self.parts.items()},
        )

    @property
    def byte_count(self) -> int:
        """Bytes of its tensors."""
        return sum(x.nbytes for x in (self.embedding, *self.heads, *self.mlps, *self.parts.values()))


@dataclass(frozen=True, slots=True, eq=False)
class Alternative:
    """What cut edges carry instead, and the residuals of a run in which all edges carry it."""

    writes: Writes
    """What they carry."""
    residuals: tuple[torch.Tensor, ...]
    """The residual that enters each layer, [p, T, d]; one more, after the last."""
    after_attention: tuple[torch.Tensor, ...]
    """By layer, the residual between attention and MLP, [p, T, d]."""
    sums: tuple[torch.Tensor, ...]
    """By layer, the sum of all heads with its bias, before any post-norm, [p, T, d]."""
    is_zero: bool
    """Whether it is nothing."""

    @classmethod
    def of(cls, writes: Writes, decoder: Decoder, n_tokens: int, *, is_zero: bool = False) -> Alternative:
        """The alternative that *writes* are for prompts of *n_tokens*, at most as many as those by position."""
        writes = writes.each(lambda x: x[:, :n_tokens])
        x = writes.embedding
        if decoder.position_embedding is not None:
            x = x + decoder.position_embedding[:n_tokens]
        residuals, after_attention, sums = [x.expand(-1, n_tokens, -1)], [], []
        for layer, heads, mlp in zip(decoder.layers, writes.heads, writes.mlps, strict=True):
            sums.append(layer.attn_project(heads))
            after_attention.append(residuals[-1] + layer.attn_write(heads))
            residuals.append(after_attention[-1] + mlp)
        return cls(writes, tuple(residuals), tuple(after_attention), tuple(sums), is_zero)


def at(x: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """*x* [p, ...] of the prompts at places *prompts* [n], [n, ...]; if it stands for any, as it is, [1, ...]."""
    return x if len(x) == 1 else x[prompts]


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRuns:
    """Runs of p prompts: what circuits and patched runs start from, or take other values from."""

    tokens: torch.Tensor
    """Ids [p, T], padded with 0."""
    last: torch.Tensor
    """Position of each prompt's last token, [p]."""
    writes: Writes
    """What their sources write."""
    residuals: tuple[torch.Tensor, ...]
    """The residual that enters each layer, [p, T, d]; one more, after the last."""
    changes: tuple[Intervention, ...] = ()
    """What is changed in these runs, and in all that start from them."""

    @property
    def byte_count(self) -> int:
        """Bytes of its tensors."""
        return self.writes.byte_count + sum(x.nbytes for x in self.residuals)


def record(
    prompts: Sequence[Sequence[int]],
    decoder: Decoder,
    *,
    parts: Iterable[Site] = (),
    changes: Sequence[Intervention] = (),
    splices: Mapping[Site, Splice] | None = None,
    check: Check = never_cancelled,
) -> RecordedRuns:
    """Run *prompts*, token ids, as one batch.

    Args:
        prompts: the prompts.
        decoder: the model.
        parts: sites of latents and errors to record too.
        changes: what to change in each, in order, at taps within sources; reads no run, tensor or direction.
        splices: autoencoders to splice in, by the site that each reconstructs.
        check: raises Cancelled to end the pass.
    """
    tokens, last = padded(prompts, decoder)
    layers = range(decoder.config.n_layers)
    entering = [site_entering(layer) for layer in (*layers, len(layers))]
    written = [(tap, layer) for tap in (_L.ATTN_WEIGHTED_SUM_OF_VALUES, _L.RESID_DELTA_MLP) for layer in layers]
    of_parts = list(parts)
    taps = Taps(
        values=[*entering, *written, *of_parts],
        interventions=changed_rows(changes, map(len, prompts)),
        splices=splices,
        check=check,
    )
    decoder.forward(tokens, taps, stop_after_layer=len(layers) - 1)
    writes = Writes(
        decoder.embed(tokens),
        tuple(taps.values[_L.ATTN_WEIGHTED_SUM_OF_VALUES, layer] for layer in layers),
        tuple(taps.values[_L.RESID_DELTA_MLP, layer] for layer in layers),
        {site: taps.values[site] for site in of_parts},
    )
    return RecordedRuns(tokens, last, writes, tuple(taps.values[site] for site in entering), tuple(changes))


def changed_rows(
    changes: Sequence[Intervention], lengths: Iterable[int], first_layer: int = 0
) -> Iterator[RowIntervention]:
    """*changes* in each row of a batch that begins at *first_layer*, the rows having *lengths* tokens."""
    for row, n_tokens in enumerate(lengths):
        for one in changes:
            yield RowIntervention(row=row, intervention=one, n_tokens=n_tokens, first_layer=first_layer)


def padded(prompts: Sequence[Sequence[int]], decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [p, T], padded on the right with 0, and the position [p] of each prompt's own last token."""
    lengths = [len(prompt) for prompt in prompts]
    tokens = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    for i, prompt in enumerate(prompts):
        tokens[i, : lengths[i]] = torch.tensor(prompt)
    return tokens.to(decoder.device), (torch.tensor(lengths) - 1).to(decoder.device)


def real_tokens(last: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """Which of *n_tokens* positions are no pads [p, T], given that of each prompt's last token [p]."""
    return torch.arange(n_tokens, device=last.device) <= last[:, None]


def zero_at_pads(x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Values [p, T, ...] of padded prompts, 0 where *real* [p, T] is not."""
    return torch.where(real.view(*real.shape, *(1,) * (x.dim() - 2)), x, 0)


class MeanWrites:
    """The mean of what prompts write, over all prompts that were added, and over their positions too if wanted."""

    def __init__(self, *, by_position: bool) -> None:
        """Begin with no prompt; *by_position*: a mean for each position, over the prompts that have it."""
        self._by_position = by_position
        self._sum: Writes | None = None
        self._count = torch.zeros(1, dtype=torch.float64)

    def add(self, runs: RecordedRuns) -> None:
        """Add runs."""
        n_tokens = runs.tokens.shape[1]
        real = real_tokens(runs.last, n_tokens)

        def total(x: torch.Tensor) -> torch.Tensor:
            return zero_at_pads(x, real).sum(dim=0 if self._by_position else (0, 1), keepdim=True, dtype=torch.float64)

        new, count = runs.writes.each(total), real.sum(dim=0).double()
        self._count = _padded_sum(self._count.to(count.device), count if self._by_position else count.sum()[None])
        self._sum = new if self._sum is None else self._sum.both(new, lambda a, b: _padded_sum(a, b, 1))

    def mean(self, dtype: torch.dtype) -> Writes:
        """The mean, of element type *dtype*, [1, T or 1, ...]; raises ValueError if nothing was added."""
        if self._sum is None:
            raise ValueError("there is no mean of no prompts")
        return self._sum.each(lambda x: (x / self._count.view(1, -1, *(1,) * (x.dim() - 2))).to(dtype))


def _padded_sum(a: torch.Tensor, b: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """*a* + *b*, the shorter one along *axis* continued with zeros."""
    a, b = (a, b) if a.shape[axis] >= b.shape[axis] else (b, a)
    total = a.clone()
    total.narrow(axis, 0, b.shape[axis]).add_(b)
    return total
