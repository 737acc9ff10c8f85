"""Documents through a classifier, however many and however long: what its encoder makes of them, and their classes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ulmfit.compute import cpu_products, in_threads
from ulmfit.config import Direction
from ulmfit.learning.setting import on_device
from ulmfit.models.classifier import Classifier, encode_documents
from ulmfit.models.encoder import Encoder
from ulmfit.models.lanes import read_in_lanes
from ulmfit.text.batches import DocumentBatch, DocumentBatches, reverse_document
from ulmfit.text.corpus import Corpus
from ulmfit.text.tokenizer import Tokenizer
from ulmfit.training.distributed import ALONE, Processes

EVALUATION_DOCUMENTS = {"cpu": 96, "cuda": 2**12}
"""documents of a batch in evaluation"""
EVALUATION_TOKENS = {"cpu": 2**20, "cuda": 2**23}
"""and its tokens, padding included, at most; a window holds few of them"""
GPU_WINDOW = 32
"""few steps, as many documents are read at once; where there are fewer, a GPU reads several windows together"""
INT8_LONGEST = 2**10
"""steps of a window in int8, at most: the shorter, the less memory a long document takes"""
INT8_THREAD_DOCUMENTS = 64
"""documents from which on each thread has its own in int8; of fewer, threads read layers side by side, as fast"""
INT8_CHUNK = 4096
"""documents whose pooled outputs are held at once"""


class Lanes(NamedTuple):
    """How many documents one thread reads at once in int8, and in what windows."""

    most: int
    shortest: int
    """steps of a window"""
    window_tokens: int
    """in a window, if it can be: the fewer, the less is padding"""


BY_ROWS = Lanes(96, 8, 2**11)
"""where few rows are multiplied as fast as many, and lanes that are fewer are busy for longer"""
OTHERWISE = Lanes(256, 16, 2**12)
"""where few are multiplied more slowly, and what is done around a window costs more beside the products"""


def padded(batch: DocumentBatch, device: torch.device) -> Tensor:
    """The batch's tokens (time, batch) on the device; a GPU is sent what there is to read and pads it there."""
    if device.type != "cuda":
        return torch.from_numpy(batch.tokens)
    ids = on_device(device, batch.ids.astype(np.int32))
    lengths = on_device(device, batch.lengths)
    shape = (len(batch.lengths), int(batch.lengths.max(initial=0)))
    real = torch.arange(shape[1], device=device) < lengths.unsqueeze(1)
    return torch.full(shape, batch.padding_id, device=device).masked_scatter_(real, ids.long()).t()


def classify_documents(
    model: Classifier,
    corpus: Corpus,
    documents: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    *,
    direction: Direction,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    weights: Any = None,
    processes: Processes = ALONE,
) -> Tensor:
    """Logits (documents, classes) on the CPU, in the documents' own order, whatever their lengths.

    `weights` are what the model's encoder prepared in `dtype`, where the caller keeps them. Several processes share the
    documents and each gets the logits of all.
    """
    reading = _Reading(model, corpus, _chosen(corpus, documents), direction, tokenizer, dtype, weights, processes)
    return reading.gather(model.config.head.classes, then=model.head)


def pool_documents(
    model: Classifier,
    corpus: Corpus,
    documents: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    *,
    direction: Direction,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    processes: Processes = ALONE,
) -> Tensor:
    """What the head is given of each document, (documents, 3 * output_size) in float32 on the CPU; see above."""
    reading = _Reading(model, corpus, _chosen(corpus, documents), direction, tokenizer, dtype, None, processes)
    return reading.gather(3 * model.encoder.output_size, then=lambda pooled: pooled)


def _chosen(
    corpus: Corpus, documents: np.ndarray[Any, np.dtype[np.int64]] | None
) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.arange(len(corpus)) if documents is None else documents


@dataclass(frozen=True, slots=True)
class _Reading:
    """Some documents to be read once, by as many processes as share them."""

    model: Classifier
    corpus: Corpus
    documents: np.ndarray[Any, np.dtype[np.int64]]
    direction: Direction
    tokenizer: Tokenizer
    dtype: torch.dtype
    weights: Any
    processes: Processes

    def gather(self, size: int, *, then: Callable[[Tensor], Tensor]) -> Tensor:
        """`then` of the pooled outputs of all documents, in their own order: (documents, size) on the CPU."""
        gathered = torch.zeros(len(self.documents), size)
        with torch.inference_mode():
            weights = self.weights or self.model.encoder.prepare(self.dtype)
            in_lanes = self.dtype == torch.int8 and next(self.model.parameters()).device.type == "cpu"
            for places, pooled in (self._in_lanes if in_lanes else self._in_batches)(weights):
                gathered[torch.from_numpy(places)] = then(pooled).cpu()
        self.processes.sum([gathered])
        return gathered

    def _in_batches(self, weights: Any) -> Iterator[tuple[np.ndarray[Any, np.dtype[np.int64]], Tensor]]:
        """Places and pooled outputs of this process's share, in batches of like length."""
        device = next(self.model.parameters()).device
        batches = DocumentBatches(
            self.corpus,
            documents=self.documents,
            batch_size=EVALUATION_DOCUMENTS[device.type],
            max_tokens=EVALUATION_TOKENS[device.type],
            shuffle=False,
            reverse=self.direction == "backward",
            begin_id=self.tokenizer.begin_id,
            padding_id=self.tokenizer.padding_id,
        )
        place = np.empty(len(self.corpus), dtype=np.int64)
        place[self.documents] = np.arange(len(self.documents))
        for batch in batches.epoch(0, share=(self.processes.rank, self.processes.size)):
            encoded = encode_documents(
                self.model.encoder,
                padded(batch, device),
                torch.from_numpy(batch.lengths),
                # Nothing is drawn at random and nothing learnt, so where windows end makes no difference but to speed.
                window=GPU_WINDOW if device.type == "cuda" else self.model.config.window,
                horizon=self.model.config.horizon,
                dtype=self.dtype,
                weights=weights,
            )
            yield place[batch.indices], encoded.pooled

    def _in_lanes(self, weights: Any) -> Iterator[tuple[np.ndarray[Any, np.dtype[np.int64]], Tensor]]:
        """The same in int8, where no document's numbers depend on its company or its windows."""
        lengths = self.corpus.lengths[self.documents]
        order = np.argsort(-lengths, kind="stable")[self.processes.rank :: self.processes.size]

        def document(place: int) -> np.ndarray[Any, Any]:
            ids = self.corpus.document(int(self.documents[order[place]]))
            backward = self.direction == "backward"
            return reverse_document(ids, begin_id=self.tokenizer.begin_id) if backward else ids

        for start in range(0, len(order), INT8_CHUNK):
            places = range(start, min(start + INT8_CHUNK, len(order)))
            pooled = _pool_in_lanes(self.model.encoder, weights, document, places)
            yield order[places.start : places.stop], pooled


def _pool_in_lanes(
    encoder: Encoder, weights: Any, document: Callable[[int], np.ndarray[Any, Any]], places: range
) -> Tensor:
    """Pooled outputs (places, 3 * output_size) of documents that get shorter from place to place.

    With documents enough each thread reads its own. The longest are dealt out to the threads' lanes in turn, and who
    is done with one takes the longest that is left: so all end at about the same time.
    """
    pooled = torch.empty(len(places), 3 * encoder.output_size)
    threads = max(1, min(torch.get_num_threads(), len(places) // INT8_THREAD_DOCUMENTS))
    setting = OTHERWISE if cpu_products() in {"amx", None} else BY_ROWS
    lanes = min(setting.most, -(-len(places) // threads))
    dealt, left = places[: threads * lanes], deque(places[threads * lanes :])

    def read(own: deque[int]) -> None:
        def take() -> tuple[int, np.ndarray[Any, Any]] | None:
            try:
                place = own.popleft() if own else left.popleft()
            except IndexError:
                return None
            return place - places.start, document(place)

        with torch.inference_mode():  # each thread has a mode of its own
            for numbers, rows in read_in_lanes(
                encoder,
                weights,
                take,
                lanes=lanes,
                shortest=setting.shortest,
                longest=INT8_LONGEST,
                window_tokens=setting.window_tokens,
            ):
                pooled[numbers] = rows

    in_threads(read, [deque(dealt[number::threads]) for number in range(threads)])
    return pooled
