"""The error tree: messages, paths, and what each class carries."""

from __future__ import annotations

import pytest

from dst_grpc import errors
from dst_grpc.errors import (
    FieldViolation,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    Reason,
    Violations,
    join_path,
)
from tests.arbitrary.errors import CONCRETE_ERRORS


@pytest.mark.parametrize(
    ("prefix", "field", "expected"),
    [("", "a", "a"), ("a", "", "a"), ("a", "b", "a.b"), ("a", "[2]", "a[2]"), ("a", "[2].b", "a[2].b"), ("", "", "")],
)
def test_paths_join(prefix: str, field: str, expected: str) -> None:
    assert join_path(prefix, field) == expected


def test_an_error_can_be_seen_from_the_value_that_holds_it() -> None:
    error = InvalidRequest.of("layer_index", "is required", reason=Reason.IMPOSSIBLE_COMBINATION).under("node_index")
    assert [v.field for v in error.violations] == ["node_index.layer_index"]
    assert error.reason is Reason.IMPOSSIBLE_COMBINATION


@pytest.mark.parametrize("cls", [InvalidRequest, PreconditionFailed])
def test_the_message_lists_every_violation(cls: type[InvalidRequest | PreconditionFailed]) -> None:
    error = cls([FieldViolation("a", "is bad"), FieldViolation("", "and so is all of it")])
    assert str(error) == "a: is bad; and so is all of it"


def test_violations_are_collected_and_raised_together() -> None:
    problems = Violations()
    problems.raise_if_any()
    assert not problems.fields
    problems.check(True, "a", "never noted")
    problems.add("b", "is bad")
    problems.extend(InvalidRequest.of("d", "is worse"), "c")
    assert problems.fields == ("b", "c.d")
    with pytest.raises(InvalidRequest) as caught:
        problems.raise_if_any()
    assert [v.field for v in caught.value.violations] == ["b", "c.d"]


def test_an_unknown_name_comes_with_the_nearest_known_ones() -> None:
    error = NotFound.unknown("model", "embedd", ["gpt2", "embedded"], reason=Reason.MODEL_NOT_FOUND)
    assert error.nearest == ("embedded",)
    assert str(error) == "unknown model 'embedd'; the nearest are 'embedded'"
    assert error.metadata == {"resource_type": "model", "resource_name": "embedd"}


def test_an_unknown_name_that_is_near_none_comes_with_the_first_known_ones() -> None:
    few = NotFound.unknown("service", "zzz", ["", "dst.v1.A", "model/b"], reason=Reason.CONTEXT_NOT_FOUND)
    assert (str(few), few.nearest) == ("unknown service 'zzz'; known are 'dst.v1.A', 'model/b'", ())
    many = NotFound.unknown("model", "zzz", [f"m{i}" for i in range(9)], reason=Reason.MODEL_NOT_FOUND)
    assert str(many).endswith("'m7', ... (9 in all)")


def test_an_unknown_name_among_none_says_so() -> None:
    error = NotFound.unknown("model", "x", [], reason=Reason.MODEL_NOT_FOUND)
    assert str(error) == "unknown model 'x'; none is registered"


def test_every_class_is_in_the_drawing_at_the_top() -> None:
    drawing = errors.__doc__ or ""
    assert all(cls.__name__ in drawing for cls in CONCRETE_ERRORS)
    assert all(cls.__doc__ for cls in CONCRETE_ERRORS)


def test_reasons_are_their_own_names() -> None:
    assert all(reason.value == reason.name for reason in Reason)


def test_an_internal_error_carries_the_id_of_its_log_entry() -> None:
    error = errors.Internal("boom", error_id="e1")
    assert (error.error_id, error.reason) == ("e1", Reason.INTERNAL)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([Reason.NOT_ONE_TOKEN, Reason.NOT_ONE_TOKEN], Reason.NOT_ONE_TOKEN),
        ([Reason.NOT_ONE_TOKEN, Reason.PROMPT_TOO_LONG], Reason.INVALID_FIELD),
    ],
)
def test_a_reason_that_all_violations_share_is_the_reason(reasons: list[Reason], expected: Reason) -> None:
    problems = Violations()
    problems.add("a", "is bad", reasons[0])
    problems.extend(InvalidRequest.of("b", "is bad", reason=reasons[1]))
    with pytest.raises(InvalidRequest) as caught:
        problems.raise_if_any()
    assert caught.value.reason is expected
