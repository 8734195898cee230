"""From the tensors of a file to an `Autoencoder`: the same for all formats, which only say where each tensor is.

A format lists its tensors by role (`StoredTensor`: under which key, transposed or not) and, where it stores something
else than the engine computes with, folds it into the weights. Shapes are checked when the file is opened, values when
it is loaded; no two large weights are ever in memory twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.autoencoders import AutoencoderActivation
from dst_grpc.engine.autoencoder import Autoencoder
from dst_grpc.engine.element_types import is_finite, moved
from dst_grpc.engine.files import corrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dst_grpc.engine.formats.header import AutoencoderHeader, Interpretation
    from dst_grpc.engine.formats.layouts import FileGroup
    from dst_grpc.engine.formats.sources import TensorSource


class Role(Enum):
    """The role of a stored tensor; the value names its axes: Z latents, n inputs, m outputs."""

    ENCODER = "Zn", "encoder"
    LATENT_BIAS = "Z", "latent bias"
    DECODER = "mZ", "decoder"
    PRE_BIAS = "n", "bias taken off at the start"
    DECODER_BIAS = "m", "bias added at the end"
    THRESHOLD = "Z", "threshold"
    ONE_THRESHOLD = "", "threshold of all latents"
    SKIP = "mn", "skip connection"
    GATE_BIAS = "Z", "bias of the gate"
    LOG_MAGNITUDE = "Z", "logarithm of the magnitude's scale"
    OUTPUT_SCALE = "Z", "scale of what is decoded"

    @property
    def axes(self) -> str:
        """Letters of its axes."""
        return self.value[0]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A stored tensor: its key, and whether it is transposed."""

    key: str
    """Name of the tensor."""
    is_swapped: bool = False
    """Whether a matrix is stored transposed, compared with the axes of its role."""


Weights = dict[Role, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderFile:
    """The file of one autoencoder, opened and checked: its header, and how its weights are read."""

    files: FileGroup
    """The weights, and the files beside them."""
    header: AutoencoderHeader
    """Their header."""
    source: TensorSource
    """Its tensors."""
    parts: Mapping[Role, StoredTensor]
    """Its tensors by role."""
    fold: Callable[[Weights], None] = lambda _: None
    """Folds what the format stores into the engine's weights, in place; vectors are float32."""
    threshold: float | None = None
    """The threshold of all latents, for a format that keeps it outside its tensors."""
    frequencies: Callable[[], torch.Tensor | None] = lambda: None
    """Reads how often each latent is active, float32 [Z]; None if the format does not say."""

    @property
    def path(self) -> Path:
        """Path of the weights."""
        return self.files.path

    def without(self, n_dropped: int) -> AutoencoderFile:
        """The same, without *n_dropped* more latents, those that are active least often."""
        return replace(self, header=self.header.without(n_dropped))

    def load(
        self, device: torch.device | str, dtype: torch.dtype, on_progress: Callable[[int], None] = lambda _: None
    ) -> dict[Interpretation, Autoencoder]:
        """Read the weights to *device* as *dtype*, in every interpretation that the file leaves open.

        Args:
            device: the device of the weights.
            dtype: their element type.
            on_progress: called with the bytes done after each tensor; an exception ends the load.

        Returns:
            By interpretation, the likeliest first. They share their large weights.

        Raises:
            DataLoss: if a weight is not finite, or latents are to be left out but their frequencies are unknown;
                (DIGEST_MISMATCH) if the file was replaced.
        """
        autoencoder = _load(self, device, dtype, on_progress)
        return {one: one.of(autoencoder) for one in self.header.interpretations}

    def kept_latents(self) -> torch.Tensor | None:
        """Indices, in order, of the latents that are loaded; of equally frequent ones the last stay. None = all."""
        if not self.header.n_dropped:
            return None
        frequencies = self.frequencies()
        if frequencies is None:
            raise corrupt(self.path, "has no frequencies of its latents, so nothing tells which ones are dead")
        return frequencies.argsort(stable=True)[self.header.n_dropped :].sort().values


def sizes_of(
    source: TensorSource, parts: Mapping[Role, StoredTensor], *, says: Mapping[str, int | None] | None = None
) -> tuple[int, int, int]:
    """Numbers of latents, inputs and outputs, from the shapes of encoder and decoder.

    Args:
        source: the tensors.
        parts: the tensors by role; the encoder gives latents and inputs, a bias of the decoder's own the outputs.
        says: what a config claims, by axis letter; None = nothing.

    Raises:
        DataLoss: if a part is missing or does not fit the encoder; names the key.
    """
    for part in parts.values():
        if part.key not in source.shapes:
            raise corrupt(source.path, f"lacks the float tensor {part.key!r}")
    encoder = parts[Role.ENCODER]
    for part in (parts[role] for role in (Role.ENCODER, Role.DECODER) if role in parts):
        if len(source.shapes[part.key]) != 2:
            raise corrupt(source.path, f"{part.key!r} must have two axes, not shape {list(source.shapes[part.key])}")
    n_latents, n_inputs = _in_order(source.shapes[encoder.key], encoder)
    # Only a bias of its own shows whether this is a transcoder of another width or a transposed decoder.
    own_bias = Role.DECODER_BIAS in parts and len(source.shapes[parts[Role.DECODER_BIAS].key]) == 1
    n_outputs = source.shapes[parts[Role.DECODER_BIAS].key][0] if own_bias else n_inputs
    sizes = {"Z": n_latents, "n": n_inputs, "m": n_outputs}
    for role, part in parts.items():
        wanted = tuple(sizes[axis] for axis in role.axes)
        found = _in_order(source.shapes[part.key], part)
        if found == wanted or (role is Role.ONE_THRESHOLD and found == (1,)):
            continue
        shape = list(source.shapes[part.key])
        problem = f"{part.key!r} has shape {shape}, but {encoder.key!r} {list(source.shapes[encoder.key])}"
        raise corrupt(source.path, f"{problem} needs {list(_in_order(wanted, part))}: is a weight transposed?")
    for axis, size in (says or {}).items():
        if size is not None and size != sizes[axis]:
            what = {"Z": "latents", "n": "inputs", "m": "outputs"}[axis]
            raise corrupt(source.path, f"has {sizes[axis]} {what}, but its config says {size}: is a weight transposed?")
    return n_latents, n_inputs, n_outputs


def _in_order(shape: tuple[int, ...], part: StoredTensor) -> tuple[int, ...]:
    return shape[::-1] if part.is_swapped else shape


def _load(
    file: AutoencoderFile, device: torch.device | str, dtype: torch.dtype, on_progress: Callable[[int], None]
) -> Autoencoder:
    """The weights of *file*, one tensor at a time."""
    header, source = file.header, file.source
    kept = file.kept_latents()
    weights: Weights = {}
    done = 0
    with source.opened() as read:
        for role, part in file.parts.items():
            stored = _selected(read(part.key), role, part, kept)
            is_matrix = len(role.axes) == 2
            loaded = moved(stored, device, dtype if is_matrix else torch.promote_types(dtype, torch.float32))
            if not is_finite(loaded):
                raise corrupt(source.path, f"tensor {part.key!r} has values that are NaN or infinite as {dtype}")
            weights[role] = loaded.t() if part.is_swapped else loaded
            if is_matrix:
                done += loaded.nbytes
                on_progress(done)
    _complete(weights, file)
    for role, weight in weights.items():
        if not is_finite(weight):
            raise corrupt(source.path, f"the {role.value[1]} is NaN or infinite once {', '.join(header.folded)}")
        weights[role] = weight.to(dtype)
    autoencoder = Autoencoder(
        pre_bias=weights[Role.PRE_BIAS],
        encoder=weights[Role.ENCODER],
        latent_bias=weights[Role.LATENT_BIAS],
        decoder=weights[Role.DECODER],
        decoder_bias=weights.get(Role.DECODER_BIAS),
        threshold=weights.get(Role.THRESHOLD),
        skip=weights.get(Role.SKIP),
        activation=header.activation,
        k=header.k,
        postact=header.postact,
    )
    on_progress(autoencoder.parameter_bytes)
    return autoencoder


def _complete(weights: Weights, file: AutoencoderFile) -> None:
    """Fold, and add the weights that the format omits because they are constant."""
    n_latents = file.header.n_latents
    vector = weights[Role.LATENT_BIAS if Role.LATENT_BIAS in weights else Role.GATE_BIAS]
    one = weights.pop(Role.ONE_THRESHOLD, None)
    if one is not None:
        weights[Role.THRESHOLD] = one.reshape(1).repeat(n_latents)
    if file.threshold is not None:
        weights[Role.THRESHOLD] = vector.new_full((n_latents,), file.threshold)
    file.fold(weights)
    if Role.PRE_BIAS not in weights:
        weights[Role.PRE_BIAS] = vector.new_zeros(file.header.n_inputs)
    if file.header.activation is not AutoencoderActivation.JUMP_RELU:
        weights.pop(Role.THRESHOLD, None)


def _selected(tensor: torch.Tensor, role: Role, part: StoredTensor, kept: torch.Tensor | None) -> torch.Tensor:
    """The entries of the latents *kept*; None = of all."""
    if kept is None or "Z" not in role.axes:
        return tensor
    axis = role.axes.index("Z")
    return tensor.index_select(1 - axis if part.is_swapped else axis, kept)


# Folds


def fold_gate(weights: Weights) -> None:
    """A gated autoencoder as a JumpReLU one, exactly.

    Its gate is open where x W + b_gate > 0, and the latent is then the magnitude m = s x W + b_mag, s = exp(r) > 0. As
    x W is (m - b_mag) / s, the gate is open where m > b_mag - s b_gate. LATENT_BIAS is b_mag.
    """
    scale = weights.pop(Role.LOG_MAGNITUDE).exp()
    weights[Role.ENCODER] *= scale.to(weights[Role.ENCODER].dtype).unsqueeze(1)
    weights[Role.THRESHOLD] = weights[Role.LATENT_BIAS] - scale * weights.pop(Role.GATE_BIAS)


def fold_input_scale(scale: float) -> Callable[[Weights], None]:
    """The input is multiplied by *scale* before encoding, and the output divided by it after decoding."""

    def fold(weights: Weights) -> None:
        weights[Role.ENCODER] *= scale
        weights[Role.DECODER] /= scale
        for role in (Role.PRE_BIAS, Role.DECODER_BIAS):
            if role in weights:
                weights[role] /= scale

    return fold


def fold_decoder_norms(weights: Weights) -> None:
    """Normalize the columns of the decoder, and scale latents accordingly."""
    # In slices: the square of a large decoder would take as much memory again.
    norms = torch.cat([torch.linalg.vector_norm(part.float(), dim=0) for part in weights[Role.DECODER].split(4096, 1)])
    norms = norms.clamp_min(1e-8)
    weights[Role.ENCODER] *= norms.to(weights[Role.ENCODER].dtype).unsqueeze(1)
    weights[Role.LATENT_BIAS] *= norms
    weights[Role.DECODER] /= norms.to(weights[Role.DECODER].dtype)
    if Role.THRESHOLD in weights:
        weights[Role.THRESHOLD] *= norms


def fold_output_scale(weights: Weights) -> None:
    """Latents are multiplied, each by its own factor, before they are decoded."""
    weights[Role.DECODER] *= weights.pop(Role.OUTPUT_SCALE).to(weights[Role.DECODER].dtype)
