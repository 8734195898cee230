"""The self-check of an autoencoder set: L0 and fraction of variance unexplained on a few fixed sentences.

An autoencoder that is read the wrong way round, at the wrong place or into the wrong model still yields numbers, and
nothing about them looks wrong. Its figures do. Takes the activations from a function, so that it knows no decoder.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dst_grpc.domain.resolution import LayerCheck
from dst_grpc.errors import DataLoss, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dst_grpc.engine.autoencoder import Autoencoder

    Record = Callable[[list[int]], Mapping[int, torch.Tensor]]

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
"""The prompts. They never change, or figures of different versions could not be compared."""

# The declared figures come from other text than these sentences, and a few sentences are a small sample. A wrong
# place or orientation explains nothing, or lights up latents by the hundred; it does not hide in these margins.
_FVU_MARGIN = 0.5
_L0_FACTOR = 5.0


def measure(
    record: Record, by_layer: Mapping[int, Autoencoder], prompts: Sequence[list[int]]
) -> tuple[LayerCheck, ...]:
    """Figures of each autoencoder on *prompts*.

    Args:
        record: from token ids to what the autoencoders read, by layer [T, n_in].
        by_layer: the autoencoders.
        prompts: token ids of each prompt.

    Returns:
        One check per layer, by layer. `dead_latents` is None: a few sentences cannot tell.
    """
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in by_layer}
    for prompt in prompts:
        inputs = record(prompt)
        for layer, parts in seen.items():
            parts.append(inputs[layer])
    return tuple(_figures(layer, by_layer[layer], torch.cat(seen[layer])) for layer in sorted(by_layer))


@torch.no_grad()
def _figures(layer: int, autoencoder: Autoencoder, x: torch.Tensor) -> LayerCheck:
    """Figures on inputs *x* [tokens, n_in]."""
    latents = autoencoder.encode(x)
    error = (autoencoder.decode(latents) - x).float().square().sum().item()
    variance = (x.float() - x.float().mean(dim=0)).square().sum().item()
    unexplained = error / variance if variance else math.inf if error else 0.0
    l0 = (latents != 0).float().sum(dim=1).mean().item()
    return LayerCheck(layer_index=layer, l0=l0, fraction_of_variance_unexplained=unexplained)


def compare(name: str, measured: Sequence[LayerCheck], declared: Sequence[LayerCheck]) -> None:
    """Raise DataLoss (SELF_CHECK_FAILED) if a figure *measured* of set *name* is no number, or far from *declared*."""
    promised = {check.layer_index: check for check in declared}
    for check in measured:
        problem = _problem(check, promised.get(check.layer_index))
        if problem:
            raise DataLoss(
                f"{name}: the autoencoder of layer {check.layer_index} fails its self-check: {problem}",
                reason=Reason.SELF_CHECK_FAILED,
                metadata={"autoencoder": name, "layer_index": str(check.layer_index)},
            )


def _problem(measured: LayerCheck, declared: LayerCheck | None) -> str:
    fvu, l0 = measured.fraction_of_variance_unexplained, measured.l0
    if not math.isfinite(fvu):
        return f"its fraction of variance unexplained is {fvu}"
    if declared is None:
        return ""
    if fvu > declared.fraction_of_variance_unexplained + _FVU_MARGIN:
        promised = declared.fraction_of_variance_unexplained
        return f"it leaves {fvu:.3f} of the variance unexplained, where {promised:.3f} is declared"
    if not declared.l0 / _L0_FACTOR <= l0 <= declared.l0 * _L0_FACTOR:
        return f"{l0:.1f} latents are active at a token, where {declared.l0:.1f} are declared"
    return ""
