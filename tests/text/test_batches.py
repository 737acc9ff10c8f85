"""Batches against brute force: lay out the whole text in numpy, and slice."""

import gc
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulmfit.errors import ConfigError, DataError
from ulmfit.text import batches as batches_module
from ulmfit.text.batches import DocumentBatch, DocumentBatches, LanguageModelWindows, prefetch, reverse_document
from ulmfit.text.corpus import Corpus

BEGIN, PADDING = 2, 1


def make_corpus(lengths, *, labels=None, begin=True):
    """Documents of these lengths in which every token is another number, so that a misplaced one shows."""
    documents, number = [], 3
    for length in lengths:
        body = list(range(number, number + length - begin))
        number += len(body)
        documents.append([BEGIN, *body] if begin else body)
    return Corpus.from_documents(documents, vocab_size=number + 1, labels=labels)


def windows(corpus, **settings):
    return LanguageModelWindows(
        corpus, **{"batch_size": 4, "window": 10, "window_jitter": 2.0, "seed": 7, "begin_id": BEGIN, **settings}
    )


def streams_of(batches):
    """All inputs and all targets of an epoch, (time, batch) each."""
    pairs = list(batches)
    return np.concatenate([tokens for tokens, _ in pairs]), np.concatenate([targets for _, targets in pairs])


def brute_force_streams(corpus, batch_size, *, reverse=False):
    """Inputs and targets of documents in order, from one array of the whole text."""
    documents = [corpus.document(index) for index in range(len(corpus))]
    if reverse:
        documents = [reverse_document(document, begin_id=BEGIN) for document in documents]
    text = np.concatenate(documents).astype(np.int64)
    steps = (len(text) - 1) // batch_size
    inputs = text[: steps * batch_size].reshape(batch_size, steps).T
    targets = text[1 : steps * batch_size + 1].reshape(batch_size, steps).T
    return inputs, targets


shapes = st.tuples(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 5),  # batch size
    st.integers(2, 17),  # window
    st.booleans(),  # reverse
    st.booleans(),  # begin tokens
)


@settings(deadline=None, max_examples=150)
@given(shapes)
def test_windows_in_order_are_the_whole_text_cut_into_streams(shape):
    lengths, batch_size, window, reverse, begin = shape
    corpus = make_corpus(lengths, begin=begin and min(lengths) > 0)
    if corpus.tokens - 1 < batch_size:
        return
    found = streams_of(windows(corpus, batch_size=batch_size, window=window, reverse=reverse, shuffle=False).epoch(0))
    expected = brute_force_streams(corpus, batch_size, reverse=reverse)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_blocks_smaller_than_an_epoch_change_nothing(monkeypatch):
    corpus = make_corpus(np.random.default_rng(0).integers(1, 60, 200))
    expected = [(a.tolist(), b.tolist()) for a, b in windows(corpus, reverse=True).epoch(3)]
    for block_windows, block_tokens in ((1, 1 << 20), (3, 1 << 20), (64, 1), (64, 97)):
        monkeypatch.setattr(batches_module, "_BLOCK_WINDOWS", block_windows)
        monkeypatch.setattr(batches_module, "_BLOCK_TOKENS", block_tokens)
        assert [(a.tolist(), b.tolist()) for a, b in windows(corpus, reverse=True).epoch(3)] == expected


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(0, 3))
def test_every_token_is_a_target_once_an_epoch_but_for_the_first_and_the_dropped_tail(shape, epoch):
    lengths, batch_size, window, reverse, _ = shape
    corpus = make_corpus(lengths, begin=False)
    if corpus.tokens - 1 < batch_size:
        return
    source = windows(corpus, batch_size=batch_size, window=window, reverse=reverse)
    _, targets = streams_of(source.epoch(epoch))
    values, counts = np.unique(targets, return_counts=True)
    assert (counts == 1).all()
    assert source.targets == targets.size == len(values)
    assert 1 <= corpus.tokens - len(values) <= batch_size
    assert np.isin(values, corpus.ids).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_shuffled_windows_hold_whole_documents_in_another_order(reverse):
    corpus = make_corpus(np.random.default_rng(1).integers(2, 30, 50))
    tokens, _ = streams_of(windows(corpus, batch_size=1, reverse=reverse).epoch(0))
    text = tokens.T.ravel().tolist()
    starts = [place for place, token in enumerate(text) if token == BEGIN]
    found = [tuple(text[left:right]) for left, right in pairwise(starts)]
    documents = [corpus.document(index) for index in range(len(corpus))]
    if reverse:
        documents = [reverse_document(document, begin_id=BEGIN) for document in documents]
    known = [tuple(document.tolist()) for document in documents]
    assert set(found) < set(known)
    assert len(set(found)) == len(found) == len(known) - 1  # the last one lost its last token to the targets
    assert found != known[:-1]


def test_the_state_may_carry_each_window_begins_with_the_last_target_of_the_one_before():
    corpus = make_corpus(np.random.default_rng(2).integers(1, 80, 100))
    pairs = list(windows(corpus).epoch(1))
    assert len(pairs) > 20
    for (tokens, targets), (next_tokens, _) in pairwise(pairs):
        np.testing.assert_array_equal(tokens[1:], targets[:-1])
        np.testing.assert_array_equal(next_tokens[0], targets[-1])


def test_windows_are_int64_time_major_and_independent_of_each_other():
    corpus = make_corpus([100] * 10)
    first, second = list(windows(corpus).epoch(0))[:2]
    for array in (*first, *second):
        assert array.dtype == np.int64
        assert array.flags.c_contiguous
        assert array.shape[1] == 4
    kept = first[1].copy(), second[0].copy()
    first[0][:] = 0
    np.testing.assert_array_equal(first[1], kept[0])
    np.testing.assert_array_equal(second[0], kept[1])


@pytest.mark.parametrize("start", [0, 1, 17, 63, 64, 65, 100, 10_000])
@pytest.mark.parametrize("shuffle", [False, True])
def test_starting_at_a_step_equals_skipping_those_before(start, shuffle):
    corpus = make_corpus(np.random.default_rng(3).integers(1, 90, 120))
    source = windows(corpus, shuffle=shuffle)
    whole = list(source.epoch(5))
    resumed = list(source.epoch(5, start=start))
    assert len(whole) == source.steps(5)
    assert len(resumed) == max(0, len(whole) - start)
    for expected, found in zip(whole[start:], resumed, strict=True):
        np.testing.assert_array_equal(expected[0], found[0])
        np.testing.assert_array_equal(expected[1], found[1])


def test_the_same_seed_gives_the_same_windows_and_epochs_and_seeds_differ():
    corpus = make_corpus([30] * 40)
    flat = lambda source, epoch: [tokens.tolist() for tokens, _ in source.epoch(epoch)]  # noqa: E731
    assert flat(windows(corpus), 0) == flat(windows(corpus), 0)
    assert flat(windows(corpus), 0) != flat(windows(corpus), 1)
    assert flat(windows(corpus), 0) != flat(windows(corpus, seed=8), 0)


def test_window_lengths_vary_around_the_window_within_bounds():
    corpus = make_corpus([1000] * 40)
    lengths = [len(tokens) for tokens, _ in windows(corpus, window=20, window_jitter=3.0).epoch(0)]
    assert min(lengths[:-1]) >= 10
    assert max(lengths) <= 32
    assert abs(np.mean(lengths[:-1]) - 20) < 0.5
    assert abs(np.std(lengths[:-1]) - 3) < 0.5
    assert lengths[-1] >= 1
    steady = [len(tokens) for tokens, _ in windows(corpus, window=21, window_jitter=0.0).epoch(0)]
    assert set(steady[:-1]) == {21}
    assert sum(steady) == sum(lengths)


def test_without_shuffling_neither_epoch_nor_jitter_matters():
    corpus = make_corpus([30] * 40)
    source = windows(corpus, shuffle=False, window_jitter=5.0)
    first, later = list(source.epoch(0)), list(source.epoch(9))
    assert {len(tokens) for tokens, _ in first[:-1]} == {10}
    assert [tokens.tolist() for tokens, _ in first] == [tokens.tolist() for tokens, _ in later]


def test_only_the_chosen_documents_are_read():
    corpus = make_corpus([10, 20, 30, 40], begin=False)
    chosen = np.array([3, 1])
    tokens, targets = streams_of(windows(corpus, documents=chosen, batch_size=1, shuffle=False).epoch(0))
    text = np.concatenate([corpus.document(3), corpus.document(1)])
    np.testing.assert_array_equal(tokens[:, 0], text[:-1])
    np.testing.assert_array_equal(targets[:, 0], text[1:])


def test_backward_windows_are_the_forward_windows_of_reversed_documents():
    corpus = make_corpus(np.random.default_rng(4).integers(1, 50, 80))
    backwards = Corpus.from_documents(
        [[BEGIN, *corpus.document(index)[:0:-1].tolist()] for index in range(len(corpus))],
        vocab_size=corpus.vocab_size,
    )
    for epoch in range(3):
        for found, expected in zip(
            windows(corpus, reverse=True).epoch(epoch), windows(backwards).epoch(epoch), strict=True
        ):
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_streams_shared_out_by_columns_make_up_the_whole_batch():
    corpus = make_corpus([37] * 60)
    source = windows(corpus, batch_size=6)
    parts = [source.epoch(2, streams=slice(left, left + 2)) for left in (0, 2, 4)]
    for whole, *pieces in zip(source.epoch(2), *parts, strict=True):
        np.testing.assert_array_equal(whole[0], np.concatenate([tokens for tokens, _ in pieces], axis=1))
        np.testing.assert_array_equal(whole[1], np.concatenate([targets for _, targets in pieces], axis=1))


def test_too_little_text_for_the_streams_is_an_error_that_names_the_batch_size_that_fits():
    corpus = make_corpus([5, 4])
    with pytest.raises(DataError, match=r"^9 tokens .* 9 streams .* at most 8\.$"):
        windows(corpus, batch_size=9)
    assert windows(corpus, batch_size=8).targets == 8
    with pytest.raises(DataError, match="Add text"):
        windows(corpus, batch_size=1, documents=np.array([], dtype=int))


def test_windows_of_a_mapped_corpus_leave_its_file_unread_beyond_the_block(tmp_path: Path):
    ids = np.arange(3, 100_003, dtype="<u4")
    ids.tofile(tmp_path / "ids.bin")
    mapped = np.memmap(tmp_path / "ids.bin", dtype="<u4", mode="r")
    offsets = np.arange(0, 100_001, 50)
    corpus = Corpus(ids=mapped, offsets=offsets, vocab_size=100_003, fingerprint="")
    for tokens, targets in windows(corpus, batch_size=8).epoch(0):
        assert type(tokens) is type(targets) is np.ndarray


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([2, 5, 6, 7], [2, 7, 6, 5]), ([2, 5], [2, 5]), ([2], [2]), ([], []), ([5, 6, 7], [7, 6, 5])],
)
def test_a_reversed_document_keeps_its_begin_token_first_and_twice_reversed_is_itself(ids, expected):
    ids = np.array(ids, dtype=np.uint16)
    found = reverse_document(ids, begin_id=BEGIN)
    assert found.tolist() == expected
    assert found.dtype == ids.dtype
    assert reverse_document(found, begin_id=BEGIN).tolist() == ids.tolist()


# --- document batches -----------------------------------------------------------------------------------------------


def document_batches(corpus, **settings) -> DocumentBatches:
    return DocumentBatches(corpus, **{"batch_size": 4, "seed": 7, "begin_id": BEGIN, "padding_id": PADDING, **settings})


def assert_sound(batch: DocumentBatch, corpus, *, reverse=False):
    """The batch against its documents, one by one."""
    assert batch.tokens.shape == (batch.lengths.max(), len(batch.indices))
    assert batch.tokens.dtype == batch.lengths.dtype == batch.indices.dtype == np.int64
    assert batch.tokens.flags.c_contiguous
    assert (np.diff(batch.lengths) <= 0).all()
    for column, index in enumerate(batch.indices):
        document = corpus.document(index)
        if reverse:
            document = reverse_document(document, begin_id=BEGIN)
        assert batch.lengths[column] == len(document)
        np.testing.assert_array_equal(batch.tokens[: len(document), column], document)
        assert (batch.tokens[len(document) :, column] == PADDING).all()
        if corpus.labels is not None:
            assert batch.labels[column] == corpus.labels[index]


batch_shapes = st.tuples(
    st.lists(st.integers(1, 40), min_size=2, max_size=60),
    st.integers(2, 7),  # batch size
    st.sampled_from([None, 1, 30, 90]),  # max tokens
    st.booleans(),  # shuffle
    st.booleans(),  # reverse
    st.sampled_from([1, 2, 50]),  # batches in a pool
)


@settings(deadline=None, max_examples=200)
@given(batch_shapes)
def test_every_document_comes_once_an_epoch_sound_and_never_alone_in_training(shape):
    lengths, batch_size, max_tokens, shuffle, reverse, pool = shape
    corpus = make_corpus(lengths, labels=np.arange(len(lengths)) % 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "_POOL_BATCHES", pool)
        source = document_batches(
            corpus, batch_size=batch_size, max_tokens=max_tokens, shuffle=shuffle, reverse=reverse
        )
        found = list(source.epoch(1))
        assert len(found) == source.steps(1)
    for batch in found:
        assert_sound(batch, corpus, reverse=reverse)
        size = len(batch.indices)
        assert 1 + shuffle <= size <= batch_size + shuffle
        if max_tokens is not None and size > 1 + 2 * shuffle:
            assert batch.tokens.size <= max_tokens + shuffle * len(batch.tokens)  # a merged one is one document wider
    assert sorted(np.concatenate([batch.indices for batch in found])) == list(range(len(lengths)))


def test_starting_at_a_batch_equals_skipping_those_before():
    corpus = make_corpus(np.random.default_rng(5).integers(1, 60, 101))
    for settings_ in ({}, {"shuffle": False}, {"max_tokens": 100}):
        source = document_batches(corpus, **settings_)
        whole = [batch.tokens.tolist() for batch in source.epoch(3)]
        assert [batch.tokens.tolist() for batch in source.epoch(3, start=9)] == whole[9:]


@settings(deadline=None)
@given(batch_shapes, st.integers(2, 9))
def test_shares_of_a_batch_are_dealt_out_in_turn_and_know_the_labels_of_all(shape, shares):
    lengths, batch_size, max_tokens, shuffle, reverse, _ = shape
    corpus = make_corpus(lengths, labels=np.arange(len(lengths)))
    source = document_batches(corpus, batch_size=batch_size, max_tokens=max_tokens, shuffle=shuffle, reverse=reverse)
    dealt = [source.epoch(1, share=(number, shares)) for number in range(shares)]
    for whole, *parts in zip(source.epoch(1), *dealt, strict=True):
        for number, part in enumerate(parts):
            assert part.indices.tolist() == whole.indices[number::shares].tolist()
            assert part.tokens.shape == (part.lengths.max(initial=0), len(part.indices))
            for column, index in enumerate(part.indices):
                place = whole.indices.tolist().index(index)
                np.testing.assert_array_equal(part.tokens[:, column], whole.tokens[: len(part.tokens), place])
            assert part.labels.tolist() == np.concatenate([part.indices for part in parts]).tolist()


def test_the_same_seed_gives_the_same_batches_and_epochs_and_seeds_differ():
    corpus = make_corpus(np.random.default_rng(6).integers(1, 60, 100))
    flat = lambda source, epoch: [batch.indices.tolist() for batch in source.epoch(epoch)]  # noqa: E731
    assert flat(document_batches(corpus), 0) == flat(document_batches(corpus), 0)
    assert flat(document_batches(corpus), 0) != flat(document_batches(corpus), 1)
    assert flat(document_batches(corpus), 0) != flat(document_batches(corpus, seed=8), 0)


def test_evaluation_goes_from_the_longest_document_to_the_shortest():
    corpus = make_corpus(np.random.default_rng(7).integers(1, 60, 41))
    found = list(document_batches(corpus, shuffle=False).epoch(0))
    assert [len(batch.indices) for batch in found] == [4] * 10 + [1]
    lengths = np.concatenate([batch.lengths for batch in found])
    np.testing.assert_array_equal(lengths, np.sort(corpus.lengths)[::-1])


def test_training_batches_hold_documents_of_like_length_with_little_padding():
    corpus = make_corpus(np.random.default_rng(8).integers(10, 300, 2000))
    source = document_batches(corpus, batch_size=32)
    padded = sum(batch.tokens.size for batch in source.epoch(0))
    assert padded < 1.05 * corpus.tokens
    means = [batch.lengths.mean() for batch in source.epoch(0)]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.4  # and come in no order of length


def test_the_last_lone_document_joins_the_batch_before():
    corpus = make_corpus([5] * 9)
    assert sorted(len(batch.indices) for batch in document_batches(corpus).epoch(0)) == [4, 5]
    one_pool_and_one = make_corpus([5] * (50 * 4 + 1))
    assert max(len(batch.indices) for batch in document_batches(one_pool_and_one).epoch(0)) == 5
    assert min(len(batch.indices) for batch in document_batches(one_pool_and_one).epoch(0)) == 4


def test_training_on_one_document_or_in_batches_of_one_is_an_error():
    corpus = make_corpus([5, 5])
    with pytest.raises(DataError, match="1 documents to train on"):
        document_batches(corpus, documents=np.array([1]))
    with pytest.raises(ConfigError, match="batch size 1"):
        document_batches(corpus, batch_size=1)
    assert len(list(document_batches(corpus, batch_size=1, shuffle=False).epoch(0))) == 2


def test_only_chosen_documents_come_with_their_places_in_the_corpus():
    corpus = make_corpus([5, 9, 7, 3], labels=[0, 1, 2, -1])
    (batch,) = document_batches(corpus, documents=np.array([1, 3, 2]), shuffle=False).epoch(0)
    assert batch.indices.tolist() == [1, 2, 3]
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 2, -1]
    (unlabelled,) = document_batches(make_corpus([5, 9]), shuffle=False).epoch(0)
    assert unlabelled.labels is None


def test_no_documents_are_no_batches_in_evaluation():
    empty = Corpus.from_documents([], vocab_size=5)
    assert list(document_batches(empty, shuffle=False).epoch(0)) == []
    assert document_batches(empty, shuffle=False).steps(0) == 0


# --- prefetch -------------------------------------------------------------------------------------------------------


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "ulmfit-prefetch"]


def test_prefetch_gives_the_same_items_in_order_and_ends_its_thread():
    assert list(prefetch(range(100), depth=3)) == list(range(100))
    assert list(prefetch([])) == []
    assert list(prefetch([None, None])) == [None, None]
    assert prefetch_threads() == []


def test_prefetch_raises_what_its_source_raised_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise DataError("the third is damaged")

    found = []
    with pytest.raises(DataError, match="third"):
        for item in prefetch(source()):
            found.append(item)
    assert found == [1, 2]
    assert prefetch_threads() == []


@pytest.mark.parametrize("depth", [1, 4])
def test_closing_or_dropping_prefetch_stops_the_thread_and_closes_the_source(depth):
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = prefetch(endless(), depth=depth)
    next(items)
    items.close()
    assert closed.is_set()
    assert prefetch_threads() == []

    closed.clear()
    for _ in (dropped := prefetch(endless(), depth=depth)):
        break
    del dropped
    gc.collect()
    assert closed.wait(5)
    assert prefetch_threads() == []


def test_prefetch_runs_ahead_by_no_more_than_its_depth():
    made = []
    items = prefetch((made.append(number) or number for number in range(100)), depth=3)
    assert next(items) == 0
    time.sleep(0.1)
    assert len(made) <= 1 + 3 + 1  # taken, waiting, in the thread's hand
    items.close()
