"""Weights of int8 in the order in which oneDNN multiplies by them, made fast.

PyTorch has them ordered by oneDNN, at 4 to 7 ns a number: a tenth of a language model's step. Here the numbers are
written to where it would have put them, at a twentieth of that. What is known of its order is looked at with the first
weight of each shape, which it orders itself; where it does otherwise it is asked each time. Memory of weights that are
gone serves those of the next step.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulmfit.models.code_kernel import PACKED, pack
from ulmfit.models.vectors import LANES

Shape = tuple[int, int]
"""outputs and inputs"""
_known: dict[Shape, bool] = {}
"""whether oneDNN orders weights of a shape as `_write` does"""
_free: dict[Shape, list[Tensor]] = {}
"""memory of weights that are gone"""


class PackedWeight:
    """Int8 (outputs, inputs) in oneDNN's order."""

    def __init__(self, integers: Tensor) -> None:
        self._shape = (integers.shape[0], integers.shape[1])
        try:
            tensor = _free.setdefault(self._shape, []).pop()  # other threads may want one as well
        except IndexError:
            self.tensor: Tensor = torch.ops.onednn.qlinear_prepack(integers, None)
            if self._shape not in _known:
                _known[self._shape] = _order_is_known(integers, self.tensor)
        else:
            self.tensor = tensor
            _write(integers, _memory(tensor))

    def __del__(self) -> None:
        if hasattr(self, "tensor") and _known.get(self._shape, False):
            _free[self._shape].append(self.tensor)


def _order_is_known(integers: Tensor, packed: Tensor) -> bool:
    """Whether oneDNN put these numbers, and the sums that it takes codes' zero off by, where `_write` does."""
    try:
        memory = _memory(packed)
    except (AttributeError, RuntimeError):  # this PyTorch does not say where the numbers are
        return False
    outputs, inputs = _filled(integers)
    if memory.size != outputs * inputs + 4 * outputs:
        return False
    written = np.empty_like(memory)
    _write(integers, written)
    return np.array_equal(memory, written)


def _filled(integers: Tensor) -> Shape:
    """With what fills up blocks."""
    outputs, inputs = (-(-size // PACKED) * PACKED for size in integers.shape)
    return outputs, inputs


def _memory(packed: Tensor) -> NDArray[np.uint8]:
    """Of a weight in oneDNN's order, which has to stay while this is used."""
    size, address = torch.ops.mkldnn._nbytes(packed), torch.ops.mkldnn.data_ptr(packed)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _write(integers: Tensor, memory: NDArray[np.uint8]) -> None:
    outputs, inputs = _filled(integers)
    numbers = integers.contiguous().numpy()
    if numbers.shape != (outputs, inputs):
        filled = np.zeros((outputs, inputs), np.int8)
        filled[: numbers.shape[0], : numbers.shape[1]] = numbers
        numbers = filled
    pack(numbers, memory, memory[outputs * inputs :].view(np.int32), LANES * 4, PACKED * 4)
