"""Path patching as in "Interpretability in the Wild" (Wang et al. 2022): from a head, through MLPs, to later heads.

A sender's weighted sum of values is taken from another run while all other heads are frozen as they are in the base
run; MLPs and norms are recomputed, so that paths through MLPs count. What the receivers read in that run is then given
to them in the base run, all of them at once, and everything after them is recomputed. Where the receiver is the logits,
they are those of the first run.

The direct form, in which nothing between sender and receiver changes, is an edge that is cut (`cut_edges`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.causal.graph import HEAD_INPUTS, PARTS
from dst_grpc.causal.read_logits import ReadRows, rows_and_positions
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.engine.splice import first_layer_of
from dst_grpc.engine.taps import Taps
from dst_grpc.errors import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dst_grpc.causal.read_logits import Positions
    from dst_grpc.causal.writes import RecordedRuns
    from dst_grpc.domain.graph_nodes import Reader, Source
    from dst_grpc.engine.decoder import Decoder
    from dst_grpc.engine.layer import Layer
    from dst_grpc.engine.splice import Splice
    from dst_grpc.engine.taps import Qkv, Site

_L = ActivationLocationType
_ROWS = 64
"""Paths of one pass."""


@dataclass(frozen=True, slots=True)
class HeadPath:
    """All paths from a head to its receivers that go through no other head."""

    prompt: int
    """Which of the recorded prompts."""
    sender: Source
    """A head."""
    receivers: tuple[Reader, ...]
    """Inputs of heads of later layers, or the logits alone."""

    @property
    def ends_in_logits(self) -> bool:
        """Whether the receiver is the logits."""
        return self.receivers[0].layer is None

    @property
    def first_layer(self) -> int:
        """The first layer of a receiver."""
        return min(require(receiver.layer) for receiver in self.receivers)


class IoiPaths:
    """Patches paths from heads."""

    def __init__(
        self,
        decoder: Decoder,
        base: RecordedRuns,
        source: RecordedRuns,
        *,
        splices: Mapping[Site, Splice] | None = None,
        check: Check = never_cancelled,
    ) -> None:
        """Take the runs.

        Args:
            decoder: the model.
            base: the runs to change.
            source: the runs, of prompts of the same lengths, that senders are taken from.
            splices: autoencoders to splice in, by the site that each reconstructs.
            check: raises Cancelled to end a pass.
        """
        self._decoder, self._base, self._source = decoder, base, source
        self._splices, self._check = splices or {}, check

    def logits(self, paths: Sequence[HeadPath]) -> torch.Tensor:
        """Logits [n, V] with each of *paths* patched, at the last token of its prompt; raises as `read` does."""
        return self.read(paths, [(last,) for last in self._base.last.tolist()]).flat

    def read(self, paths: Sequence[HeadPath], read_at: Sequence[Positions]) -> ReadRows:
        """Logits with each of *paths* patched.

        Args:
            paths: the paths.
            read_at: the positions whose logits are read of each of the prompts.

        Raises:
            ValueError: if a sender is no head, or a receiver no input of a later head nor the logits alone.
        """
        for path in paths:
            _check_path(path)
        found: dict[int, torch.Tensor] = {}
        order = sorted(range(len(paths)), key=lambda i: (require(paths[i].sender.layer), paths[i].prompt))
        for start in range(0, len(order), _ROWS):
            places = order[start : start + _ROWS]
            found.update(zip(places, self._patched([paths[i] for i in places], read_at), strict=True))
        return ReadRows.of([found[i] for i in range(len(paths))])

    def _patched(self, paths: Sequence[HeadPath], read_at: Sequence[Positions]) -> list[torch.Tensor]:
        """The logits [k, V] of *paths*."""
        senders = list(dict.fromkeys((path.prompt, path.sender) for path in paths))
        of_sender = [senders.index((path.prompt, path.sender)) for path in paths]
        taps = _Sent(senders, self._base, self._source, self._received(paths), self._splices, self._check)
        first = min(require(head.layer) for _, head in senders)
        of_senders = self._run(taps, [prompt for prompt, _ in senders], first, read_at)
        found = [of_senders[sender] for sender in of_sender]
        later = [i for i, path in enumerate(paths) if not path.ends_in_logits]
        if later:
            received = [(paths[i].receivers, of_sender[i]) for i in later]
            prompts, first = [paths[i].prompt for i in later], min(paths[i].first_layer for i in later)
            of_later = self._run(_Received(received, taps.values, self._splices, self._check), prompts, first, read_at)
            for i, logits in zip(later, of_later, strict=True):
                found[i] = logits
        return found

    def _received(self, paths: Sequence[HeadPath]) -> Iterator[Site]:
        """The taps at which receivers read."""
        for path in paths:
            if not path.ends_in_logits:
                for receiver in path.receivers:
                    yield HEAD_INPUTS[require(receiver.part)], receiver.layer

    def _run(
        self, taps: Taps, prompts: list[int], first_layer: int, read_at: Sequence[Positions]
    ) -> tuple[torch.Tensor, ...]:
        """The logits [k, V] of each row of a pass of *prompts* from *first_layer* on, before which it is as the base
        run."""
        first_layer = first_layer_of(first_layer, self._splices.values())
        tokens, read = self._base.tokens[prompts], [read_at[prompt] for prompt in prompts]
        entering = (first_layer, self._base.residuals[first_layer][prompts])
        at = rows_and_positions(read, tokens.device)
        logits = require(self._decoder.forward(tokens, taps, entering=entering, logits_at=at))[:, 0]
        return ReadRows(logits, tuple(map(len, read))).rows


def _check_path(path: HeadPath) -> None:
    sender = path.sender
    if sender.layer is None or sender.head is None:
        raise ValueError(f"{sender} is not a head")
    if not path.receivers:
        raise ValueError("there is no receiver")
    if len(path.receivers) > 1 or not path.ends_in_logits:
        for receiver in path.receivers:
            if receiver.part is None or receiver.layer is None or receiver.layer <= sender.layer:
                raise ValueError(f"{receiver} is not an input of a head after {sender}, nor the logits alone")


class _Sent(Taps):
    """A pass with all heads as in the base run, but for one of each row as in the source run."""

    def __init__(
        self,
        senders: Sequence[tuple[int, Source]],
        base: RecordedRuns,
        source: RecordedRuns,
        received: Iterator[Site],
        splices: Mapping[Site, Splice],
        check: Check,
    ) -> None:
        """Record at the taps *received*; *senders* are the prompt and the head of each row."""
        super().__init__(values=received, splices=splices, check=check)
        self._senders, self._base, self._source = senders, base, source

    def visit(self, location: ActivationLocationType, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        """Put the frozen heads in the place of what was computed."""
        if location is _L.ATTN_WEIGHTED_SUM_OF_VALUES and layer is not None:
            x = self._base.writes.heads[layer][[prompt for prompt, _ in self._senders]].clone()
            for row, (prompt, head) in enumerate(self._senders):
                if head.layer == layer:
                    x[row, :, head.head] = self._source.writes.heads[layer][prompt, :, head.head]
        return super().visit(location, layer, x)


class _Received(Taps):
    """A pass in which inputs of heads are those of another pass."""

    def __init__(
        self,
        received: Sequence[tuple[tuple[Reader, ...], int]],
        recorded: Mapping[Site, torch.Tensor],
        splices: Mapping[Site, Splice],
        check: Check,
    ) -> None:
        """*received* are the inputs to replace in each row, and the row of the pass *recorded* that has them."""
        super().__init__(splices=splices, check=check)
        self._received, self._inputs_read = received, recorded

    def qkv(self, index: int, layer: Layer, x: torch.Tensor, qkv: Qkv) -> Qkv:
        """Queries, keys and values, those that are received replaced."""
        q, k, v = qkv
        parts = dict(
            zip(PARTS, (q.clone(), layer.for_each_head(k).clone(), layer.for_each_head(v).clone()), strict=True)
        )
        for row, (receivers, sender) in enumerate(self._received):
            for receiver in receivers:
                if receiver.layer == index:
                    part = require(receiver.part)
                    read = self._inputs_read[HEAD_INPUTS[part], index]
                    parts[part][row, :, receiver.head] = read[sender, :, receiver.head]
        return super().qkv(index, layer, x, (parts[PARTS[0]], parts[PARTS[1]], parts[PARTS[2]]))
