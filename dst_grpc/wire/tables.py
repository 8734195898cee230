"""Tables of nodes: rows in messages, so that a table can be split between nodes, and columns in the domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dst_grpc.domain.explanations import Completeness, GroupValues, NodeTable
from dst_grpc.domain.indices import NodeIndex

if TYPE_CHECKING:
    from dst_grpc.errors import Violations


@dataclass(slots=True, kw_only=True)
class TableNode:
    """A node, with its value in each group."""

    node: NodeIndex
    vocab_token: str = ""
    values: tuple[float, ...] = ()


@dataclass(slots=True, kw_only=True)
class TableGroup:
    """The nodes that one group selected."""

    group_id: str
    top: tuple[int, ...] = ()
    bottom: tuple[int, ...] = ()
    completeness: Completeness | None = None


@dataclass(slots=True, kw_only=True)
class TableRows:
    """A NodeTable as it is sent."""

    nodes: tuple[TableNode, ...] = ()
    groups: tuple[TableGroup, ...] = ()


def rows_of(table: NodeTable) -> TableRows:
    """The rows of *table*."""
    columns = [group.values for group in table.groups]
    values = np.stack(columns, axis=1).tolist() if columns else [()] * len(table.nodes)
    texts = table.vocab_tokens or ("",) * len(table.nodes)
    nodes = [
        TableNode(node=node, vocab_token=text, values=row)
        for node, text, row in zip(table.nodes, texts, values, strict=True)
    ]
    groups = [
        TableGroup(group_id=group.group_id, top=group.top, bottom=group.bottom, completeness=group.completeness)
        for group in table.groups
    ]
    return TableRows(nodes=tuple(nodes), groups=tuple(groups))


def table_of(rows: TableRows, problems: Violations) -> NodeTable | None:
    """The table of *rows*; None if they contradict one another, which is noted."""
    before, n_nodes, n_groups = problems.count, len(rows.nodes), len(rows.groups)
    for i, node in enumerate(rows.nodes):
        if len(node.values) != n_groups:
            problems.add(f"nodes[{i}].values", f"holds {len(node.values)} values for {n_groups} groups")
    for i, group in enumerate(rows.groups):
        for end, positions in (("top", group.top), ("bottom", group.bottom)):
            if any(position >= n_nodes for position in positions):
                problems.add(f"groups[{i}].{end}", f"names a node beyond the {n_nodes}")
    if problems.count > before:
        return None
    values = np.array([node.values for node in rows.nodes], np.float32).reshape(n_nodes, n_groups)
    texts = tuple(node.vocab_token for node in rows.nodes)
    groups = [
        GroupValues(
            group_id=group.group_id,
            values=values[:, i].copy(),
            top=group.top,
            bottom=group.bottom,
            completeness=group.completeness,
        )
        for i, group in enumerate(rows.groups)
    ]
    return NodeTable(
        nodes=tuple(node.node for node in rows.nodes),
        groups=tuple(groups),
        vocab_tokens=texts if any(texts) else (),
    )
