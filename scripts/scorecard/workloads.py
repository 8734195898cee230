"""The workloads: each as it is asked of a server, and as `transformers` with hooks answers it.

Shapes: p prompt, c changed run, L layer, H head, T token, d residual channel, V token of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch

from dst_grpc.client import (
    AsyncClient,
    DerivedScalarSpec,
    DerivedScalarType,
    DstConfig,
    Intervention,
    make_pair,
    make_request,
    patch,
    set_value,
    steer,
)
from dst_grpc.errors import DstError, require
from scripts.scorecard.reference import Reference
from scripts.scorecard.subjects import STRENGTHS, Example, Subject

Array = np.ndarray[Any, np.dtype[Any]]
RESIDUAL = "resid.post_mlp"


class Compared(Enum):
    """What the rows of an answer are, to be compared as distributions."""

    LOGITS = "logits"
    """Logits, of which the softmax is."""
    PROBABILITIES = "probabilities"
    """Distributions."""
    SHARES = "shares"
    """Scores or gradients of either sign: each over the sum of all magnitudes is compared."""


@dataclass(frozen=True)
class Rows:
    """A part of an answer."""

    compared: Compared
    values: Array
    """[..., n]: rows of n numbers."""


Asked = Callable[[AsyncClient, Subject, Sequence[Example]], Awaitable[list[Rows]]]
Expected = Callable[[Reference, Sequence[Example]], list[Rows]]


@dataclass(frozen=True)
class Workload:
    """A kind of question."""

    name: str
    """What it is."""
    call: str
    """The RPC that answers it for one pair, and for several if that is another."""
    ask: Asked
    """Asks a server."""
    expect: Expected
    """What `transformers` with hooks makes of it."""


# Ours


def _arguments(subject: Subject, examples: Iterable[Example]) -> dict[str, Any]:
    pairs = [make_pair(one.clean, one.corrupt, target=[one.target], distractor=[one.distractor]) for one in examples]
    return {"pairs": pairs, "model": subject.name}


async def _cells(
    client: AsyncClient, subject: Subject, examples: Sequence[Example], cells: Sequence[Intervention]
) -> list[Rows]:
    """Logits [c, p, V] of runs that are each changed by one intervention."""
    answer = await client.patch(cells=cells, all_logits=True, **_arguments(subject, examples))
    return [_of_logits(np.swapaxes(require(answer["cells"].logits), 0, 1))]


def _ablations(tap: str) -> Asked:
    async def ask(client: AsyncClient, subject: Subject, examples: Sequence[Example]) -> list[Rows]:
        cells = [set_value(tap, 0.0, layer=layer) for layer in range(subject.n_layers)]
        return await _cells(client, subject, examples, cells)

    return ask


async def _steered(client: AsyncClient, subject: Subject, examples: Sequence[Example]) -> list[Rows]:
    direction, layer = subject.direction.numpy(), subject.middle
    cells = [steer(RESIDUAL, strength * direction, layer=layer) for strength in STRENGTHS]
    return await _cells(client, subject, examples, cells)


def _patched(*, last: bool) -> Asked:
    async def ask(client: AsyncClient, subject: Subject, examples: Sequence[Example]) -> list[Rows]:
        positions = [len(examples[0].clean) - 1] if last else []
        arguments = _arguments(subject, examples)
        answer = await client.patch(nodes="resid_post", positions=positions, all_logits=True, **arguments)
        by_layer = np.swapaxes(require(answer["resid_post"].logits), 0, 1)  # [L, p, T, V]
        return [_of_logits(by_layer)]

    return ask


async def _patterns(client: AsyncClient, subject: Subject, examples: Sequence[Example]) -> list[Rows]:
    answers = await _derived(client, [make_request(one.clean, "attn_qk_probs", model=subject.name) for one in examples])
    patterns = np.stack([answer["attn_qk_probs"].stack() for answer in answers], axis=1)  # [L, p, T, U, H]
    return [Rows(Compared.PROBABILITIES, np.moveaxis(patterns, -1, 2))]


async def _attributed(client: AsyncClient, subject: Subject, examples: Sequence[Example]) -> list[Rows]:
    nodes = ("attn_out", "mlp_out")
    answer = await client.attribute(nodes=nodes, by_position=True, **_arguments(subject, examples))
    return [Rows(Compared.SHARES, np.asarray(answer[node]).reshape(-1)) for node in nodes]


async def _interchanged(client: AsyncClient, subject: Subject, examples: Sequence[Example]) -> list[Rows]:
    layer, end = subject.middle, len(examples[0].clean) - 1
    change = patch(RESIDUAL, "source", subspace=subject.subspace.numpy(), layer=layer, at=[end])
    requests = [
        make_request(
            one.clean,
            ["logits", _with_gradient(layer)],
            target=[one.target],
            distractor=[one.distractor],
            interventions=[change],
            source_runs={"source": one.corrupt},
            detach_final_layer_norm_scale=False,
            model=subject.name,
        )
        for one in examples
    ]
    answers = await _derived(client, requests)
    logits = np.stack([np.asarray(answer[0][None])[-1] for answer in answers])
    gradients = np.stack([np.asarray(answer[1].backward[layer])[end] for answer in answers])
    return [_of_logits(logits), Rows(Compared.SHARES, gradients)]


async def _derived(client: AsyncClient, requests: Sequence[Any]) -> list[Any]:
    """The answers of a call of Derive, or, for several requests, of one of DeriveStream."""
    if len(requests) == 1:
        return [await client.derive_request(requests[0])]
    found = {number: answer async for number, answer in client.derive_stream(requests)}
    for answer in found.values():
        if isinstance(answer, DstError):
            raise answer
    return [found[str(i)] for i in range(len(requests))]


def _with_gradient(layer: int) -> DerivedScalarSpec:
    """The residual after *layer*, and its gradient."""
    config = DstConfig(derive_gradients=True, layer_indices=(layer,))
    return DerivedScalarSpec(dst=DerivedScalarType.RESID_POST_MLP, config=config)


def _of_logits(values: Array) -> Rows:
    return Rows(Compared.LOGITS, values)


# Those of `transformers`


def _expected_patterns(reference: Reference, examples: Sequence[Example]) -> list[Rows]:
    return [Rows(Compared.PROBABILITIES, torch.stack(reference.patterns(examples)).numpy())]


def _expected_scores(reference: Reference, examples: Sequence[Example]) -> list[Rows]:
    scores = [reference.attributed(examples, what) for what in ("attn", "mlp")]
    return [Rows(Compared.SHARES, one.numpy().reshape(-1)) for one in scores]


def _expected_interchange(reference: Reference, examples: Sequence[Example]) -> list[Rows]:
    logits, gradients = reference.interchanged(examples)
    return [_of_logits(logits.numpy()), Rows(Compared.SHARES, gradients.numpy())]


def _expected_logits(runs: Callable[[Reference, Sequence[Example]], Sequence[torch.Tensor]]) -> Expected:
    return lambda reference, examples: [_of_logits(torch.stack([*runs(reference, examples)]).numpy())]


def _expected_everywhere(reference: Reference, examples: Sequence[Example]) -> list[Rows]:
    by_layer = torch.stack(reference.patched_everywhere(examples)).numpy()
    return [_of_logits(by_layer.reshape(len(by_layer), len(examples), -1, by_layer.shape[-1]))]


def _expected_last(reference: Reference, examples: Sequence[Example]) -> list[Rows]:
    return [_of_logits(torch.stack(reference.patched_last(examples)).unsqueeze(2).numpy())]


WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "ablation of each MLP",
        "Patch",
        _ablations("resid.delta_mlp"),
        _expected_logits(lambda r, e: r.ablations(e, "mlp")),
    ),
    Workload(
        "ablation of each attention",
        "Patch",
        _ablations("resid.delta_attn"),
        _expected_logits(lambda r, e: r.ablations(e, "attn")),
    ),
    Workload("steering at eight strengths", "Patch", _steered, _expected_logits(Reference.steered)),
    Workload("patching each layer at the last position", "Patch", _patched(last=True), _expected_last),
    Workload("patching each layer at every position", "Patch", _patched(last=False), _expected_everywhere),
    Workload("attention patterns", "Derive / DeriveStream", _patterns, _expected_patterns),
    Workload("attribution patching", "Attribute", _attributed, _expected_scores),
    Workload(
        "interchange intervention in a subspace (DAS), and its gradient",
        "Derive / DeriveStream",
        _interchanged,
        _expected_interchange,
    ),
)
