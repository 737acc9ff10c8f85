"""Files and folders of text become records or tables, streamed, their columns checked before the first row is read."""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from ulmfit.errors import DataError
from ulmfit.text.formats import (
    BATCH_ROWS,
    BOM,
    SourceFile,
    explained,
    json_batches,
    json_rows,
    json_text,
    known_suffixes,
    read_batches,
    read_columns,
    read_document,
    shorten,
    split_format,
)

_BATCH_CHARACTERS = 8 << 20  # .txt documents can be long: a batch of them closes early


@dataclass(frozen=True, slots=True)
class Record:
    """One document: its text, its label if labels were asked for, its file and its row there, counted from 0."""

    text: str
    label: str | None
    source: str
    row: int


def read_records(
    paths: Sequence[Path], *, text_column: str = "text", label_column: str | None = None
) -> Iterator[Record]:
    """Every document of the files and folders, in the order given; inside a folder, sorted by name.

    All files are found and their columns checked before this returns; the rows stream. A null text is empty text.
    With `label_column`, a table has that column and a .txt file takes its label from its folder: the first below the
    given one (text files directly in the given folder are left out). Labels are strings, whatever the file holds.
    Raises DataError for anything missing, damaged, empty, not UTF-8 or without a label.
    """
    if text_column == label_column:
        raise DataError(f"text and label are both column {text_column!r}; expected two. Pass another --label-column.")
    groups = [
        (path, [_with_columns(file, text_column, label_column) for file in _find(path, label_column is not None)])
        for path in _given(paths)
    ]
    return _records(groups, text_column, label_column)


def read_tables(path: Path | str, *, text_column: str = "text", stdin: BinaryIO | None = None) -> Iterator[Any]:
    """Record batches of a file or folder with all columns as read, and `text_column` as strings without nulls.

    csv and tsv columns are strings; a jsonl column has the type that all its values share, and is JSON text (marked by
    `JSON_TEXT`) where they share none or are nested; .txt files are one row each, columns `file` and `text_column`. "-"
    reads standard input (or `stdin`), one text per line. Raises DataError as `read_records` does.
    """
    if str(path) == "-":
        return _lines(stdin or sys.stdin.buffer, text_column)
    path = Path(path)
    files = [_with_columns(file, text_column, None, unique=True) for file in _find(path, labelled=False)]
    if text_column == "file" and any(file.format == "txt" for file in files):
        raise DataError(f"{path}: the texts of .txt files cannot be column 'file'; pass another --text-column.")
    return _tables(path, files, text_column)


def source_files(paths: Sequence[Path], *, labelled: bool = False) -> list[Path]:
    """The concrete files that `read_records` reads, in its order; `labelled` as if it were given a label column."""
    return [file.path for path in _given(paths) for file in _find(path, labelled)]


# --- finding files --------------------------------------------------------------------------------------------------


def _given(paths: Sequence[Path]) -> list[Path]:
    if not paths:
        raise DataError("no files or folders given; expected at least one.")
    return [Path(path) for path in paths]


def _find(path: Path, labelled: bool) -> list[SourceFile]:
    """The files that a path stands for; in a folder, hidden files and unknown suffixes are left out."""
    if not os.path.exists(path):  # noqa: PTH110 -- Path.exists raises in a folder that cannot be entered
        raise DataError(f"{path}: no such file or folder. {_near(path)}")
    if path.is_dir():
        return _find_in_folder(path, labelled)
    known = split_format(path)
    if known is None:
        raise DataError(f"{path}: unknown suffix {path.suffix!r}; expected {known_suffixes()}. Rename or convert it.")
    if labelled and known[0] == "txt":
        raise DataError(f"{path}: a .txt file has no label; give a folder with one folder of .txt files per label.")
    return [SourceFile(path, *known)]


def _near(path: Path) -> str:
    with suppress(OSError):
        if near := difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1):
            return f"Did you mean {path.parent / near[0]}?"
    return "Check the path."


def _find_in_folder(folder: Path, labelled: bool) -> list[SourceFile]:
    found = []
    for parts in sorted(_walk(folder)):
        known = split_format(Path(parts[-1]))
        if known and not (labelled and known[0] == "txt" and len(parts) == 1):
            label = parts[0] if labelled and known[0] == "txt" else None
            found.append(SourceFile(folder.joinpath(*parts), *known, label=label))
    if not found and labelled:
        raise DataError(
            f"{folder}: no labelled files; expected a folder of .txt files per label, or {known_suffixes('txt')}."
        )
    if not found:
        raise DataError(f"{folder}: no readable files in this folder; expected {known_suffixes()}.")
    return found


def _walk(folder: Path) -> Iterator[tuple[str, ...]]:
    """Path parts below `folder` of all files that are not hidden; linked folders are followed, but not in circles."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be opened ({error.strerror}). Check its permissions.")

    seen = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = [name for name in folders if name[0] != "." and os.path.realpath(Path(place, name)) not in seen]
        parents = Path(place).relative_to(folder).parts
        yield from ((*parents, name) for name in files if name[0] != ".")


# --- columns --------------------------------------------------------------------------------------------------------


def _with_columns(file: SourceFile, text_column: str, label_column: str | None, *, unique: bool = False) -> SourceFile:
    """The file with its columns read and checked; `unique` refuses two columns of one name even if not asked for."""
    if file.format == "txt":
        return file
    with explained(file):
        if file.path.stat().st_size == 0:
            raise DataError(f"{file.path}: the file is empty; expected rows of text. Remove or replace it.")
        columns = read_columns(file)
    wanted = {text_column: "--text-column", label_column: "--label-column"}
    for name, flag in wanted.items():
        if name is not None and columns and name not in columns:
            shown = ", ".join(shorten(repr(column), 60) for column in columns[:30])
            raise DataError(
                f"{file.path}: no column {name!r}; it has {shown}. Pass {flag}.{_delimiter_hint(file, columns)}"
            )
    for name in columns:
        if (unique or name in wanted) and columns.count(name) > 1:
            raise DataError(f"{file.path}: two columns are named {name!r}; expected each name once. Rename one.")
    return replace(file, columns=tuple(columns))


def _delimiter_hint(file: SourceFile, columns: Sequence[str]) -> str:
    if file.format not in ("csv", "tsv") or len(columns) != 1:
        return ""
    wrong = next((repr(mark) for mark in (";", "\t", "|", ",") if mark in columns[0]), None)
    return f" Its values seem to be separated by {wrong}: a .csv needs ',', a .tsv a tab." if wrong else ""


# --- records --------------------------------------------------------------------------------------------------------


def _records(
    groups: list[tuple[Path, list[SourceFile]]], text_column: str, label_column: str | None
) -> Iterator[Record]:
    for path, files in groups:
        empty = True
        for file in files:
            source = str(file.path)
            with explained(file):
                for row, (text, label) in enumerate(_texts_and_labels(file, text_column, label_column)):
                    empty = False
                    yield Record(text, label, source, row)
        if empty:
            raise _no_rows(path)


def _texts_and_labels(file: SourceFile, text_column: str, label_column: str | None) -> Iterator[tuple[str, str | None]]:
    if file.format == "txt":
        yield read_document(file), file.label
    elif file.format == "jsonl":
        for line, values in json_rows(file):
            text = json_text(file, line, values, text_column)
            yield text, None if label_column is None else _label(file, f"line {line}", values.get(label_column))
    elif file.columns:
        columns = [text_column] if label_column is None else [text_column, label_column]
        first_row = 1
        for batch in read_batches(file, columns, text_column=text_column):
            texts = batch.column(text_column).to_pylist()
            if label_column is None:
                yield from ((text, None) for text in texts)
            else:
                labels = batch.column(label_column).to_pylist()
                for row, (text, label) in enumerate(zip(texts, labels, strict=True), first_row):
                    yield text, _label(file, f"row {row}", label)
            first_row += len(texts)


def _label(file: SourceFile, place: str, value: object) -> str:
    """A label as text: 7, 7.0 and "7" are one class, True is "true"; null, NaN and blank are none."""
    match value:
        case str():
            label = value
        case bool():
            label = str(value).lower()
        case int():
            label = str(value)
        case float():
            label = "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
        case None:
            label = ""
        case _:
            found = type(value).__name__
            raise DataError(f"{file.path}: {place}: the label is a {found}; expected a name or a number.")
    if not label.strip():
        raise DataError(f"{file.path}: {place} has no label; expected one in every row. Fill it in or remove the row.")
    return label


def _no_rows(path: Path | str) -> DataError:
    return DataError(f"{path}: no rows; expected at least one text.")


# --- tables ---------------------------------------------------------------------------------------------------------


def _tables(path: Path, files: list[SourceFile], text_column: str) -> Iterator[Any]:
    empty = True
    for is_txt, group in groupby(files, key=lambda file: file.format == "txt"):
        for batch in _txt_batches(group, text_column) if is_txt else _table_batches(group, text_column):
            empty = False
            yield batch
    if empty:
        raise _no_rows(path)


def _table_batches(files: Iterable[SourceFile], text_column: str) -> Iterator[Any]:
    for file in files:
        with explained(file):
            if file.format == "jsonl":
                yield from json_batches(file, text_column)
            elif file.columns:
                yield from read_batches(file, list(file.columns), text_column=text_column)


def _txt_batches(files: Iterable[SourceFile], text_column: str) -> Iterator[Any]:
    names: list[str] = []
    texts: list[str] = []
    size = 0
    for file in files:
        with explained(file):
            texts.append(read_document(file))
        names.append(str(file.path))
        size += len(texts[-1])
        if len(texts) == BATCH_ROWS or size >= _BATCH_CHARACTERS:
            yield pa.record_batch({"file": names, text_column: texts})
            names, texts, size = [], [], 0
    if texts:
        yield pa.record_batch({"file": names, text_column: texts})


def _lines(stream: BinaryIO, text_column: str) -> Iterator[Any]:
    """Lines of standard input; a blank one is an empty text, so that results stand line by line beside the input."""
    count = 0
    while lines := list(islice(stream, BATCH_ROWS)):
        if count == 0:
            lines[0] = lines[0].removeprefix(BOM)
        texts = [_line_text(line, number) for number, line in enumerate(lines, count + 1)]
        count += len(lines)
        yield pa.record_batch({text_column: texts})
    if not count:
        raise _no_rows("standard input")


def _line_text(line: bytes, number: int) -> str:
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise DataError(
            f"standard input: line {number} is not UTF-8. Pipe it through iconv -f WINDOWS-1252 -t UTF-8."
        ) from None
