"""From keyword arguments to a DeriveRequest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import SupportsIndex, TypeAlias, TypedDict, TypeVar

from dst_grpc.client._given import given, integer, integers, tuple_of
from dst_grpc.domain.components import LossFnName, TensorElementType, TensorEncoding
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.interventions import AblationSpec, Intervention
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.requests import DerivedScalarSpec, DeriveRequest, Prompt, SourceRun
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.errors import InvalidRequest, Violations

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
    return given(
        "",
        DeriveRequest,
        prompt=_optional_prompt(prompt),
        derived_scalars=_specs(types),
        request_id=request_id,
        model=model,
        loss_fn_config=loss_of(loss, target, distractor),
        trace_config=trace,
        ablation_specs=tuple_of("ablations", ablations),
        interventions=tuple_of("interventions", interventions),
        source_runs=source_runs_of(source_runs),
        detach_final_layer_norm_scale=detach_final_layer_norm_scale,
        autoencoders=names_of(autoencoders),
        config=config if config is not None else DstConfig(),
        element_type=member(TensorElementType, element_type, "element_type"),
        encoding=member(TensorEncoding, encoding, "encoding"),
        max_chunk_bytes=max_chunk_bytes,
    )


def member(enum: type[E], name: E | str, field: str, short: Mapping[str, E] | None = None) -> E:
    """The member of *enum* that is called *name*, in either case; or has it as its *short* name.

    Raises:
        TypeError: If *name* is no text.
        InvalidRequest: If there is none; the nearest are named, else all, or what lists them.
    """
    if not isinstance(name, str):
        raise TypeError(f"{field} must be a text or a member of {enum.__name__}, not {name!r}")
    if short and name.lower() in short:
        return short[name.lower()]
    try:
        return enum(name.lower())
    except ValueError:
        known = [*(short or ()), *(m.value for m in enum)]
        nearest = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
        hints = [f"the nearest are {', '.join(nearest)}"] if nearest else []
        if enum is DerivedScalarType:
            hints.append(f"`dst-grpc types` lists all {len(known)}")
        elif not nearest:
            hints.append(f"known are {', '.join(known)}")
        raise InvalidRequest.of(field, "; ".join([f"there is no {name!r}", *hints])) from None


def names_of(names: str | Iterable[str], field: str = "autoencoders") -> tuple[str, ...]:
    """The names given in *field*, one or several; raises TypeError if they are neither."""
    return (names,) if isinstance(names, str) else tuple_of(field, names)


def _optional_prompt(prompt: PromptLike | None) -> Prompt | None:
    return None if prompt is None else prompt_of(prompt)


def prompt_of(prompt: PromptLike, field: str = "prompt") -> Prompt:
    """A Prompt, for *field*, from a text, token ids, or a Prompt.

    Raises:
        TypeError: If it is none of these.
        InvalidRequest: If it is empty.
    """
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return given(field, Prompt, text=prompt)
    if not isinstance(prompt, Iterable):
        raise TypeError(f"{field} must be a text, token ids or a Prompt, not {prompt!r}")
    return given(field, Prompt, token_ids=integers(field, prompt))


def source_runs_of(runs: SourceRunsLike) -> tuple[SourceRun, ...]:
    """SourceRuns from the forms that arguments may have; raises TypeError if they are none, InvalidRequest."""
    if not isinstance(runs, Mapping):
        return tuple_of("source_runs", runs)
    problems, found = Violations(), []
    for i, (name, prompt) in enumerate(runs.items()):
        try:
            read = prompt_of(prompt, f"source_runs[{i}].prompt")
            found.append(given(f"source_runs[{i}]", SourceRun, name=name, prompt=read))
        except InvalidRequest as error:
            problems.extend(error)
    problems.raise_if_any()
    return tuple(found)


def _specs(types: TypeLike | Iterable[TypeLike]) -> tuple[DerivedScalarSpec, ...]:
    problems = Violations()
    specs = []
    for i, wanted in enumerate((types,) if isinstance(types, str | DerivedScalarSpec) else tuple_of("types", types)):
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
    targets, distractors = _tokens("target", target), _tokens("distractor", distractor)
    return given(
        "loss_fn_config",
        LossFnConfig,
        name=member(LossFnName, loss or LossFnName.LOGIT_DIFF, "loss_fn_config.name"),
        target_tokens=tuple(t for t in targets if isinstance(t, str)),
        target_token_ids=tuple(t for t in targets if isinstance(t, int)),
        distractor_tokens=tuple(t for t in distractors if isinstance(t, str)),
        distractor_token_ids=tuple(t for t in distractors if isinstance(t, int)),
    )


def _tokens(field: str, tokens: TokensLike | None) -> tuple[str | int, ...]:
    if tokens is None:
        return ()
    each = tokens if isinstance(tokens, Iterable) and not isinstance(tokens, str) else (tokens,)
    return tuple(token_of(f"{field}[{i}]", token) for i, token in enumerate(each))


def token_of(field: str, token: str | SupportsIndex) -> str | int:
    """A token, as its text or its id; raises TypeError if it is neither."""
    if isinstance(token, str):
        return token
    if not isinstance(token, SupportsIndex):
        raise TypeError(f"{field} must be the text of a token or its id, not {token!r}")
    return integer(field, token)
