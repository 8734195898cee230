"""Tables of nodes: rows in messages, so that a table can be split between nodes, and columns in the domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dst_grpc.domain.explanations import Completeness, GroupValues, NodeTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dst_grpc.domain.indices import NodeIndex
    from dst_grpc.errors import Violations


@dataclass(slots=True, kw_only=True)
class TableGroup:
    """The nodes that one group selected: GroupValues without the values, which are in the rows."""

    group_id: str
    top: tuple[int, ...] = ()
    bottom: tuple[int, ...] = ()
    completeness: Completeness | None = None


def texts_of(table: NodeTable) -> Sequence[str]:
    """The text of each row."""
    return table.vocab_tokens or ("",) * len(table.nodes)


def values_of(table: NodeTable) -> Sequence[Sequence[float]]:
    """The values of each row."""
    columns = [group.values for group in table.groups]
    rows: list[list[float]] = np.stack(columns, axis=1).tolist() if columns else [[]] * len(table.nodes)
    return rows


def check_table(rows: Sequence[Any], groups: Sequence[TableGroup], problems: Violations) -> None:
    """Note where the *rows* of a message and what was read of its *groups* contradict one another."""
    for i, row in enumerate(rows):
        if len(row.values) != len(groups):
            problems.add(f"nodes[{i}].values", f"holds {len(row.values)} values for {len(groups)} groups")
    for i, group in enumerate(groups):
        for end, positions in (("top", group.top), ("bottom", group.bottom)):
            if any(position >= len(rows) for position in positions):
                problems.add(f"groups[{i}].{end}", f"names a node beyond the {len(rows)}")


def table_of(
    nodes: tuple[NodeIndex, ...], rows: Sequence[Any], groups: Sequence[TableGroup], log_normalizer: float | None
) -> NodeTable:
    """The table of the *rows* of a message, and what was read of their *nodes*, of its *groups* and of the rest."""
    values = np.array([list(row.values) for row in rows], np.float32).reshape(len(rows), len(groups))
    texts = tuple([row.vocab_token for row in rows])
    columns = [
        GroupValues(
            group_id=group.group_id,
            values=values[:, i].copy(),
            top=group.top,
            bottom=group.bottom,
            completeness=group.completeness,
        )
        for i, group in enumerate(groups)
    ]
    return NodeTable(
        nodes=nodes,
        groups=tuple(columns),
        vocab_tokens=texts if any(texts) else (),
        log_normalizer=log_normalizer,
    )
