"""Transposes and sums in blocks against PyTorch's own, and products against the formula."""

import pytest
import torch

from ulmfit.models import cpu_products
from ulmfit.models.cpu_products import (
    added,
    product_and_sum_by,
    product_by,
    product_with,
    transposed,
    transposed_with_ones,
    weights_pack,
)


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


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("rows", [1, 16, 300])
def test_products_by_a_weight_in_order_equal_the_formula(monkeypatch, packed, dtype, tolerance, rows):
    if packed and not weights_pack(dtype):
        pytest.skip("only bfloat16 is packed, where the processor multiplies it")
    monkeypatch.setattr(cpu_products, "weights_pack", lambda dtype: packed)
    weight, bias = torch.randn(70, 33).to(dtype), torch.randn(70).to(dtype)
    factor, addend = torch.randn(rows, 33).to(dtype), torch.randn(rows, 70).to(dtype)
    product = factor.double() @ weight.t().double()

    def agree(found, expected):
        assert found.dtype == dtype
        assert (found.double() - expected).abs().max() < tolerance * expected.abs().max()

    agree(product_by(weight)(factor), product)
    agree(product_with(weight.t().contiguous())(factor), product)
    agree(product_by(weight, bias)(factor), product + bias.double())
    agree(product_and_sum_by(weight, bias)(factor, addend), product + addend.double() + bias.double())
    agree(product_and_sum_by(weight, None)(factor, addend), product + addend.double())
