"""Interventions for tests: any selection and action, and what they do to a tap, entry by entry."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dst_grpc.domain.components import Dimension
from dst_grpc.domain.interventions import Action, AddVector, Intervention, ScaleValue, SetValue
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.selections import AxisSelection, PositionList, PositionRange, TapSelection
from dst_grpc.engine.decoder_config import DecoderConfig
from dst_grpc.errors import NotFound, Reason

SELECTIONS = ("one", "all", "list", "range")
ACTIONS = ("set", "set tensor", "add", "scale")


def axis(chance: random.Random, size: int, kind: str) -> AxisSelection:
    """Positions along an axis."""
    match kind:
        case "one":
            return chance.randrange(size)
        case "list":
            return PositionList(positions=tuple(chance.sample(range(size), chance.randint(1, size))))
        case "range":
            start = chance.randrange(size)
            return PositionRange(start=start, stop=chance.randint(start + 1, size))
    return None


def sizes(location: ActivationLocationType, config: DecoderConfig, n_tokens: int, n_latents: int = 0) -> list[int]:
    """Sizes of the axes of a tap."""
    return [config.dimensions.size_of(each, n_tokens=n_tokens, n_latents=n_latents) for each in location.dimensions]


def selection(
    chance: random.Random, location: ActivationLocationType, layer: int | None, shape: Sequence[int], kind: str
) -> TapSelection:
    """A selection whose first axis, which runs over tokens, is of a *kind*; the others are of any."""
    kinds = [kind, *(chance.choice(SELECTIONS) for _ in shape[1:])]
    axes = tuple(axis(chance, size, each) for size, each in zip(shape, kinds, strict=True))
    return TapSelection(activation_location_type=location, layer_index=layer, axes=axes)


def tensor(chance: random.Random, shape: Sequence[int]) -> RequestTensor:
    """Random numbers that stretch to *shape*: some leading axes are left out, and some are 1 long."""
    kept = shape[chance.randint(0, len(shape)) :]
    own = [size if chance.random() < 0.7 else 1 for size in kept]
    return RequestTensor(tensor=np.random.default_rng(chance.randrange(2**32)).normal(size=own))


def action(chance: random.Random, shape: Sequence[int], kind: str, *, is_scale: bool = False) -> Action:
    """An action of a *kind* on entries of a *shape*."""
    match kind:
        case "set":
            return SetValue(scalar=chance.uniform(-1, 1))
        case "set tensor":
            return SetValue(tensor=tensor(chance, shape))
        case "add":
            return AddVector(vector=tensor(chance, shape), factor=chance.uniform(-2, 2))
    # A norm's scale of 0 would make numbers that are none.
    return ScaleValue(factor=chance.choice([-0.5, 2.0] if is_scale else [0.0, -0.5, 2.0]))


def anything(
    chance: random.Random,
    location: ActivationLocationType,
    layer: int | None,
    shape: Sequence[int],
    *,
    select: str | None = None,
    act: str | None = None,
) -> Intervention:
    """An intervention, with one kind of selection and action if they are given."""
    at = selection(chance, location, layer, shape, select or chance.choice(SELECTIONS))
    is_scale = location.dimensions[-1] is Dimension.SINGLETON
    done = action(chance, at.shape(shape), act or chance.choice(ACTIONS), is_scale=is_scale)
    return Intervention(at=at, action=done)


def is_selected(at: TapSelection, shape: Sequence[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each entry of a tap is selected."""
    found = np.zeros(shape, dtype=bool)
    found[np.ix_(*(_positions(each, size) for each, size in zip(at.all_axes, shape, strict=True)))] = True
    return found


def by_hand(x: torch.Tensor, intervention: Intervention) -> torch.Tensor:
    """What an intervention makes of one prompt's tap."""
    at, done = intervention.at, intervention.action
    positions = [_positions(each, size) for each, size in zip(at.all_axes, x.shape, strict=True)]
    is_meant, operand = np.zeros(x.shape, dtype=bool), np.zeros(x.shape)
    brought = next(iter(done.tensors.values()), None)
    kept = [len(found) for found, each in zip(positions, at.all_axes, strict=True) if not isinstance(each, int)]
    stretched = None if brought is None or brought.tensor is None else np.broadcast_to(brought.tensor, kept)
    for numbers in itertools.product(*(range(len(found)) for found in positions)):
        entry = tuple(found[number] for found, number in zip(positions, numbers, strict=True))
        is_meant[entry] = True
        if stretched is not None:
            of_axes = zip(numbers, at.all_axes, strict=True)
            operand[entry] = stretched[tuple(number for number, each in of_axes if not isinstance(each, int))]
    numbers_brought = torch.from_numpy(operand)
    match done:
        case SetValue():
            after = numbers_brought if done.scalar is None else torch.full_like(x, done.scalar)
        case AddVector():
            after = x + done.factor * numbers_brought
        case ScaleValue():
            after = torch.where(x == -torch.inf, x, x * done.factor)  # a key that is not seen stays so
        case _:
            raise AssertionError(done)
    return torch.where(torch.from_numpy(is_meant), after, x)


def _positions(selected: AxisSelection, size: int) -> list[int]:
    match selected:
        case int():
            return [selected]
        case PositionList():
            return list(selected.positions)
        case PositionRange():
            return list(range(selected.start, selected.stop))
    return list(range(size))


class Shelf:
    """Tensors that were put, by handle."""

    def __init__(self, **tensors: RequestTensor) -> None:
        self._tensors = tensors

    def get(self, handle: str) -> RequestTensor:
        if handle not in self._tensors:
            raise NotFound.unknown("tensor", handle, self._tensors, reason=Reason.CONTEXT_NOT_FOUND)
        return self._tensors[handle]
