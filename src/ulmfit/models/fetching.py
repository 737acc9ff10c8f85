"""Weights fetched into the cache beside the products of those before them, for kernels that Numba compiles."""

from __future__ import annotations

from ulmfit.models.compiled import part
from ulmfit.models.tile_weights import BLOCK, FETCH_ROWS, ROWS


@part
def ahead_of(far, row, rows):  # type: ignore[no-untyped-def]
    """What of the weights so far on is fetched beside `FETCH_ROWS` of a step's: from where, and lines of each tile.

    All sixteen lines are fetched beside 128 rows, or beside all where there are fewer.
    """
    lines = min(ROWS, -(-FETCH_ROWS * ROWS // rows))
    begin = row // FETCH_ROWS * lines
    return far + begin * BLOCK, lines if far != 0 and begin < ROWS else 0
