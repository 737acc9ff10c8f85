"""Some of many texts, drawn by chance: a look at how much there is, and a part of it as a file."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from ulmfit.text.formats import BATCH_ROWS
from ulmfit.text.parts import renamed_when_whole
from ulmfit.text.sources import Record, read_records

_SAMPLED, _SAMPLED_CHARACTERS, _LONGEST = 2_000, 1_000_000, 10_000
"""a look keeps no more documents, no more characters, and no more of each document"""


@dataclass(frozen=True, slots=True)
class Look:
    """How much text there is, and some of it."""

    documents: int = 0
    characters: int = 0
    sample: tuple[Record, ...] = ()
    """drawn by chance; long texts are cut"""


def look_at(records: Iterable[Record], *, seed: int) -> Look:
    """Read all, once; memory holds the sample alone."""
    dice = random.Random(seed)
    sample: list[Record] = []
    documents = characters = 0
    for record in records:
        characters += len(record.text)
        place = _seat(documents, seats=_SAMPLED, dice=dice)
        documents += 1
        if place < _SAMPLED:
            kept = replace(record, text=record.text[:_LONGEST])
            sample[place : place + 1] = [kept]
    dice.shuffle(sample)
    few, size = [], 0
    for record in sample:
        few.append(record)
        size += len(record.text)
        if size >= _SAMPLED_CHARACTERS:
            break
    return Look(documents, characters, tuple(few))


def _seat(number: int, *, seats: int, dice: random.Random) -> int:
    """Which place of a sample the document of this number takes, beyond all for none (Vitter 1985, algorithm R)."""
    return number if number < seats else dice.randrange(number + 1)


def draw_texts(paths: Sequence[Path], *, most: int, seed: int, text_column: str) -> list[str]:
    """So many texts of these files at most, drawn by the seed; memory holds no more of them."""
    dice = random.Random(seed)
    texts: list[str] = []
    for number, record in enumerate(read_records(paths, text_column=text_column)):
        place = _seat(number, seats=most, dice=dice)
        if place < most:
            texts[place : place + 1] = [record.text]
    return texts


def drawn(count: int, of: int, *, seed: int) -> NDArray[np.int64]:
    """Which documents are drawn, sorted; of the same many and with the same seed, fewer are among more."""
    return np.sort(np.random.default_rng([seed, 0xD4A3]).permutation(of)[:count])


def write_chosen(
    paths: Sequence[Path],
    out: Path,
    *,
    chosen: NDArray[np.int64],
    text_column: str,
    label_column: str | None = None,
) -> None:
    """The documents of these places, which rise, as a parquet file, in their order; with their labels if asked for."""
    columns = [text_column] if label_column is None else [text_column, label_column]
    schema = pa.schema([(name, pa.string()) for name in columns])
    records = chosen_records(paths, chosen, text_column=text_column, label_column=label_column)
    with renamed_when_whole(out) as file, pa.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while rows := [
            dict(zip(columns, (record.text, record.label), strict=False)) for record in islice(records, BATCH_ROWS)
        ]:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def chosen_records(
    paths: Sequence[Path],
    chosen: NDArray[np.int64],
    *,
    text_column: str,
    label_column: str | None = None,
) -> Iterator[Record]:
    """The documents of these places, which rise, in their order; with their labels if asked for."""
    places = iter(chosen.tolist())
    following = next(places, None)
    for number, record in enumerate(read_records(paths, text_column=text_column, label_column=label_column)):
        if number == following:
            yield record
            following = next(places, None)
        if following is None:
            return
