"""Comparing one row of a case with our answer: equal to the reference, or different on purpose by a stated rule."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc.domain.components import PassType
from dst_grpc.domain.scalar_types import DerivedScalarType
from tests.parity.cases import Case, Key, Row
from tests.parity.rounding import allowed

if TYPE_CHECKING:
    from collections.abc import Mapping

Tensors = dict[Key, np.ndarray[Any, Any]]
_F, _B = PassType.FORWARD, PassType.BACKWARD
DIFFERENCES: dict[str, list[dict[str, Any]]] = tomllib.loads(
    (Path(__file__).parent / "differences.toml").read_text(encoding="utf-8")
)


def rule_of(row: Row) -> str | None:
    """The rule by which our answer to *row* differs from the stored one on purpose; None if it must be equal."""
    for entry in DIFFERENCES["stored"]:
        if row.spec.dst in entry["dst"] and _WHEN[entry["when"]](row):
            return str(entry["rule"])
    return None


def _gradients_derived(row: Row) -> bool:
    return row.spec.config is not None and row.spec.config.derive_gradients


def _origin_reaches_nothing(row: Row) -> bool:
    return any(pass_type is _B and tensor.shape == () for (pass_type, _), tensor in row.expected.items())


_WHEN = {"gradients_derived": _gradients_derived, "origin_reaches_nothing": _origin_reaches_nothing}


def compare(case: Case, row: Row, found: Tensors, loss: float | None, activation_value: float | None) -> list[str]:
    """Everything that is not as it should be, in words."""
    problems = [
        f"{name} is {ours} instead of {stored}"
        for name, stored, ours in (("loss", row.loss, loss), ("traced value", row.activation_value, activation_value))
        if not _same_scalar(stored, ours)
    ]
    expected = expected_tensors(case, row)
    if expected.keys() != found.keys():
        problems.append(f"keys differ: {sorted(map(str, expected.keys() ^ found.keys()))}")
    for key in expected.keys() & found.keys():
        problem = _difference(expected[key], found[key], allowed(case, row, key, expected[key]))
        if problem is not None:
            problems.append(f"{key[0]} of layer {key[1]}: {problem}")
    return problems


def _difference(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any], bound: np.ndarray[Any, Any]) -> str | None:
    """What differs between two tensors, in words; None if nothing does by more than *bound*, entry by entry."""
    if expected.shape != found.shape:
        return f"shape {found.shape} instead of {expected.shape}"
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], found[~finite]):
        return "infinities elsewhere"
    off, bound = np.abs(expected[finite] - found[finite]), bound[finite]
    if np.all(off <= bound):
        return None
    worst = np.argmax(off - bound)
    return f"off by {off[worst]:.3g}, allowed {bound[worst]:.3g}"


def expected_tensors(case: Case, row: Row) -> Tensors:
    """What *row* must be: as stored, or by the rule of its difference, from other rows of the same case."""
    rule, stored = rule_of(row), dict(row.expected)
    if rule is None:
        return stored
    if rule == "no_backward":
        return {key: tensor for key, tensor in stored.items() if key[0] is _F}
    if rule == "forward_is_the_residual":
        after = case.stored(DerivedScalarType.RESID_POST_MLP)
        embedding = case.stored(DerivedScalarType.RESID_POST_EMBEDDING)[_F, None]
        return stored | {(_F, layer): after[_F, layer - 1] if layer else embedding for _, layer in _layered(stored)}
    if rule == "backward_is_zeros_of_full_shape":
        return {key: tensor if key[0] is _F else np.zeros_like(stored[_F, key[1]]) for key, tensor in stored.items()}
    name, _, source = rule.partition(":")
    assert name == "backward_is_flattened_from", f"unknown rule {rule!r}"
    unflattened = case.stored(DerivedScalarType(source))
    return stored | {(_B, layer): _lower_triangle(unflattened[_B, layer]) for _, layer in _layered(stored)}


def _layered(tensors: Mapping[Key, Any]) -> list[tuple[PassType, int]]:
    return [(pass_type, layer) for pass_type, layer in tensors if layer is not None]


def _lower_triangle(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x[np.tril_indices(x.shape[0])]


def _same_scalar(stored: float | None, ours: float | None) -> bool:
    if stored is None or ours is None:
        return stored is None and ours is None
    return math.isclose(stored, ours, rel_tol=1e-4, abs_tol=1e-6)
