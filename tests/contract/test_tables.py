"""A fact about a noun of the domain stands in the row of that noun, and in no table beside it."""

from __future__ import annotations

import ast
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

import dst_grpc
from dst_grpc.domain.autoencoder_inputs import AUTOENCODER_INPUTS
from dst_grpc.domain.components import Component, Dimension, NodeType
from dst_grpc.domain.explanations import ExplainPart
from dst_grpc.domain.locations import LOCATION_FACTS, ActivationLocationType
from dst_grpc.domain.nodes import NODES
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.scalars import FACTS
from dst_grpc.domain.tables import one_row_each

ROOT = Path(dst_grpc.__file__).parent
NOUNS = {
    enum.__name__: enum
    for enum in (ActivationLocationType, Component, Dimension, DerivedScalarType, ExplainPart, NodeType)
}
TABLES: list[tuple[type[Enum], dict[Any, Any]]] = [
    (ActivationLocationType, LOCATION_FACTS),
    (DerivedScalarType, AUTOENCODER_INPUTS),
    (DerivedScalarType, FACTS),
    (NodeType, NODES),
]
_CONSTRUCTORS = {"dict", "frozenset", "list", "set", "tuple", "MappingProxyType"}


def keyed_tables(source: str, module: str) -> set[str]:
    """Module and name of every constant of a module or class whose keys or entries are members of a noun."""
    tree = ast.parse(source)
    aliases = _aliases(tree)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name not in NOUNS]
    found = set()
    for statement in (*tree.body, *(statement for each in classes for statement in each.body)):
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        if isinstance(target, ast.Name) and any(_is_member(key, aliases) for key in _keys(statement.value)):
            found.add(f"{module}: {target.id}")
    return found


def _aliases(tree: ast.Module) -> set[str]:
    """What the nouns are called in a module: their own names, and those given by `as` and by assignment."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names if alias.name in NOUNS}
        elif isinstance(node, ast.ClassDef) and node.name in NOUNS:
            found.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in found:
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _keys(value: ast.expr) -> list[ast.expr]:
    """Keys of a dict, or entries of a set, tuple or list, whether or not a constructor is called with it."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in _CONSTRUCTORS:
        return [key for argument in value.args for key in _keys(argument)]
    if isinstance(value, ast.Dict):
        return [key for key in value.keys if key is not None]
    return value.elts if isinstance(value, ast.Set | ast.Tuple | ast.List) else []


def _is_member(key: ast.expr, aliases: set[str]) -> bool:
    return isinstance(key, ast.Attribute) and isinstance(key.value, ast.Name) and key.value.id in aliases


def test_no_table_beside_the_rows_is_keyed_by_a_noun() -> None:
    found = set()
    for path in ROOT.rglob("*.py"):
        name = ".".join(("dst_grpc", *path.relative_to(ROOT).with_suffix("").parts))
        if "._gen." not in name:
            found |= keyed_tables(path.read_text(), name)
    assert not found


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("T = NodeType\nWORDS = {T.LAYER: 'layer'}", {"m: WORDS"}),
        ("from x import Dimension as D\nA: frozenset[D] = frozenset({D.LAYERS})", {"m: A"}),
        ("from x import Component\nclass C:\n    of = (Component.ONE,)", {"m: of"}),
        ("from x import NodeType\nBY_LETTER = {'h': NodeType.ATTENTION_HEAD}", set()),
        ("from x import PassType\nBOTH = (PassType.FORWARD, PassType.BACKWARD)", set()),
    ],
)
def test_a_table_is_found_by_what_it_is_keyed_by(source: str, names: set[str]) -> None:
    assert keyed_tables(f"from x import NodeType\n{source}", "m") == names


@pytest.mark.parametrize(("members", "table"), TABLES)
def test_every_member_has_one_row(members: type[Enum], table: dict[Any, Any]) -> None:
    assert list(table) == list(members)
    assert all(row.type is member for member, row in table.items())


@pytest.mark.parametrize(("members", "table"), TABLES)
def test_a_member_without_a_row_and_one_with_two_are_refused(members: type[Enum], table: dict[Any, Any]) -> None:
    first, *rest = table.values()
    with pytest.raises(ValueError, match=f"{first.type.name} has 0"):
        one_row_each(members, rest)
    with pytest.raises(ValueError, match=f"{first.type.name} has 2"):
        one_row_each(members, (first, first, *rest))
