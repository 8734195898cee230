"""The ids that a stream has had, as 64-bit digests: 16 to 32 bytes each, for streams of a million items."""

from __future__ import annotations

from array import array

_EMPTY = 0
_FIRST_SLOTS = 64


class SeenIds:
    """A set of strings that stores only their digests.

    Among n strings two have the same digest with a probability of n^2 / 2^65: 3 in 10^8 for a million. Python's hashes
    have a new key in each process, so clients cannot cause collisions.
    """

    def __init__(self) -> None:
        """Start empty."""
        # Hash tables, each twice as large as the one before and filled to half: when the last is full another is begun,
        # so that entries are never moved.
        self._tables = [array("Q", [_EMPTY]) * _FIRST_SLOTS]
        self._in_last = 0

    def add(self, text: str) -> bool:
        """Add an id; returns whether it is new."""
        digest = hash(text) & 0xFFFF_FFFF_FFFF_FFFF or 1
        slot = 0
        for table in self._tables:
            slot = _slot_of(table, digest)
            if table[slot] == digest:
                return False
        last = self._tables[-1]
        last[slot] = digest
        self._in_last += 1
        if 2 * self._in_last == len(last):
            self._tables.append(array("Q", [_EMPTY]) * (2 * len(last)))
            self._in_last = 0
        return True


def _slot_of(table: array[int], digest: int) -> int:
    """Where *digest* is in a table, or would be."""
    mask = len(table) - 1
    slot = digest & mask
    while table[slot] != _EMPTY and table[slot] != digest:
        slot = slot + 1 & mask
    return slot
