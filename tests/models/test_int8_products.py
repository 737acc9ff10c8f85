"""Integers of eight bits and their products against the formulas in float64, and against oneDNN's own order."""

import threading

import pytest
import torch

from ulmfit.errors import ConfigError
from ulmfit.models import int8_products, packed_weights
from ulmfit.models.int8_products import (
    by_column,
    by_row,
    choose_learning_dtype,
    codes_of,
    exact_product,
    product_by_integers,
    products_serve,
    transposed_bytes,
    weight_peak,
)

CPU = torch.device("cpu")
NEEDS_INT8 = pytest.mark.skipif(not products_serve(), reason="needs AMX, VNNI or AVX2, and Numba")


def numbers(rows, columns, *, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) * spread).to(torch.bfloat16)


@NEEDS_INT8
def test_codes_are_the_nearest_integers_128_more_and_what_is_beyond_is_at_the_edge():
    matrix = numbers(5, 48)
    matrix[0, 0], matrix[1, 1] = 1e4, -1e4
    wanted = (matrix.double() * 20).round().clamp(-127, 127) + 128
    assert (codes_of(matrix, 20.0).double() - wanted).abs().max() <= 1  # where float32 and float64 round apart
    assert codes_of(matrix, 20.0)[0, 0] == 255
    assert codes_of(matrix, 20.0)[1, 1] == 1


@NEEDS_INT8
def test_integers_by_row_make_each_rows_greatest_the_peak():
    matrix = numbers(7, 64)
    matrix[3] = 0
    integers, scales = by_row(matrix)
    greatest = matrix.double().abs().amax(1)
    torch.testing.assert_close(scales.double(), greatest / weight_peak(), rtol=1e-6, atol=0)
    assert integers.abs().amax(1).tolist() == [0 if row == 3 else weight_peak() for row in range(7)]
    assert ((integers.double() * scales.double().unsqueeze(1) - matrix.double()).abs() <= 0.51 * scales[:, None]).all()


@NEEDS_INT8
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 17, 63])
def test_a_row_with_what_is_no_number_has_a_scale_that_is_none(value, place):
    matrix = numbers(3, 64)
    matrix[1, place] = value
    assert by_row(matrix)[1].isnan().tolist() == [False, True, False]


@NEEDS_INT8
def test_integers_by_column_take_a_factor_for_each_row():
    matrix, factors = numbers(9, 32), torch.rand(9)
    matrix[:, 5] = 0
    integers, scales = by_column(matrix, factors)
    wanted = matrix.double() * factors.double().unsqueeze(1)
    torch.testing.assert_close(scales.double(), wanted.abs().amax(0) / weight_peak(), rtol=1e-6, atol=0)
    assert ((integers.double() * scales.double() - wanted).abs() <= 0.51 * scales.double()).all()
    assert not integers[:, 5].any()


@NEEDS_INT8
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (16, 64), (33, 70), (5, 3), (100, 144), (128, 16)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_bytes_are_transposed(rows, columns, dtype):
    matrix = torch.randint(0, 256, (rows, columns), generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(transposed_bytes(matrix), matrix.t())


@NEEDS_INT8
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 64), (16, 400, 80), (3, 144, 1600), (70, 16, 16)])
def test_products_are_those_of_the_integers(rows, inputs, outputs):
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=generator)
    integers = torch.randint(-weight_peak(), weight_peak() + 1, (outputs, inputs), generator=generator).to(torch.int8)
    scales, bias = torch.rand(outputs, generator=generator), torch.randn(outputs, generator=generator)
    wanted = (codes.double() - 128) @ integers.double().t() * scales.double() * 0.5
    for _ in range(2):  # the second in the memory of the first
        found = product_by_integers(integers, scales, bias)(codes, 0.5)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), wanted + bias.double(), rtol=2**-8, atol=1e-3)
    exact = exact_product(codes, integers.t().contiguous(), scales)
    torch.testing.assert_close(exact.double(), 2 * wanted, rtol=1e-5, atol=1e-3)


@NEEDS_INT8
def test_weights_in_memory_that_is_used_again_lie_as_onednn_puts_them():
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randint(-127, 128, (96, 208), dtype=torch.int8, generator=generator) for _ in range(2))
    weight = packed_weights.PackedWeight(first)
    if not packed_weights._known[96, 208]:
        pytest.skip("this oneDNN has another order, and is asked each time")
    place = torch.ops.mkldnn.data_ptr(weight.tensor)
    del weight
    again = packed_weights.PackedWeight(second)
    assert torch.ops.mkldnn.data_ptr(again.tensor) == place
    wanted = torch.ops.onednn.qlinear_prepack(second, None)
    assert packed_weights._memory(again.tensor).tobytes() == packed_weights._memory(wanted).tobytes()


@NEEDS_INT8
def test_memory_in_use_is_no_others():
    integers = torch.ones(64, 64, dtype=torch.int8)
    weights = [packed_weights.PackedWeight(integers) for _ in range(4)]
    assert len({torch.ops.mkldnn.data_ptr(weight.tensor) for weight in weights}) == 4


@NEEDS_INT8
def test_another_order_is_seen():
    integers = torch.randint(-127, 128, (128, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(4))
    packed = torch.ops.onednn.qlinear_prepack(integers, None)
    known = packed_weights._order_is_known(integers, packed)
    assert not packed_weights._order_is_known(integers.flip(0), packed)
    assert not packed_weights._order_is_known(integers[:64], packed)
    assert known or not packed_weights._known.get((128, 64), False)


@NEEDS_INT8
def test_where_the_order_is_not_known_onednn_is_asked_each_time(monkeypatch):
    monkeypatch.setattr(packed_weights, "_known", {})
    monkeypatch.setattr(packed_weights, "_free", {})
    monkeypatch.setattr(packed_weights, "_order_is_known", lambda integers, packed: False)
    monkeypatch.setattr(int8_products, "cpu_products", lambda: "avx512_vnni")
    integers = torch.full((64, 128), 3, dtype=torch.int8)
    for _ in range(2):
        found = product_by_integers(integers, torch.ones(64))(torch.full((2, 128), 129, dtype=torch.uint8), 1.0)
        assert (found == 384).all()
    assert not packed_weights._free[64, 128]


@NEEDS_INT8
def test_threads_make_products_beside_each_other():
    codes = torch.full((4, 64), 130, dtype=torch.uint8)
    wrong = []

    def work(number):
        integers = torch.full((64, 64), number, dtype=torch.int8)
        for _ in range(20):
            if not (product_by_integers(integers, torch.ones(64))(codes, 1.0) == 128 * number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(("serve", "wanted"), [(True, torch.int8), (False, torch.bfloat16)])
def test_auto_learns_in_int8_where_its_products_serve(monkeypatch, serve, wanted):
    monkeypatch.setattr(int8_products, "choose_dtype", lambda precision, device: torch.bfloat16)
    monkeypatch.setattr(int8_products, "products_serve", lambda: serve)
    assert choose_learning_dtype("auto", CPU) == wanted


def test_a_forced_precision_is_learned_in():
    assert choose_learning_dtype("float32", CPU) == torch.float32
    assert choose_learning_dtype("bfloat16", CPU) == torch.bfloat16


def test_int8_that_cannot_be_learned_in_is_an_error(monkeypatch):
    monkeypatch.setattr(int8_products, "products_serve", lambda: False)
    with pytest.raises(ConfigError, match=r"precision 'int8' on 'cpu'.* Leave the precision to auto"):
        choose_learning_dtype("int8", CPU)


def test_a_gpu_does_not_learn_in_int8():
    with pytest.raises(ConfigError, match="precision 'int8' on 'cuda'"):
        choose_learning_dtype("int8", torch.device("cuda"))


@pytest.mark.parametrize("broken", ["qlinear_prepack", "qlinear_pointwise"])
def test_a_torch_that_lacks_an_operator_is_one_where_products_do_not_serve(monkeypatch, broken):
    class Operators:
        def __getattr__(self, name):
            if name == broken:
                raise AttributeError(name)
            return getattr(torch.ops.onednn, name)

    monkeypatch.setattr(int8_products.torch.ops, "onednn", Operators())
    assert not int8_products._come_out_right(64)
