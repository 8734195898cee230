"""Autoencoder files in the two native formats: the embedded safetensors, and the research code's `.pt` state dicts.

Both hold `pre_bias`, `encoder.weight`, `latent_bias`, `decoder.weight` and statistics, of which only the frequencies
of latents are ever read. What else they say (activation, k) stands in the header's metadata or in entries of the state
dict. A `.pt` file is read with `weights_only` alone: no pickle of somebody's runs here.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dst_grpc.engine.autoencoder import Activation, Autoencoder
from dst_grpc.engine.element_types import is_finite, moved
from dst_grpc.engine.files import Identity, corrupt, opened
from dst_grpc.engine.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dst_grpc.engine.files import OpenFile

SUFFIXES = (".safetensors", ".pt")
"""Endings of the files that can be read."""

_PRE_BIAS, _ENCODER, _LATENT_BIAS, _DECODER = "pre_bias", "encoder.weight", "latent_bias", "decoder.weight"
_KEYS = (_PRE_BIAS, _ENCODER, _LATENT_BIAS, _DECODER)
_LATENT_AXIS = {_ENCODER: 0, _LATENT_BIAS: 0, _DECODER: 1}
_FREQUENCIES = "latents_activation_frequency"
_MAX_STRUCTURE_BYTES = 1 << 20
_MAX_LISTING_BYTES = 1 << 20
_DESCRIPTORS = Path("/dev/fd")
_ADVICE = "convert it to safetensors, or save a plain state dict of tensors, texts and numbers with torch.save"


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderHeader:
    """What an autoencoder file says without its weights."""

    path: Path
    """Where it lies."""
    identity: Identity
    """Which file it is: no other is loaded in its place."""
    n_inputs: int
    """Width of what it reads."""
    n_latents: int
    """Latents that loading it gives."""
    activation: Activation
    """Its nonlinearity."""
    k: int | None
    """With TopK: latents kept at a token."""
    postact: Activation
    """With TopK: applied to what is kept."""
    dst: str | None
    """Value of the derived scalar type that it reads; None if the file does not say."""
    layer_index: int | None
    """Layer that it belongs to; None if the file does not say."""
    n_dropped: int = 0
    """Latents of the file that loading it leaves out."""

    def without(self, n_dropped: int) -> AutoencoderHeader:
        """This header if loading leaves out *n_dropped* more latents."""
        return replace(self, n_latents=self.n_latents - n_dropped, n_dropped=self.n_dropped + n_dropped)

    def bytes_as(self, dtype: torch.dtype) -> int:
        """Bytes of the weights as *dtype*."""
        return dtype.itemsize * (self.n_inputs + self.n_latents + 2 * self.n_inputs * self.n_latents)


def read_header(path: Path, identity: Identity | None = None) -> AutoencoderHeader:
    """Sizes, activation and origin of the autoencoder at *path*, without reading its weights.

    Args:
        path: a `.safetensors` or `.pt` file.
        identity: of the one file that will do; None = any.

    Raises:
        DataLoss: if the file is corrupt, lacks a key, has misshapen ones, or an activation that is not supported;
            (DIGEST_MISMATCH) if it is another file.
    """
    return _open(path, identity).header


def read_frequencies(path: Path) -> torch.Tensor | None:
    """How often each latent of the autoencoder at *path* is active, as float32 [Z]; None if the file does not say.

    Raises:
        DataLoss: as `read_header`, or if these are no frequencies.
    """
    return _frequencies(_open(path))


def load_autoencoder(
    path: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    on_progress: Callable[[int], None] = lambda _: None,
    *,
    identity: Identity | None = None,
    n_dropped: int = 0,
) -> Autoencoder:
    """Read the autoencoder at *path* to *device* as *dtype*, one tensor at a time.

    Args:
        path: a `.safetensors` or `.pt` file.
        device: where the weights go.
        dtype: what they become.
        on_progress: told the bytes done after each tensor; what it raises ends the load.
        identity: of the one file that will do; None = any.
        n_dropped: how many latents to leave out, those that are active least often.

    Raises:
        DataLoss: as `read_header`, or if a weight is not finite, or without the frequencies that tell what to drop.
    """
    file = _open(path, identity)
    header = file.header
    kept = _kept_latents(file, n_dropped) if n_dropped else None
    tensors: dict[str, torch.Tensor] = {}
    done = 0
    for name in _KEYS:
        tensors[name] = moved(_selected(file.read(name), name, kept), device, dtype)
        if not is_finite(tensors[name]):
            raise corrupt(path, f"tensor {name!r} has values that are NaN or infinite as {dtype}")
        done += tensors[name].nbytes
        on_progress(done)
    return Autoencoder(
        pre_bias=tensors[_PRE_BIAS],
        encoder=tensors[_ENCODER],
        latent_bias=tensors[_LATENT_BIAS],
        decoder=tensors[_DECODER],
        activation=header.activation,
        k=header.k,
        postact=header.postact,
    )


@dataclass(frozen=True, slots=True)
class _Opened:
    header: AutoencoderHeader
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], torch.Tensor]


def _frequencies(file: _Opened) -> torch.Tensor | None:
    shape = file.shapes.get(_FREQUENCIES)
    if shape is None:
        return None
    path, n_latents = file.header.path, file.header.n_latents
    if shape != (n_latents,):
        raise corrupt(path, f"{_FREQUENCIES!r} has shape {list(shape)}, but there are {n_latents} latents")
    frequencies = moved(file.read(_FREQUENCIES), "cpu", torch.float32)
    if not is_finite(frequencies) or (frequencies < 0).any():
        raise corrupt(path, f"{_FREQUENCIES!r} has values that are negative, NaN or infinite")
    return frequencies


def _kept_latents(file: _Opened, n_dropped: int) -> torch.Tensor:
    """Indices, in order, of all latents but the *n_dropped* of lowest frequency; of equal ones the first go."""
    frequencies = _frequencies(file)
    if frequencies is None:
        raise corrupt(file.header.path, f"lacks {_FREQUENCIES!r}, so nothing tells which latents are dead")
    return frequencies.argsort(stable=True)[n_dropped:].sort().values


def _selected(tensor: torch.Tensor, name: str, kept: torch.Tensor | None) -> torch.Tensor:
    """The weight *name* of the latents *kept* alone; None = of all."""
    axis = _LATENT_AXIS.get(name)
    return tensor if kept is None or axis is None else tensor.index_select(axis, kept)


def _open(path: Path, identity: Identity | None = None) -> _Opened:
    match path.suffix:
        case ".safetensors":
            return _open_safetensors(path, identity)
        case ".pt":
            with opened(path, identity) as file:
                return _open_state_dict(file)
        case _:
            raise corrupt(path, f"is no autoencoder file: its name must end in {' or '.join(SUFFIXES)}")


def _open_safetensors(path: Path, identity: Identity | None) -> _Opened:
    file = SafetensorsFile.open(path, identity)
    floats = {name: tensor.shape for name, tensor in file.tensors.items() if tensor.is_float}
    try:
        state = json.loads(file.metadata.get("activation_state_dict", "{}"))
    except (ValueError, RecursionError) as error:
        raise corrupt(path, f"its metadata's activation_state_dict is no sound JSON: {error}") from error
    return _Opened(_header(path, file.identity, floats, file.metadata, state), floats, file.read)


def _open_state_dict(file: OpenFile) -> _Opened:
    path = file.path
    entries = _load_state_dict(file)
    tensors = {
        name: entry
        for name, entry in entries.items()
        if isinstance(entry, torch.Tensor) and entry.is_floating_point() and entry.layout is torch.strided
    }
    size = file.identity.size_bytes
    for name, tensor in tensors.items():
        # A stride of 0 lets a few bytes pose as any number of elements.
        if tensor.nbytes > size:
            raise corrupt(path, f"tensor {name!r} claims {tensor.nbytes} bytes in a file of {size}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    header = _header(path, file.identity, shapes, entries, entries.get("activation_state_dict", {}))

    def read(name: str) -> torch.Tensor:
        # Written over by somebody, the mapping would show it: checked once the values are ours.
        copy = tensors[name].clone()
        with opened(path, header.identity):
            return copy

    return _Opened(header, shapes, read)


class _Bounded(io.FileIO):
    """A file of which little is read at a time: the list of an archive's members is as long as the archive says."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file does; raises BadZipFile instead of reading a lot."""
        wanted = _MAX_LISTING_BYTES + 1 if size is None or size < 0 else size
        found = super().read(min(wanted, _MAX_LISTING_BYTES + 1))
        if len(found) > _MAX_LISTING_BYTES:
            raise zipfile.BadZipFile("the list of members is too long")
        return found


def _load_state_dict(file: OpenFile) -> dict[str, Any]:
    """The state dict in *file*, its tensors mapped rather than read."""
    path = file.path
    # By its descriptor where that has a path, so that what is mapped is what was opened.
    same = _DESCRIPTORS / str(file.descriptor) if _DESCRIPTORS.is_dir() else path
    try:
        with _Bounded(file.descriptor, closefd=False) as raw, zipfile.ZipFile(raw) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise corrupt(path, "is compressed, which torch.save never does")
                if entry.filename.endswith("data.pkl") and entry.file_size > _MAX_STRUCTURE_BYTES:
                    raise corrupt(path, f"describes its tensors in {entry.file_size} bytes, far too many")
        entries = torch.load(same, map_location="cpu", mmap=True, weights_only=True)
    except zipfile.BadZipFile as error:
        raise corrupt(path, f"is truncated, or was not made by torch.save since version 1.6: {_ADVICE}") from error
    except pickle.UnpicklingError as error:
        raise corrupt(path, f"holds objects that only running its pickle could make: {_ADVICE}") from error
    except (RuntimeError, OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise corrupt(path, f"is no sound file of torch.save: {type(error).__name__}") from error
    if not isinstance(entries, dict):
        raise corrupt(path, f"holds a {type(entries).__name__} rather than a state dict")
    return entries


def _header(
    path: Path, identity: Identity, shapes: Mapping[str, tuple[int, ...]], facts: Mapping[str, Any], state: Any
) -> AutoencoderHeader:
    for name in _KEYS:
        if name not in shapes:
            raise corrupt(path, f"lacks the float tensor {name!r}")
    if len(shapes[_ENCODER]) != 2:
        raise corrupt(path, f"{_ENCODER!r} must have two axes, not shape {list(shapes[_ENCODER])}")
    n_latents, n_inputs = shapes[_ENCODER]
    wanted = {_PRE_BIAS: (n_inputs,), _LATENT_BIAS: (n_latents,), _DECODER: (n_inputs, n_latents)}
    for name, shape in wanted.items():
        if shapes[name] != shape:
            problem = f"{name!r} has shape {list(shapes[name])}, but {_ENCODER!r} {list(shapes[_ENCODER])} "
            raise corrupt(path, f"{problem}needs {list(shape)}: is a weight transposed?")
    activation = _activation(path, facts.get("activation", Activation.RELU))
    k, postact = None, Activation.RELU
    if activation is Activation.TOPK:
        k, postact = _top_k(path, state, n_latents)
    return AutoencoderHeader(
        path=path,
        identity=identity,
        n_inputs=n_inputs,
        n_latents=n_latents,
        activation=activation,
        k=k,
        postact=postact,
        dst=_text(facts.get("dst")),
        layer_index=_layer(path, facts.get("layer_index")),
    )


def _activation(path: Path, name: Any) -> Activation:
    try:
        return Activation(name)
    except ValueError:
        # The research code falls back to ReLU here, which would answer with numbers of another autoencoder.
        known = ", ".join(Activation)
        raise corrupt(path, f"has the unknown activation {name!r}; these are known: {known}") from None


def _top_k(path: Path, state: Any, n_latents: int) -> tuple[int, Activation]:
    if not isinstance(state, dict):
        raise corrupt(path, "activation_state_dict is no mapping")
    k = state.get("k")
    if type(k) is not int or not 0 < k <= n_latents:
        raise corrupt(path, f"TopK needs k between 1 and {n_latents}, not {k!r}")
    postact = _activation(path, state.get("postact_fn", Activation.RELU))
    if postact is Activation.TOPK:
        raise corrupt(path, "TopK cannot be its own postact_fn")
    return k, postact


def _layer(path: Path, value: Any) -> int | None:
    text = _text(value)
    if text is None:
        return None
    if not text.isdecimal():
        raise corrupt(path, f"layer_index is {text!r}, not a number")
    return int(text)


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) else None


__all__ = ["SUFFIXES", "AutoencoderHeader", "load_autoencoder", "read_frequencies", "read_header"]
