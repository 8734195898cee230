"""The answer to Derive: a header, tensors layer by layer, a summary.

Tensors are derived step by step, the largest some tokens at a time, so that an answer holds little more than the
recorded taps. Only sparse ones are derived before the header, which needs their number of entries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch

from dst_grpc.domain.components import Dimension, PassType, TensorElementType, TensorEncoding
from dst_grpc.domain.results import AnswerHeader, DenseTensor, RunSummary, SparseTensor, TensorInfo, TensorRows
from dst_grpc.engine.element_types import TORCH_TYPES
from dst_grpc.pipeline.own_time import own_time
from dst_grpc.pipeline.provenance import provenance_of
from dst_grpc.scalars.derive import Derivation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from dst_grpc.contexts.autoencoders import AutoencoderContext
    from dst_grpc.contexts.model import ModelContext
    from dst_grpc.pipeline.plan import PlannedScalar
    from dst_grpc.pipeline.run import RunResult

STEP_BYTES = (1 << 20) - 4096
"""A step derives tensors until it has this many bytes, or as many rows of one as fit, which is what a message holds; a
small answer is a single step."""

Tensor = DenseTensor | TensorRows | SparseTensor


class TensorAnswer:
    """The answer to one plan, computed in steps."""

    held_bytes: ClassVar[int | None] = None
    """It takes what its plan says."""
    step_operations: ClassVar[int | None] = None
    """Likewise."""

    def __init__(
        self,
        result: RunResult,
        model: ModelContext,
        sets: Mapping[str, AutoencoderContext],
        *,
        step_bytes: int = STEP_BYTES,
    ) -> None:
        """Prepare; sparse tensors are derived now.

        Args:
            result: of the plan.
            model: the model.
            sets: the autoencoders, by name.
            step_bytes: tensors that a step derives.
        """
        self._result, self._model, self._sets, self._step_bytes = result, model, sets, step_bytes
        self._plan = result.plan
        self._derive_seconds = 0.0
        self._sparse: dict[int, list[SparseTensor]] = {}
        self._infos: list[TensorInfo] = []
        for scalar in self._plan.scalars:
            self._announce(scalar)
        self._is_complete = False

    @classmethod
    def of_one(
        cls, results: Sequence[RunResult], model: ModelContext, sets: Mapping[str, AutoencoderContext]
    ) -> TensorAnswer:
        """The answer to the only one of *results*."""
        (result,) = results
        return cls(result, model, sets)

    @property
    def is_complete(self) -> bool:
        """Whether there is no further step."""
        return self._is_complete

    def steps(self) -> Iterator[list[AnswerHeader | Tensor]]:
        """The header with the first tensors, then the other tensors, about `step_bytes` at a time."""
        ready: list[AnswerHeader | Tensor] = [self.header()]
        size = 0
        for tensor in self._tensors():
            ready.append(tensor)
            size += tensor.values.nbytes
            is_last = tensor.info is self._infos[-1] and _is_end(tensor)
            is_full = size >= self._step_bytes or isinstance(tensor, TensorRows)
            del tensor  # the next is derived while this one is sent
            if is_full and not is_last:
                yield ready
                ready, size = [], 0
        self._is_complete = True
        yield ready

    def header(self) -> AnswerHeader:
        """The header."""
        return AnswerHeader(
            model=self._model.handle,
            token_ids=self._plan.token_ids,
            token_strings=self._plan.token_strings,
            tensors=tuple(self._infos),
            loss=self._result.loss,
            activation_value=self._result.activation_value,
            detach_final_layer_norm_scale=bool(self._plan.request.detach_final_layer_norm_scale),
            not_finite=self._result.recording.not_finite,
        )

    def _tensors(self) -> Iterator[Tensor]:
        """Every tensor, in the header's order, whole or in rows."""
        number = -1
        for scalar in self._plan.scalars:
            if scalar.spec_index in self._sparse:
                ready = self._sparse.pop(scalar.spec_index)
                number += len(ready)
                yield from ready
                continue
            for tensor, first_row in self._in_rows(scalar):
                number += first_row == 0
                info = self._infos[number]
                values = to_numpy(tensor, info.element_type)
                is_whole = len(values) == info.shape[0]
                yield DenseTensor(info, values) if is_whole else TensorRows(info, values, first_row)
                del tensor, values

    def summary(self) -> RunSummary:
        """The cost of the run, and the provenance of its numbers."""
        return RunSummary(
            statistics=replace(self._result.statistics, derive_duration=self._derive_seconds),
            provenance=provenance_of(
                [self._plan],
                self._model,
                self._sets,
                digest=self._plan.digest(self._model.handle, (one.handle for one in self._sets.values())),
                batch_size=self._result.batch_size,
            ),
        )

    def _in_rows(self, scalar: PlannedScalar) -> Iterator[tuple[torch.Tensor, int]]:
        """The tensors of *scalar*, each whole or some rows after the other, and the first row."""
        derivation = self._result.derivation(scalar)
        for layer in scalar.layers:
            rows = derivation.in_rows(layer, scalar.rows_of(self._step_bytes))
            while True:
                started = own_time()
                found = next(rows, None)
                self._derive_seconds += own_time() - started
                if found is None:
                    break
                yield found[2], found[1]
                del found

    def _derived(self, scalar: PlannedScalar) -> Iterator[tuple[int | None, PassType, torch.Tensor]]:
        derivation: Derivation = self._result.derivation(scalar)
        for layer in scalar.layers:
            started = own_time()
            found = derivation.at(layer)
            self._derive_seconds += own_time() - started
            for pass_type, tensor in found.items():
                yield layer, pass_type, tensor

    def _announce(self, scalar: PlannedScalar) -> None:
        element_type = self._plan.request.element_type

        def info(layer: int | None, pass_type: PassType) -> TensorInfo:
            return TensorInfo(
                tensor_id=len(self._infos),
                dst=scalar.facts.type,
                pass_type=pass_type,
                layer_index=layer,
                axes=scalar.axes,
                element_type=element_type,
                spec_index=scalar.spec_index,
                zero_by_definition=layer in scalar.layers_of_zeros and pass_type is PassType.FORWARD,
            )

        is_latent = scalar.facts.dimensions[-1] is Dimension.AUTOENCODER_LATENTS
        if self._plan.request.encoding is TensorEncoding.DENSE or not is_latent:
            for layer in scalar.layers:
                for pass_type in scalar.passes:
                    self._infos.append(info(layer, pass_type))
            return
        ready = self._sparse.setdefault(scalar.spec_index, [])
        for layer, pass_type, tensor in self._derived(scalar):
            ready.append(to_sparse(info(layer, pass_type), tensor))
            self._infos.append(ready[-1].info)


def _is_end(tensor: Tensor) -> bool:
    """Whether it is the last part of a tensor: the whole, or its last rows."""
    return not isinstance(tensor, TensorRows) or tensor.first_row + len(tensor.values) == tensor.info.shape[0]


def to_sparse(info: TensorInfo, tensor: torch.Tensor) -> SparseTensor:
    """The nonzero entries of *tensor*, ascending in coordinates."""
    tensor = tensor.to(TORCH_TYPES[info.element_type])
    coordinates = tensor.nonzero()
    values = tensor[tuple(coordinates.t())]
    sparse = replace(info, encoding=TensorEncoding.SPARSE_LATENTS, nonzero_count=len(values))
    return SparseTensor(sparse, to_numpy(values, info.element_type), coordinates.cpu().numpy().astype("<u4"))


def to_numpy(
    tensor: torch.Tensor, element_type: TensorElementType
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """*tensor* on the host, row-major, in its element type on the wire; bfloat16 as its bits."""
    tensor = tensor.detach().to(TORCH_TYPES[element_type]).contiguous()
    if tensor.device.type == "cuda":
        # Through pinned memory the copy from a GPU runs at the speed of the bus.
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).synchronize()
        tensor = host
    tensor = tensor.cpu()
    return tensor.view(torch.uint16).numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()
