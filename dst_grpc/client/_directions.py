"""Directions: vectors along the last axis of a tap, for interventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from dst_grpc.client._given import given, integer, tuple_of
from dst_grpc.client._requests import token_of
from dst_grpc.domain.interventions import DecoderRow, DifferenceOfMeans, Direction, EncoderRow, UnembeddingRow
from dst_grpc.domain.put_tensors import PutTensor
from dst_grpc.domain.request_tensors import RequestTensor

TensorLike: TypeAlias = ArrayLike | PutTensor | RequestTensor
"""An array, or a tensor that was stored on the server before."""
DirectionLike: TypeAlias = TensorLike | Direction
"""A vector, or a direction that the server finds."""


def unembedding_row(token: str | SupportsIndex, *, normalize: bool = False) -> Direction:
    """What a token's logit is the inner product with, after the final norm.

    Args:
        token: The token, as its text (mind the leading space) or its id.
        normalize: Whether it is divided by its norm.
    """
    of = token_of("token", token)
    row = UnembeddingRow(token=of) if isinstance(of, str) else UnembeddingRow(token_id=of)
    return Direction(direction=row, normalize=normalize)


def encoder_row(
    autoencoder: str, latent: SupportsIndex, *, layer: int | None = None, normalize: bool = False
) -> Direction:
    """What a latent reads: its row of an autoencoder's encoder.

    Args:
        autoencoder: Name or handle of the autoencoder set.
        latent: The latent.
        layer: The layer of its autoencoder; None = that of the tap.
        normalize: Whether it is divided by its norm.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model.
    """
    row = given("", EncoderRow, autoencoder=autoencoder, latent=integer("latent", latent), layer_index=layer)
    return Direction(direction=row, normalize=normalize)


def decoder_row(
    autoencoder: str, latent: SupportsIndex, *, layer: int | None = None, normalize: bool = False
) -> Direction:
    """What a latent writes per unit of its activation. Arguments and errors are those of `encoder_row`."""
    row = given("", DecoderRow, autoencoder=autoencoder, latent=integer("latent", latent), layer_index=layer)
    return Direction(direction=row, normalize=normalize)


def difference_of_means(
    runs: Sequence[str], minus_runs: Sequence[str], *, token: int | None = None, normalize: bool = False
) -> Direction:
    """The mean of what some runs have at the tap, minus the mean of what others have.

    Args:
        runs: Names of some of the request's `source_runs`.
        minus_runs: Names of those whose mean is subtracted.
        token: The token of each run that is read, from the end if negative; None = the mean over all of them.
        normalize: Whether it is divided by its norm.

    Raises:
        InvalidRequest: If an argument cannot be valid, whatever the model.
    """
    means = given(
        "",
        DifferenceOfMeans,
        runs=tuple_of("runs", runs),
        minus_runs=tuple_of("minus_runs", minus_runs),
        token_index=token,
    )
    return Direction(direction=means, normalize=normalize)


def tensor_of(values: TensorLike) -> RequestTensor:
    """The tensor of a request from the forms that arguments may have; raises InvalidRequest."""
    if isinstance(values, RequestTensor):
        return values
    if isinstance(values, PutTensor):
        return RequestTensor(handle=values.handle)
    return RequestTensor(tensor=np.asarray(values, dtype=np.float32))


def direction_of(direction: DirectionLike) -> Direction:
    """A Direction from the forms that arguments may have; raises InvalidRequest."""
    return direction if isinstance(direction, Direction) else Direction(direction=tensor_of(direction))
