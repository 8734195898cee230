"""Rates: how long a device takes for a unit of work of one kind, learnt from what it has done."""

from __future__ import annotations

from enum import Enum

_WEIGHT_OF_NEW = 0.1
_MOST_OF_EXPECTED = 4.0


class Work(Enum):
    """Kinds of work of a model, with the seconds that a unit of each is taken for until it is measured.

    These are a fast device's, so that nobody is refused because of a guess.
    """

    FORWARD = "forward", 1e-12
    """A floating-point operation of a pass without gradients, and of what is derived with it."""
    GRADIENT = "gradient", 1e-12
    """One of a pass with gradients."""
    STORED = "stored", 1e-4
    """An answer from a kept recording, or its first step."""
    DERIVE_STEP = "derive step", 1e-4
    """A further step of an answer of tensors."""
    EXPLAIN_STEP = "explain step", 1e-4
    """A step of an explanation."""
    ATTRIBUTE_STEP = "attribute step", 1e-4
    """The pairs of Attribute that run together."""
    PATCH_STEP = "patch step", 1e-4
    """The changed runs of Patch that run together."""
    CIRCUIT_STEP = "circuit step", 1e-4
    """A step of an answer about circuits: a pass."""

    GRAPH_STEP = "graph step", 1e-4
    """A block of rows of an attribution graph."""
    PROBE_STEP = "probe step", 1e-4
    """A question about an attribution graph: a run or two."""

    @property
    def guess(self) -> float:
        """Seconds for a unit."""
        return self.value[1]


class Rate:
    """Seconds for a unit of one kind of work, e.g. for a floating-point operation of a model's forward passes.

    The quotient of two exponentially weighted means, of seconds and of units: over a mixture of small and large pieces
    the estimates then add up to what is measured.
    """

    __slots__ = ("_seconds", "_units", "_unmeasured")

    def __init__(self, unmeasured: float) -> None:
        """Begin with a guess of the *unmeasured* seconds for a unit; the first measurement replaces it."""
        self._unmeasured = unmeasured
        self._seconds = self._units = 0.0

    def seconds(self, units: float) -> float:
        """Estimated seconds for *units*."""
        return units * (self._seconds / self._units if self._units else self._unmeasured)

    def note(self, units: float, seconds: float) -> bool:
        """Learn that *units* took *seconds*; whether it is the first that is known.

        What took far longer than expected, as when the machine stood still, counts as `_MOST_OF_EXPECTED` of that.
        """
        is_first = not self._units
        weight = 1.0
        if not is_first:
            weight, seconds = _WEIGHT_OF_NEW, min(seconds, _MOST_OF_EXPECTED * self.seconds(units))
        self._units += weight * (units - self._units)
        self._seconds += weight * (seconds - self._seconds)
        return is_first


class Rates:
    """The rates of one device."""

    def __init__(self) -> None:
        """Start with nothing measured."""
        self._rates: dict[tuple[str, Work], Rate] = {}

    def of(self, model: str, work: Work) -> Rate:
        """The rate of a kind of *work* of the model of this name."""
        rate = self._rates.get((model, work))
        if rate is None:
            rate = self._rates[model, work] = Rate(work.guess)
        return rate
