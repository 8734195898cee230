"""Answers: the header's promises kept tensor by tensor, in every element type and encoding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dst_grpc import __version__
from dst_grpc.domain.components import PassType, TensorElementType, TensorEncoding
from dst_grpc.domain.config import DstConfig
from dst_grpc.domain.indices import ActivationIndex
from dst_grpc.domain.interventions import AblationSpec
from dst_grpc.domain.locations import ActivationLocationType as L
from dst_grpc.domain.results import AnswerHeader, DenseTensor, SparseTensor, TensorRows
from dst_grpc.domain.scalar_types import DerivedScalarType as T
from dst_grpc.pipeline.tensor_answer import TensorAnswer
from tests import models

WORLD = models.world(T.MLP_POST_ACT, T.RESID_DELTA_ATTN, dtype=torch.float32)
TYPES = (T.ATTN_QK_LOGITS, T.ONLINE_MLP_AUTOENCODER_LATENT, T.LOGITS, T.ATTENTION_AUTOENCODER_LATENT, T.MLP_WRITE_NORM)
SPARSE = {"encoding": TensorEncoding.SPARSE_LATENTS}


def builder(*types: T, **fields: Any) -> TensorAnswer:
    given = {"autoencoders": tuple(WORLD.sets), "loss_fn_config": models.LOSS, **fields}
    (result,) = WORLD.results(models.request(*(types or TYPES), **given))
    return TensorAnswer(result, WORLD.context, WORLD.sets)


def tensors_of(answer: TensorAnswer) -> Iterator[DenseTensor | TensorRows | SparseTensor]:
    """What the steps of *answer* give, but for the header."""
    for step in answer.steps():
        for item in step:
            if not isinstance(item, AnswerHeader):
                yield item


def derived(*types: T, **fields: Any) -> list[torch.Tensor]:
    """The tensors as they are before they travel, in order."""
    given = {"autoencoders": tuple(WORLD.sets), "loss_fn_config": models.LOSS, **fields}
    return list(WORLD.derive(models.request(*(types or TYPES), **given)).values())


@pytest.mark.parametrize("fields", [{}, SPARSE], ids=["dense", "sparse"])
def test_tensors_come_in_the_header_s_order_and_as_it_says(fields: dict[str, Any]) -> None:
    answer = builder(config=DstConfig(), **fields)
    announced = answer.header().tensors
    found = list(tensors_of(answer))
    assert [part.info for part in found] == list(announced)
    assert [info.tensor_id for info in announced] == list(range(len(announced)))
    order = [(info.spec_index, info.layer_index) for info in announced]
    assert order == [(i, layer) for i, dst in enumerate(TYPES) for layer in ([None] if dst is T.LOGITS else range(3))]


LARGE = (T.MLP_WRITE, T.ATTN_WRITE, T.ATTN_WEIGHTED_VALUE, T.ATTN_WRITE_SUM_HEADS, T.ONLINE_MLP_AUTOENCODER_WRITE)
"""Types with a vector for each of many entries at each token."""


def test_large_tensors_come_some_tokens_at_a_time_and_add_up_to_the_whole() -> None:
    types = (T.ATTN_QK_PROBS, *LARGE, T.MLP_POST_ACT)
    (result,) = WORLD.results(models.request(*types, autoencoders=tuple(WORLD.sets), config=DstConfig()))
    whole = list(tensors_of(TensorAnswer(result, WORLD.context, WORLD.sets)))
    assert not any(isinstance(tensor, TensorRows) for tensor in whole)
    parts = TensorAnswer(result, WORLD.context, WORLD.sets, step_bytes=1)
    found: dict[int, list[np.ndarray[Any, Any]]] = {}
    for step in parts.steps():
        for item in step:
            if isinstance(item, AnswerHeader):
                continue
            rows = found.setdefault(item.info.tensor_id, [])
            assert isinstance(item, TensorRows) == (item.info.dst in LARGE)
            if isinstance(item, TensorRows):
                assert len(item.values) == 1
                assert item.first_row == len(rows)
            rows.append(item.values)
    for tensor in whole:
        np.testing.assert_allclose(np.concatenate(found[tensor.info.tensor_id]), tensor.values, rtol=1e-5, atol=1e-6)


def test_a_step_holds_no_more_than_it_may_but_for_one_tensor() -> None:
    (result,) = WORLD.results(models.request(*LARGE[:3], config=DstConfig()))
    answer = TensorAnswer(result, WORLD.context, WORLD.sets, step_bytes=5000)
    for step in answer.steps():
        sizes = [item.values.nbytes for item in step if not isinstance(item, AnswerHeader)]
        assert sum(sizes[:-1]) < 5000


def test_passes_of_a_layer_stand_together() -> None:
    answer = builder(T.RESID_POST_MLP, config=DstConfig(derive_gradients=True))
    order = [(info.layer_index, info.pass_type) for info in answer.header().tensors]
    assert order == [(layer, pass_type) for layer in range(3) for pass_type in PassType]


def test_the_header_repeats_the_prompt_and_the_loss() -> None:
    header = builder().header()
    assert header.model == WORLD.context.handle
    assert header.token_ids == models.TOKENS
    assert header.token_strings == ("d", "b", "e", "b", "f", "j")
    assert header.loss is not None
    assert header.activation_value is None


@pytest.mark.parametrize(
    ("element_type", "dtype"),
    [(TensorElementType.FLOAT32, torch.float32), (TensorElementType.FLOAT16, torch.float16)],
)
def test_values_are_rounded_once(element_type: TensorElementType, dtype: torch.dtype) -> None:
    for part, tensor in zip(tensors_of(builder(element_type=element_type)), derived(), strict=True):
        assert isinstance(part, DenseTensor)
        assert part.info.element_type is element_type
        np.testing.assert_array_equal(part.values, tensor.to(dtype).numpy())
        assert part.values.flags.c_contiguous
        assert part.values.nbytes == part.info.byte_length


def test_bfloat16_travels_as_its_bits() -> None:
    for part, tensor in zip(tensors_of(builder(element_type=TensorElementType.BFLOAT16)), derived(), strict=True):
        assert isinstance(part, DenseTensor)
        assert part.values.dtype == np.uint16
        bits = torch.from_numpy(part.values.copy()).view(torch.bfloat16)
        assert torch.equal(bits, tensor.bfloat16())


def test_masked_scores_stay_minus_infinity() -> None:
    for element_type in (TensorElementType.FLOAT32, TensorElementType.FLOAT16):
        part = next(tensors_of(builder(element_type=element_type)))
        assert isinstance(part, DenseTensor)
        assert (part.values[np.triu_indices(6, 1)] == -np.inf).all()


def test_a_derived_tensor_that_is_a_broadcast_travels_whole() -> None:
    index = ActivationIndex(activation_location_type=L.MLP_POST_ACT, layer_index=1, tensor_indices=(None, 2))
    answer = builder(T.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION, config=DstConfig(activation_index_for_fake_grad=index))
    (part,) = tensors_of(answer)
    assert isinstance(part, DenseTensor)
    assert part.values.shape == (6, 19)
    assert part.values.flags.c_contiguous


@pytest.mark.parametrize("element_type", [TensorElementType.FLOAT32, TensorElementType.FLOAT16])
def test_sparse_latents_are_the_dense_ones(element_type: TensorElementType) -> None:
    dense = tensors_of(builder(element_type=element_type))
    sparse = tensors_of(builder(element_type=element_type, **SPARSE))
    seen = 0
    for whole, part in zip(dense, sparse, strict=True):
        assert isinstance(whole, DenseTensor)
        if isinstance(part, DenseTensor):
            np.testing.assert_array_equal(part.values, whole.values)
            assert part.info == whole.info
            continue
        assert isinstance(part, SparseTensor)
        seen += 1
        rebuilt = np.zeros_like(whole.values)
        rebuilt[tuple(part.coordinates.T)] = part.values
        np.testing.assert_array_equal(rebuilt, whole.values)
        assert part.info.shape == whole.values.shape
        assert part.info.nonzero_count == len(part.values) == np.count_nonzero(whole.values)
        assert part.info.byte_length == part.values.nbytes + part.coordinates.nbytes
    assert seen == 6


def test_sparse_entries_ascend_without_duplicates() -> None:
    for part in tensors_of(builder(T.ONLINE_MLP_AUTOENCODER_LATENT, **SPARSE)):
        assert isinstance(part, SparseTensor)
        assert part.coordinates.dtype == np.dtype("<u4")
        rows = [tuple(row) for row in part.coordinates.tolist()]
        assert rows == sorted(set(rows))
        assert (part.values != 0).all()


def test_what_is_no_latent_travels_whole_in_any_encoding() -> None:
    answer = builder(T.MLP_POST_ACT, T.ONLINE_MLP_AUTOENCODER_WRITE, **SPARSE)
    assert all(info.encoding is TensorEncoding.DENSE for info in answer.header().tensors)


def test_an_entry_that_rounds_to_zero_is_no_entry() -> None:
    index = ActivationIndex(
        activation_location_type=L.ONLINE_MLP_AUTOENCODER_LATENT, layer_index=1, tensor_indices=(None, None)
    )
    tiny = AblationSpec(index=index, value=1e-10)
    for element_type, count in ((TensorElementType.FLOAT32, 90), (TensorElementType.FLOAT16, 0)):
        answer = builder(T.ONLINE_MLP_AUTOENCODER_LATENT, element_type=element_type, ablation_specs=(tiny,), **SPARSE)
        assert answer.header().tensors[1].nonzero_count == count


def test_the_summary_says_what_the_numbers_depend_on() -> None:
    answer = builder()
    list(tensors_of(answer))
    summary = answer.summary()
    assert (summary.statistics.forward_passes, summary.statistics.backward_passes) == (1, 0)
    assert summary.statistics.derive_duration > 0
    provenance = summary.provenance
    assert (provenance.model, provenance.model_digest, provenance.device) == (
        WORLD.context.handle,
        WORLD.context.digest,
        "cpu",
    )
    assert dict(provenance.library_versions) == {"dst-grpc": __version__, "torch": torch.__version__}
    assert len(provenance.autoencoder_digests) == 2
    assert provenance.batch_size == 1


@pytest.mark.parametrize(
    ("types", "ablated", "attention"),
    [
        ((T.MLP_POST_ACT,), False, "sdpa"),
        ((T.ATTN_QK_PROBS,), False, "eager"),
        ((T.MLP_POST_ACT,), True, "eager"),
    ],
)
def test_provenance_tells_whether_attention_was_written_out(
    types: tuple[T, ...], ablated: bool, attention: str
) -> None:
    """Recording or ablating its matrix needs that; nothing else does."""
    index = ActivationIndex(activation_location_type=L.ATTN_QK_PROBS, layer_index=1, tensor_indices=(0, 0, 0))
    specs = (AblationSpec(index=index, value=1.0),) if ablated else ()
    assert builder(*types, ablation_specs=specs).summary().provenance.attention == attention
