"""From documents to batches of numpy arrays: windows of a language model and padded batches of a classifier.

Every batch is a function of (seed, epoch, step), so a run resumes at any step without replaying those before it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ulmfit.errors import ConfigError, DataError

if TYPE_CHECKING:  # numpy is all this needs when it runs
    from ulmfit.text.corpus import Corpus

Integers = npt.NDArray[np.integer[Any]]
Int64s = npt.NDArray[np.int64]
Item = TypeVar("Item")

_BLOCK_WINDOWS = 64  # windows read at once: one gather in the file serves them all
_BLOCK_TOKENS = 1 << 20  # and the most tokens in them, so that memory stays flat for any batch size
_POOL_BATCHES = 50  # batches' worth of shuffled documents among which lengths are matched
_ORDER, _WINDOWS = 1, 2  # so that the two draws of one (seed, epoch) are independent


def reverse_document(ids: Integers, *, begin_id: int) -> Integers:
    """The document read backwards, its begin token still first: [bos, t1, ..., tn] -> [bos, tn, ..., t1]."""
    if len(ids) and ids[0] == begin_id:
        return np.concatenate([ids[:1], ids[:0:-1]])
    return ids[::-1]


class LanguageModelWindows:
    """A corpus as `batch_size` parallel streams, cut into windows from one to the next of which the state carries.

    The documents, in an order shuffled for each epoch, are one long text; it is cut into equal streams, and what does
    not fill them is dropped. A window is (tokens, targets), each int64 of shape (time, batch): the target is the next
    token. Window lengths are normal around `window`, AWD-LSTM's varied BPTT; with `shuffle=False` (to evaluate)
    documents keep their order and windows their length. `DataError` when the text is too short for the streams.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        batch_size: int,
        window: int,
        begin_id: int,
        documents: Integers | None = None,
        window_jitter: float = 0.0,
        seed: int = 0,
        reverse: bool = False,
        shuffle: bool = True,
    ) -> None:
        self._corpus = corpus
        self._documents = _checked_documents(corpus, documents)
        self._batch_size = batch_size
        self._window = window
        self._window_jitter = window_jitter if shuffle else 0.0
        self._seed = seed
        self._reverse = reverse
        self._begin_id = begin_id
        self._shuffle = shuffle
        tokens = int(corpus.lengths[self._documents].sum())
        # One more than the inputs, as the last input of the last stream needs its target.
        self._stream_length = (tokens - 1) // batch_size
        if self._stream_length < 1:
            way_out = f"Use a batch size of at most {tokens - 1}" if tokens > 1 else "Add text"
            raise DataError(f"{tokens} tokens of text do not fill {batch_size} streams of 2 tokens or more. {way_out}.")

    @property
    def streams(self) -> int:
        """Number of streams: the width of a batch."""
        return self._batch_size

    @property
    def targets(self) -> int:
        """Number of targets in one epoch."""
        return self._stream_length * self._batch_size

    def steps(self, epoch: int) -> int:
        """Number of windows in this epoch."""
        return len(self._edges(epoch)) - 1

    def epoch(
        self, epoch: int, *, start: int = 0, streams: slice = slice(None)
    ) -> Generator[tuple[Int64s, Int64s], None, None]:
        """The windows of one epoch from step `start` on; `streams` picks columns of the batch, to share it out."""
        for block, edges in self.blocks(epoch, start=start, streams=streams):
            for left, right in pairwise(edges.tolist()):
                yield block[left:right].astype(np.int64), block[left + 1 : right + 1].astype(np.int64)

    def blocks(
        self, epoch: int, *, start: int = 0, streams: slice = slice(None)
    ) -> Generator[tuple[Integers, Int64s], None, None]:
        """The same some dozens at a time, for a device to cut up: ids as stored, (time + 1, streams), and edges.

        Window i of a block has the tokens [edges[i], edges[i + 1]) of it; its targets are the tokens one further.
        """
        edges = self._edges(epoch)
        order = self._documents
        if self._shuffle:
            order = _generator(self._seed, epoch, _ORDER).permutation(order)
        ends = np.cumsum(self._corpus.lengths[order])
        firsts = np.arange(self._batch_size, dtype=np.int64)[streams] * self._stream_length
        steps = len(edges) - 1
        while start < steps:
            room = edges[start] + max(1, _BLOCK_TOKENS // max(1, len(firsts)))
            fitting = int(np.searchsorted(edges, room, side="right")) - 1
            stop = min(max(fitting, start + 1), start + _BLOCK_WINDOWS, steps)
            begin = edges[start]
            block = self._read(order, ends, firsts + begin, int(edges[stop] - begin) + 1)
            yield block, edges[start : stop + 1] - begin
            start = stop

    def _edges(self, epoch: int) -> Int64s:
        """Where the windows of an epoch begin in each stream, and the end: (steps + 1,)."""
        low = max(2, (self._window + 1) // 2)
        if self._window_jitter == 0:
            edges = np.arange(0, self._stream_length, self._window, dtype=np.int64)
        else:
            draws = _generator(self._seed, epoch, _WINDOWS).normal(
                self._window, self._window_jitter, size=self._stream_length // low + 1
            )
            high = self._window + int(4 * self._window_jitter)
            lengths = np.clip(np.rint(draws).astype(np.int64), low, high)
            edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            edges = edges[edges < self._stream_length]
        return np.append(edges, self._stream_length)

    def _read(self, order: Int64s, ends: Int64s, starts: Int64s, length: int) -> Integers:
        """The tokens at `length` places from each start of the shuffled text: (length, starts), as stored.

        The text is never laid out: each stream's stretch is found as pieces of documents, and the pieces' places in
        the file are gathered in one go.
        """
        first = np.searchsorted(ends, starts, side="right")
        last = np.searchsorted(ends, starts + (length - 1), side="right")
        pieces = last - first + 1
        stream = np.repeat(np.arange(len(starts)), pieces)
        place = _ramps(first, pieces)  # of the piece's document in the order
        document = order[place]
        size = self._corpus.lengths[document]
        document_start = ends[place] - size
        left = np.maximum(document_start, starts[stream])
        right = np.minimum(ends[place], starts[stream] + length)
        inside = left - document_start  # the piece's first token within its document
        offset = self._corpus.offsets[document]
        ids = np.asarray(self._corpus.ids)
        if not self._reverse:
            flat = ids[_ramps(offset + inside, right - left)]
        else:
            # Token j of a reversed document is stored at size - 1 - j, or at size - j where a begin token stays first.
            begins = ids[offset] == self._begin_id
            source = _ramps(offset + size - 1 + begins - inside, right - left, step=-1)
            keep = begins & (inside == 0)
            source[(np.cumsum(right - left) - (right - left))[keep]] = offset[keep]
            flat = ids[source]
        return np.ascontiguousarray(flat.reshape(len(starts), length).T)


@dataclass(frozen=True, eq=False)
class DocumentBatch:
    """Documents, longest first: a whole batch, or one share of it."""

    ids: Integers  # (tokens of all documents,), document after document
    lengths: Int64s  # (batch,), never rising
    labels: Int64s | None  # (whole batch,), share after share; -1 where a document has none
    indices: Int64s  # (batch,), the documents' places in the corpus
    padding_id: int

    @cached_property
    def tokens(self) -> Int64s:
        """Padded on the right, (time, batch)."""
        tokens = np.full((int(self.lengths.max(initial=0)), len(self.lengths)), self.padding_id, dtype=np.int64)
        tokens.T[np.arange(len(tokens)) < self.lengths[:, np.newaxis]] = self.ids
        return tokens


class DocumentBatches:
    """Documents of a corpus in batches of like length, each document once an epoch.

    To train (`shuffle=True`) documents are shuffled, sorted by length within pools of 50 batches, and the batches
    shuffled; no batch has a single document, as BatchNorm needs two. To evaluate, documents go by length, longest
    first. `max_tokens` bounds time x batch: batches of longer documents are cut smaller, though never below one
    document (two to train, and a last lone one joins the batch before).
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        batch_size: int,
        begin_id: int,
        padding_id: int,
        documents: Integers | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        reverse: bool = False,
        shuffle: bool = True,
    ) -> None:
        self._corpus = corpus
        self._documents = _checked_documents(corpus, documents)
        self._batch_size = batch_size
        self._begin_id = begin_id
        self._padding_id = padding_id
        self._max_tokens = max_tokens
        self._seed = seed
        self._reverse = reverse
        self._shuffle = shuffle
        if shuffle and batch_size < 2:
            raise ConfigError(f"batch size {batch_size}: a classifier trains on batches of at least 2 documents")
        if shuffle and len(self._documents) < 2:
            raise DataError(f"{len(self._documents)} documents to train on; a classifier needs at least 2.")

    @property
    def documents(self) -> int:
        """Number of documents in one epoch."""
        return len(self._documents)

    def steps(self, epoch: int) -> int:
        """Number of batches in this epoch; with `max_tokens` it varies a little between epochs."""
        return len(self._plan(epoch)[1])

    def epoch(
        self, epoch: int, *, start: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Generator[DocumentBatch, None, None]:
        """The batches of one epoch from step `start` on, or of each the share (number, of how many).

        Documents are dealt out in turn, so that shares are alike in length; one of a small batch may have none. The
        labels are those of the whole batch, share after share.
        """
        number, shares = share
        order, spans = self._plan(epoch)
        for left, right in spans[start:]:
            dealt = [order[left:right][turn::shares] for turn in range(shares)]
            yield self._batch(dealt[number], np.concatenate(dealt))

    def _plan(self, epoch: int) -> tuple[Int64s, Int64s]:
        """The order of documents, (documents,), and each batch's first and end place in it, (steps, 2)."""
        lengths = self._corpus.lengths
        if not self._shuffle:
            order = self._documents[np.argsort(-lengths[self._documents], kind="stable")]
            return order, self._cut(lengths[order], least=1)
        generator = _generator(self._seed, epoch, _ORDER)
        order = generator.permutation(self._documents)
        pool = _POOL_BATCHES * self._batch_size
        # A last pool of one document would be a batch of one: the pool before takes it.
        bounds = [*range(0, max(1, len(order) - 1), pool), len(order)]
        spans = []
        for left, right in pairwise(bounds):
            members = order[left:right]
            order[left:right] = members[np.argsort(-lengths[members], kind="stable")]
            spans.append(left + self._cut(lengths[order[left:right]], least=2))
        return order, generator.permutation(np.concatenate(spans))

    def _cut(self, lengths: Int64s, *, least: int) -> Int64s:
        """Spans of a run of documents that get shorter: (batches, 2), none under `least` documents."""
        edges = [0]
        while edges[-1] < len(lengths):
            size = self._batch_size
            if self._max_tokens is not None:
                size = max(least, min(size, self._max_tokens // int(lengths[edges[-1]])))
            edges.append(min(edges[-1] + size, len(lengths)))
        if len(edges) > 2 and edges[-1] - edges[-2] < least:
            del edges[-2]
        return np.column_stack([edges[:-1], edges[1:]]).astype(np.int64)

    def _batch(self, indices: Int64s, whole: Int64s) -> DocumentBatch:
        documents = self._corpus.documents(indices)
        if self._reverse:
            documents = [reverse_document(ids, begin_id=self._begin_id) for ids in documents]
        ids = np.concatenate(documents) if documents else np.empty(0, dtype=self._corpus.ids.dtype)
        labels = None if self._corpus.labels is None else self._corpus.labels[whole].astype(np.int64)
        return DocumentBatch(ids, self._corpus.lengths[indices], labels, indices.copy(), self._padding_id)


def prefetch(items: Iterable[Item], *, depth: int = 4) -> Generator[Item, None, None]:
    """The same items, made up to `depth` ahead in a thread; its exception is raised here, closing this stops it."""
    ready: queue.Queue[tuple[Item | None, BaseException | None, bool]] = queue.Queue(maxsize=depth)
    stopping = threading.Event()
    iterator = iter(items)

    def produce() -> None:
        try:
            for item in iterator:
                ready.put((item, None, False))
                if stopping.is_set():
                    return
            ready.put((None, None, True))
        except BaseException as error:
            ready.put((None, error, True))
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    thread = threading.Thread(target=produce, name="ulmfit-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = ready.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]  # not the last, so an item
    finally:
        stopping.set()
        while thread.is_alive():  # it may be waiting for room in the queue
            while not ready.empty():
                ready.get_nowait()
            thread.join(timeout=0.01)


def _generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, purpose])


def _checked_documents(corpus: Corpus, documents: Integers | None) -> Int64s:
    if documents is None:
        return np.arange(len(corpus), dtype=np.int64)
    chosen = np.asarray(documents, dtype=np.int64)
    assert chosen.ndim == 1 and (not chosen.size or 0 <= chosen.min() <= chosen.max() < len(corpus)), "no such document"
    return chosen


def _ramps(starts: Integers, counts: Integers, *, step: int = 1) -> Int64s:
    """For each start a run of that count: [s, s + step, ...], one after the other, (sum of counts,)."""
    before = np.cumsum(counts) - counts
    total = int(before[-1] + counts[-1]) if len(counts) else 0
    return np.repeat(starts - step * before, counts) + step * np.arange(total, dtype=np.int64)
