"""Pacing: how far the host may launch work ahead of a GPU. A check stops what is not launched yet, and nothing else."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_LAYERS_AHEAD = 2
"""Enough for the device never to run dry, unless its layers take less time than launching them."""


class Mark(Protocol):
    """A place in a device's queue."""

    def synchronize(self) -> None:
        """Wait until the device is there."""


def cuda_mark() -> Mark:
    """The end of the current stream of the current CUDA device."""
    event = torch.cuda.Event()
    event.record()
    return event


class Pacing:
    """Lets the host be a few layers ahead of the device, no more."""

    def __init__(self, mark: Callable[[], Mark] = cuda_mark) -> None:
        """Start with nothing launched; *mark* gives the end of the device's queue."""
        self._mark = mark
        self._marks: deque[Mark] = deque()

    def launched(self) -> None:
        """Note that a layer was launched, and wait for the one so many layers before it."""
        self._marks.append(self._mark())
        if len(self._marks) > _LAYERS_AHEAD:
            self._marks.popleft().synchronize()
