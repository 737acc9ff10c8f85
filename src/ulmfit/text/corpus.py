"""Tokenised documents on disk: one flat file of ids and one of offsets, memory-mapped, built on all cores, resumable.

A corpus is a folder: `ids.bin` (uint16, or uint32 from 65,536 tokens of vocabulary), `offsets.bin` (int64, documents
+ 1), `labels.bin` (int32, -1 for none; only of labelled text) and `corpus.json`, which is put in place last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ulmfit.errors import DataError, OutputError
from ulmfit.text.parts import (
    Chunk,
    Integers,
    cut_chunks,
    encode_chunks,
    id_dtype,
    output_errors,
    read_header,
    read_part,
    renamed_when_whole,
)
from ulmfit.text.sources import read_records
from ulmfit.text.tokenizer import Tokenizer

FORMAT = "ulmfit-corpus"
VERSION = 1

_BLOCK = 1 << 22  # ids held at once when a file is checked
_MEND = "Delete the folder and build the corpus again."
_FILES = ("ids.bin", "offsets.bin", "labels.bin", "corpus.json")  # in the order they are put in place


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents as ids, (tokens,), cut by offsets, (documents + 1,); arrays in memory or memory-mapped files."""

    ids: Integers
    offsets: npt.NDArray[np.int64]
    vocab_size: int
    fingerprint: str  # of the content alone: equal for equal documents, however and wherever they were built
    labels: npt.NDArray[np.int32] | None = None  # (documents,), an index into label_names, -1 where there is none
    label_names: tuple[str, ...] = ()
    tokenizer_fingerprint: str | None = None
    source_fingerprint: str | None = None

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        """Number of tokens in all documents."""
        return len(self.ids)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, (documents,)."""
        return np.diff(self.offsets)

    def document(self, index: int) -> Integers:
        """A view of the ids of one document, (length,)."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of a corpus of {len(self)}")
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def documents(self, indices: Integers) -> list[Integers]:
        """The same of many, which must all be there, in a fraction of the time."""
        ids = np.asarray(self.ids)  # a slice of a memory map costs more than a slice
        spans = zip(self.offsets[indices].tolist(), self.offsets[indices + 1].tolist(), strict=True)
        return [ids[start:end] for start, end in spans]

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Map a corpus folder after checking every number in it; `DataError` when anything does not agree."""
        facts = _read_facts(folder)
        dtype = id_dtype(facts.vocab_size)
        _check_size(folder / "ids.bin", facts.tokens * dtype.itemsize)
        _check_size(folder / "offsets.bin", (facts.documents + 1) * 8)
        offsets = np.memmap(folder / "offsets.bin", dtype="<i8", mode="r")
        if offsets[0] != 0 or offsets[-1] != facts.tokens or not np.all(offsets[1:] > offsets[:-1]):
            raise DataError(f"{folder / 'offsets.bin'}: damaged, offsets do not rise from 0 to {facts.tokens}. {_MEND}")
        _check_ids(folder / "ids.bin", dtype, facts.vocab_size)
        labels = None
        if facts.label_names is not None:
            _check_size(folder / "labels.bin", facts.documents * 4)
            labels = np.memmap(folder / "labels.bin", dtype="<i4", mode="r")
            if labels.min() < -1 or labels.max() >= len(facts.label_names):
                found = f"labels {labels.min()} to {labels.max()}"
                expected = f"-1 to {len(facts.label_names) - 1}"
                raise DataError(f"{folder / 'labels.bin'}: damaged, {found}, expected {expected}. {_MEND}")
        return cls(
            ids=np.memmap(folder / "ids.bin", dtype=dtype, mode="r"),
            offsets=offsets,
            vocab_size=facts.vocab_size,
            fingerprint=facts.fingerprint,
            labels=labels,
            label_names=tuple(facts.label_names or ()),
            tokenizer_fingerprint=facts.tokenizer_fingerprint,
            source_fingerprint=facts.source_fingerprint,
        )

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Sequence[int] | Integers],
        *,
        vocab_size: int,
        labels: Sequence[int] | Integers | None = None,
        label_names: Sequence[str] | None = None,
    ) -> Corpus:
        """A corpus in memory; `DataError` for an empty document, an id or a label out of range."""
        lengths = np.fromiter((len(document) for document in documents), dtype=np.int64, count=len(documents))
        if (lengths == 0).any():
            raise DataError(f"document {int(lengths.argmin())} has no tokens; even an empty text has its xxbos.")
        wide = np.concatenate([np.zeros(0, np.int64), *(np.asarray(document, np.int64) for document in documents)])
        if wide.size and not 0 <= wide.min() <= wide.max() < vocab_size:
            found = f"documents hold ids {wide.min()} to {wide.max()}"
            raise DataError(f"{found}, but the vocabulary has {vocab_size} tokens. Encode them with its tokenizer.")
        ids = wide.astype(id_dtype(vocab_size))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        content = _Content()
        content.ids.update(ids.tobytes())
        content.offsets.update(offsets.astype("<i8").tobytes())
        if labels is None:
            return cls(ids, offsets, vocab_size, content.fingerprint(vocab_size, None))
        label_ids = np.array(labels, dtype=np.int32)
        if label_ids.shape != (len(documents),):
            raise DataError(f"{len(label_ids)} labels for {len(documents)} documents; expected one each.")
        if label_names is None:
            label_names = [str(number) for number in range(int(label_ids.max(initial=-1)) + 1)]
        if label_ids.size and not -1 <= label_ids.min() <= label_ids.max() < len(label_names):
            found = f"labels {label_ids.min()} to {label_ids.max()}"
            raise DataError(f"{found}, but there are {len(label_names)} label names; expected -1 (none) or an index.")
        content.labels.update(label_ids.astype("<i4").tobytes())
        fingerprint = content.fingerprint(vocab_size, list(label_names))
        return cls(ids, offsets, vocab_size, fingerprint, labels=label_ids, label_names=tuple(label_names))


def split_documents(
    count: int, *, valid_share: float, seed: int, labels: Integers | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two sorted sets of document indices, for training and for validation, drawn by the seed.

    With labels the classes keep their shares, and each class of two or more has a document on both sides. A class, or
    a corpus, of one document goes to training.
    """
    classes = np.zeros(count, np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    assert len(classes) == count, f"{len(classes)} labels for {count} documents"
    sizes = np.bincount(classes) if count else np.zeros(0, np.int64)
    exact = sizes * valid_share
    wanted = np.floor(exact).astype(np.int64)
    # Largest remainders, so that the whole comes to the share asked for, not only each class rounded.
    missing = round(count * valid_share) - int(wanted.sum())
    wanted[np.argsort(wanted - exact, kind="stable")[:missing]] += 1
    if valid_share > 0:
        wanted = np.clip(wanted, np.minimum(1, sizes - 1), np.maximum(sizes - 1, 0))
    order = np.random.default_rng([seed, 0x5B117]).permutation(count)
    by_class = order[np.argsort(classes[order], kind="stable")]
    rank = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = rank < wanted[classes[by_class]]
    return np.sort(by_class[~chosen]), np.sort(by_class[chosen])


def build_corpus(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    out: Path,
    text_column: str = "text",
    label_column: str | None = None,
    processes: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Corpus:
    """Read, encode and save all text of `paths` in the folder `out`; what an earlier run finished is not done again.

    The result is the same for any number of processes (all cores if None) and after any number of kills; memory is
    bounded by the chunks in flight. `on_progress` is called with the number of documents read so far. `DataError` when
    there is nothing to read, `OutputError` when `out` cannot be written or another process is building it.
    """

    def chunks() -> Iterator[Chunk]:
        records = read_records(paths, text_column=text_column, label_column=label_column)
        return cut_chunks(records, labelled=label_column is not None)

    parts = out / "parts"
    with _only_builder(out):
        corpus = _finished_corpus(out, tokenizer, chunks)
        if corpus is None:
            with output_errors(parts):
                parts.mkdir(exist_ok=True)
            source = hashlib.sha256()
            watched = _watched(chunks(), source, on_progress)
            done = encode_chunks(watched, tokenizer, folder=parts, processes=processes or _cores())
            if not done:
                raise DataError(f"{_names(paths)}: no text found; a corpus needs at least one document.")
            _join(done, tokenizer, parts, source_fingerprint=source.hexdigest())
            _put_in_place(parts, out)
            corpus = Corpus.open(out)
        shutil.rmtree(parts, ignore_errors=True)
    return corpus


# --- what a corpus folder must say ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    """What `corpus.json` says, checked for its types."""

    documents: int
    tokens: int
    vocab_size: int
    dtype: str
    fingerprint: str
    tokenizer_fingerprint: str
    source_fingerprint: str
    label_names: list[str] | None


def _read_facts(folder: Path) -> _Facts:
    path = folder / "corpus.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder}: no corpus here, corpus.json is missing. Build it (again) from its text.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValueError:
        raise DataError(f"{path}: damaged, not JSON. {_MEND}") from None
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise DataError(f"{path}: not the description of a corpus, its format is not {FORMAT!r}.")
    if (version := values.pop("version", None)) != VERSION:
        raise DataError(f"{path}: version {version!r}, but this ulmfit reads version {VERSION}. {_MEND}")
    names = values.get("label_names")
    counts = [values.get(name) for name in ("documents", "tokens", "vocab_size")]
    texts = [values.get(name) for name in ("dtype", "fingerprint", "tokenizer_fingerprint", "source_fingerprint")]
    sound = (
        values.keys() == {entry.name for entry in fields(_Facts)}
        and all(type(count) is int and count > 0 for count in counts)
        and all(isinstance(text, str) for text in texts)
        and (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)))
    )
    if not sound or values["dtype"] != id_dtype(values["vocab_size"]).name:
        raise DataError(f"{path}: damaged, an entry is missing, unknown or out of range. {_MEND}")
    return _Facts(**values)


def _check_size(path: Path, expected: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. {_MEND}") from None
    if found != expected:
        raise DataError(f"{path}: damaged, {found} bytes, but corpus.json says {expected}. {_MEND}")


def _check_ids(path: Path, dtype: np.dtype[Any], vocab_size: int) -> None:
    """Read rather than mapped, so that a check of a large file does not count as memory in use."""
    with path.open("rb") as file:
        while (block := np.fromfile(file, dtype=dtype, count=_BLOCK)).size:
            if block.max() >= vocab_size:
                raise DataError(f"{path}: damaged, id {block.max()} in a vocabulary of {vocab_size} tokens. {_MEND}")


@dataclass
class _Content:
    """Hashes of the three arrays, fed piece by piece."""

    ids: Any = field(default_factory=hashlib.sha256)
    offsets: Any = field(default_factory=hashlib.sha256)
    labels: Any = field(default_factory=hashlib.sha256)

    def fingerprint(self, vocab_size: int, label_names: list[str] | None) -> str:
        hashes = [hash_.hexdigest() for hash_ in (self.ids, self.offsets, self.labels)]
        return hashlib.sha256(json.dumps([vocab_size, label_names, hashes]).encode()).hexdigest()


# --- building -------------------------------------------------------------------------------------------------------


def _finished_corpus(out: Path, tokenizer: Tokenizer, chunks: Callable[[], Iterator[Chunk]]) -> Corpus | None:
    """The corpus in `out` if it is of this text and tokenizer: to read the text costs far less than to encode it."""
    try:
        corpus = Corpus.open(out)
    except DataError:
        return None
    if corpus.tokenizer_fingerprint != tokenizer.fingerprint:
        return None
    source = hashlib.sha256()
    for _ in _watched(chunks(), source, None):
        pass
    return corpus if corpus.source_fingerprint == source.hexdigest() else None


def _watched(chunks: Iterator[Chunk], source: Any, on_progress: Callable[[int], None] | None) -> Iterator[Chunk]:
    """The chunks as they are; on the way, the hash of the whole source is fed and progress is told."""
    documents = 0
    for chunk in chunks:
        source.update(chunk.digest.encode())
        yield chunk
        documents += len(chunk.texts)
        if on_progress is not None:
            on_progress(documents)


def _join(parts: list[Path], tokenizer: Tokenizer, folder: Path, *, source_fingerprint: str) -> None:
    """Write the files of the corpus in `folder`; one part in memory at a time."""
    for name in _FILES:  # left by a run killed here, perhaps of other settings
        (folder / name).unlink(missing_ok=True)
    headers = [read_header(part) for part in parts]
    labelled = headers[0].label_names is not None
    names = sorted({name for header in headers for name in header.label_names or ()}) if labelled else None
    numbers = {name: number for number, name in enumerate(names or ())}
    content = _Content()
    offset = 0
    with contextlib.ExitStack() as stack:
        ids_file = stack.enter_context(renamed_when_whole(folder / "ids.bin"))
        offsets_file = stack.enter_context(renamed_when_whole(folder / "offsets.bin"))
        labels_file = stack.enter_context(renamed_when_whole(folder / "labels.bin")) if labelled else None
        _write(offsets_file, content.offsets, np.zeros(1, dtype="<i8"))
        for path in parts:
            part = read_part(path)
            _write(ids_file, content.ids, part.ids)
            _write(offsets_file, content.offsets, offset + np.cumsum(part.lengths, dtype="<i8"))
            offset += part.header.tokens
            if labels_file is not None and part.labels is not None:
                mapping = np.array([numbers[name] for name in part.header.label_names or ()], dtype="<i4")
                _write(labels_file, content.labels, mapping[part.labels])
    facts = _Facts(
        documents=sum(header.documents for header in headers),
        tokens=offset,
        vocab_size=len(tokenizer),
        dtype=id_dtype(len(tokenizer)).name,
        fingerprint=content.fingerprint(len(tokenizer), names),
        tokenizer_fingerprint=tokenizer.fingerprint,
        source_fingerprint=source_fingerprint,
        label_names=names,
    )
    with renamed_when_whole(folder / "corpus.json") as file:
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(facts)}, indent=2, ensure_ascii=False)
        file.write(text.encode("utf-8") + b"\n")


def _write(file: BinaryIO, hash_: Any, values: Integers) -> None:
    data = values.tobytes()
    hash_.update(data)
    file.write(data)


def _put_in_place(parts: Path, out: Path) -> None:
    """Move the files from `parts` to `out`; in between, `out` is no corpus rather than a wrong one."""
    with output_errors(out):
        (out / "corpus.json").unlink(missing_ok=True)
        _fsync_folder(out)
        for name in _FILES:
            if (parts / name).exists():
                (parts / name).replace(out / name)
            else:
                (out / name).unlink(missing_ok=True)
            _fsync_folder(out)


def _fsync_folder(folder: Path) -> None:
    if sys.platform != "win32":  # which cannot open a folder, and orders renames itself
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _only_builder(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system drops with the process, however it ends."""
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{out}: another process is building this corpus. Wait for it, or stop it.") from None
        except OSError:
            pass  # some network file systems have no locks; then two builders only waste work
        yield
    finally:
        os.close(handle)


def _names(paths: Sequence[Path]) -> str:
    shown = ", ".join(str(path) for path in paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"


def _cores() -> int:
    """The cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
