"""The file formats of text, each read in blocks: csv, tsv, jsonl, parquet and txt, compressed or not.

Memory stays bounded however large a file is; only one .txt document, or one row, is held whole. Rows in messages count
from 1 and leave the header out; lines count from 1. Blank lines between rows of csv, tsv and jsonl are no rows.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ulmfit.errors import DataError

Format = Literal["csv", "tsv", "jsonl", "parquet", "txt"]

FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
JSON_TEXT = {b"content": b"json"}
"""Field metadata of a string column that holds JSON: nested or mixed values of a jsonl file, kept exactly."""

BATCH_ROWS = 2048
BOM = codecs.BOM_UTF8

_CSV_BLOCKS = (1 << 20, 16 << 20)  # bytes; the reader holds some 30 blocks, and no row can be longer than one
_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.null())
_PROBED_ROWS = 1000  # a jsonl row may leave keys out, so its columns are sought in more than the first row
_JSON = json.JSONDecoder(parse_constant=lambda _: None)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One concrete file; `label` is that of its folder (txt), `columns` those of a table (none if it has no row)."""

    path: Path
    format: Format
    compression: str | None = None
    label: str | None = None
    columns: tuple[str, ...] = ()


def split_format(path: Path) -> tuple[Format, str | None] | None:
    """The format and compression that a file's name tells, or None if its suffix is not known."""
    name = path.name.lower()
    suffix = Path(name).suffix
    compression = COMPRESSIONS.get(suffix)
    file_format = FORMATS.get(Path(Path(name).stem).suffix if compression else suffix)
    if file_format is None or (file_format == "parquet" and compression):
        return None
    return file_format, compression


def known_suffixes(*without: Format) -> str:
    """The suffixes that can be read, for messages."""
    suffixes = [suffix for suffix, file_format in FORMATS.items() if file_format not in without]
    return f"{', '.join(suffixes)} (all but .parquet also with {', '.join(COMPRESSIONS)})"


def read_columns(file: SourceFile) -> list[str]:
    """The names of a table's columns; none if it has no row. Those of jsonl are found in its first rows."""
    match file.format:
        case "csv" | "tsv":
            return _csv_columns(file)
        case "jsonl":
            return list(dict.fromkeys(chain.from_iterable(row for _, row in islice(json_rows(file), _PROBED_ROWS))))
        case "parquet":
            with pa.parquet.ParquetFile(file.path) as table:
                return list(table.schema_arrow.names)
        case "txt":
            return []


def read_batches(file: SourceFile, columns: list[str], *, text_column: str) -> Iterator[Any]:
    """Record batches of these columns of a csv, tsv or parquet file; the text column holds strings without nulls.

    `columns` must be among `file.columns`. csv and tsv columns are all strings.
    """
    return _csv_batches(file, columns) if file.format != "parquet" else _parquet_batches(file, columns, text_column)


def read_document(file: SourceFile) -> str:
    """The whole of a .txt file."""
    with _open(file) as stream:
        return stream.read().removeprefix(BOM).decode()


# --- csv ------------------------------------------------------------------------------------------------------------


def _csv_columns(file: SourceFile) -> list[str]:
    for block_size in _CSV_BLOCKS:
        try:
            with _open(file) as stream, _csv_reader(file, stream, [], block_size) as reader:
                return list(reader.schema.names)
        except _LongRowError:
            continue
        except pa.ArrowInvalid as error:
            if "Empty CSV file" in str(error):  # nothing, blank lines, or a header that no line end follows
                return []
            raise
    raise _open_quote(file, 0)


def _csv_batches(file: SourceFile, columns: list[str]) -> Iterator[Any]:
    """Batches of the columns, all strings: types are never guessed, so "007", "1" and "NA" stay what they are."""
    # A quote left open swallows the rest of the file without an error when it stands in the last column; so that
    # column is read too, to see whether its last value was closed.
    last = file.columns[-1]
    read = list(dict.fromkeys([*columns, last]))
    rows, end, written = 0, "", b""
    for block_size in _CSV_BLOCKS:  # small blocks do for nearly all files; a longer row starts over with larger ones
        seen = 0
        try:
            with _open(file) as stream, _csv_reader(file, watched := _TailReader(stream), read, block_size) as reader:
                for block in reader:
                    fresh = block.slice(max(0, rows - seen))
                    seen += len(block)
                    rows = max(rows, seen)
                    if len(fresh):
                        end = fresh.column(last)[-1].as_py()
                    for start in range(0, len(fresh), BATCH_ROWS):
                        yield fresh.slice(start, BATCH_ROWS).select(columns)
            written = watched.tail.rstrip()
            break
        except _LongRowError:
            continue
    else:
        raise _open_quote(file, rows)
    if "\n" in end and written and not written.endswith(b'"') and file.columns.count(last) == 1:
        raise _open_quote(file, rows - 1)


class _LongRowError(Exception):
    """A row is longer than a block of the csv reader."""


@contextmanager
def _csv_reader(file: SourceFile, stream: Any, columns: list[str], block_size: int) -> Iterator[Any]:
    """The csv reader of these columns (all if none), its errors turned into ours."""
    ragged: list[Any] = []

    def keep(row: Any) -> str:
        ragged.append(row)
        return "error"

    delimiter = "\t" if file.format == "tsv" else ","
    types = dict.fromkeys(columns, pa.string())
    try:
        with pa.csv.open_csv(
            stream,
            # Rows are numbered in errors only when one thread parses.
            read_options=pa.csv.ReadOptions(block_size=block_size, use_threads=False),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=keep),
            convert_options=pa.csv.ConvertOptions(include_columns=columns, column_types=types),
        ) as reader:
            yield reader
    except pa.ArrowInvalid as error:
        if ragged:
            row = ragged[0]
            raise DataError(
                f"{file.path}: row {row.number - 1} has {row.actual_columns} values, the header has "
                f"{row.expected_columns}: {shorten(row.text, 60)!r}. Quote values that hold separators or quotes."
            ) from None
        if "straddl" in str(error):
            raise _LongRowError from None
        raise


class _TailReader:
    """A stream that remembers the last bytes read, for the csv reader to be checked against."""

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.tail = b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.tail = (self.tail + data[-64:])[-64:]
        return data

    def close(self) -> None:
        self.closed = True


def _open_quote(file: SourceFile, rows: int) -> DataError:
    return DataError(
        f"{file.path}: row {rows + 1} opens a quote that is never closed, or is longer than "
        f"{_CSV_BLOCKS[-1] >> 20} MB. "
        'Double the quotes inside values (""), or give longer texts as .jsonl, .parquet or .txt.'
    )


# --- parquet --------------------------------------------------------------------------------------------------------


def _parquet_batches(file: SourceFile, columns: list[str], text_column: str) -> Iterator[Any]:
    # With pre_buffer or no buffer_size a whole row group, which may be the whole file, would be held in memory.
    options = {"pre_buffer": False, "buffer_size": 1 << 20, "page_checksum_verification": True}
    with pa.parquet.ParquetFile(file.path, **options) as table:
        first_row = 1
        for read in table.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            batch = read.select(columns)
            for index, (name, column) in enumerate(zip(columns, batch.columns, strict=True)):
                checked = _checked_strings(file, name, column, first_row, as_text=name == text_column)
                batch = batch if checked is column else batch.set_column(index, name, checked)
            yield batch
            first_row += len(batch)


def _checked_strings(file: SourceFile, name: str, column: Any, first_row: int, *, as_text: bool) -> Any:
    """The column, cast if it is the text; parquet takes strings on trust, and bad bytes would fail far from here."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if as_text and kind not in _TEXT_TYPES:
        raise DataError(f"{file.path}: column {name!r} holds {kind}; expected text. Pass --text-column.")
    try:
        column.validate(full=True)
        return column.cast(pa.string()).fill_null("") if as_text else column
    except pa.ArrowInvalid:
        for row, value in enumerate(column, first_row):
            if not _is_utf8(value):
                raise DataError(
                    f"{file.path}: row {row} of column {name!r} is not UTF-8. Decode it before writing the file."
                ) from None
        raise


def _is_utf8(value: Any) -> bool:
    try:
        plain = value.as_py()
        if isinstance(plain, bytes):
            plain.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- jsonl ----------------------------------------------------------------------------------------------------------


def json_rows(file: SourceFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects; NaN is null, and half of a surrogate pair, which no UTF-8 can hold, is U+FFFD."""
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            text = (line.removeprefix(BOM) if number == 1 else line).decode()
            if text.isspace() or not text:
                continue
            try:
                row = _JSON.decode(text)
            except (ValueError, RecursionError) as error:
                problem = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                raise _bad_line(file, number, f"is not JSON ({problem})") from None
            if not isinstance(row, dict):
                raise _bad_line(file, number, f"is a JSON {type(row).__name__}")
            yield number, _without_surrogates(row) if "\\ud" in text or "\\uD" in text else row


def _bad_line(file: SourceFile, number: int, problem: str) -> DataError:
    return DataError(
        f"{file.path}: line {number} {problem}; expected one object per line. "
        "jq -c . writes objects so, jq -c '.[]' the members of a list."
    )


def _without_surrogates(value: Any) -> Any:
    match value:
        case str():
            return _SURROGATE.sub("\ufffd", value)
        case list():
            return [_without_surrogates(item) for item in value]
        case dict():
            return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


def json_text(file: SourceFile, line: int, row: dict[str, Any], text_column: str) -> str:
    """The text of a row; empty if it is null or left out. A number or a list is most likely the wrong column."""
    text = row.get(text_column)
    if text is None:
        return ""
    if not isinstance(text, str):
        found = f"{type(text).__name__} {shorten(json.dumps(text, ensure_ascii=False), 40)}"
        raise DataError(f"{file.path}: line {line}: {text_column!r} is {found}; expected text. Pass --text-column.")
    return text


def json_batches(file: SourceFile, text_column: str) -> Iterator[Any]:
    """Two passes: the first finds the columns and a type for each, so that all batches share one schema."""
    kinds: dict[str, set[str]] = {}
    for line, row in json_rows(file):
        json_text(file, line, row, text_column)
        for name, value in row.items():
            kinds.setdefault(name, set()).add(_json_kind(value))
    kinds[text_column] = {"str"}
    fields = [_json_field(name, found) for name, found in kinds.items()]
    schema = pa.schema(fields)
    rows = (row for _, row in json_rows(file))
    while block := list(islice(rows, BATCH_ROWS)):
        for row in block:
            row[text_column] = row.get(text_column) or ""
        yield pa.record_batch([_json_array(field, block) for field in fields], schema=schema)


def _json_kind(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**53) <= value <= 2**53:
        return "int64" if -(2**63) <= value < 2**63 else "integer"  # too large for a float, or for any column
    return "null" if value is None else type(value).__name__


def _json_field(name: str, kinds: set[str]) -> Any:
    match sorted(kinds - {"null"}):
        case ["bool"]:
            return pa.field(name, pa.bool_())
        case ["int"] | ["int64"] | ["int", "int64"]:
            return pa.field(name, pa.int64())
        case ["float"] | ["float", "int"]:
            return pa.field(name, pa.float64())
        case ["str"] | []:
            return pa.field(name, pa.string())
    return pa.field(name, pa.string(), metadata=JSON_TEXT)


def _json_array(field: Any, rows: list[dict[str, Any]]) -> Any:
    values: Iterable[Any] = (row.get(field.name) for row in rows)
    if field.metadata:
        values = (None if value is None else json.dumps(value, ensure_ascii=False) for value in values)
    return pa.array(values, field.type, size=len(rows))


# --- opening, and what can go wrong ---------------------------------------------------------------------------------


def _open(file: SourceFile) -> BinaryIO:
    stream = file.path.open("rb")
    if file.compression is None:
        return stream
    return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(stream, file.compression), 1 << 16))


@contextmanager
def explained(file: SourceFile) -> Iterator[None]:
    """Every way in which reading can fail becomes one line that names the file."""
    try:
        yield
    except UnicodeDecodeError:
        _raise_not_utf8(file)
    except pa.ArrowException as error:
        if "invalid UTF8" in str(error) and file.format != "parquet":
            _raise_not_utf8(file)
        raise _unreadable(file, error) from None
    except OSError as error:
        raise _unreadable(file, error.strerror or error) from None


def _unreadable(file: SourceFile, problem: object) -> DataError:
    reason = " ".join(str(problem).split()).rstrip(".")
    return DataError(f"{file.path}: cannot be read as {file.format} ({reason}). Check or replace the file.")


def _raise_not_utf8(file: SourceFile) -> NoReturn:
    """Read the file again up to its first byte that is not UTF-8, and name the place."""
    with _open(file) as stream:
        line, offset, encoding = _first_invalid(stream)
    raise DataError(
        f"{file.path}: not UTF-8 at line {line}, byte {offset}. Re-encode it: "
        f"iconv -f {encoding} -t UTF-8 (or the encoding it was written in)."
    ) from None


def _first_invalid(stream: BinaryIO) -> tuple[int, int, str]:
    """(line from 1, byte from 0, likely encoding) of the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, offset, encoding = 1, 0, "WINDOWS-1252"
    while True:
        block = stream.read(1 << 20)
        if offset == 0 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding = "UTF-16"
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            held_back = len(error.object) - len(block)  # the start of a character cut by the block's edge
            return line + error.object.count(b"\n", 0, error.start), offset - held_back + error.start, encoding
        assert block, "the file was not UTF-8 a moment ago"
        line += block.count(b"\n")
        offset += len(block)


def shorten(text: str, width: int) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= width else text[: width - 3] + "..."
