"""Matrices that stay in their files: any rows of them, read in any blocks, and what a file may become meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dst_grpc.engine.files import File
from dst_grpc.engine.safetensors_file import SafetensorsFile
from dst_grpc.engine.stored_matrix import StoredMatrix
from dst_grpc.errors import DataLoss, Internal

ROWS, COLUMNS = 11, 4
VALUES = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()


def stored(
    path: Path, values: torch.Tensor = VALUES, *, is_swapped: bool = False, rows_at_once: int = 3
) -> StoredMatrix:
    before = {"a": torch.arange(5), "b": torch.ones(3, dtype=torch.bfloat16)}
    save_file(before | {"w": (values.t() if is_swapped else values).contiguous()}, path)
    return StoredMatrix(
        file=SafetensorsFile.open(File.at(path)).held(),
        name="w",
        n_columns=COLUMNS,
        is_swapped=is_swapped,
        block_bytes=rows_at_once * COLUMNS * values.itemsize,
    )


@pytest.mark.parametrize("is_swapped", [False, True])
@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_rows_and_blocks_are_those_of_the_matrix(tmp_path: Path, is_swapped: bool, rows_at_once: int) -> None:
    matrix = stored(tmp_path / "w.safetensors", is_swapped=is_swapped, rows_at_once=rows_at_once)
    assert (matrix.n_rows, matrix.n_bytes) == (ROWS, ROWS * COLUMNS * 2)
    for indices in ([], [0], [10, 3, 3, 4, 5, 0], list(range(ROWS)), [9, 1]):
        found = matrix.rows(torch.tensor(indices, dtype=torch.int64))
        assert torch.equal(found, VALUES.float()[indices])
    blocks = [(begin, block.clone()) for begin, block in matrix.blocks()]
    assert [begin for begin, _ in blocks] == list(range(0, ROWS, rows_at_once))
    assert torch.equal(torch.cat([block for _, block in blocks]), VALUES.float())


@pytest.mark.parametrize("is_swapped", [False, True])
@pytest.mark.parametrize("indices", [[ROWS], [-1], [0, ROWS + 5]])
def test_a_row_that_it_does_not_have_is_never_what_lies_beside_it(
    tmp_path: Path, is_swapped: bool, indices: list[int]
) -> None:
    with pytest.raises(Internal, match="w has no row"):
        stored(tmp_path / "w.safetensors", is_swapped=is_swapped).rows(torch.tensor(indices))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_every_element_type_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    matrix = stored(tmp_path / "w.safetensors", VALUES.to(dtype))
    found = matrix.rows(torch.tensor([7, 2]))
    assert found.dtype is torch.float32
    assert torch.equal(found, VALUES.to(dtype).float()[[7, 2]])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_values_that_are_not_finite_are_named_when_they_are_read(tmp_path: Path, value: float) -> None:
    values = VALUES.double()
    values[6, 1] = value
    matrix = stored(tmp_path / "w.safetensors", values)
    assert torch.equal(matrix.rows(torch.tensor([5, 7])), values.float()[[5, 7]])
    with pytest.raises(DataLoss, match=r"w.safetensors: tensor 'w' has values that are NaN or infinite"):
        matrix.rows(torch.tensor([6]))
    with pytest.raises(DataLoss, match="NaN or infinite"):
        [matrix.check(block) for _, block in matrix.blocks()]


def test_a_file_that_is_replaced_stays_what_it_was_and_one_that_is_written_to_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    matrix = stored(path)
    other = tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(ROWS, COLUMNS)}, other)
    other.replace(path)
    assert torch.equal(matrix.rows(torch.tensor([1])), VALUES.float()[[1]])
    matrix = stored(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)
    with pytest.raises(DataLoss, match=r"w.safetensors: changed since it was checked"):
        matrix.rows(torch.tensor([1]))
