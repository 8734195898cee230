"""Answers of Resolve, and descriptions of models, autoencoder sets and contexts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from dst_grpc.domain.architecture import Architecture, ModelDimensions, UnsupportedType
from dst_grpc.domain.autoencoders import AutoencoderActivation, InputNormalization, ModelNorm
from dst_grpc.domain.components import NodeType, PassType, TensorElementType
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.locations import ActivationLocationType
from dst_grpc.domain.results import Axis
from dst_grpc.domain.scalar_types import DerivedScalarType
from dst_grpc.errors import DstError


class ContextState(StrEnum):
    """State of a context in the cache."""

    NOT_LOADED = "not_loaded"
    """Registered but not loaded: not loaded yet, or unloaded."""
    LOADING = "loading"
    """Being loaded."""
    AVAILABLE = "available"
    """Loaded."""
    UNLOADING = "unloading"
    """Being unloaded; its memory still counts."""
    FAILED = "failed"
    """Its load failed, and the next request that needs it loads it again; or the registry knows that it cannot be
    loaded."""


class ContextKind(StrEnum):
    """What a context holds."""

    MODEL = "model"
    AUTOENCODER = "autoencoder"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCheck:
    """Quality of an autoencoder at one layer: declared with it, or measured at load."""

    layer_index: int
    """Layer; 0 for the autoencoder of what exists once per model."""
    l0: float
    """Mean number of latents active at a token."""
    fraction_of_variance_unexplained: float | None
    """Mean squared error over variance; 0 is perfect. None if it is not declared."""
    dead_latents: int | None = None
    """Latents never active on the data of the measurement; None if not counted."""
    orientation: float | None = None
    """Mean cosine between a latent's read and write direction; None for a transcoder, and if it was not measured."""
    reading: str = ""
    """How the file was interpreted, where its format leaves that open; chosen by these figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What the catalogue says of a model.

    Of one that cannot be loaded, only `name`, `source`, `default_model`, `state` and `error` mean anything.
    """

    name: str
    handle: str
    """Empty if its files have not been read yet."""
    family: str
    dimensions: ModelDimensions
    """Its sizes; all 0 if it cannot be loaded."""
    element_type: TensorElementType | None
    """Element type of its weights once loaded; None if it cannot be."""
    device: str
    digest: str
    """SHA-256 of the files; empty if not known yet."""
    parameter_bytes: int
    """Bytes that loading it takes."""
    source: str
    """Where it comes from, for humans: "embedded", "folder", "hub:org/name"."""
    default_model: bool
    """Whether a request without a model gets this one."""
    state: ContextState
    """Whether it is loaded; FAILED also if it cannot be."""
    autoencoders: tuple[str, ...]
    """Names of the autoencoder sets for this model."""
    architecture: Architecture = field(default_factory=Architecture)
    """Its architecture."""
    unsupported: tuple[UnsupportedType, ...] = ()
    """The derived scalar types that have no meaning in it."""
    revision: str = ""
    """Commit of the repository that it was pulled from; empty unless it is from the hub."""
    error: DstError | None = None
    """Why its load failed, or why it cannot be loaded; None unless FAILED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderInfo:
    """What the catalogue says of an autoencoder set.

    Of one that cannot be loaded, only `name`, `model`, `source`, `state` and `error` mean anything.
    """

    name: str
    handle: str
    model: str
    """Name of the model it belongs to."""
    dst: DerivedScalarType | None
    """The derived scalar that it reads; None if it cannot be loaded."""
    node_type: NodeType | None
    """Type of its latents; likewise."""
    layer_indices: tuple[int, ...]
    """Layers it covers."""
    n_latents: int
    """Latents at each layer."""
    activations: tuple[AutoencoderActivation, ...]
    """Nonlinearity; several if the layers differ."""
    spliceable: bool
    """Whether it can be spliced into a run, rather than only read recorded taps."""
    parameter_bytes: int
    """Bytes of its weights in memory."""
    digest: str
    state: ContextState
    declared: tuple[LayerCheck, ...] = ()
    """Figures that came with it."""
    measured: tuple[LayerCheck, ...] = ()
    """Figures measured when it was loaded; empty before."""
    formats: tuple[str, ...] = ()
    """File format; several if the layers differ."""
    output: DerivedScalarType | None = None
    """For transcoders, what they predict; None if they reconstruct their input."""
    normalizations: tuple[InputNormalization, ...] = (InputNormalization.NONE,)
    """Normalizations of each input vector; several if the layers differ, or a file leaves open which it is."""
    input_norms: tuple[ModelNorm, ...] = (ModelNorm.NONE,)
    """Norms of the model applied to `dst` before it is read; several as above."""
    folded: tuple[str, ...] = ()
    """Transformations that loading folds into the weights, without changing results."""
    source: str = ""
    """Where it comes from, for humans; empty if the server does not say."""
    revision: str = ""
    """Commit of the repository that it was pulled from; empty unless it is from the hub."""
    error: DstError | None = None
    """Why its load failed, or why it cannot be loaded; None unless FAILED."""
    makes_graphs: bool = False
    """Whether it is a set of transcoders of the model's MLPs, which attribution graphs are made of."""
    cross_layer: bool = False
    """Whether it is a cross-layer transcoder: its latents write to their own layer and every later one."""
    file_bytes: int = 0
    """Bytes of its weights that stay in its files, and are read as they are needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapUse:
    """A tap that a request makes the run record."""

    location: ActivationLocationType
    pass_type: PassType


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarResolution:
    """What deriving one type needs and yields."""

    dst: DerivedScalarType
    config: DstConfig
    """The canonical config it will be computed with."""
    requires_grad: bool
    """Whether it needs the backward pass."""
    taps: tuple[TapUse, ...]
    """The taps that it reads."""
    pass_types: tuple[PassType, ...]
    """The passes that it yields."""
    layer_indices: tuple[int, ...]
    """Layers of the result; empty for a type that exists once per model."""
    axes: tuple[Axis, ...]
    """Axes of one layer's tensor."""
    output_bytes: int
    """Bytes of all its tensors together, dense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """What a request is expected to cost. Estimates, not promises."""

    sequence_tokens: int
    """Tokens planned for."""
    forward_passes: int
    backward_passes: int
    floating_point_operations: int
    """Multiplications and additions of the passes and the derivation."""
    peak_bytes: int
    """Device memory beyond the weights."""
    output_bytes: int
    """Bytes of tensors to send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """A request, checked and completed."""

    config: DstConfig
    """The shared config with every context filled in."""
    device: str
    model: ModelInfo
    autoencoders: tuple[AutoencoderInfo, ...]
    """Sets in use, at most one per node type."""
    scalars: tuple[ScalarResolution, ...]
    """One per derived scalar of the request, in order."""
    cost: CostEstimate
    contexts: tuple[ContextStatus, ...] = ()
    """State of every context that the request needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """A request is well formed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """Progress of the load of a context."""

    context: str
    """Handle, or the name if the handle is not known yet."""
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextStatus:
    """A context in the cache, as operators see it."""

    handle: str
    kind: ContextKind
    state: ContextState
    bytes_total: int
    """Bytes that it occupies once loaded."""
    bytes_loaded: int
    """Bytes read so far."""
    device: str
    pins: int
    """Requests using it now."""
    hits: int
    """Number of requests that found it loaded."""
    idle_duration: float
    """Seconds since a request last used it."""
    error: DstError | None = None
    """Why its load failed; None unless FAILED."""
    pinned: bool = False
    """Whether an operator pinned it, so that it stays loaded while no request uses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryChange:
    """What a reload of the registry changed: names of models and autoencoder sets, each in order."""

    added: tuple[str, ...] = ()
    """Those that are new."""
    removed: tuple[str, ...] = ()
    """Those that are gone."""
    changed: tuple[str, ...] = ()
    """Those whose files, source or load settings differ from before."""
