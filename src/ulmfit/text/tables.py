"""Tables are written as they come, batch by batch, and appear under their name only when they are whole."""

from __future__ import annotations

import base64
import codecs
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TextIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ulmfit.errors import OutputError
from ulmfit.text.formats import FORMATS, JSON_TEXT, split_format

TableFormat = Literal["csv", "tsv", "jsonl", "parquet"]

_GROUP_ROWS = 1 << 16
_GROUP_BYTES = 64 << 20  # a parquet file of many small row groups is large and slow


class TableWriter:
    """Writes record batches to csv, tsv, jsonl or parquet, as the suffix tells (all but parquet also .gz, .zst, .bz2).

    A context manager: the file grows under a hidden name in the same folder and is renamed at the end; after an
    exception it is removed and an earlier file of that name stays. "-" or None writes to `stream`, as `format`, jsonl
    unless told. In csv and tsv null is an empty value and nested values are JSON text; in jsonl they are JSON, and NaN
    and infinity are null. Raises OutputError for an unknown suffix, a folder that is missing or not writable, a full
    disk and, but for jsonl, a batch whose columns are not those of the first.
    """

    def __init__(self, path: Path | str | None, *, stream: TextIO | None = None, format: TableFormat = "jsonl") -> None:
        self._path = None if path is None or str(path) == "-" else Path(path)
        self._stream = stream
        self._format, self._compression = (format, None) if self._path is None else _table_format(self._path)
        if self._path is None and format == "parquet":
            raise OutputError("standard output: parquet is not text; expected csv, tsv or jsonl. Name a file.")
        self._name = str(self._path or "standard output")
        self._target: _NewFile | _TextTarget
        self._encoder: _Encoder

    def __enter__(self) -> Self:
        with self._explained():
            if self._path is None:
                assert self._stream is not None, "writing to standard output takes the stream"
                self._target = _TextTarget(self._stream)
            else:
                self._target = _NewFile(self._path, self._compression)
        self._encoder = _ENCODERS[self._format](self._target.sink, self._name)
        return self

    def write(self, batch: Any) -> None:
        """Append a `pyarrow.RecordBatch`; its columns must be those of the first, in any order (jsonl: whatever)."""
        names = batch.schema.names
        for name in names:
            if names.count(name) > 1:
                raise OutputError(f"{self._name}: two columns would be named {name!r}. Rename one.")
        with self._explained():
            self._encoder.write(batch)
            if self._path is None:
                self._target.sink.flush()  # on a pipe, the next program sees rows as they come

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finished = False
        try:
            if kind is None:
                with self._explained():
                    self._encoder.close()
                    self._target.finish()
                finished = True
        finally:
            if not finished:
                with suppress(OSError, pa.ArrowException):
                    self._encoder.close()
                self._target.discard()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise OutputError(
                f"{self._name}: is {error.encoding}, which has no {error.object[error.start]!r}; expected UTF-8. "
                "Set PYTHONIOENCODING=utf-8 or name a file."
            ) from error
        except pa.ArrowException as error:
            raise OutputError(
                f"{self._name}: {self._format} cannot hold these columns ({_one_line(error)}). Write another format."
            ) from error
        except OSError as error:
            raise OutputError(
                f"{self._name}: cannot be written ({error.strerror or _one_line(error)}). "
                "Make room there, or name a place that can be written."
            ) from error


def _table_format(path: Path) -> tuple[TableFormat, str | None]:
    known = split_format(path)
    if known is None or known[0] == "txt":
        suffixes = ", ".join(suffix for suffix, file_format in FORMATS.items() if file_format != "txt")
        raise OutputError(f"{path}: cannot write a table as {path.suffix!r}; expected {suffixes}. Name the file so.")
    return known[0], known[1]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


# --- where the bytes go ---------------------------------------------------------------------------------------------


class _NewFile:
    """A file under a hidden name beside its place; it takes the place when finished, or goes."""

    def __init__(self, path: Path, compression: str | None) -> None:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; expected the name of a file.")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: there is no folder {path.parent}. Make it first.")
        self._place = path.resolve()  # through a link the file itself is replaced, not the link
        self._hidden = self._place.with_name(f".{self._place.name[:50]}.{secrets.token_hex(4)}.part")
        file = self._hidden.open("xb")
        self.sink: Any = file if compression is None else pa.CompressedOutputStream(file, compression)
        self._closing = [self.sink.close, file.close]

    def finish(self) -> None:
        """Everything on disk, then the name: whoever finds the file finds all of it."""
        for close in self._closing:
            close()
        with self._hidden.open("rb+") as file:
            os.fsync(file.fileno())
        self._hidden.replace(self._place)

    def discard(self) -> None:
        for close in self._closing:
            with suppress(OSError, pa.ArrowException):
                close()
        self._hidden.unlink(missing_ok=True)


class _TextTarget:
    """A text stream that takes bytes; a character may come in two pieces. The stream is the caller's to close."""

    closed = False

    def __init__(self, stream: TextIO) -> None:
        self.sink = self
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def write(self, data: Any) -> int:
        self._stream.write(self._decoder.decode(bytes(data)))
        return len(data)

    def flush(self) -> None:
        self._stream.flush()

    def finish(self) -> None:
        self._stream.flush()

    def discard(self) -> None:
        """What is written is written."""


# --- how rows become bytes ------------------------------------------------------------------------------------------


class _Encoder(Protocol):
    def __init__(self, sink: Any, name: str) -> None: ...
    def write(self, batch: Any) -> None: ...
    def close(self) -> None: ...


class _JsonEncoder:
    def __init__(self, sink: Any, name: str) -> None:
        self._sink = sink

    def write(self, batch: Any) -> None:
        names = batch.schema.names
        columns = [_json_values(field, column) for field, column in zip(batch.schema, batch.columns, strict=True)]
        encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
        lines = [encode(dict(zip(names, row, strict=True))) + "\n" for row in zip(*columns, strict=True)]
        self._sink.write("".join(lines).encode())

    def close(self) -> None:
        pass


class _CsvEncoder:
    delimiter = ","

    def __init__(self, sink: Any, name: str) -> None:
        self._sink = sink
        self._columns = _Columns(name)
        self._writer: Any = None

    def write(self, batch: Any) -> None:
        columns = [_csv_values(field, column) for field, column in zip(batch.schema, batch.columns, strict=True)]
        flat = self._columns.conform(pa.record_batch(columns, names=batch.schema.names))
        if self._writer is None:
            options = pa.csv.WriteOptions(delimiter=self.delimiter)
            self._writer = pa.csv.CSVWriter(self._sink, flat.schema, write_options=options)
        self._writer.write_batch(flat)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _TsvEncoder(_CsvEncoder):
    delimiter = "\t"


class _ParquetEncoder:
    def __init__(self, sink: Any, name: str) -> None:
        self._sink = sink
        self._columns = _Columns(name)
        self._writer: Any = None
        self._waiting: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, batch: Any) -> None:
        batch = self._columns.conform(batch)
        if self._writer is None:
            options = {"compression": "zstd", "write_page_checksum": True}
            self._writer = pa.parquet.ParquetWriter(self._sink, batch.schema, **options)
        self._waiting.append(batch)
        self._rows += len(batch)
        self._bytes += batch.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        if self._writer is None:  # a parquet file without a schema would not be one
            self._writer = pa.parquet.ParquetWriter(self._sink, pa.schema([]))
        if self._waiting:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._rows = self._bytes = 0
        self._writer.write_table(pa.Table.from_batches(waiting))


_ENCODERS: dict[TableFormat, type[_Encoder]] = {
    "csv": _CsvEncoder,
    "tsv": _TsvEncoder,
    "jsonl": _JsonEncoder,
    "parquet": _ParquetEncoder,
}


class _Columns:
    """The columns of the first batch, to which the later ones must conform."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._schema: Any = None

    def conform(self, batch: Any) -> Any:
        """The batch with its columns in the order and the types of the first."""
        if self._schema is None:
            self._schema = batch.schema
        if batch.schema == self._schema:
            return batch
        found, expected = batch.schema.names, self._schema.names
        if sorted(found) != sorted(expected):
            raise OutputError(
                f"{self._name}: rows with columns {', '.join(found)} follow rows with {', '.join(expected)}; "
                "expected the same. Write them to separate files, or to a .jsonl."
            )
        try:
            return batch.select(expected).cast(self._schema)
        except pa.ArrowException as error:
            raise OutputError(
                f"{self._name}: a column changes its type ({_one_line(error)}). "
                "Write such tables to separate files, or to a .jsonl."
            ) from error


# --- values ---------------------------------------------------------------------------------------------------------


def _json_values(field: Any, column: Any) -> list[Any]:
    """A column as values that JSON knows; a float32 keeps its short decimals (0.1, not 0.10000000149011612)."""
    kind = field.type
    if field.metadata and JSON_TEXT.items() <= field.metadata.items():
        return [None if text is None else json.loads(text) for text in column.to_pylist()]
    if kind in (pa.float16(), pa.float32()):
        column = column.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
    values: list[Any] = column.to_pylist()
    return values if kind == pa.string() else [_plain(value) for value in values]


def _csv_values(field: Any, column: Any) -> Any:
    """A column as the csv writer knows it: text, numbers and times as they are, nested values and bytes as JSON."""
    kind = field.type
    if pa.types.is_dictionary(kind):
        return _csv_values(field.with_type(kind.value_type), column.cast(kind.value_type))
    if kind == pa.string_view():
        return column.cast(pa.string())
    if pa.types.is_nested(kind) or kind in (pa.binary(), pa.large_binary()):
        return pa.array([_json_or_text(_plain(value)) for value in column.to_pylist()], pa.string())
    return column


def _json_or_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """A value of any Arrow type as JSON knows it: bytes as base64, times and decimals as text."""
    match value:
        case float():
            value = value if math.isfinite(value) else None
        case bytes():
            value = base64.b64encode(value).decode()
        case list() | tuple():
            value = [_plain(item) for item in value]
        case dict():
            value = {str(key): _plain(item) for key, item in value.items()}
        case None | str() | bool() | int():
            pass
        case _:
            value = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return value
