"""The file of callers: every key, what is inherited, and everything that can be wrong with it, by its path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dst_grpc.domain.callers import ASKING, OPERATING, Grant, Priority
from dst_grpc.errors import InvalidRequest
from dst_grpc.rpc.callers_file import read_callers

EVERYTHING = """
[default]
cost_seconds_per_minute = 20
priority = "batch"

[callers.alice]
weight = 4
cost_seconds_per_minute = 1.5
memory_share = 0.25
priority = "interactive"
roles = ["operate"]

[callers."spiffe://example/ns/lab"]
roles = ["ask"]
"""


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    return tmp_path / "callers.toml"


def test_a_caller_is_granted_what_its_row_says_and_else_what_all_are(file: Path) -> None:
    file.write_text(EVERYTHING)
    grants = read_callers(file)
    usual = Grant(cost_seconds_per_minute=20.0, priority=Priority.BATCH)
    assert grants.of("somebody") == usual
    assert grants.of("alice") == Grant(
        weight=4.0,
        cost_seconds_per_minute=1.5,
        memory_share=0.25,
        priority=Priority.INTERACTIVE,
        roles=OPERATING,
    )
    assert grants.of("spiffe://example/ns/lab") == Grant(
        cost_seconds_per_minute=20.0, priority=Priority.BATCH, roles=ASKING
    )


def test_an_empty_file_makes_all_alike(file: Path) -> None:
    file.write_text("")
    assert read_callers(file).of("anybody") == Grant()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("default = 1", {"default": "must be a table"}),
        ("callers = 1", {"callers": "must be a table"}),
        ("callers.a = 1", {"callers.a": "must be a table"}),
        ("caller.a.weight = 1", {"caller": "did you mean callers?"}),
        ("callers.a.wieght = 1", {"callers.a.wieght": "did you mean weight?"}),
        ('callers."".weight = 1', {'callers.""': "empty name"}),
        ("callers.a.weight = 0", {"callers.a.weight": "must be between"}),
        ("callers.a.weight = inf", {"callers.a.weight": "must be between"}),
        ("callers.a.weight = nan", {"callers.a.weight": "must be between"}),
        ("callers.a.weight = 5e-324", {"callers.a.weight": "must be between"}),  # a turn of which would be 0 seconds
        # Whose next request would have to wait for more milliseconds than there are numbers.
        ("default.cost_seconds_per_minute = 1e-320", {"default.cost_seconds_per_minute": "at least 0.000001"}),
        (f"callers.a.weight = 1{'0' * 400}", {"callers.a.weight": "must be a number"}),
        ("callers.a.weight = true", {"callers.a.weight": "must be a number"}),
        ("default.memory_share = 1.1", {"default.memory_share": "at most 1"}),
        ("default.cost_seconds_per_minute = -1", {"default.cost_seconds_per_minute": "must be 0"}),
        ('default.priority = "bach"', {"default.priority": "did you mean batch?"}),
        ('callers.a.roles = ["operat"]', {"callers.a.roles": 'a list of "ask" and "operate"'}),
        ("callers.a.roles = []", {"callers.a.roles": "must be a list of"}),
        ('callers.a.roles = "ask"', {"callers.a.roles": "must be a list"}),
        (
            'callers.a = { weight = 0, memory_share = 2, roles = [1], x = 1 }\ndefault.priority = ""',
            {
                "callers.a.weight": "must be between",
                "callers.a.memory_share": "at most 1",
                "callers.a.roles": "must be a list of",
                "callers.a.x": "no such key",
                "default.priority": "must not be empty",
            },
        ),
        (f"a = {'[' * 5000}{']' * 5000}", {"": "nested too deeply"}),
        (f"a = {'9' * 5000}", {"": "is no TOML"}),
    ],
)
def test_everything_that_is_wrong_is_named(file: Path, content: str, found: dict[str, str]) -> None:
    file.write_text(content)
    with pytest.raises(InvalidRequest) as caught:
        read_callers(file)
    told = {violation.field: violation.description for violation in caught.value.violations}
    assert told.keys() == found.keys()
    for field, part in found.items():
        assert part in told[field]
    assert str(file.parent) not in str(caught.value), "callers may be told, and folders are not theirs to know"


def test_the_example_of_the_documentation_is_sound(file: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "callers.md"
    (example,) = re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    file.write_text(example)
    grants = read_callers(file)
    assert grants.of("alice") == Grant(weight=4.0, cost_seconds_per_minute=20.0)
    assert grants.of("ops.example").roles == OPERATING
