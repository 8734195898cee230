"""Selects the files of a model or an autoencoder set in a source, by name, in a folder or repository.

A pulled selection is stored under a key, a string of all that was asked for, so that a registry file that asks for more
is noticed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from dst_grpc.engine.formats.layouts import SUFFIXES, below, is_weights
from dst_grpc.engine.model_folder import ADAPTER, ADAPTER_FILE, CONFIG, INDEX, TOKENIZER, WEIGHTS, instead_of
from dst_grpc.errors import DataLoss, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from dst_grpc.sources.specs import AutoencoderSpec

LAYER = "{layer}"
"""Placeholder of a layer's number in a pattern."""
_CONFIGS = (".json", ".yaml", ".yml")
_SHARD = re.compile(r"[^/\\]+\.safetensors")


def model_key(path: str) -> str:
    """The key of a model in the folder *path* of a repository."""
    return f"model {path}".strip()


def model_files(names: Collection[str], read: Callable[[str], bytes]) -> tuple[str, ...]:
    """The files of a model among *names*: its config, tokenizer and weights.

    Args:
        names: the names of all files in its folder.
        read: reads the content of one, called only if the weights are sharded.

    Raises:
        DataLoss: if one is missing, or the index is invalid.
    """
    if ADAPTER_FILE in names:
        raise DataLoss(f"its {ADAPTER_FILE} {ADAPTER}")
    weights = (INDEX, *_shards(read(INDEX))) if INDEX in names and WEIGHTS not in names else (WEIGHTS,)
    files = (CONFIG, TOKENIZER, *weights)
    missing = [name for name in files if name not in names]
    for name in missing:
        instead = instead_of(name, names)
        if instead is not None:
            raise DataLoss(f"its {instead[0]} {instead[1]}")
    if missing:
        raise DataLoss(f"it lacks {', '.join(missing)}")
    return files


def _shards(index: bytes) -> list[str]:
    try:
        shards = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataLoss(f"its {INDEX} is no sound index: it lacks a weight_map of texts") from error
    for shard in shards:
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise DataLoss(f"its {INDEX} names the shard {shard!r}, which is no safetensors file beside it")
    return shards


def set_key(path: str, spec: AutoencoderSpec) -> str:
    """The key of an autoencoder set in the folder *path* of a repository."""
    layers = "" if spec.layers is None else f" layers {','.join(map(str, spec.layers))}"
    return f"autoencoders {path} {spec.pattern or ''}{layers}"


def set_files(names: Iterable[str], spec: AutoencoderSpec) -> tuple[str, ...]:
    """The files of an autoencoder set among *names*: its weights, and the configs and statistics that belong to them.

    Raises:
        InvalidRequest: (field `pattern` or `layers`) as `layer_files` does.
        DataLoss: if there are no weights.
    """
    known = sorted(names)
    if spec.pattern is None:
        weights = [name for name in known if is_weights(_name(name))]
    else:
        weights = list(layer_files(known, spec.pattern, spec.layers).values())
    if not weights:
        raise DataLoss(f"it has no file that ends in {', '.join(SUFFIXES)}")
    folders = {_folder(name) for name in weights}
    beside = {name for name in known if name.endswith(_CONFIGS) and _folder(name) in folders}
    beside.update(*(below(folder, known) for folder in folders))
    return tuple(dict.fromkeys((*weights, *sorted(beside))))


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _name(name: str) -> str:
    return name.rpartition("/")[2]


def layer_files(names: Iterable[str], pattern: str, layers: Collection[int] | None) -> dict[int, str]:
    """The file of each layer, by layer: those of *names* that fit *pattern*, of *layers* or, if that is None, of any.

    In a pattern, {layer} is a number, the same at each occurrence, and * is anything but a slash.

    Raises:
        InvalidRequest: (field `pattern`) if no file fits, or two fit for one layer; (field `layers`) if one has no
            file.
    """
    expression = _compiled(pattern)
    found: dict[int, str] = {}
    for name in sorted(names):
        match = expression.fullmatch(name)
        if match is None:
            continue
        layer = int(match["layer"])
        if layers is not None and layer not in layers:
            continue
        other = found.setdefault(layer, name)
        if other != name:
            raise InvalidRequest.of("pattern", f"fits both {other} and {name}, for layer {layer}: make it narrower")
    lacking = [str(layer) for layer in layers or () if layer not in found]
    if lacking and found:
        raise InvalidRequest.of("layers", f"no file fits the pattern for layer {', '.join(lacking)}")
    if not found:
        raise InvalidRequest.of("pattern", f"no file fits {pattern!r}")
    return dict(sorted(found.items()))


def pattern_problem(pattern: str) -> str:
    """What is wrong with the syntax of *pattern*; empty if nothing is."""
    if LAYER not in pattern:
        return f"must hold {LAYER} where the number of the layer stands"
    parts = pattern.split("/")
    if "" in parts or ".." in parts or "\\" in pattern:
        return "must be a path below the source, with single slashes and no .."
    return "" if pattern.endswith(SUFFIXES) else f"must end in {', '.join(SUFFIXES)}"


def _compiled(pattern: str) -> re.Pattern[str]:
    first, *others = pattern.split(LAYER)
    parts = ["[^/]*".join(map(re.escape, part.split("*"))) for part in (first, *others)]
    # A number with a leading zero would be a second name for its layer.
    return re.compile(r"(?P<layer>0|[1-9][0-9]*)".join(parts[:2]) + "".join(f"(?P=layer){part}" for part in parts[2:]))
