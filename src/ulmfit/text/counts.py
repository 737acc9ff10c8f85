"""How often each token occurs in texts: one pass, all processes, bounded memory."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from itertools import chain, islice

from ulmfit.errors import TokenizerError
from ulmfit.text.child_processes import end_with_parent
from ulmfit.text.chunks import split_chunks
from ulmfit.text.fields import split_fields
from ulmfit.text.memo import Memo
from ulmfit.text.words import chunk_texts

_BATCH = 4_000_000  # characters: about a third of a second of work, and a few MB of counts to send back
_WORTH_PROCESSES = 8  # batches; starting processes takes longer than counting less
MOST_COUNTED = 5_000_000  # distinct tokens, about 600 MB


def count_tokens(texts: Iterable[str], *, whole_runs: bool = False, processes: int | None = None) -> Counter[str]:
    """Counts of the tokens of all texts, markers included, the most frequent first and equal ones alphabetical.

    Memory is bounded: with over 5 million distinct tokens the rarest are forgotten, so that the counts of rare tokens
    are too low. `processes` (default: the cores at hand) changes the time and not the result. Worker processes start
    afresh, as `multiprocessing` wants it: a script that calls this guards its main part. `whole_runs` counts letters of
    scripts without spaces together, for a subword model to divide.
    """
    batches = _batches(texts)
    first = list(islice(batches, _WORTH_PROCESSES))
    workers = processes if processes is not None else _cores()
    count = partial(_count_batch, whole_runs=whole_runs)
    total: Counter[str] = Counter()
    parallel = workers > 1 and len(first) == _WORTH_PROCESSES
    everything = chain(first, batches)
    del first
    for counts in _in_processes(count, everything, workers) if parallel else map(count, everything):
        total.update(counts)
        if len(total) > MOST_COUNTED:
            total = _pruned(total)
    return Counter(dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of so many characters, the same however many processes there are."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_processes(count: partial[Counter[str]], batches: Iterable[list[str]], processes: int) -> Iterator[Counter[str]]:
    """`map(count, batches)` by worker processes, with two batches a worker on their way and no more."""
    context = multiprocessing.get_context("spawn")  # fork is unsafe once a library has started threads
    with ProcessPoolExecutor(processes, context, initializer=end_with_parent) as executor:
        under_way: deque[Future[Counter[str]]] = deque()
        try:
            for batch in batches:
                under_way.append(executor.submit(count, batch))
                if len(under_way) >= 2 * processes:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool:
            raise TokenizerError(
                f"tokenizer: one of {processes} counting processes ended early; if a script started them, put its main "
                'part under if __name__ == "__main__", or pass processes=1 (which needs less memory, too).'
            ) from None


def _count_batch(texts: list[str], *, whole_runs: bool) -> Counter[str]:
    """Fields are counted at C speed; each distinct one is then divided into tokens once."""
    fields = Counter(chain.from_iterable(map(split_fields, texts)))
    tokens_of = _chunk_memo(whole_runs)
    total: Counter[str] = Counter()
    for field, count in fields.items():
        for chunk in split_chunks(field):
            for token in tokens_of[chunk]:
                total[token] += count
    return total


@cache
def _chunk_memo(whole_runs: bool) -> Memo[tuple[str, ...]]:
    """One per process, kept from batch to batch."""
    return Memo(partial(chunk_texts, whole_runs=whole_runs))


def _pruned(counts: Counter[str]) -> Counter[str]:
    """At most half as many as are counted, by leaving out the rarest."""
    least = 1
    while len(counts) > MOST_COUNTED // 2:
        least += 1
        counts = Counter({token: count for token, count in counts.items() if count >= least})
    return counts


def _cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
