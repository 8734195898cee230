"""A format: the files that it consists of, and how they are opened; and functions that formats share."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.engine.families.config_values import UNKNOWN
from dst_grpc.engine.files import corrupt
from dst_grpc.engine.formats.header import AutoencoderHeader, Interpretation, Place
from dst_grpc.engine.formats.weights import Role, sizes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from dst_grpc.engine.formats.layouts import FileGroup, Layout
    from dst_grpc.engine.formats.sources import TensorSource
    from dst_grpc.engine.formats.stored_file import LayerFile
    from dst_grpc.engine.formats.weights import StoredTensor

_LAYER_IN_NAME = re.compile(r"(?:^|[._-])(?:layers?|blocks)[._-]?(\d+)(?=$|[._-])|(?:^|-)L(\d+)[RMA](?=$|-)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way in which autoencoders are published."""

    layout: Layout
    """The files of an autoencoder in it; their names determine the format."""
    open: Callable[[FileGroup], LayerFile]
    """Opens such files; raises DataLoss if their content is wrong."""


def describe(
    source: TensorSource,
    parts: Mapping[Role, StoredTensor],
    *,
    layout: Layout,
    activation: AutoencoderActivation,
    place: Place | None,
    k: int | None = None,
    normalizations: Iterable[InputNormalization] = (InputNormalization.NONE,),
    says: Mapping[str, int | None] | None = None,
    declared_l0: float | None = None,
    folded: Iterable[str] = (),
    harmless: Collection[str] = (),
) -> AutoencoderHeader:
    """The header of a file; its *parts* are checked against each other and against the sizes that its config *says*.

    Any other tensor in the file is refused by name, unless it is *harmless*: without effect on the result.
    """
    n_latents, n_inputs, n_outputs = sizes_of(source, parts, says=says)
    known = {part.key for part in parts.values()} | {*harmless}
    for name in sorted({*source.shapes, *source.others} - known):
        kind = "tensor" if name in source.shapes or source.path.suffix != ".pt" else "entry"
        raise corrupt(source.path, f"its {kind} {name!r} {UNKNOWN}")
    if activation is AutoencoderActivation.TOP_K and (type(k) is not int or not 0 < k <= n_latents):
        raise corrupt(source.path, f"TopK needs k between 1 and {n_latents}, not {k!r}")
    return AutoencoderHeader(
        format=layout.format,
        n_inputs=n_inputs,
        n_latents=n_latents,
        n_outputs=n_outputs,
        activation=activation,
        k=k if activation is AutoencoderActivation.TOP_K else None,
        dst=None if place is None else place.dst.value,
        layer_index=None if place is None else place.layer_index,
        output=None if place is None else place.output,
        is_before_post_norm=place is not None and place.is_before_post_norm,
        interpretations=interpretations_of(place, tuple(normalizations)),
        has_own_decoder_bias=Role.DECODER_BIAS in parts,
        has_skip=Role.SKIP in parts,
        declared_l0=declared_l0 if declared_l0 is not None else k,
        folded=tuple(folded),
    )


def interpretations_of(
    place: Place | None, normalizations: tuple[InputNormalization, ...]
) -> tuple[Interpretation, ...]:
    """All interpretations of a file that leaves open which of *normalizations* it means, or which norm comes before
    it."""
    input_norms = (ModelNorm.NONE,) if place is None else place.input_norms
    found = [
        (Interpretation(normalization=one, input_norm=norm), one, norm)
        for one in normalizations
        for norm in input_norms
    ]
    if len(found) == 1:
        return (found[0][0],)
    named = []
    for interpretation, one, norm in found:
        words = [f"normalization {one}"] if len(normalizations) > 1 else []
        words += [f"input {norm}"] if len(input_norms) > 1 else []
        named.append(replace(interpretation, name=", ".join(words)))
    return tuple(named)


def layer_in_path(path: Path) -> int | None:
    """The layer that a file's name or the folders above it, nearest first, name; None if none does."""
    if path.stem.isdecimal():
        return int(path.stem)
    for name in (path.stem, *(folder.name for folder in list(path.parents)[:4])):
        if found := _LAYER_IN_NAME.search(name):
            return int(found[1] or found[2])
    return None
