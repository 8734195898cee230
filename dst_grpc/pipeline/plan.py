"""Plans: a request, checked and completed, with all that executing it needs except weights. Plain values."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from dst_grpc.domain.components import PassType
from dst_grpc.domain.resolution import CostEstimate
from dst_grpc.domain.results import Axis
from dst_grpc.pipeline.sizes import BYTES_OF_FLOAT32
from dst_grpc.scalars.derive import is_zero_by_definition, taps_of
from dst_grpc.scalars.task import Task

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from dst_grpc.contexts.entries import AutoencoderEntry, ModelEntry
    from dst_grpc.domain.requests import DeriveRequest
    from dst_grpc.engine.taps import Site
    from dst_grpc.pipeline.directions import Paths
    from dst_grpc.pipeline.runs import Run
    from dst_grpc.scalars.origins import LossOrigin, TraceOrigin
    from dst_grpc.scalars.recorded_taps import Tap
    from dst_grpc.scalars.topology import Topology

NO_COST = CostEstimate(
    sequence_tokens=0,
    forward_passes=0,
    backward_passes=0,
    floating_point_operations=0,
    peak_bytes=0,
    output_bytes=0,
)


@dataclass(frozen=True, kw_only=True)
class PlannedScalar(Task):
    """One derived scalar of a request, ready to be computed."""

    spec_index: int
    """Its position in the request."""
    sets: tuple[AutoencoderEntry, ...]
    """The autoencoders that its config names."""
    axes: tuple[Axis, ...]
    """Axes of one layer's tensor."""

    @cached_property
    def taps(self) -> frozenset[Tap]:
        """Taps that it is computed from."""
        return frozenset(taps_of(self))

    @cached_property
    def layers_of_zeros(self) -> frozenset[int | None]:
        """Layers of which all tensors are 0 by definition."""
        return frozenset(layer for layer in self.layers if is_zero_by_definition(self, layer))

    @property
    def output_bytes(self) -> int:
        """Bytes of all its tensors, dense float32."""
        count = len(self.layers) * len(self.passes)
        for axis in self.axes:
            count *= axis.size
        return BYTES_OF_FLOAT32 * count

    def rows_of(self, most_bytes: int) -> int:
        """Entries of the first axis of one layer's tensor that take *most_bytes*; at least 1."""
        row_bytes = BYTES_OF_FLOAT32 * math.prod(axis.size for axis in self.axes[1:])
        return max(most_bytes // max(row_bytes, 1), 1)

    @property
    def requires_grad(self) -> bool:
        """Whether it reads a gradient of the origin."""
        return any(pass_type is PassType.BACKWARD for pass_type, _ in self.taps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A request, checked and completed: everything that executing it needs except weights."""

    request: DeriveRequest
    model: ModelEntry
    run: Run
    """The prompt, the interventions and the origins."""
    token_strings: tuple[str, ...]
    loss: LossOrigin | None
    """The loss, if the request has one: one of the run's origins."""
    trace: TraceOrigin | None
    """The traced activation, if the request has one: another of the run's origins."""
    spliced: tuple[AutoencoderEntry, ...]
    """Autoencoders spliced into the run."""
    shared_sets: tuple[AutoencoderEntry, ...]
    """The autoencoders that the shared config names; the spliced ones if it names none."""
    direction_sets: tuple[AutoencoderEntry, ...]
    """The autoencoders that interventions take directions from."""
    direction_paths: Paths
    """Where the request has the directions of its interventions."""
    handles: tuple[str, ...]
    """Handles that the request used; loading shows whether their revisions are current."""
    topology: Topology
    """The model, with the autoencoders that a traced latent belongs to."""
    scalars: tuple[PlannedScalar, ...]
    values: frozenset[Site]
    """Sites whose value to record, besides what the origins read."""
    gradients: frozenset[Site]
    """Sites whose gradient to record."""
    logits: frozenset[int] = frozenset()
    """Positions whose logits the answer reads too, of those that the origins read."""
    records_besides: bool = False
    """Whether what costs little is recorded besides, for later questions about the run."""
    cost: CostEstimate = NO_COST
    """What it is expected to cost."""
    held_bytes: int = 0
    """Estimated bytes that what it recorded, and the making of its answer, take once its passes are over."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt; empty if the request had none."""
        return self.run.token_ids

    @cached_property
    def stop_after_layer(self) -> int | None:
        """Last layer that has to run; None if logits are needed."""
        return None if self.run.needs_logits else last_layer_of(self.values | self.run.values)

    @property
    def origin_sets(self) -> tuple[AutoencoderEntry, ...]:
        """The autoencoders that a traced latent belongs to: the spliced ones, else those of the shared config."""
        return self.spliced or self.shared_sets

    @cached_property
    def autoencoders(self) -> tuple[AutoencoderEntry, ...]:
        """Every autoencoder in use, spliced or not, without repetition."""
        of_scalars = (entry for scalar in self.scalars for entry in scalar.sets)
        return tuple(dict.fromkeys((*self.spliced, *self.shared_sets, *self.direction_sets, *of_scalars)))

    def also_recording(self, taps: Iterable[Tap]) -> Plan:
        """This plan with *taps* recorded too."""
        sites: dict[PassType, set[Site]] = {pass_type: set() for pass_type in PassType}
        for pass_type, site in taps:
            sites[pass_type].add(site)
        gradients = sites[PassType.BACKWARD]
        values = self.values.union(sites[PassType.FORWARD], gradients)
        return replace(self, values=values, gradients=self.gradients | gradients)

    @property
    def run_key(self) -> Hashable:
        """Everything that determines what the run records, whatever is then derived from it.

        Entries rather than names: a reload can change the meaning of a name, but an entry always means the same files.
        """
        return self.model, self.spliced, self.origin_sets, self.direction_sets, self.run.key

    @cached_property
    def tensor_handles(self) -> tuple[str, ...]:
        """Handles of the tensors that the request names."""
        given = (self.request.interventions, *(source.interventions for source in self.request.source_runs))
        tensors = (tensor for some in given for one in some for tensor in one.action.tensors.values())
        return tuple(tensor.handle for tensor in tensors if tensor.handle is not None)

    def digest(self, model: str, autoencoders: Iterable[str]) -> str:
        """SHA-256 of everything that determines the answer's numbers, given the handles of what was loaded for it."""
        return _digest((model, tuple(autoencoders), self.question_digest))

    @cached_property
    def question_digest(self) -> str:
        """SHA-256 of what is asked."""
        return _digest(self.request.question)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def last_layer_of(sites: Iterable[Site]) -> int | None:
    """The last layer that has to run for *sites* to be recorded; None if final norm or logits are needed too."""
    last = -1
    for location, layer in sites:
        if location.facts.is_after_layers:
            return None
        last = max(last, -1 if layer is None else layer)
    return last
