"""Many documents read at once, each in a lane that the next document takes over: no batch waits for its longest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulmfit.models.classifier import ConcatPool
from ulmfit.models.encoder import Encoder, State, select_rows


@dataclass(slots=True)
class _Reading:
    """A document in its lane."""

    number: int
    ids: NDArray[Any]
    position: int = 0
    """tokens of it that were read"""

    @property
    def left(self) -> int:
        return len(self.ids) - self.position


def read_in_lanes(
    encoder: Encoder,
    weights: Any,
    take: Callable[[], tuple[int, NDArray[Any]] | None],
    *,
    lanes: int,
    shortest: int,
    longest: int,
    window_tokens: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pool the outputs of documents as they end: their numbers (ended,) and (ended, 3 * output_size) in float32.

    `take` gives a number and the ids of the next document, at least one, or None where there are no more. All lanes
    read a window, in which together they have `window_tokens`, but no fewer steps than `shortest` and no more than
    `longest`; then the documents that ended make room. For an encoder whose results do not depend on where windows end
    or on the other rows.
    """
    readings = [reading for _ in range(lanes) if (reading := _next(take)) is not None]
    pool = ConcatPool(_lengths(readings), size=encoder.output_size)
    state: State | None = None
    while readings:
        steps = min(
            max(shortest, min(longest, window_tokens // len(readings))), max(reading.left for reading in readings)
        )
        outputs, state = encoder(_window(readings, steps), state, weights)
        pool.add(outputs, torch.tensor([reading.left for reading in readings]))
        for reading in readings:
            reading.position += steps
        ended = [lane for lane, reading in enumerate(readings) if reading.left <= 0]
        if not ended:
            continue
        yield torch.tensor([readings[lane].number for lane in ended]), pool.result()[ended]
        renewed: list[int] = []
        while len(renewed) < len(ended) and (reading := _next(take)) is not None:
            readings[ended[len(renewed)]] = reading
            renewed.append(ended[len(renewed)])
        if renewed:
            pool.restart(renewed, _lengths([readings[lane] for lane in renewed]))
            for tensor in state:
                tensor[:, renewed] = 0
        if len(renewed) < len(ended):
            stay = [lane for lane, reading in enumerate(readings) if reading.left > 0]
            readings, state = [readings[lane] for lane in stay], select_rows(state, stay)
            pool.select(stay)


def _next(take: Callable[[], tuple[int, NDArray[Any]] | None]) -> _Reading | None:
    found = take()
    return None if found is None else _Reading(*found)


def _lengths(readings: list[_Reading]) -> Tensor:
    return torch.tensor([len(reading.ids) for reading in readings])


def _window(readings: list[_Reading], steps: int) -> Tensor:
    """The next tokens of each lane, (steps, lanes); any token stands past a document's end."""
    rows = np.zeros((len(readings), steps), dtype=np.int64)
    for row, reading in zip(rows, readings, strict=True):
        ids = reading.ids[reading.position : reading.position + steps]
        row[: len(ids)] = ids
    return torch.from_numpy(np.ascontiguousarray(rows.T))
