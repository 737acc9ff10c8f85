"""From text to encoded parts: chunks of documents, encoded on all cores, each saved as one file a later run can keep.

A part is one line of JSON (its header), then the lengths (int64), the label ids (int32, when labelled) and the ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from ulmfit.errors import OutputError, UlmfitError
from ulmfit.text.child_processes import end_with_parent
from ulmfit.text.sources import Record
from ulmfit.text.tokenizer import Tokenizer

Integers = npt.NDArray[np.integer[Any]]

_VERSION = 1  # raised when encoding or the layout of a part changes: older parts are then done anew
_CHUNK_CHARACTERS = 4_000_000  # a second or so of work: a kill loses little, and the cores end together
_RECORD_OVERHEAD = 100  # counted per document, so that a million empty texts do not make one part
_CHUNKS_WORTH_A_POOL = 3  # starting workers costs about as long as encoding two chunks


@dataclass(frozen=True)
class Chunk:
    """Consecutive documents that become one part; the digest is of their texts and labels."""

    texts: list[str]
    labels: list[str] | None
    digest: str


@dataclass(frozen=True)
class PartHeader:
    """The first line of a part."""

    key: str  # hash of all that the part depends on
    documents: int
    tokens: int
    dtype: str
    label_names: list[str] | None  # of this part alone; joining maps them to those of the corpus


@dataclass(frozen=True)
class Part:
    """A part read back: lengths (documents,), label ids (documents,) into the header's names, ids (tokens,)."""

    header: PartHeader
    lengths: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32] | None
    ids: Integers


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The stored type of ids: two bytes while the vocabulary has fewer than 65,536 tokens, else four."""
    return np.dtype("<u2" if vocab_size < 65_536 else "<u4")


def cut_chunks(records: Iterable[Record], *, labelled: bool) -> Iterator[Chunk]:
    """Cut by the amount of text alone: the cuts depend on neither the number of processes nor an earlier run."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.text) + _RECORD_OVERHEAD
        if size >= _CHUNK_CHARACTERS:
            yield _chunk(batch, labelled)
            batch, size = [], 0
    if batch:
        yield _chunk(batch, labelled)


def _chunk(records: list[Record], labelled: bool) -> Chunk:
    texts = [record.text for record in records]
    labels = [record.label for record in records if record.label is not None] if labelled else None
    assert labels is None or len(labels) == len(texts), "a record lacks the label that was asked for"
    digest = hashlib.sha256(b"unlabelled" if labels is None else b"labelled")
    for piece in itertools.chain(texts, labels or ()):
        data = piece.encode("utf-8", "surrogatepass")
        digest.update(b"%d " % len(data))
        digest.update(data)
    return Chunk(texts, labels, digest.hexdigest())


# --- encoding -------------------------------------------------------------------------------------------------------


def encode_chunks(chunks: Iterable[Chunk], tokenizer: Tokenizer, *, folder: Path, processes: int) -> list[Path]:
    """Write the part of every chunk that `folder` does not hold yet; the parts in order.

    Up to two chunks per process are in memory at once. Little text is encoded right here, without worker processes.
    """
    chunks = iter(chunks)
    first = list(itertools.islice(chunks, _CHUNKS_WORTH_A_POOL))
    parts: list[Path] = []

    def missing() -> Iterator[tuple[Chunk, Path, str]]:
        for chunk in itertools.chain(first, chunks):
            part, key = folder / f"part-{len(parts):06}", _part_key(chunk, len(parts), tokenizer)
            parts.append(part)
            if not _is_done(part, key):
                yield chunk, part, key

    if processes == 1 or len(first) < _CHUNKS_WORTH_A_POOL:
        for chunk, part, key in missing():
            write_part(chunk, part, key=key, tokenizer=tokenizer)
        return parts
    flying: deque[Future[None]] = deque()
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads (torch, arrow) can deadlock
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(tokenizer.to_json(),))
    try:
        for chunk, part, key in missing():
            flying.append(pool.submit(_write_in_worker, chunk, part, key))
            if len(flying) >= 2 * processes:
                flying.popleft().result()
        while flying:
            flying.popleft().result()
    except BrokenProcessPool:
        raise UlmfitError(
            f"{folder.parent}: a process encoding text died; what is done is kept, so run again. If memory is short, "
            'use fewer processes; a script must call this under `if __name__ == "__main__":`.'
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return parts


class _Worker:
    """What a worker process keeps between chunks."""

    tokenizer: ClassVar[Tokenizer]


def _start_worker(tokenizer_json: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process hears it, and stops the workers in order
    end_with_parent()
    _Worker.tokenizer = Tokenizer.from_json(tokenizer_json)


def _write_in_worker(chunk: Chunk, part: Path, key: str) -> None:
    write_part(chunk, part, key=key, tokenizer=_Worker.tokenizer)


# --- files ----------------------------------------------------------------------------------------------------------


def write_part(chunk: Chunk, part: Path, *, key: str, tokenizer: Tokenizer) -> None:
    """Encode the documents of a chunk and save them; `OutputError` when the system refuses."""
    ids = array("I")
    lengths = np.zeros(len(chunk.texts), dtype="<i8")
    for index, text in enumerate(chunk.texts):
        encoded = tokenizer.encode(text)
        lengths[index] = len(encoded)
        ids.extend(encoded)
    dtype = id_dtype(len(tokenizer))
    names = None if chunk.labels is None else sorted(set(chunk.labels))
    header = PartHeader(key, documents=len(lengths), tokens=len(ids), dtype=dtype.str, label_names=names)
    with renamed_when_whole(part) as file:
        file.write(json.dumps(asdict(header)).encode() + b"\n")
        file.write(lengths.tobytes())
        if chunk.labels is not None and names is not None:
            numbers = {name: number for number, name in enumerate(names)}
            file.write(np.array([numbers[label] for label in chunk.labels], dtype="<i4").tobytes())
        file.write(np.frombuffer(ids, dtype=np.uintc).astype(dtype).tobytes())


def read_header(part: Path) -> PartHeader:
    """The header of a part, without reading the rest."""
    with part.open("rb") as file:
        return PartHeader(**json.loads(file.readline()))


def read_part(part: Path) -> Part:
    """A whole part."""
    with part.open("rb") as file:
        header = PartHeader(**json.loads(file.readline()))
        lengths = np.frombuffer(file.read(8 * header.documents), dtype="<i8")
        labels = None
        if header.label_names is not None:
            labels = np.frombuffer(file.read(4 * header.documents), dtype="<i4")
        return Part(header, lengths, labels, np.frombuffer(file.read(), dtype=header.dtype))


def _part_key(chunk: Chunk, index: int, tokenizer: Tokenizer) -> str:
    facts = [_VERSION, index, tokenizer.fingerprint, chunk.digest]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _is_done(part: Path, key: str) -> bool:
    """Whether this very part is there, to its end."""
    try:
        if read_header(part).key != key:
            return False
        found = read_part(part)
    except (FileNotFoundError, ValueError, TypeError):
        return False
    expected = (found.header.documents, found.header.tokens, found.header.tokens)
    return (len(found.lengths), int(found.lengths.sum()), len(found.ids)) == expected


@contextlib.contextmanager
def renamed_when_whole(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing under a temporary name; synced and renamed at the end, so a kill leaves no half file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with output_errors(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of this file, made if need be; the system drops it with the process, however it ends.

    Where another process holds it, wait, or raise BlockingIOError.
    """
    import fcntl

    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w", encoding="utf-8")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """A refusal of the operating system (a full disk, no permission) becomes one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"{path}: cannot be written: {reason}. Mend that and run again, or choose another folder."
        ) from error
