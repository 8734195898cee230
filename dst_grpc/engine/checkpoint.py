"""Model checkpoints: a folder with `config.json`, safetensors and `tokenizer.json` becomes a `Decoder`.

Opening reads only the config and the headers, and finds every tensor that is unknown, missing or misshapen; loading
then moves one tensor at a time. The family maps a checkpoint's names to ours; the registry knows where checkpoints are.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dst_grpc.engine.decoder import Decoder
from dst_grpc.engine.element_types import is_finite
from dst_grpc.engine.families import ConfigValues, Family, Source, family_of
from dst_grpc.engine.families.family import plain, transposed
from dst_grpc.engine.files import CorruptFile, File, FileSet, corrupt, read_small
from dst_grpc.engine.model_folder import (
    CONFIG,
    INDEX,
    TOKENIZER,
    WEIGHTS,
    check_whole_model,
    missing,
    what_tensor_is,
)
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.engine.tokenizer import check_tokenizer
from dst_grpc.errors import DataLoss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dst_grpc.engine.decoder import DecoderConfig

_MAX_INDEX_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose config and headers are sound. Holds no weights."""

    folder: Path
    """Its path."""
    family: str
    """Name of its family."""
    config: DecoderConfig
    """Its architecture."""
    files: FileSet
    """All files that it consists of."""
    sources: Mapping[str, Source]
    """The source of each of our weights; a tied unembedding has none."""
    tensors: Mapping[str, SafetensorsFile]
    """The file that holds each tensor, by the checkpoint's name."""
    redundant_unembedding: tuple[str, str] | None
    """Names of an unembedding that the config ties but the files hold as well, and of the embedding that it must equal;
    None if there is none."""

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the weights in float32."""
        return self.bytes_as(torch.float32)

    def bytes_as(self, dtype: torch.dtype) -> int:
        """Bytes of the weights as *dtype*, a tied one counted once."""
        return dtype.itemsize * self.parameter_count

    @cached_property
    def parameter_count(self) -> int:
        """Weights, a tied one counted once."""
        shapes = self.config.weight_shapes()
        return sum(math.prod(shapes[name]) for name in self.sources)

    def digest(self) -> str:
        """SHA-256 over all files; reads them whole the first time. Raises DataLoss if they changed."""
        return self.files.digest()

    def load(
        self, device: torch.device | str, dtype: torch.dtype, on_progress: Callable[[int], None] = lambda _: None
    ) -> Decoder:
        """Read the weights, one at a time straight to *device*, as *dtype*.

        Args:
            device: the device of the weights.
            dtype: their element type.
            on_progress: called with the bytes done after each weight, finally `bytes_as(dtype)`; an exception ends the
            load.

        Raises:
            DataLoss: if a weight is not finite, or a file is corrupt or changed since the checkpoint was opened.
        """
        self.files.check_unchanged()
        self._check_tie()
        weights: dict[str, torch.Tensor] = {}
        done = 0
        shapes = self.config.weight_shapes()
        for name, source in self._largest_first():
            weights[name] = self._weight(source, shapes[name], torch.device(device), dtype)
            done += weights[name].nbytes
            on_progress(done)
        weights.setdefault("unembedding", weights["embedding"].t())
        self.files.check_unchanged()
        return Decoder(self.config, weights)

    def _largest_first(self) -> list[tuple[str, Source]]:
        """Sources, those of large weights first, so that a temporary copy of one never comes on top of nearly all
        weights."""
        shapes = self.config.weight_shapes()
        return sorted(self.sources.items(), key=lambda item: -math.prod(shapes[item[0]]))

    def _weight(self, source: Source, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """One of our weights, of *shape*, filled in place: temporaries would fragment the memory."""
        stored = torch.empty(shape[::-1] if source.is_transposed else shape, device=device, dtype=dtype)
        widths = stored.shape[:1] if source.widths is None else source.widths(self.config)
        for key, part in zip(source.names, torch.split(stored, list(widths)), strict=True):
            self._read_into(part, source, key)
        return stored.t() if source.is_transposed else stored

    def _read_into(self, part: torch.Tensor, source: Source, key: str) -> None:
        """Fill *part* with the checkpoint's tensor *key*."""
        place = part if source.in_file_order is None else source.in_file_order(part, self.config)
        self.tensors[key].fill(key, place)
        if is_finite(part):
            return
        path = self.tensors[key].path
        if all(map(is_finite, self.tensors[key].blocks(key))):
            raise corrupt(path, f"tensor {key!r} has values too large for {str(part.dtype).removeprefix('torch.')}")
        raise corrupt(path, f"tensor {key!r} has values that are NaN or infinite")

    def _check_tie(self) -> None:
        if self.redundant_unembedding is None:
            return
        head, embedding = self.redundant_unembedding
        files = self.tensors[head], self.tensors[embedding]
        if not _are_equal((files[0], head), (files[1], embedding)):
            raise corrupt(files[0].path, f"{head!r} differs from {embedding!r}, though config.json ties them")

    def __repr__(self) -> str:
        """Name and size."""
        return f"Checkpoint({self.folder.name!r}, {self.family}, {self.parameter_bytes} bytes in float32)"


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config and headers in *folder*, and no weights.

    Raises:
        DataLoss: naming the file and what is wrong with it: an unsupported value in the config, a corrupt header, or a
            tensor that is unknown, missing or misshapen.
    """
    check_whole_model(folder)
    family, values = family_of(ConfigValues.read(File.at(folder / CONFIG)))
    config = family.read_config(values)
    files, tensors = _find_tensors(folder)
    sources, redundant = _sources(folder, family, values, config, tensors)
    for name, shape in config.weight_shapes().items():
        if name in sources:
            _check_source(sources[name], shape, config, tensors)
    if not (folder / TOKENIZER).exists():
        raise missing(folder, TOKENIZER)
    check_tokenizer(folder / TOKENIZER, config.vocab_size)
    names = [*files, CONFIG, TOKENIZER]
    return Checkpoint(
        folder=folder,
        family=family.name,
        config=config,
        files=FileSet({name: File.at(folder / name) for name in names}),
        sources=sources,
        tensors=tensors,
        redundant_unembedding=redundant,
    )


def _find_tensors(folder: Path) -> tuple[list[str], dict[str, SafetensorsFile]]:
    """Names of the weight files, and by each tensor's name the file that holds it."""
    if (folder / WEIGHTS).exists():
        file = SafetensorsFile.open(File.at(folder / WEIGHTS)).with_aliases()
        return [WEIGHTS], dict.fromkeys(file.tensors, file)
    if (folder / INDEX).exists():
        return _find_in_shards(folder)
    raise missing(folder, WEIGHTS)


def _find_in_shards(folder: Path) -> tuple[list[str], dict[str, SafetensorsFile]]:
    path = folder / INDEX
    try:
        weight_map = json.loads(read_small(File.at(path), _MAX_INDEX_BYTES))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt(path, "is no sound index: it lacks a weight_map of texts") from error
    for shard in shards:
        if not isinstance(shard, str) or "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise corrupt(path, f"names the shard {shard!r}, which is no safetensors file of this folder")
    opened = {shard: SafetensorsFile.open(File.at(folder / shard)) for shard in shards}
    for shard, file in opened.items():
        for name in file.tensors:
            if weight_map.get(name) != shard:
                raise corrupt(file.path, f"holds {name!r}, which the index does not place there")
    for name, shard in weight_map.items():
        if name not in opened[shard].tensors:
            raise corrupt(path, f"places {name!r} in {shard}, which does not hold it")
    complete = [file.with_aliases() for file in opened.values()]
    return [*shards, INDEX], {name: file for file in complete for name in file.tensors}


def _sources(
    folder: Path,
    family: Family,
    values: ConfigValues,
    config: DecoderConfig,
    tensors: Mapping[str, SafetensorsFile],
) -> tuple[dict[str, Source], tuple[str, str] | None]:
    """The source of each of our weights, in loading order; and the tied unembedding, if the files hold it as well.

    If embedding and unembedding are tied, files may hold either, or both.
    """
    prefix = next((p for p in family.prefixes if any(name.startswith(p) for name in tensors)), family.prefixes[0])
    found = {ours: _prefixed(source, prefix) for ours, source in family.once.items()}
    for layer in range(config.n_layers):
        for ours, source in family.per_layer.items():
            found[f"layers.{layer}.{ours}"] = _prefixed(source, prefix, layer)
    head = next((name for name in family.unembeddings if name in tensors), family.unembeddings[0])
    is_tied, redundant = values.flag("tie_word_embeddings"), None
    if not is_tied:
        found["unembedding"] = transposed(head)
    elif head in tensors and found["embedding"].names[0] in tensors:
        redundant = head, found["embedding"].names[0]
    elif head in tensors:
        found["embedding"] = plain(head)
    found = {ours: found[ours] for ours in config.weight_shapes() if ours in found}
    used = {name for source in found.values() for name in source.names} | {head}
    for name in sorted(tensors.keys() - used):
        if not family.skipped.fullmatch(name.removeprefix(prefix)):
            problem = what_tensor_is(name) or f"is no weight of a {family.name} checkpoint as configured"
            raise _about_tensor(tensors[name].path, name, problem)
    for name in sorted(used - tensors.keys()):
        if name != head or not is_tied:
            raise _about_tensor(folder / CONFIG, name, "is needed, but no weight file holds it")
    return found, redundant


def _prefixed(source: Source, prefix: str, layer: int = 0) -> Source:
    return replace(source, names=tuple(prefix + name.replace("{i}", str(layer)) for name in source.names))


def _check_source(
    source: Source, shape: tuple[int, ...], config: DecoderConfig, tensors: Mapping[str, SafetensorsFile]
) -> None:
    """Compare the shapes in the headers with the *shape* of our weight."""
    widths = shape[-1:] if source.widths is None else source.widths(config)
    for name, width in zip(source.names, widths, strict=True):
        header, path, wanted = tensors[name].tensors[name], tensors[name].path, [*shape[:-1], width]
        if not header.is_float:
            raise _about_tensor(path, name, f"has element type {header.element_type}, which is no float")
        if source.is_transposed:
            wanted.reverse()
        if list(header.shape) != wanted:
            raise _about_tensor(path, name, f"has shape {list(header.shape)}; config.json needs {wanted} of it")


def _are_equal(one: tuple[SafetensorsFile, str], other: tuple[SafetensorsFile, str]) -> bool:
    """Whether two tensors have the same shape and values; neither is ever in memory as a whole."""
    (file, name), (other_file, other_name) = one, other
    header, other_header = file.tensors[name], other_file.tensors[other_name]
    if (header.shape, header.element_type) != (other_header.shape, other_header.element_type):
        return False
    if (file.path, header.begin) == (other_file.path, other_header.begin):
        return True
    blocks = zip(file.blocks(name), other_file.blocks(other_name), strict=True)
    return all(torch.equal(a, b) for a, b in blocks)


def _about_tensor(path: Path, name: str, problem: str) -> DataLoss:
    return CorruptFile(path, f"tensor {name!r} {problem}", metadata={"tensor": name})
