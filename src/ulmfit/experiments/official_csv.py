"""The csv files of Zhang, Zhao & LeCun (2015): no header; the class's index from 1, then the fields of the text."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ulmfit.errors import DataError


def read_official_csv(path: Path, *, classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(text, label) of every row; `classes` names the indices 1, 2, ...

    Yelp's rows are class, text; DBpedia's and AG News's are class, title, text, and their text is title, space, text.
    In these files a quote is doubled and the two characters backslash and n stand for a new line. Raises DataError for
    a file that is missing, not UTF-8 or empty, and for a row that is not of this form.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    rows = 0
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for rows, row in enumerate(csv.reader(file), 1):
                if len(row) < 2:
                    raise DataError(f"{path}: row {rows} has {len(row)} fields; expected the class and a text")
                yield " ".join(row[1:]).replace("\\n", "\n"), _class_name(row[0], classes, path, rows)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; put the official csv files there, or name their folder") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read near row {rows + 1} ({error}); get the official file again") from None
    if rows == 0:
        raise DataError(f"{path}: no rows; get the official file again")


def _class_name(index: str, classes: Sequence[str], path: Path, row: int) -> str:
    if not index.strip().isdecimal() or not 1 <= int(index) <= len(classes):
        raise DataError(f"{path}: row {row} has the class {index[:40]!r}; expected a number from 1 to {len(classes)}")
    return classes[int(index) - 1]
