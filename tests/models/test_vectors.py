"""Kernels' vectors against NumPy and PyTorch, number by number."""

import numpy as np
import pytest
import torch

from ulmfit.compute import cpu_kernels_can_be_made

pytestmark = pytest.mark.skipif(not cpu_kernels_can_be_made(), reason="needs Numba")


@pytest.fixture(scope="module")
def applied():
    """(function of a Vector, array of float32) -> what it makes of it, by a kernel made for it."""
    import numba
    from numba import types
    from numba.extending import intrinsic

    from ulmfit.models.vectors import LANES, load_bfloat16, load_floats, store, store_bfloat16

    def apply(function, values, *, halves=False):
        @intrinsic
        def some(typing, source, target):
            def make(context, builder, signature, operands):
                load, write = (load_bfloat16, store_bfloat16) if halves else (load_floats, None)
                found = function(load(builder, operands[0], LANES))
                if write is None:
                    store(builder, getattr(found, "value", found), operands[1])
                else:
                    write(found, operands[1])
                return context.get_dummy_value()

            return types.void(types.int64, types.int64), make

        @numba.njit
        def run(source, target):
            size = source.itemsize * LANES
            for place in range(0, len(source), LANES):
                at = place // LANES
                some(
                    np.int64(source.ctypes.data) + at * size,
                    np.int64(target.ctypes.data) + at * target.itemsize * LANES,
                )

        def result(kind):
            target = np.zeros(len(values), dtype=kind)
            run(values, target)
            return target

        return result

    return apply


def test_powers_of_two_are_right_to_six_digits_and_stop_at_the_limits(applied):
    values = np.linspace(-45, 45, 16 * 5001, dtype=np.float32)
    found = applied(lambda vector: vector.power_of_two(), values)(np.float32)
    np.testing.assert_allclose(found, 2.0 ** np.clip(values.astype(np.float64), -39, 39), rtol=4e-7)
    deep = applied(lambda vector: vector.power_of_two(least=-126.0, most=0.0), np.repeat(np.float32([-200, 1]), 16))
    np.testing.assert_allclose(deep(np.float32), np.repeat(np.float32([2.0**-126, 1]), 16), rtol=4e-7)


def test_powers_of_two_up_to_a_limit_are_as_right_and_are_next_to_nothing_or_vast_far_off(applied):
    values = np.linspace(-45, 45, 16 * 5001, dtype=np.float32)
    found = applied(lambda vector: vector.power_of_two_up_to(39.0), values)(np.float32)
    np.testing.assert_allclose(found, 2.0 ** np.minimum(values.astype(np.float64), 39), rtol=4e-7)
    edges = np.repeat(np.float32([-np.inf, -1e9, -1, -1e-9, 0, 1, 1e9, np.nan]), 16)
    found = applied(lambda vector: vector.power_of_two_up_to(), edges)(np.float32)[::16]
    assert (found[:2] <= 2.0**-126).all() and found[6] >= 2.0**127 and np.isnan(found[7])
    np.testing.assert_allclose(found[2:6], [0.5, 1, 1, 2], rtol=4e-7)


def test_what_is_no_number_stays_none(applied):
    values = np.full(16, np.nan, dtype=np.float32)
    assert np.isnan(applied(lambda vector: vector.power_of_two(), values)(np.float32)).all()
    assert np.isnan(applied(lambda vector: vector.greater(vector.like(1.0)), values)(np.float32)).all()


def test_bytes_are_the_nearest_integers(applied):
    values = np.linspace(-127, 127, 16 * 300, dtype=np.float32)
    np.testing.assert_array_equal(applied(lambda vector: vector.nearest_byte(), values)(np.int8), np.rint(values))
    more = applied(lambda vector: vector.nearest_byte(128), values)(np.uint8)
    np.testing.assert_array_equal(more, np.rint(values) + 128)


def test_bfloat16_is_read_and_rounded_as_by_pytorch(applied):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    kept = every[every.isfinite() & (every.abs() < 1e37)]
    kept = kept[: len(kept) // 16 * 16]
    expected = (kept.float() * 1.2345).to(torch.bfloat16)
    values = kept.view(torch.int16).numpy()
    found = applied(lambda vector: vector * 1.2345, values, halves=True)(np.int16)
    assert torch.equal(torch.from_numpy(found).view(torch.bfloat16), expected)
