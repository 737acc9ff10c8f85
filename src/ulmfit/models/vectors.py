"""Vectors of float32 numbers in registers, for kernels that Numba compiles: arithmetic written as such makes the code.

Left to find vectors in a loop, the compiler doubts whether the arrays overlap, and of rows as short as these it makes
code that is several times slower. An intrinsic instead says what it does to so many numbers at once. More than a
register holds are worked on side by side, so that one's arithmetic goes on while another's waits for what it needs.
"""

from __future__ import annotations

import functools
import math
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir

from ulmfit.compute import cpu_has

LANES = 16

_ALLOWED = ("contract",)
"""a product and a sum may be rounded once; what is no number stays none, so that a loss shows it"""
_ROUNDER = 1.5 * 2**23
"""added to a float32 below 2**22 it leaves the nearest integer in the last bits of the sum"""
MOST_POWER = 39.0
"""a power of two whose cube is still a float32, and whose reciprocal is nothing beside 1"""
LEAST_POWER = -126.0
"""of two, that a float32 has with all its digits"""
VAST_POWER = 127.0
"""of two, which a product with anything that is greater takes beyond all float32"""
_POWER = (0.0013274633, 0.0096719619, 0.055506784, 0.24022235, 0.69314706, 1.0)
"""2**x from -.5 to .5, from the highest power of x down: the polynomial that is 1 at 0 and whose greatest relative
error, 1.1e-7 with coefficients in float32, is the least (by a linear program over 4,001 points)"""
_POWER_FROM_0 = (0.0018790882, 0.008991599, 0.05581812, 0.24015948, 0.6931517, 1.0)
"""the same from 0 to 1, 1 at 0 and 2 at 1: 9.2e-8, found in the same way"""

Number: TypeAlias = "Vector | float"


class Vector:
    """A value of the code being made: so many float32."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    @property
    def count(self) -> int:
        """Of numbers."""
        return int(self.value.type.count)

    def like(self, number: Number) -> Vector:
        """A number as a vector beside this one."""
        if isinstance(number, Vector):
            return number
        return Vector(self.builder, ir.Constant(_floats(self.count), [float(np.float32(number))] * self.count))

    def _combined(self, operation: str, left: Number, right: Number) -> Vector:
        make = getattr(self.builder, operation)
        return Vector(self.builder, make(self.like(left).value, self.like(right).value, flags=_ALLOWED))

    def __add__(self, other: Number) -> Vector:
        return self._combined("fadd", self, other)

    def __radd__(self, other: Number) -> Vector:
        return self._combined("fadd", other, self)

    def __sub__(self, other: Number) -> Vector:
        return self._combined("fsub", self, other)

    def __rsub__(self, other: Number) -> Vector:
        return self._combined("fsub", other, self)

    def __mul__(self, other: Number) -> Vector:
        return self._combined("fmul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Number) -> Vector:
        return self._combined("fdiv", self, other)

    def __rtruediv__(self, other: Number) -> Vector:
        return self._combined("fdiv", other, self)

    def _limited(self, sign: str, bound: float) -> Vector:
        limit = self.like(bound).value
        beyond = self.builder.fcmp_ordered(sign, self.value, limit)
        return Vector(self.builder, self.builder.select(beyond, limit, self.value))

    def power_of_two(self, least: float = -MOST_POWER, most: float = MOST_POWER) -> Vector:
        """2**x; of an x beyond the limits it is that of the limit."""
        build, kind = self.builder, _ints(self.count)
        exponent = self._limited("<", least)._limited(">", most)
        whole = exponent + _ROUNDER
        rest = exponent - (whole - _ROUNDER)
        value = rest.like(_POWER[0])
        for coefficient in _POWER[1:]:
            value = value * rest + coefficient
        shifted = build.shl(build.bitcast(whole.value, kind), ir.Constant(kind, [23] * self.count))
        return Vector(build, build.bitcast(build.add(build.bitcast(value.value, kind), shifted), _floats(self.count)))

    def power_of_two_up_to(self, most: float = math.inf) -> Vector:
        """2**x; of an x beyond the limit it is that of the limit, or where there is none vast; far below 0 next to 0.

        By AVX-512 it takes fewer steps than `power_of_two`.
        """
        if not cpu_has("avx512dq"):
            return self.power_of_two(LEAST_POWER, min(most, VAST_POWER))
        exponent = self if most == math.inf else self._limited(">", most)
        rest = exponent.written("vreduceps $$9, $1, $0")  # from the greatest integer that is no greater
        value = rest.like(_POWER_FROM_0[0])
        for coefficient in _POWER_FROM_0[1:]:
            value = value * rest + coefficient
        return value.written("vscalefps $2, $1, $0", exponent)  # times two to that integer

    def written(self, instruction: str, *others: Vector) -> Vector:
        """An instruction with registers of `LANES` numbers, on all of them and as many of each other vector."""
        vectors, kind = (self, *others), _floats(LANES)
        takes = ir.FunctionType(kind, [kind] * len(vectors))
        constraints = ",".join(["=v"] + ["v"] * len(vectors))
        made: list[Any] = []
        for number in range(self.count // LANES):
            rows = [nth_row(self.builder, vector.value, number) for vector in vectors]
            made.append(self.builder.asm(takes, instruction, constraints, rows, side_effect=False))
        while len(made) > 1:
            made = [_one_after_other(self.builder, *made[place : place + 2]) for place in range(0, len(made), 2)]
        return Vector(self.builder, made[0])

    def greater(self, other: Vector) -> Vector:
        """Of each two the greater; what is no number stays."""
        beyond = self.builder.fcmp_ordered(">", other.value, self.value)
        return Vector(self.builder, self.builder.select(beyond, other.value, self.value))

    def size(self) -> Vector:
        """Each without its sign."""
        return self.greater(0 - self)

    def within(self, bound: float) -> Vector:
        """What is beyond the bound, or below its negative, as that."""
        return self._limited("<", -bound)._limited(">", bound)

    def numbers(self) -> list[Any]:
        """Each by itself."""
        return [
            self.builder.extract_element(self.value, ir.Constant(ir.IntType(32), place)) for place in range(self.count)
        ]

    def greatest_number(self) -> Any:
        """Of its numbers; what is none counts only where it comes first."""

        def greater(left: Any, right: Any) -> Any:
            return self.builder.select(self.builder.fcmp_ordered(">", right, left), right, left)

        return functools.reduce(greater, self.numbers())

    def sum_of_numbers(self) -> Any:
        """One after another."""
        return functools.reduce(self.builder.fadd, self.numbers())

    def nearest_byte(self, more: int = 0) -> Any:
        """The nearest integers and so many more, as int8; what is carried is lost."""
        whole = self.builder.bitcast((self + (_ROUNDER + more)).value, _ints(self.count))
        return self.builder.trunc(whole, ir.VectorType(ir.IntType(8), self.count))

    def repeated(self, times: int) -> Vector:
        """All numbers once more after the last, as often as that."""
        return Vector(self.builder, _picked(self.builder, self.value, [*range(self.count)] * times))


def _floats(count: int) -> Any:
    return ir.VectorType(ir.FloatType(), count)


def _ints(count: int) -> Any:
    return ir.VectorType(ir.IntType(32), count)


def _picked(builder: Any, vector: Any, places: list[int]) -> Any:
    """The entries at these places."""
    return builder.shuffle_vector(
        vector, ir.Constant(vector.type, ir.Undefined), ir.Constant(_ints(len(places)), places)
    )


def _one_after_other(builder: Any, first: Any, second: Any) -> Any:
    """All entries of two vectors as long as each other."""
    places = [*range(2 * first.type.count)]
    return builder.shuffle_vector(first, second, ir.Constant(_ints(len(places)), places))


def nth_row(builder: Any, rows: Any, number: int) -> Any:
    """Of a vector that holds rows of `LANES` one after the other, one row."""
    return _picked(builder, rows, [number * LANES + lane for lane in range(LANES)])


def spread(builder: Any, numbers: Any) -> Vector:
    """Each of a vector of float32 in every lane of a row of its own."""
    return Vector(
        builder, _picked(builder, numbers, [place for place in range(numbers.type.count) for _ in range(LANES)])
    )


def load(builder: Any, address: Any, kind: Any) -> Any:
    """A vector of that kind from an address, an int64."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=4)


def load_floats(builder: Any, address: Any, count: int = LANES) -> Vector:
    """So many float32."""
    return Vector(builder, load(builder, address, _floats(count)))


def load_everywhere(builder: Any, address: Any, count: int = LANES) -> Vector:
    """One float32 in every lane."""
    return spread(builder, load_floats(builder, address, 1).value).repeated(count // LANES)


def load_ints(builder: Any, address: Any, count: int = LANES) -> Vector:
    """So many int32, as float32."""
    return Vector(builder, builder.sitofp(load(builder, address, _ints(count)), _floats(count)))


def load_bfloat16(builder: Any, address: Any, count: int = LANES) -> Vector:
    """So many bfloat16, as float32."""
    return from_bfloat16(builder, load(builder, address, ir.VectorType(ir.IntType(16), count)))


def store_bfloat16(vector: Vector, address: Any) -> None:
    """Round to bfloat16 and write."""
    store(vector.builder, to_bfloat16(vector), address)


def from_bfloat16(builder: Any, halves: Any) -> Vector:
    """A vector of int16 that are bfloat16's bits, the first half of float32's."""
    count = halves.type.count
    bits = builder.zext(halves, _ints(count))
    return Vector(builder, builder.bitcast(builder.shl(bits, ir.Constant(_ints(count), [16] * count)), _floats(count)))


def to_bfloat16(vector: Vector) -> Any:
    """The bits of the nearest bfloat16, of two of the even one."""
    build, count = vector.builder, vector.count
    kind = _ints(count)
    bits = build.bitcast(vector.value, kind)
    odd = build.and_(build.lshr(bits, ir.Constant(kind, [16] * count)), ir.Constant(kind, [1] * count))
    rounded = build.add(bits, build.add(odd, ir.Constant(kind, [0x7FFF] * count)))
    return build.trunc(build.lshr(rounded, ir.Constant(kind, [16] * count)), ir.VectorType(ir.IntType(16), count))


def store(builder: Any, value: Any, address: Any) -> None:
    """Write a vector to an address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def moved(builder: Any, address: Any, offset: int, stride: Any = 1) -> Any:
    """An address so many strides on, a number of bytes each."""
    word = ir.IntType(64)
    far = ir.Constant(word, offset)
    return builder.add(address, far if stride == 1 else builder.mul(stride, far))
