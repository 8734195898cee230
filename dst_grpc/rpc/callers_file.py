"""The file of callers: TOML that says what the operator grants whom.

    [default]
    cost_seconds_per_minute = 20

    [callers.alice]
    weight = 4
    roles = ["operate"]

Names are those of tokens or certificates, or hosts. A caller that is not named, and every key that is absent, is as
`[default]` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dst_grpc.domain.callers import Grant, Grants, Priority, Role
from dst_grpc.errors import InvalidRequest, Violations
from dst_grpc.sources.specs import toml_key
from dst_grpc.sources.toml_file import Table, near, read_toml

_NO_TABLE: dict[str, Any] = {}
_ROLES = " and ".join(f'"{role}"' for role in Role)
_PRIORITIES = " or ".join(Priority)


def read_callers(file: Path) -> Grants:
    """What *file* grants.

    Raises:
        InvalidRequest: listing everything that is wrong with it, by path in the file.
    """
    problems = Violations()
    content = Table(read_toml(file), "", problems)
    default = _grant(Table(content.take("default", dict, _NO_TABLE), "default", problems), Grant())
    by_name = {}
    for name, row in content.take("callers", dict, _NO_TABLE).items():
        path = f"callers.{toml_key(name)}"
        problems.check(bool(name), path, "must not be an empty name")
        if isinstance(row, dict):
            by_name[name] = _grant(Table(row, path, problems), default)
        else:
            problems.add(path, "must be a table")
    content.finish()
    problems.raise_if_any()
    return Grants(default=default, by_name=by_name)


def _grant(table: Table, default: Grant) -> Grant:
    """What *table* grants, and *default* where it says nothing, or something wrong."""
    names = table.take("roles", list, None)
    roles = default.roles if names is None else roles_of(names)
    table.check(roles is not None or names is None, "roles", f"must be a list of {_ROLES}")
    priority = table.take("priority", str, default.priority.value)
    known = {one.value: one for one in Priority}
    table.check(priority in known, "priority", f"must be {_PRIORITIES}{near(priority, known)}")
    fields = {
        "weight": table.take("weight", float, default.weight),
        "cost_seconds_per_minute": table.take("cost_seconds_per_minute", float, default.cost_seconds_per_minute),
        "memory_share": table.take("memory_share", float, default.memory_share),
    }
    table.finish()
    try:
        return Grant(**fields, priority=known.get(priority, default.priority), roles=roles)
    except InvalidRequest as error:
        table.problems.extend(error, table.path)
        return default


def roles_of(names: list[Any]) -> tuple[Role, ...] | None:
    """The roles of these *names*, with those that they imply; None if there are none, or others among them."""
    known = {one.value: one for one in Role}
    if not names or not all(isinstance(name, str) and name in known for name in names):
        return None
    return max((known[name].implied for name in names), key=len)
