"""From recorded taps to a derived scalar: component, quantity, direction and form combined, one layer at a time.

`taps_of` names the taps of a task, for the planner, and `Derivation` computes it: both use the same component,
direction or edges, each of which knows its own taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch

from dst_grpc.domain.components import PassType
from dst_grpc.domain.scalar_facts import Backward, Form, Quantity
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.errors import require
from dst_grpc.scalars.components import Bound, Component, LayerOfRun, Writes, component_of_task
from dst_grpc.scalars.directions import DIRECTIONS, BoundDirection
from dst_grpc.scalars.edges import BoundInEdges, InEdges
from dst_grpc.scalars.explained_model import ExplainedModel
from dst_grpc.scalars.recorded_taps import RecordedTaps
from dst_grpc.scalars.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dst_grpc.scalars.components import ScaledWrites
    from dst_grpc.scalars.components.base import Writer
    from dst_grpc.scalars.recorded_taps import Tap


def taps_of(task: Task) -> Iterator[Tap]:
    """Every tap that *task* is computed from, with repetitions."""
    facts = task.facts
    if facts.quantity.is_of_in_edges:
        yield from InEdges(task).taps()
    elif facts.quantity is not Quantity.DIRECTION:
        component = component_of_task(task)
        for layer in task.layers:
            yield from component.taps(layer, facts.quantity)
            if PassType.BACKWARD in task.passes:
                yield PassType.BACKWARD, require(component.site(layer))
    if facts.direction is not None:
        yield from DIRECTIONS[facts.direction](task).taps()


def is_zero_by_definition(task: Task, layer: int | None) -> bool:
    """Whether *task* is a projection of the residual at *layer*, which does not precede what it is projected on (Q4).

    Of what parts write, a 0 there is the truth: they have no effect. A residual has one, or is past having one.
    """
    facts = task.facts
    if facts.quantity is not Quantity.PROJECTION or facts.tap is None or not facts.tap.facts.is_residual:
        return False
    # The rows of facts pair no other component with a projection.
    writer = cast("Writer", component_of_task(task))
    return not DIRECTIONS[require(facts.direction)](task).counts(writer, layer)


@dataclass(frozen=True)
class Derivation:
    """One task on one run. `at` computes the tensors of a layer; only what layers share is kept between them."""

    model: ExplainedModel
    recorded: RecordedTaps
    task: Task
    check: Check = never_cancelled
    """Called before every layer; raises Cancelled if the request is cancelled."""

    @torch.no_grad()
    def at(self, layer: int | None) -> dict[PassType, torch.Tensor]:
        """The tensors at one of the task's layers, by pass, in the axes that its row of facts declares."""
        self.check()
        found = {PassType.FORWARD: self._formed(self._forward(layer))}
        if PassType.BACKWARD in self.task.passes:
            found[PassType.BACKWARD] = self._formed(self._backward(layer))
        return found

    def in_rows(self, layer: int | None, n_rows: int) -> Iterator[tuple[PassType, int, torch.Tensor]]:
        """The tensors of `at`, each with its pass and 0; or, of types that have a vector for each of many entries at
        each token, *n_rows* tokens at a time, each with the first of them.
        """
        facts = self.task.facts
        if not facts.is_of_vectors:
            yield from ((pass_type, 0, tensor) for pass_type, tensor in self.at(layer).items())
            return
        if facts.quantity is Quantity.WRITE:
            part = self._writes(layer).summed_write if facts.is_summed else self._writes(layer).write
        else:
            part = self._bound(layer).activation
        for start in range(0, self.recorded.n_tokens, n_rows):
            self.check()
            yield PassType.FORWARD, start, torch.no_grad()(part)(slice(start, start + n_rows))

    @cached_property
    def _component(self) -> Component:
        return component_of_task(self.task)

    @cached_property
    def _direction(self) -> BoundDirection:
        """The task's direction, bound to the run."""
        return DIRECTIONS[require(self.task.facts.direction)](self.task).bind(self.model, self.recorded)

    @cached_property
    def _in_edges(self) -> BoundInEdges:
        return InEdges(self.task).bind(self.model, self.recorded)

    def _bound(self, layer: int | None) -> Bound:
        return self._component.bind(LayerOfRun(self.model, self.recorded, layer))

    def _writes(self, layer: int | None) -> Writes:
        """The component's writes: only components that write have quantities of writes in the rows of facts."""
        return cast("Writes", self._bound(layer))

    def _forward(self, layer: int | None) -> torch.Tensor:
        facts = self.task.facts
        match facts.quantity:
            case Quantity.ACTIVATION:
                return self._bound(layer).activation()
            case Quantity.ACT_TIMES_GRAD:
                return self._bound(layer).act_times_grad()
            case Quantity.WRITE:
                writes = self._writes(layer)
                return writes.summed_write() if facts.is_summed else writes.write()
            case Quantity.WRITE_NORM:
                return self._writes(layer).write_norm()
            case Quantity.PROJECTION:
                return self._direction.project(self._writes(layer), summed=facts.is_summed)
            case Quantity.DIRECTION:
                return self._direction.at(layer)
            case Quantity.IN_EDGE_ACTIVATION | Quantity.IN_EDGE_ATTRIBUTION:
                return self._in_edges.at(require(layer))

    def _backward(self, layer: int | None) -> torch.Tensor:
        if self.task.facts.backward is Backward.RATIO:
            return cast("ScaledWrites", self._bound(layer)).write_norm_gradient()
        return self._bound(layer).gradient()

    def _formed(self, x: torch.Tensor) -> torch.Tensor:
        match self.task.facts.form:
            case Form.FULL:
                return x
            case Form.FLATTENED:
                t, u = torch.tril_indices(x.shape[0], x.shape[1], device=x.device)
                return x[t, u]
            case Form.SUM_KEYS:
                return x.sum(dim=1)
            case Form.SUM_CHANNELS:
                return x.sum(dim=-1, keepdim=True)
