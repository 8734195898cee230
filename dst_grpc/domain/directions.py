"""Directions: vectors along the last axis of a tap, from the request, the model's weights, or what other runs have."""

from __future__ import annotations

from dataclasses import dataclass

from dst_grpc.domain.handles import ContextRef
from dst_grpc.domain.indices import check_number
from dst_grpc.domain.request_tensors import RequestTensor
from dst_grpc.domain.texts import check_text
from dst_grpc.errors import InvalidRequest, Violations

MAX_NAME_CHARACTERS = 256
_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UnembeddingRow:
    """What a token's logit is the inner product with, after the final norm: its column of the unembedding [d, V]."""

    token: str | None = None
    """The token, as a string that is exactly one; None if its id is given."""
    token_id: int | None = None
    """Its id; None if it is given as a string."""

    def __post_init__(self) -> None:
        """Check that exactly one form is given; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        if (self.token is None) == (self.token_id is None):
            problems.add("", "give exactly one of token and token_id")
        check_text(problems, "token", self.token or "")
        check_number(problems, "token_id", self.token_id)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRow:
    """What a latent reads: its row of an autoencoder's encoder [Z, n_in]."""

    autoencoder: str
    """Name or handle of the autoencoder set, spliced in or not."""
    latent: int
    """The latent."""
    layer_index: int | None = None
    """The layer of its autoencoder; None = that of the tap."""

    def __post_init__(self) -> None:
        """Check the name and the indices; raises InvalidRequest with all that is wrong."""
        _check_latent(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderRow:
    """What a latent writes per unit of its activation: its column of an autoencoder's decoder [n_out, Z]."""

    autoencoder: str
    """Name or handle of the autoencoder set, spliced in or not."""
    latent: int
    """The latent."""
    layer_index: int | None = None
    """The layer of its autoencoder; None = that of the tap."""

    def __post_init__(self) -> None:
        """Check the name and the indices; raises InvalidRequest with all that is wrong."""
        _check_latent(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceOfMeans:
    """The mean of what some runs have at the tap that is changed, minus the mean of what others have."""

    runs: tuple[str, ...]
    """Names of source runs; one that is named twice counts twice."""
    minus_runs: tuple[str, ...]
    """Names of those whose mean is subtracted."""
    token_index: int | None = None
    """The token of each run that is read, from the end if negative; None = the mean over all of them."""

    def __post_init__(self) -> None:
        """Check names and index; raises InvalidRequest with all that is wrong."""
        problems = Violations()
        for field in ("runs", "minus_runs"):
            names = getattr(self, field)
            problems.check(bool(names), field, "must name at least one run")
            for i, name in enumerate(names):
                check_run_name(problems, f"{field}[{i}]", name)
        if self.token_index is not None:
            within = -_MAX_INT32 <= self.token_index <= _MAX_INT32
            limits = f"must be between {-_MAX_INT32} and {_MAX_INT32}, not {self.token_index}"
            problems.check(within, "token_index", limits)
        problems.raise_if_any()


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """A vector along the last axis of a tap, which is the same for all selected entries of its other axes, but for a
    difference of means: that has the entries of the tap along them."""

    direction: RequestTensor | UnembeddingRow | EncoderRow | DecoderRow | DifferenceOfMeans
    """Where it is from; a tensor has one axis."""
    normalize: bool = False
    """Whether it is divided by its norm. What needs a direction and no length does so anyway."""

    @property
    def vector(self) -> RequestTensor | None:
        """The tensor of the request that it is; None if it is none."""
        return self.direction if isinstance(self.direction, RequestTensor) else None


def check_run_name(problems: Violations, path: str, name: str) -> None:
    """Note a name that no run can have."""
    problems.check(
        0 < len(name) <= MAX_NAME_CHARACTERS, path, f"must have between 1 and {MAX_NAME_CHARACTERS} characters"
    )
    check_text(problems, path, name)


def _check_latent(row: EncoderRow | DecoderRow) -> None:
    problems = Violations()
    try:
        ContextRef.parse(row.autoencoder)
    except InvalidRequest as error:
        problems.extend(error, "autoencoder")
    check_number(problems, "latent", row.latent)
    check_number(problems, "layer_index", row.layer_index)
    problems.raise_if_any()
