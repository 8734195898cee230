"""Errors of every class, as the package raises them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from dst_grpc import errors
from tests.arbitrary.basic import optional, seconds, tuples

CONCRETE_ERRORS = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type)
    and issubclass(cls, errors.DstError)
    and not cls.__name__.startswith("_")
    and cls is not errors.DstError
]


@st.composite
def dst_errors(draw: st.DrawFn, max_size: int = 12, max_violations: int = 3) -> errors.DstError:
    """Errors of every class, as the package raises them."""
    words = st.text(max_size=max_size)
    cls = draw(st.sampled_from(CONCRETE_ERRORS))
    common: dict[str, Any] = {"metadata": draw(st.dictionaries(words, words, max_size=3))}
    if cls is errors.Internal:
        return errors.Internal(draw(words), error_id=draw(words))
    common["reason"] = draw(st.sampled_from(errors.Reason))
    if cls in {errors.InvalidRequest, errors.PreconditionFailed}:
        violations = st.builds(errors.FieldViolation, words, words.map(lambda text: text + "."))
        found = draw(st.lists(violations, min_size=1, max_size=max_violations))
        return cls(found, **common)
    if cls is errors.NotFound:
        common |= {"resource_type": draw(words), "resource_name": draw(words), "nearest": draw(tuples(words))}
    if cls in {errors.Exhausted, errors.Unavailable}:
        common["retry_after_seconds"] = draw(optional(seconds))
    return cls(draw(words).strip() + ".", **common)
