"""What a check finds, and the table of all that was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the table."""

    check: str
    """The check that it is from."""
    what: str
    """What was measured."""
    got: str
    """What came out."""
    wanted: str
    """What is right."""
    is_right: bool | None
    """Whether it is; None if this device cannot tell, or nothing is demanded."""

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "ok", False: "WRONG", None: "-"}[self.is_right]


def table_of(findings: Sequence[Finding], title: str) -> Table:
    """All of *findings*, a line each."""
    table = Table(title=title, title_justify="left", show_edge=False)
    for column in ("check", "what", "got", "wanted", ""):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.check, finding.what, finding.got, finding.wanted, finding.verdict)
    return table
