"""YAML files of strangers: plain values only, without aliases, and neither large nor deep.

An alias repeats what its anchor holds, so that a few lines can stand for any number of values; no config needs one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from dst_grpc.engine.files import corrupt, read_small

if TYPE_CHECKING:
    from dst_grpc.engine.files import File

_MAX_BYTES = 1 << 15
_MAX_DEPTH = 16


class _PlainLoader(yaml.SafeLoader):
    """Loads plain values, and refuses aliases and depth before anything is made of them."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"it repeats *{self.peek_event().anchor}: write out what that stands for")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read_yaml(file: File) -> dict[str, Any]:
    """The mapping in *file*.

    Raises:
        DataLoss: if it is missing, too large or deep, has an alias or a tag of a program, is no sound YAML, or holds
            anything but one mapping of texts to values.
    """
    path, content = file.path, read_small(file, _MAX_BYTES)
    try:
        values = yaml.load(content, Loader=_PlainLoader)  # noqa: S506  a safe loader that refuses more
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise corrupt(path, f"is no sound YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise corrupt(path, "is no mapping of names to values")
    return values
