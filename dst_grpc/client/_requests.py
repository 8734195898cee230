"""From keyword arguments to a DeriveRequest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from operator import index
from typing import SupportsIndex, TypeAlias, TypedDict, TypeVar

from dst_grpc.domain.components import LossFnName, TensorElementType, TensorEncoding
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.interventions import AblationSpec, Intervention
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt, SourceRun
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.errors import InvalidRequest, Violations, first_of

PromptLike: TypeAlias = str | Iterable[SupportsIndex] | Prompt
"""A text, token ids, or a Prompt."""
SourceRunsLike: TypeAlias = Mapping[str, PromptLike] | Iterable[SourceRun]
"""Runs that others read: their prompts by name, or whole SourceRuns, which may have interventions of their own."""
TypeLike: TypeAlias = str | DerivedScalarType | DerivedScalarSpec
"""A derived scalar by name, by enum member, or with a config of its own."""
TokensLike: TypeAlias = str | SupportsIndex | Iterable[str | SupportsIndex]
"""One token or several, each as its text (mind the leading space) or its id."""

E = TypeVar("E", bound=StrEnum)


class RequestArguments(TypedDict, total=False):
    """The keyword arguments that `derive` and `resolve` share."""

    target: TokensLike | None
    """Target tokens."""
    distractor: TokensLike | None
    """Distractor tokens."""
    loss: LossFnConfig | LossFnName | str | None
    """A whole loss; or its name, for the target and distractor given."""
    trace: TraceConfig | None
    """A node to start the backward pass from, instead of a loss."""
    ablations: Iterable[AblationSpec]
    """Entries to overwrite with a number, applied in order."""
    interventions: Iterable[Intervention]
    """Interventions, applied in order after `ablations`: see `steer`, `set_value`, `scale`, `patch`, `hold`,
    `mean_over` and `detach_gradient`."""
    source_runs: SourceRunsLike
    """Runs that interventions read: their prompts by name, or whole SourceRuns."""
    detach_final_layer_norm_scale: bool
    """Whether the final norm's scale is held constant in gradients: direct effects are shares of a logit difference."""
    autoencoders: str | Iterable[str]
    """Names or handles of autoencoders to splice into the run."""
    config: DstConfig | None
    """How to compute the derived scalars without a config of their own."""
    model: str | None
    """Name or handle of the model; None = the server's default."""
    element_type: TensorElementType | str
    """Element type of the answer's tensors: float32, float16 or bfloat16."""
    encoding: TensorEncoding | str
    """Whether latents are sent dense or sparse (`sparse_latents`)."""
    max_chunk_bytes: int
    """Largest chunk of a tensor to send, and about the largest message; 0 = the server's own choice."""
    request_id: str
    """Your own id, carried by the answer."""


def make_request(
    prompt: PromptLike | None,
    types: TypeLike | Iterable[TypeLike],
    *,
    target: TokensLike | None = None,
    distractor: TokensLike | None = None,
    loss: LossFnConfig | LossFnName | str | None = None,
    trace: TraceConfig | None = None,
    ablations: Iterable[AblationSpec] = (),
    interventions: Iterable[Intervention] = (),
    source_runs: SourceRunsLike = (),
    detach_final_layer_norm_scale: bool = True,
    autoencoders: str | Iterable[str] = (),
    config: DstConfig | None = None,
    model: str | None = None,
    element_type: TensorElementType | str = TensorElementType.FLOAT32,
    encoding: TensorEncoding | str = TensorEncoding.DENSE,
    max_chunk_bytes: int = 0,
    request_id: str = "",
) -> DeriveRequest:
    """The request that the arguments describe; see RequestArguments.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model; names that are nearly right are suggested.
    """
    return DeriveRequest(
        prompt=_optional_prompt(prompt),
        derived_scalars=_specs(types),
        request_id=request_id,
        model=model,
        loss_fn_config=loss_of(loss, target, distractor),
        trace_config=trace,
        ablation_specs=tuple(ablations),
        interventions=tuple(interventions),
        source_runs=source_runs_of(source_runs),
        detach_final_layer_norm_scale=detach_final_layer_norm_scale,
        autoencoders=names_of(autoencoders),
        config=config if config is not None else DstConfig(),
        element_type=member(TensorElementType, element_type, "element_type"),
        encoding=member(TensorEncoding, encoding, "encoding"),
        max_chunk_bytes=max_chunk_bytes,
    )


def member(enum: type[E], name: E | str, field: str) -> E:
    """The member of *enum* that is called *name*, in either case.

    Raises:
        InvalidRequest: If there is none; the nearest are named.
    """
    try:
        return enum(name.lower())
    except ValueError:
        known = [m.value for m in enum]
        nearest = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(nearest)}" if nearest else f"known are {first_of(known)}"
        raise InvalidRequest.of(field, f"there is no {name!r}; {hint}") from None


def names_of(names: str | Iterable[str]) -> tuple[str, ...]:
    """The names given, one or several."""
    return (names,) if isinstance(names, str) else tuple(names)


def _optional_prompt(prompt: PromptLike | None) -> Prompt | None:
    return None if prompt is None else prompt_of(prompt)


def prompt_of(prompt: PromptLike, field: str = "prompt") -> Prompt:
    """A Prompt, for *field*, from a text, token ids, or a Prompt; raises InvalidRequest if it is empty."""
    if isinstance(prompt, Prompt):
        return prompt
    try:
        if isinstance(prompt, str):
            return Prompt(text=prompt)
        return Prompt(token_ids=tuple(index(token) for token in prompt))
    except InvalidRequest as error:
        raise error.under(field) from None


def source_runs_of(runs: SourceRunsLike) -> tuple[SourceRun, ...]:
    """SourceRuns from the forms that arguments may have; raises InvalidRequest."""
    if not isinstance(runs, Mapping):
        return tuple(runs)
    problems, found = Violations(), []
    for i, (name, prompt) in enumerate(runs.items()):
        try:
            found.append(SourceRun(name=name, prompt=prompt_of(prompt)))
        except InvalidRequest as error:
            problems.extend(error, f"source_runs[{i}]")
    problems.raise_if_any()
    return tuple(found)


def _specs(types: TypeLike | Iterable[TypeLike]) -> tuple[DerivedScalarSpec, ...]:
    listed = (types,) if isinstance(types, str | DerivedScalarSpec) else tuple(types)
    problems = Violations()
    specs = []
    for i, wanted in enumerate(listed):
        if isinstance(wanted, DerivedScalarSpec):
            specs.append(wanted)
            continue
        try:
            specs.append(DerivedScalarSpec(dst=member(DerivedScalarType, wanted, f"derived_scalars[{i}].dst")))
        except InvalidRequest as error:
            problems.extend(error)
    problems.raise_if_any()
    return tuple(specs)


def loss_of(
    loss: LossFnConfig | LossFnName | str | None, target: TokensLike | None, distractor: TokensLike | None
) -> LossFnConfig | None:
    if isinstance(loss, LossFnConfig):
        if target is not None or distractor is not None:
            raise InvalidRequest.of("loss_fn_config", "give either a whole LossFnConfig or target and distractor")
        return loss
    if loss is None and target is None and distractor is None:
        return None
    targets, distractors = _tokens(target), _tokens(distractor)
    try:
        return LossFnConfig(
            name=member(LossFnName, loss or LossFnName.LOGIT_DIFF, "name"),
            target_tokens=tuple(t for t in targets if isinstance(t, str)),
            target_token_ids=tuple(t for t in targets if isinstance(t, int)),
            distractor_tokens=tuple(t for t in distractors if isinstance(t, str)),
            distractor_token_ids=tuple(t for t in distractors if isinstance(t, int)),
        )
    except InvalidRequest as error:
        raise error.under("loss_fn_config") from None


def _tokens(tokens: TokensLike | None) -> tuple[str | int, ...]:
    if tokens is None:
        return ()
    listed = tokens if isinstance(tokens, Iterable) and not isinstance(tokens, str) else (tokens,)
    # `index` accepts numpy's integers too, and refuses 0.5.
    return tuple(token if isinstance(token, str) else index(token) for token in listed)
