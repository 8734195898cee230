"""The self-check of an autoencoder set: its figures on a few fixed sentences.

An autoencoder with transposed weights, at the wrong place or of the wrong model still yields plausible numbers. Its
figures show the mistake: L0, the fraction of variance unexplained, and the mean cosine between the read and write
directions of latents. If a file has several interpretations, the one with the best figures is chosen. The caller
supplies the activations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.resolution import LayerCheck
from dst_grpc.engine.cancellation import Check, never_cancelled
from dst_grpc.errors import DataLoss, Reason, require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dst_grpc.engine.autoencoder import Autoencoder
    from dst_grpc.engine.formats.header import Interpretation
    from dst_grpc.engine.transcoders import ActiveFeatures, Transcoders

SENTENCES = (
    "When Mary and John went to the store, John gave a drink to Mary.",
    "The key to the cabinets is on the table in the kitchen.",
    "In the beginning God created the heaven and the earth.",
    "The teacher who helped the students was happy about the news.",
    "After the rain had stopped, the children walked home along the river.",
    "She opened the old book and read the first page aloud to her brother.",
    "The dogs near the house are barking at a man with a red hat.",
    "Nobody knew why the train was late, but everybody waited for it.",
)
"""The prompts. They never change, so that figures of different versions can be compared."""

# The declared figures are from other text, and a few sentences are a small sample, so the margins are wide. A wrong
# place or orientation explains nothing, or activates latents by the hundred, which is far beyond them.
_FVU_MARGIN = 0.5
_MAX_FVU = 1.0
_L0_FACTOR = 5.0
_COSINES_AT_ONCE = 4096
_MAX_L0_PER_CHANNEL = 100


@dataclass(frozen=True, slots=True)
class Sample:
    """Activations that an autoencoder is measured on."""

    x: torch.Tensor
    """Its input, [tokens, n_in]."""
    target: torch.Tensor | None = None
    """The target of a transcoder, [tokens, n_out]; None if the input is reconstructed."""


def collect(prompts: Sequence[Sample]) -> Sample:
    """The tokens of all *prompts* without the first of each, unless that is the only one.

    The first token's activations have another magnitude in most models, and many autoencoders were not trained on them:
    they would dominate every figure.
    """
    targets = [_counted(sample.target) for sample in prompts if sample.target is not None]
    return Sample(torch.cat([_counted(sample.x) for sample in prompts]), torch.cat(targets) if targets else None)


def _counted(x: torch.Tensor) -> torch.Tensor:
    return x[1:] if len(x) > 1 else x


@torch.no_grad()
def measure(layer: int, autoencoder: Autoencoder, sample: Sample, *, reading: str = "") -> LayerCheck:
    """Figures on *sample* of the *autoencoder* of *layer*. `dead_latents` is None: a few sentences are not enough to
    count."""
    x, target = sample.x, sample.x if sample.target is None else sample.target
    latents = autoencoder.encode(x)
    return LayerCheck(
        layer_index=layer,
        l0=(latents != 0).float().sum(dim=1).mean().item(),
        fraction_of_variance_unexplained=_unexplained(autoencoder.decode(latents, x), target),
        orientation=orientation(autoencoder) if sample.target is None else None,
        reading=reading,
    )


def _unexplained(reconstruction: torch.Tensor, target: torch.Tensor) -> float:
    """The fraction of the variance of *target* [tokens, n] that *reconstruction* leaves unexplained."""
    error = (reconstruction - target).float().square().sum().item()
    variance = (target.float() - target.float().mean(dim=0)).square().sum().item()
    return error / variance if variance else math.inf if error else 0.0


@torch.no_grad()
def measure_together(
    transcoders: Transcoders, samples: Mapping[int, Sample], check: Check = never_cancelled
) -> list[LayerCheck]:
    """Figures of each layer of *transcoders* on *samples*: what all of them together explain of its MLP's write.

    If far more features of a layer are active than it has channels, it is measured no further: all that it writes to is
    infinitely unexplained. All encoders are read, which may take minutes, so that *check* may end it between layers.
    """
    active: dict[int, ActiveFeatures] = {}
    l0: dict[int, float] = {}
    broken: set[int] = set()
    for layer, sample in samples.items():
        check()
        found = transcoders.active(layer, sample.x)
        l0[layer] = len(found) / len(sample.x)
        if l0[layer] > _MAX_L0_PER_CHANNEL * sample.x.shape[1]:
            broken.update(transcoders.written_layers(layer))
        else:
            active[layer] = found
    checks = []
    for layer, sample in samples.items():
        check()
        unexplained = math.inf
        if layer not in broken:
            unexplained = _unexplained(transcoders.reconstruction(layer, active, sample.x), require(sample.target))
        checks.append(LayerCheck(layer_index=layer, l0=l0[layer], fraction_of_variance_unexplained=unexplained))
    return checks


@torch.no_grad()
def orientation(autoencoder: Autoencoder) -> float:
    """Mean, over latents, of the cosine between read and write direction."""
    total = 0.0
    # In slices: a copy of a large encoder would take as much memory again.
    for rows, columns in zip(
        autoencoder.encoder.split(_COSINES_AT_ONCE), autoencoder.decoder.split(_COSINES_AT_ONCE, dim=1), strict=True
    ):
        total += torch.nn.functional.cosine_similarity(rows.float(), columns.t().float(), dim=1).sum().item()
    return total / autoencoder.n_latents


def choose(
    layer: int,
    candidates: Mapping[Interpretation, Autoencoder],
    sample_of: Callable[[Autoencoder], Sample],
    declared: LayerCheck | None,
) -> tuple[Autoencoder, LayerCheck]:
    """The one of *candidates* with the smallest fraction of variance unexplained among those that pass, and its
    figures.

    If none passes it is the first.
    """
    measured = [
        (autoencoder, measure(layer, autoencoder, sample_of(autoencoder), reading=one.name))
        for one, autoencoder in candidates.items()
    ]
    passed = [pair for pair in measured if not _problem(pair[1], declared)]
    return min(passed, key=lambda pair: pair[1].fraction_of_variance_unexplained or 0.0, default=measured[0])


def compare(name: str, measured: Sequence[LayerCheck], declared: Sequence[LayerCheck]) -> None:
    """Raise DataLoss (SELF_CHECK_FAILED) if a *measured* figure of the set is implausible or differs from the
    *declared* one."""
    promised = {check.layer_index: check for check in declared}
    for check in measured:
        problem = _problem(check, promised.get(check.layer_index))
        if problem:
            understood = f" (understood as: {check.reading})" if check.reading else ""
            raise DataLoss(
                f"{name}: the autoencoder of layer {check.layer_index} fails its self-check{understood}: {problem}",
                reason=Reason.SELF_CHECK_FAILED,
                metadata={"autoencoder": name, "layer_index": str(check.layer_index)},
            )


def _problem(measured: LayerCheck, declared: LayerCheck | None) -> str:
    fvu, l0 = measured.fraction_of_variance_unexplained, measured.l0
    if fvu is None or not math.isfinite(fvu):
        return f"its fraction of variance unexplained is {fvu}"
    if measured.orientation is not None and measured.orientation <= 0:
        return (
            f"what its latents read and write have a mean cosine of {measured.orientation:.3f}: "
            "a weight may be transposed, or belong to another autoencoder"
        )
    promised = None if declared is None else declared.fraction_of_variance_unexplained
    if promised is None and fvu > _MAX_FVU:
        return f"it leaves {fvu:.3f} of the variance unexplained: more than the mean alone would"
    if promised is not None and fvu > promised + _FVU_MARGIN:
        return f"it leaves {fvu:.3f} of the variance unexplained, where {promised:.3f} is declared"
    if declared is not None and not declared.l0 / _L0_FACTOR <= l0 <= declared.l0 * _L0_FACTOR:
        return f"{l0:.1f} latents are active at a token, where {declared.l0:.1f} are declared"
    return ""
