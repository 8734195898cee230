from __future__ import annotations

import pytest

from dst_grpc.rpc.quantities import bytes_of, seconds_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", 10),
        ("1e3", 1000),
        ("10B", 10),
        ("10kB", 10_000),
        ("10GB", 10 * 10**9),
        ("10 gb", 10 * 10**9),
        ("10G", 10 * 10**9),
        ("10GiB", 10 * 2**30),
        ("10Gi", 10 * 2**30),
        ("1.5KiB", 1536),
        (" 2TiB ", 2 * 2**40),
    ],
)
def test_a_size_is_a_number_of_bytes(text: str, expected: float) -> None:
    assert bytes_of(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", 10),
        ("0.25", 0.25),
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("5min", 300),
        ("2h", 7200),
        ("1.5 d", 129_600),
        ("2w", 1_209_600),
        ("1h30m", 5400),
        (" 1h 30m 0.5s ", 5400.5),
    ],
)
def test_a_duration_is_a_number_of_seconds(text: str, expected: float) -> None:
    assert seconds_of(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "10 files", "10EB", "10iB", "1,5GB", "10GB10", "-1kB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        bytes_of(text)


@pytest.mark.parametrize("text", ["", "s", "soon", "10 years", "1h30", "30 1h", "-1s", "1H", "1:30"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        seconds_of(text)
