"""Requests of Derive and Resolve: one run (prompt, origin, interventions), and any number of derived scalars of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from operator import attrgetter

from dst_grpc.domain.components import TensorElementType, TensorEncoding
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.directions import check_run_name
from dst_grpc.domain.enum_names import json_name, json_names
from dst_grpc.domain.handles import ContextRef
from dst_grpc.domain.indices import MAX_INDEX, check_token_ids
from dst_grpc.domain.interventions import AblationSpec, Intervention
from dst_grpc.domain.origins import LossFnConfig
from dst_grpc.domain.runs_read import check_runs_read
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.domain.texts import check_text
from dst_grpc.domain.trace import TraceConfig
from dst_grpc.errors import InvalidRequest, Violations

MAX_REQUEST_ID_CHARACTERS = 256
MIN_CHUNK_BYTES = 1024
"""Smallest chunk of a tensor that may be asked for."""


def check_id(problems: Violations, field: str, text: str) -> None:
    """Note it if *text*, an id of the client's own, is too long or cannot be sent."""
    long = f"must have at most {MAX_REQUEST_ID_CHARACTERS} characters"
    problems.check(len(text) <= MAX_REQUEST_ID_CHARACTERS, field, long)
    check_text(problems, field, text)


def check_names(problems: Violations, model: str | None, autoencoders: tuple[str, ...]) -> None:
    """Note what is not a name or handle, in the fields `model` and `autoencoders`, and autoencoders named twice."""
    named = [("model", model)] if model is not None else []
    named += [(f"autoencoders[{i}]", name) for i, name in enumerate(autoencoders)]
    for path, name in named:
        try:
            ContextRef.parse(name)
        except InvalidRequest as error:
            problems.extend(error, path)
    for name, count in Counter(autoencoders).items():
        problems.check(count == 1, "autoencoders", f"names {name!r} more than once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text, encoded as it is (no begin token is added), or its token ids."""

    text: str | None = None
    """The text; None if token ids are given."""
    token_ids: tuple[int, ...] | None = None
    """The token ids; None if a text is given."""

    def __post_init__(self) -> None:
        """Check that exactly one form is given and not empty; raises InvalidRequest."""
        problems = Violations()
        if (self.text is None) == (self.token_ids is None):
            problems.add("", "give exactly one of text and token_ids")
        problems.check(self.text != "", "text", "must not be empty")
        check_text(problems, "text", self.text or "")
        problems.check(self.token_ids != (), "token_ids", "must not be empty")
        check_token_ids(problems, "token_ids.token_ids", self.token_ids or ())
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRun:
    """A run that other runs of the request read: of another prompt, or with other interventions."""

    name: str
    """The name by which interventions refer to it."""
    prompt: Prompt | None = None
    """Its prompt; None = the prompt of the run that has it in its list."""
    interventions: tuple[Intervention, ...] = ()
    """Interventions on its values, applied in order; they may read other runs of the list."""

    def __post_init__(self) -> None:
        """Check the name; raises InvalidRequest."""
        problems = Violations()
        check_run_name(problems, "name", self.name)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedScalarSpec:
    """One derived scalar of a request."""

    dst: DerivedScalarType
    """Which type."""
    config: DstConfig | None = None
    """How to compute it; None = the request's shared config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeriveRequest:
    """One run (a prompt, an origin, interventions) and the derived scalars asked of it."""

    prompt: Prompt | None
    """The prompt; None only in a request to resolve, which then plans for a full context window."""
    derived_scalars: tuple[DerivedScalarSpec, ...] = ()
    """What to derive; may be empty if only the loss or the traced value is wanted."""
    request_id: str = ""
    """The client's own id, carried by every answer; must differ among the requests in flight on one stream."""
    model: str | None = None
    """Name or handle of the model; None = the config's, else the server's default."""
    loss_fn_config: LossFnConfig | None = None
    """The origin of the backward pass, unless a trace is given; a trace through V may use its gradient."""
    trace_config: TraceConfig | None = None
    """The origin of the backward pass."""
    ablation_specs: tuple[AblationSpec, ...] = ()
    """Entries to overwrite with a number, applied in order."""
    interventions: tuple[Intervention, ...] = ()
    """Interventions, applied in order after `ablation_specs`."""
    source_runs: tuple[SourceRun, ...] = ()
    """Runs that interventions may read, by name."""
    detach_final_layer_norm_scale: bool | None = None
    """Whether the final norm's scale is held constant in gradients; None = it is not."""
    autoencoders: tuple[str, ...] = ()
    """Names or handles of autoencoders to splice into the run; configs without any of their own use them too."""
    config: DstConfig = field(default_factory=DstConfig)
    """Shared config of the derived scalars without one of their own."""
    element_type: TensorElementType = TensorElementType.FLOAT32
    """Element type on the wire: float32, float16 or bfloat16."""
    encoding: TensorEncoding = TensorEncoding.DENSE
    """Whether latents are sent whole or sparse."""
    max_chunk_bytes: int = 0
    """Largest chunk of a tensor to send, and about the largest message; 0 = the server's own choice."""

    def __post_init__(self) -> None:
        """Check what needs no model; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        check_id(problems, "request_id", self.request_id)
        check_names(problems, self.model, self.autoencoders)
        if self.trace_config is not None:
            try:
                self.trace_config.check_can_run()
            except InvalidRequest as error:
                problems.extend(error, "trace_config")
        check_runs_read(problems, self.source_runs, self.interventions, self.loss_fn_config)
        if not self.element_type.is_float:
            floats = json_names(each for each in TensorElementType if each.is_float)
            problems.add("element_type", f"must be {floats}, not {json_name(self.element_type)}")
        problems.check(
            self.max_chunk_bytes == 0 or MIN_CHUNK_BYTES <= self.max_chunk_bytes <= MAX_INDEX,
            "max_chunk_bytes",
            f"must be 0, or between {MIN_CHUNK_BYTES} and {MAX_INDEX}, not {self.max_chunk_bytes}",
        )
        problems.raise_if_any()

    @property
    def has_origin(self) -> bool:
        """Whether a backward pass can start from this request."""
        return self.loss_fn_config is not None or self.trace_config is not None

    @property
    def question(self) -> tuple[object, ...]:
        """All fields that determine the plan for a given model: the request without its id, model and chunk size."""
        return _QUESTION(self)

    def config_of(self, spec: DerivedScalarSpec) -> DstConfig:
        """The config that *spec* is computed with, before resolution."""
        return spec.config if spec.config is not None else self.config


_BESIDE_THE_QUESTION = {"request_id", "model", "max_chunk_bytes"}
_QUESTION = attrgetter(*(each.name for each in fields(DeriveRequest) if each.name not in _BESIDE_THE_QUESTION))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveRequest:
    """A request to be checked, completed and costed, but not run."""

    request: DeriveRequest
    """What would be derived."""
    load: bool = False
    """Whether to load the contexts that it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelItem:
    """Cancels one item of a stream."""

    request_id: str
    """Id of the item's request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeriveStreamRequest:
    """A message of a client on DeriveStream: an item, or the cancellation of one."""

    message: DeriveRequest | CancelItem
    """The next item, or which one to cancel."""
    timeout: float | None = None
    """Seconds that the item may take from its arrival; None = as long as the call."""

    def __post_init__(self) -> None:
        """Check the timeout; raises InvalidRequest."""
        problems = Violations()
        if self.timeout is not None:
            problems.check(self.timeout > 0, "timeout", f"must be longer than 0 seconds, not {self.timeout}")
            problems.check(isinstance(self.message, DeriveRequest), "timeout", "must be absent beside cancel")
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveStreamRequest:
    """A message of a client on ResolveStream: an item."""

    message: ResolveRequest
    """The next item."""
