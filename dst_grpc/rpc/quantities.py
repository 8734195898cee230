"""Sizes and durations as people write them: `10GB`, `1.5GiB`, `500ms`, `1h30m`. Numbers alone are bytes and seconds."""

from __future__ import annotations

import re

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)\s*"
_SIZE = re.compile(rf"{_NUMBER}([kmgt]i?|)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = rf"{_NUMBER}({'|'.join(_SECONDS)})\s*"


def bytes_of(text: str) -> float:
    """The bytes of a size: `10GB` is 10 * 10^9, `10GiB` and `10Gi` are 10 * 2^30.

    Raises:
        ValueError: It is no size.
    """
    plain = _plain(text)
    if plain is not None:
        return plain
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size: give bytes, or a number with a unit, as in 10GB or 1.5GiB")
    prefix = found[2].lower()
    return round(float(found[1]) * (1024.0 if prefix.endswith("i") else 1000.0) ** _POWERS[prefix[:1]])


def seconds_of(text: str) -> float:
    """The seconds of a duration, in ms, s, m or min, h, d and w, one after another: `500ms`, `1h30m`.

    Raises:
        ValueError: It is no duration.
    """
    plain = _plain(text)
    if plain is not None:
        return plain
    if re.fullmatch(f"(?:{_PART})+", text.strip()) is None:
        raise ValueError(f"{text!r} is no duration: give seconds, or a number with a unit, as in 500ms, 30s or 2h")
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_PART, text))


def _plain(text: str) -> float | None:
    """The number that *text* is; None if it is more than one."""
    try:
        return float(text)
    except ValueError:
        return None
