"""Checks a request's interventions against a model's sizes: selections, and the shapes of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dst_grpc.domain.components import NodeType, PassType
from dst_grpc.domain.enum_names import json_name
from dst_grpc.domain.interventions import Positions
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.selections import PositionList, PositionRange
from dst_grpc.errors import Reason, Violations, join_path, require
from dst_grpc.pipeline.checks import check_layer, sized
from dst_grpc.pipeline.directions import why_no_subspace, why_no_vector
from dst_grpc.pipeline.sizes import BYTES_OF_FLOAT32, Sizes
from dst_grpc.scalars.topology import AutoencoderInputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dst_grpc.contexts.entries import AutoencoderEntry
    from dst_grpc.domain.components import Dimension
    from dst_grpc.domain.interventions import Intervention
    from dst_grpc.domain.request_tensors import RequestTensor, TensorSource
    from dst_grpc.domain.requests import DeriveRequest
    from dst_grpc.domain.selections import AxisSelection, TapSelection
    from dst_grpc.pipeline.directions import Directions
    from dst_grpc.pipeline.findings import Findings
    from dst_grpc.pipeline.plan import Plan
    from dst_grpc.scalars.origins import Origin

_L = ActivationLocationType


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """An intervention as a request gives it."""

    intervention: Intervention
    """What it means."""
    path: str
    """Its path in the request."""
    at: str = "at"
    """The field of its selection."""
    axes: str = "axes"
    """The field of the selection's axes."""


def given_by(interventions: Sequence[Intervention], path: str) -> Iterator[Given]:
    """*interventions* in the list at *path*."""
    for i, one in enumerate(interventions):
        yield Given(intervention=one, path=f"{path}[{i}]")


def given_by_request(request: DeriveRequest) -> Iterator[Given]:
    """The ablations and interventions of *request*, in order."""
    for i, spec in enumerate(request.ablation_specs):
        path = f"ablation_specs[{i}]"
        yield Given(intervention=spec.intervention, path=path, at="index", axes="tensor_indices")
    yield from given_by(request.interventions, "interventions")


def planned_interventions(
    given: Iterable[Given],
    findings: Findings,
    sizes: Sizes,
    spliced: Sequence[AutoencoderEntry],
    directions: Directions,
    lengths: Mapping[str, int],
    *,
    has_prompt: bool = True,
) -> Iterator[Intervention]:
    """Interventions that a run can apply, in order; notes what does not exist or does not fit.

    Args:
        given: the interventions.
        findings: collects what is wrong.
        sizes: of the model and prompt.
        spliced: the autoencoders spliced into the run.
        directions: finds what directions name.
        lengths: tokens of the runs that can be read, by name, as far as they are known.
        has_prompt: whether the prompt is known, and not only the model.

    Yields:
        Each, but those that read other runs, or have directions, once for each layer.
    """
    if findings.holds_stand_in("autoencoders"):
        return  # the existing taps depend on them
    for one in given:
        if findings.holds_stand_in(one.path):
            continue
        before = findings.count
        meant = one.intervention
        at = checked_selection(findings, meant.at, f"{one.path}.{one.at}", sizes, spliced, axes=one.axes)
        if findings.count == before and has_prompt:
            _check_tensors(findings, meant, one.path, _shape(at, sizes, spliced), width_of(at, sizes, spliced))
            _check_readings(findings, meant, one.path, sizes.n_tokens, lengths)
        meant = meant if at is meant.at else replace(meant, at=at)
        if not (meant.runs or meant.action.directions):
            yield meant
            continue
        width = width_of(at, sizes, spliced)
        for at_layer in _at_layers(meant, range(sizes.n_layers)):
            yield directions.resolved(at_layer, one.path, width)


def _check_readings(
    findings: Findings, intervention: Intervention, path: str, n_tokens: int, lengths: Mapping[str, int]
) -> None:
    """Note runs that are read at positions that they do not have."""
    at = intervention.at
    axes = zip(at.all_axes, at.activation_location_type.dimensions, strict=True)
    over_tokens = [axis for axis, dimension in axes if dimension.is_sequence_token_dimension]
    for reading in intervention.action.readings:
        length = lengths.get(reading.run, n_tokens)
        where = join_path(path, reading.path)
        if isinstance(reading.positions, int):
            fits = -length <= reading.positions < length
            findings.check(fits, where, f"has {length} tokens, and none at position {reading.positions}")
        elif reading.positions is Positions.SAME and length != n_tokens:
            if None in over_tokens:
                description = f"has {length} tokens, but this run has {n_tokens}: select positions, not the whole axis"
                findings.add(where, description)
            elif not all(_last(axis) < length for axis in over_tokens):
                findings.add(where, f"has {length} tokens, and not all of the selected positions")


def _last(axis: AxisSelection) -> int:
    """The last of the positions selected along an axis that is not selected whole."""
    match axis:
        case PositionRange():
            return axis.stop - 1
        case PositionList():
            return max(axis.positions)
    return require(axis)


def changes_of_gradient(interventions: Iterable[Intervention], origin: Origin, n_layers: int) -> Iterator[Intervention]:
    """Those of *interventions* that change a gradient of *origin*.

    The others have no effect on this prompt alone; in a batch, gradients of other prompts would trigger them.
    """
    for one in interventions:
        at = one.at
        if at.pass_type is PassType.FORWARD:
            continue
        if at.layer_index is not None or at.activation_location_type.has_no_layers:
            if origin.depends_on(at.site):
                yield one
            continue
        reached = [layer for layer in range(n_layers) if origin.depends_on((at.activation_location_type, layer))]
        if len(reached) == n_layers:
            yield one
        else:
            yield from _at_layers(one, reached)


def tensor_bytes(interventions: Iterable[Intervention], sizes: Sizes, spliced: Sequence[AutoencoderEntry]) -> int:
    """Upper bound of the bytes of the tensors that *interventions* read: none is larger than its selection."""
    found = {
        tensor: math.prod(_shape(one.at, sizes, spliced))
        for one in interventions
        for tensor in one.action.tensors.values()
    }
    return BYTES_OF_FLOAT32 * sum(found.values())


def checked_selection(
    findings: Findings,
    at: TapSelection,
    path: str,
    sizes: Sizes,
    spliced: Sequence[AutoencoderEntry],
    *,
    axes: str = "axes",
) -> TapSelection:
    """Note indices of a selection that do not exist in the run.

    Args:
        findings: collects what is wrong.
        at: the selection.
        path: its path.
        sizes: of the model and prompt.
        spliced: the autoencoders spliced into the run.
        axes: the field that its axes are in.

    Returns:
        *at*, with the tap of generic latents replaced by that of the spliced autoencoder.
    """
    if at.activation_location_type is _L.ONLINE_AUTOENCODER_LATENT and _generic(spliced) is None:
        description = (
            "exists only while exactly one autoencoder is spliced in, or one of the residual stream, "
            f"not {', '.join(one.name for one in spliced) or 'none'}"
        )
        findings.add(f"{path}.activation_location_type", description)
    at = _meant(at, spliced)
    location = at.activation_location_type
    reason = sizes.architecture.why_without(location)
    if reason is not None:
        description = f"{json_name(location)} does not exist in the model: {reason}"
        findings.add(f"{path}.activation_location_type", description, Reason.UNSUPPORTED_BY_MODEL)
    owner = owner_of(location, spliced)
    check_layer(findings, at.layer_index, f"{path}.layer_index", sizes.n_layers, owner)
    if location.facts.needs_splice and location is not _L.ONLINE_AUTOENCODER_LATENT:
        has = "".join(f"; {one.name} has {' and '.join(map(json_name, one.input.splice_taps))}" for one in spliced)
        findings.check(
            owner is not None,
            f"{path}.activation_location_type",
            f"{json_name(location)} exists only while an autoencoder that has it is named in autoencoders{has}",
        )
    for i, (axis, (dimension, size)) in enumerate(zip(at.axes, _sized(at, sizes, spliced), strict=False)):
        if size is not None:
            _check_axis(findings, axis, dimension, size, f"{path}.{axes}[{i}]")
    return at


def _check_axis(findings: Findings, axis: AxisSelection, dimension: Dimension, size: int, path: str) -> None:
    match axis:
        case int():
            findings.check(axis < size, path, f"must be below {size}, the size of {dimension}, not {axis}")
        case PositionList():
            for i, position in enumerate(axis.positions if max(axis.positions) >= size else ()):
                if position >= size:
                    description = f"must be below {size}, the size of {dimension}, not {position}"
                    findings.add(f"{path}.list.positions[{i}]", description)
        case PositionRange():
            description = f"must be at most {size}, the size of {dimension}, not {axis.stop}"
            findings.check(axis.stop <= size, f"{path}.range.stop", description)


def _at_layers(intervention: Intervention, layers: Iterable[int]) -> Iterator[Intervention]:
    """*intervention* at each of *layers*, if it names no layer of a tap that has some."""
    at = intervention.at
    if at.layer_index is not None or at.activation_location_type.has_no_layers:
        yield intervention
        return
    for layer in layers:
        yield replace(intervention, at=replace(at, layer_index=layer))


def width_of(at: TapSelection, sizes: Sizes, spliced: Sequence[AutoencoderEntry]) -> int | None:
    """Size of the last axis of a tap; None if it is of latents that no spliced autoencoder has."""
    return _sized(at, sizes, spliced)[-1][1]


def _shape(at: TapSelection, sizes: Sizes, spliced: Sequence[AutoencoderEntry]) -> tuple[int, ...]:
    """Shape of the selected entries, which exist."""
    at = _meant(at, spliced)
    return at.shape([require(size) for _, size in _sized(at, sizes, spliced)])


def _meant(at: TapSelection, spliced: Sequence[AutoencoderEntry]) -> TapSelection:
    """*at*, with the tap of generic latents replaced by that of the autoencoder whose they are."""
    owner = _generic(spliced) if at.activation_location_type is _L.ONLINE_AUTOENCODER_LATENT else None
    return at if owner is None else replace(at, activation_location_type=owner.input.latent_tap)


def _generic(spliced: Sequence[AutoencoderEntry]) -> AutoencoderEntry | None:
    """The one of *spliced* whose latents are meant where no type of autoencoder is named; None if none is."""
    kind = AutoencoderInputs.of_sets(spliced).of(NodeType.AUTOENCODER_LATENT)
    return next((one for one in spliced if one.input is kind), None)


def _sized(at: TapSelection, sizes: Sizes, spliced: Sequence[AutoencoderEntry]) -> list[tuple[Dimension, int | None]]:
    """Axes of a tap with their sizes; that of latents is None if no spliced autoencoder has the tap."""
    owner = owner_of(at.activation_location_type, spliced)
    return sized(at.activation_location_type.dimensions, sizes, None if owner is None else owner.n_latents)


def owner_of(location: ActivationLocationType, spliced: Sequence[AutoencoderEntry]) -> AutoencoderEntry | None:
    """The spliced autoencoder that has the tap *location*; None if none has."""
    return next((one for one in spliced if location in one.input.splice_taps), None)


# Tensors


def _check_tensors(
    findings: Findings, intervention: Intervention, path: str, shape: tuple[int, ...], width: int | None
) -> None:
    """Note inline tensors that do not fit the selected entries of *shape*, or vectors of *width* entries; those named
    by handle are not known yet, and directions are checked elsewhere."""
    for field, tensor in intervention.tensor_paths().items():
        if tensor.tensor is not None and not _is_of_direction(field):
            reason = _why_not_fitting(field, tensor, shape, width)
            findings.check(not reason, f"{path}.{field}.tensor", reason)


def _is_of_direction(field: str) -> bool:
    """Whether the tensor of a field, such as `swap.target.vector`, is that of a direction."""
    return field.count(".") > 1


def _why_not_fitting(field: str, tensor: RequestTensor, shape: Sequence[int], width: int | None) -> str:
    """Why the tensor of a field does not fit; empty if it does."""
    if _is_of_direction(field):
        return why_no_vector(tensor, width)
    return why_no_subspace(tensor, width) if field.endswith(".subspace") else _why_not_stretched(tensor, shape)


def _why_not_stretched(tensor: RequestTensor, shape: Sequence[int]) -> str:
    """Why *tensor*, whose numbers are known, cannot be broadcast to *shape*; empty if it can."""
    own = () if tensor.tensor is None else tensor.tensor.shape
    # From the last axis on sizes agree, or the tensor's is 1; it may have fewer axes, but not more.
    fits = len(own) <= len(shape) and all(
        one in {1, size} for one, size in zip(reversed(own), reversed(shape), strict=False)
    )
    return "" if fits else f"has shape {list(own)}, which does not stretch to the selected entries {list(shape)}"


def with_tensors(plans: Sequence[Plan], source: TensorSource | None, roots: Sequence[str]) -> tuple[Plan, ...]:
    """*plans* with every tensor handle replaced by the tensor.

    Args:
        plans: the plans.
        source: the store of the caller's tensors; None = there is none.
        roots: the path of each plan's request in the message.

    Raises:
        InvalidRequest: listing every handle whose tensor cannot be broadcast to its selection.
        NotFound: for an unknown handle.
    """
    problems = Violations()
    found = [_with_tensors(plan, source, problems, root) for plan, root in zip(plans, roots, strict=True)]
    problems.raise_if_any()
    return tuple(found)


def _with_tensors(plan: Plan, source: TensorSource | None, problems: Violations, root: str) -> Plan:
    known: dict[RequestTensor, RequestTensor] = {}
    for path, one, n_tokens in _with_lengths(plan):
        for field, tensor in one.tensor_paths().items():
            if tensor.handle is None:
                continue
            handle_path = join_path(root, f"{path}.{field}.handle")
            if source is None:
                problems.add(handle_path, "must be absent: no tensors are kept here")
                continue
            known[tensor] = source.get(tensor.handle)
            sizes = Sizes.of_prompt(plan.model, n_tokens)
            at = _meant(one.at, plan.spliced)
            width = width_of(at, sizes, plan.spliced)
            reason = _why_not_fitting(field, known[tensor], _shape(at, sizes, plan.spliced), width)
            problems.check(not reason, handle_path, reason)
    if not known:
        return plan
    return replace(plan, request=_filled(plan.request, known), run=plan.run.with_tensors(known))


def _with_lengths(plan: Plan) -> Iterator[tuple[str, Intervention, int]]:
    """The interventions of the plan's request, each with its path and the tokens of its run."""
    request, n_tokens = plan.request, len(plan.token_ids)
    for given in given_by(request.interventions, "interventions"):
        yield given.path, given.intervention, n_tokens
    lengths = {name: len(run.token_ids) for name, run in plan.run.all_sources}
    for i, source in enumerate(request.source_runs):
        for given in given_by(source.interventions, f"source_runs[{i}].interventions"):
            if source.name in lengths:
                yield given.path, given.intervention, lengths[source.name]


def _filled(request: DeriveRequest, known: Mapping[RequestTensor, RequestTensor]) -> DeriveRequest:
    """*request* with the tensors in *known* replaced."""

    def filled(interventions: tuple[Intervention, ...]) -> tuple[Intervention, ...]:
        return tuple(one.with_tensors(known) for one in interventions)

    sources = tuple(replace(one, interventions=filled(one.interventions)) for one in request.source_runs)
    return replace(request, interventions=filled(request.interventions), source_runs=sources)
