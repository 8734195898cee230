"""The formats that are known, and which of them a file is in.

A file is recognised by its name and its neighbours, and then has to be what these promise: its keys and shapes are
checked when it is opened.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats import dictionary_learning, gemma_scope, llama_scope, native, saelens, sparsify
from dst_grpc.engine.formats.weights import load

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.files import Identity
    from dst_grpc.engine.formats.header import AutoencoderHeader, Reading
    from dst_grpc.engine.formats.weights import Opened

FORMATS = (
    saelens.FORMAT,
    gemma_scope.FIRST,
    gemma_scope.SECOND,
    dictionary_learning.FORMAT,
    sparsify.FORMAT,
    llama_scope.FORMAT,
    native.FORMAT,
)
"""Every format, the one that any file of its ending may be in last."""

SUFFIXES = (".safetensors", ".pt", ".npz")
"""Endings of the files that can be read."""


def _nothing(_: int) -> None:
    """Take no interest in progress."""


def open_file(path: Path, identity: Identity | None = None) -> Opened:
    """The autoencoder whose weights lie at *path*, checked as far as that can be done without reading them.

    Args:
        path: the weights.
        identity: of the one file that will do; None = any.

    Raises:
        DataLoss: if the file is corrupt, lacks a key, has misshapen ones, or does what is not supported;
            (DIGEST_MISMATCH) if it is another file.
    """
    for one in FORMATS:
        if one.claims(path):
            return one.open(path, identity)
    raise corrupt(path, f"is in none of the known formats: {', '.join(one.name for one in FORMATS)}")


def has_own_name(path: Path) -> bool:
    """Whether *path* is named as the weights of some format are, wherever it lies; native files have no such name."""
    return any(one.claims(path) for one in FORMATS if one is not native.FORMAT)


def files_beside(path: Path) -> tuple[Path, ...]:
    """The files beside the weights at *path* that opening them reads, as far as they are there."""
    names = next((one.beside for one in FORMATS if one.claims(path)), ())
    return tuple(found for name in names if (found := Path(os.path.normpath(path.parent / name))).exists())


def read_header(path: Path, identity: Identity | None = None) -> AutoencoderHeader:
    """Sizes, activation and origin of the autoencoder at *path*, without reading its weights; raises as `open_file`."""
    return open_file(path, identity).header


def read_frequencies(path: Path, identity: Identity | None = None) -> torch.Tensor | None:
    """How often each latent of the autoencoder at *path* is active, as float32 [Z]; None if the file does not say.

    Raises:
        DataLoss: as `open_file`, or if these are no frequencies.
    """
    return open_file(path, identity).frequencies()


def load_readings(
    path: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    on_progress: Callable[[int], None] = _nothing,
    *,
    identity: Identity | None = None,
    n_dropped: int = 0,
) -> dict[Reading, Autoencoder]:
    """Read the autoencoder at *path* to *device* as *dtype*, understood in every way that its file leaves open.

    Args:
        path: the weights.
        device: where the weights go.
        dtype: what they become.
        on_progress: told the bytes done after each tensor; what it raises ends the load.
        identity: of the one file that will do; None = any.
        n_dropped: how many latents to leave out, those that are active least often.

    Returns:
        By reading, the likeliest first. They share their large weights.

    Raises:
        DataLoss: as `open_file`, or if a weight is not finite, or without the frequencies that tell what to drop.
    """
    opened = open_file(path, identity)
    autoencoder = load(opened, device, dtype, on_progress, n_dropped=n_dropped)
    return {reading: reading.of(autoencoder) for reading in opened.header.readings}
