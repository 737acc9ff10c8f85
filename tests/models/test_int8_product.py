"""Products with a packed weight and plain ones against exact sums of integers, and the doubt that chooses between."""

from types import SimpleNamespace

import pytest
import torch

from ulmfit.models import int8_product as module
from ulmfit.models.int8_product import Int8Product, packs


@pytest.fixture(params=["packed", "plain"])
def packed(request, monkeypatch):
    if request.param == "packed" and not packs():
        pytest.skip("this PyTorch does not multiply by packed int8 weights on this processor")
    monkeypatch.setattr(module, "PACKED_SIZE", 0)
    monkeypatch.setattr(module, "packs", lambda: request.param == "packed")


def case(count, inputs=96, outputs=64):
    generator = torch.Generator().manual_seed(0)
    weight, rows = (
        torch.randint(-127, 128, (size, inputs), generator=generator).to(torch.int8) for size in (outputs, count)
    )
    scale, bias = torch.rand(outputs, generator=generator) / 1000, torch.randn(outputs, generator=generator)
    return rows, weight, scale, bias, (rows.long() @ weight.long().T).double() * scale


@pytest.mark.parametrize("count", [1, 7, 64])
def test_the_exact_sum_scaled_is_added_in_place(packed, count):
    rows, weight, scale, bias, expected = case(count)
    total = bias.repeat(2 * count, 1)
    Int8Product(weight, scale).add_to(total[:count], rows)
    torch.testing.assert_close(total[:count].double(), expected + bias, rtol=1e-6, atol=1e-6)
    assert torch.equal(total[count:], bias.repeat(count, 1))


def test_a_row_is_the_same_to_the_bit_beside_any_others(packed):
    rows, weight, scale, bias, _ = case(130, inputs=160, outputs=256)
    product = Int8Product(weight, scale)
    whole = bias.repeat(len(rows), 1)
    product.add_to(whole, rows)
    for count in (1, 2, 17, 64, 129):
        fewer = bias.repeat(count, 1)
        product.add_to(fewer, rows[:count])
        assert torch.equal(fewer, whole[:count])


def test_without_amx_the_plain_product_is_taken(monkeypatch):
    """OneDNN's packed product of signed rows is its reference kernel there, a thousand times as slow."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert not packs.__wrapped__()


def refuse(*_):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize("broken", [refuse, lambda *_: torch.zeros(1)], ids=["refused", "wrong"])
def test_weights_are_packed_only_where_their_product_is_right(monkeypatch, broken):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", SimpleNamespace(binary=broken), raising=False)
    assert not packs.__wrapped__()
