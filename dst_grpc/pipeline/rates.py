"""Rates: how long a device takes for a unit of work of one kind, learnt from what it has done."""

from __future__ import annotations

from enum import Enum

_WEIGHT_OF_NEW = 0.1
_MOST_OF_EXPECTED = 4.0
_FAR_LARGER = 4.0
"""Times the largest piece that was measured, from which on another says more than all before."""


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

    The quotient of two weighted means, of seconds and of units: over a mixture of small and large pieces the estimates
    then add up to what is measured. All measurements weigh the same at first, then the latest more.

    What is larger than all that was measured is taken to cost no more than a guess for what is beyond: a first small
    piece takes a time of its own, and says little of a large one, for which nobody is to be refused.
    """

    __slots__ = ("_guess", "_largest", "_n_measured", "_seconds", "_units")

    def __init__(self, guess: float) -> None:
        """Begin with a *guess* of the seconds for a unit; the first measurement replaces it."""
        self._guess = guess
        self._seconds = self._units = 0.0
        self._largest = 0.0
        """Units of the largest piece that was measured."""
        self._n_measured = 0

    @property
    def of_unit(self) -> float:
        """Seconds for a unit, in pieces as they were measured; the guess before."""
        return self._seconds / self._units if self._n_measured else self._guess

    def seconds(self, units: float) -> float:
        """Estimated seconds for *units* in one piece."""
        beyond = max(0.0, units - self._largest)
        return self.of_unit * (units - beyond) + min(self.of_unit, self._guess) * beyond

    def note(self, units: float, seconds: float) -> bool:
        """Learn that *units* took *seconds*; whether they are of another order than what is known: the first, or far
        larger.

        What took far longer than expected, as when the machine stood still, counts as `_MOST_OF_EXPECTED` of that.
        """
        is_new = units > _FAR_LARGER * self._largest
        if not is_new:
            seconds = min(seconds, _MOST_OF_EXPECTED * self.seconds(units))
        self._n_measured += 1
        weight = max(_WEIGHT_OF_NEW, 1 / self._n_measured)
        self._units += weight * (units - self._units)
        self._seconds += weight * (seconds - self._seconds)
        self._largest = max(self._largest, units)
        return is_new


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
