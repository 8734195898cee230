"""YAML files of strangers: plain values only, without anchors, and neither large nor deep.

An alias repeats what its anchor holds, so that a few lines can stand for any number of values; no config needs one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from dst_grpc.engine.files import corrupt, read_small

if TYPE_CHECKING:
    from dst_grpc.engine.files import File

_MAX_BYTES = 1 << 18
_MAX_DEPTH = 16


def read_yaml(file: File) -> dict[str, Any]:
    """The mapping in *file*.

    Raises:
        DataLoss: if it is missing, too large or deep, has an alias or a tag of a program, is no sound YAML, or holds
            anything but one mapping of texts to values.
    """
    path, content = file.path, read_small(file, _MAX_BYTES)
    depth = 0
    try:
        for event in yaml.parse(content, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise corrupt(path, f"repeats *{event.anchor}: write out what it stands for")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise corrupt(path, f"is nested more than {_MAX_DEPTH} deep")
        values = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise corrupt(path, f"is no sound YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise corrupt(path, "is no mapping of names to values")
    return values
