"""Products of few rows of codes by the kernel against their arithmetic in float64."""

import pytest
import torch

from ulmfit.compute import cpu_products
from ulmfit.models import int8_products

pytestmark = pytest.mark.skipif(
    cpu_products() in {None, "amx"}, reason="needs a CPU with VNNI or AVX2, and Numba; AMX has products of its own"
)


def problem(rows, inputs, outputs):
    generator = torch.Generator().manual_seed(0)
    peak = int8_products.weight_peak()
    codes = torch.randint(1, 256, (rows, inputs), generator=generator).to(torch.uint8)
    integers = torch.randint(-peak, peak + 1, (outputs, inputs), generator=generator).to(torch.int8)
    return codes, integers, torch.rand(outputs, generator=generator), torch.randn(outputs, generator=generator)


@pytest.mark.parametrize("rows", [1, 3, 8, 16, 17, 40])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(64, 64), (16, 16), (400, 80), (144, 208), (1152, 448), (48, 100), (48, 67)]
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_are_those_of_the_integers(rows, inputs, outputs, with_bias):
    from ulmfit.models.code_products import product_of_few_rows

    codes, integers, scales, bias = problem(rows, inputs, outputs)
    found = product_of_few_rows(integers, scales, bias if with_bias else None)(codes, 0.5)
    wanted = (codes.double() - 128) @ integers.double().t() * scales.double() * 0.5 + bias.double() * with_bias
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-3)


def test_codes_and_weights_at_the_edge_are_summed_exactly():
    from ulmfit.models.code_products import product_of_few_rows

    peak = int8_products.weight_peak()
    for code, sign in ((255, 1), (255, -1), (1, 1), (1, -1)):
        codes, integers = torch.full((5, 256), code, dtype=torch.uint8), torch.full((64, 256), sign * peak)
        found = product_of_few_rows(integers.to(torch.int8), torch.ones(64), None)(codes, 1 / 256)
        assert (found == (code - 128) * sign * peak).all()  # a whole number that bfloat16 has


@pytest.mark.parametrize("threads_", [1, 2])
def test_few_rows_and_many_are_multiplied_alike(monkeypatch, threads, threads_):
    monkeypatch.setattr(int8_products, "cpu_products", lambda: "avx2")
    codes, integers, scales, bias = problem(300, 144, 80)
    product = int8_products.product_by_integers(integers, scales, bias)
    with threads(threads_):
        few = torch.cat([product(codes[start : start + 10], 0.1) for start in range(0, 300, 10)])
        many = product(codes, 0.1)
    torch.testing.assert_close(few, many, rtol=2**-7, atol=1e-3)
