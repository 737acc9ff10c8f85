"""Transposes and sums in blocks against PyTorch's own."""

import pytest
import torch

from ulmfit.models.cpu_products import added, transposed, transposed_with_ones


@pytest.mark.parametrize("shape", [(1, 1), (128, 3), (129, 300), (5, 1000), (400, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_transpose_is_the_transpose_and_row_major(shape, dtype):
    matrix = torch.randn(shape).to(dtype)
    assert torch.equal(transposed(matrix), matrix.t())
    assert transposed(matrix).is_contiguous()
    assert torch.equal(transposed(matrix[:, : shape[1] // 2 + 1]), matrix[:, : shape[1] // 2 + 1].t())


def test_ones_below_the_transpose_add_up_the_other_factor():
    inputs, gates = torch.randn(150, 6), torch.randn(150, 4)
    product = transposed_with_ones(inputs) @ gates
    torch.testing.assert_close(product[:6], inputs.t() @ gates)
    torch.testing.assert_close(product[6:], gates.sum(0).expand(8, 4))


@pytest.mark.parametrize("columns", [1, 7, 4608, 2**18 + 1])
def test_parts_in_half_precision_are_added_in_single(columns):
    parts = [torch.randn(61, columns).bfloat16() if columns < 2**18 else torch.randn(2, columns).bfloat16()] * 3
    total = None
    for part in parts:
        total = added(total, part)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, sum(part.float() for part in parts))


def test_a_lone_part_is_left_as_it_is_and_parts_are_not_written_to():
    first, second = torch.randn(4, 4).bfloat16(), torch.randn(4, 4).bfloat16()
    kept = first.clone(), second.clone()
    assert added(None, first) is first
    added(first, second)
    assert torch.equal(first, kept[0]) and torch.equal(second, kept[1])
