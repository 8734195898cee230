"""From keyword arguments to a request of Circuit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias, TypedDict, Unpack

import numpy as np

from dst_grpc.client._given import given, tuple_of
from dst_grpc.client._pair_requests import PairArguments, PairLike, pairs_of, references_of
from dst_grpc.client._requests import PromptLike, TokensLike, loss_of, member, names_of
from dst_grpc.domain.circuit import (
    DEFAULT_STEPS,
    DEFAULT_WANTED_FAITHFULNESS,
    AcdcSearch,
    CircuitCurve,
    CircuitRequest,
    CircuitSelection,
    KeptCircuit,
)
from dst_grpc.domain.components import LossFnName
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.pairs import Alternative, Orientation
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.errors import InvalidRequest

CircuitLike: TypeAlias = KeptCircuit | Iterable[str]
"""A circuit, or the names of the edges and nodes that it keeps."""


class CircuitArguments(PairArguments, total=False):
    """The keyword arguments of `circuit`, besides its prompts: PairArguments, and these."""

    ablations: Iterable[AblationSpec]
    """Entries to overwrite with a number in all runs: circuits are those of the model without them."""
    alternative: Alternative | str
    """What cut edges carry: `patching`, `mean_by_position`, `mean_by_length`, `mean` or `zero`."""
    reference: Iterable[PromptLike]
    """The prompts of a mean."""
    prune: bool | None
    """Whether edges on no path from the embedding to the logits are left out too; None = they are, of edges."""
    latents: bool
    """Whether latents of `autoencoders`, and their errors, are nodes: circuits are then of nodes, such as "m2.l17"."""
    circuits: Iterable[CircuitLike]
    """Circuits to evaluate."""
    curve: bool | None
    """Whether to evaluate circuits of growing size; None = unless circuits or `acdc_threshold` are given."""
    scores: Any
    """Scores of edges [S, D] or of nodes [S], with latents [N], an array or a stored tensor; None = those of EAP-IG."""
    scores_orientation: Orientation | str
    """Which sign of these scores matters: `noising` the negative, `denoising` the positive."""
    selection: CircuitSelection | str
    """Which edges a circuit of the curve keeps: `absolute`, `signed` or `greedy`."""
    fractions: Iterable[float]
    """The fractions of edges, or nodes, that circuits of the curve keep; nothing = those of the benchmark MIB."""
    wanted_faithfulness: float
    """The edges of the smallest circuit that is at least so faithful are sent."""
    steps: int
    """Steps of EAP-IG."""
    with_scores: bool
    """Whether to send the scores of all edges, with latents of all nodes."""
    acdc_threshold: float | None
    """Search for a circuit with ACDC: an edge stays cut if that changes the output by less."""
    acdc_of_metric: bool
    """Whether that is the metric, rather than the divergence of the distributions."""
    acdc_absolute: bool
    """Whether a change in the other direction counts alike."""


def make_circuit_request(
    clean: PromptLike | None = None,
    corrupt: PromptLike | None = None,
    *,
    target: TokensLike | None = None,
    distractor: TokensLike | None = None,
    loss: LossFnConfig | LossFnName | str | None = None,
    pairs: Iterable[PairLike] = (),
    model: str | None = None,
    autoencoders: str | Iterable[str] = (),
    ablations: Iterable[AblationSpec] = (),
    orientation: Orientation | str = Orientation.NOISING,
    alternative: Alternative | str = Alternative.PATCHING,
    reference: Iterable[PromptLike] = (),
    prune: bool | None = None,
    latents: bool = False,
    circuits: Iterable[CircuitLike] = (),
    curve: bool | None = None,
    acdc_threshold: float | None = None,
    acdc_of_metric: bool = False,
    acdc_absolute: bool = False,
    request_id: str = "",
    **of_curve: Unpack[CurveArguments],
) -> CircuitRequest:
    """The request that the arguments describe; see CircuitArguments.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model; names that are nearly right are suggested.
    """
    asked = tuple(_circuit(one, i) for i, one in enumerate(tuple_of("circuits", circuits)))
    wants_curve = not asked and acdc_threshold is None if curve is None else curve
    acdc = None
    if acdc_threshold is not None:
        acdc = given("acdc", AcdcSearch, threshold=acdc_threshold, of_metric=acdc_of_metric, absolute=acdc_absolute)
    return given(
        "",
        CircuitRequest,
        pairs=pairs_of(clean, corrupt, pairs),
        request_id=request_id,
        model=model,
        loss_fn_config=loss_of(loss, target, distractor),
        autoencoders=names_of(autoencoders),
        ablation_specs=tuple_of("ablations", ablations),
        orientation=member(Orientation, orientation, "orientation"),
        alternative=member(Alternative, alternative, "alternative"),
        reference=references_of(reference),
        prune=prune,
        latents=latents,
        circuits=asked,
        curve=_curve(**of_curve) if wants_curve or of_curve else None,
        acdc=acdc,
    )


class CurveArguments(TypedDict, total=False):
    """The keyword arguments of a curve; see CircuitArguments."""

    scores: Any
    scores_orientation: Orientation | str
    selection: CircuitSelection | str
    fractions: Iterable[float]
    wanted_faithfulness: float
    steps: int
    with_scores: bool


def _curve(
    *,
    scores: Any = None,
    scores_orientation: Orientation | str = Orientation.NOISING,
    selection: CircuitSelection | str = CircuitSelection.ABSOLUTE,
    fractions: Iterable[float] = (),
    wanted_faithfulness: float = DEFAULT_WANTED_FAITHFULNESS,
    steps: int = DEFAULT_STEPS,
    with_scores: bool = False,
) -> CircuitCurve:
    return given(
        "curve",
        CircuitCurve,
        scores=scores if scores is None or isinstance(scores, RequestTensor) else _tensor(scores),
        scores_orientation=member(Orientation, scores_orientation, "curve.scores_orientation"),
        selection=member(CircuitSelection, selection, "curve.selection"),
        fractions=tuple_of("curve.fractions", fractions),
        wanted_faithfulness=wanted_faithfulness,
        steps=steps,
        with_scores=with_scores,
    )


def _tensor(scores: Any) -> RequestTensor:
    try:
        return RequestTensor(tensor=np.asarray(scores))
    except InvalidRequest as error:
        raise error.under("curve.scores") from None


def _circuit(circuit: CircuitLike, i: int) -> KeptCircuit:
    if isinstance(circuit, KeptCircuit):
        return circuit
    if isinstance(circuit, str):
        raise InvalidRequest.of(f"circuits[{i}]", f"must be a list of names, not the text {circuit!r}")
    path = f"circuits[{i}]"
    names = tuple_of(path, circuit)
    edges = tuple(name for name in names if "->" in str(name))
    return given(path, KeptCircuit, edges=edges, nodes=tuple(name for name in names if "->" not in str(name)))
