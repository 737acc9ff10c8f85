"""How documents are shared out among the threads that read them in int8 on a CPU."""

import threading

import numpy as np
import pytest
import torch

from ulmfit.learning import reading


@pytest.mark.parametrize("documents", [127, 130, 700])
def test_threads_have_about_as_much_to_read_and_nothing_is_read_twice(monkeypatch, threads, documents):
    """Each begins when both are there: the first one must not have taken all by then."""
    lengths = np.sort(np.random.default_rng(0).lognormal(5, 0.75, documents).astype(int) + 1)[::-1]
    expected = 2 if documents >= 2 * reading.INT8_THREAD_DOCUMENTS else 1
    both, begun = threading.Barrier(expected), []

    class Encoder:
        output_size = 1

    def read_in_lanes(encoder, weights, take, *, lanes, **limits):
        first = [take() for _ in range(lanes)]
        begun.append(sum(len(ids) for _, ids in first))
        both.wait(timeout=20)
        numbers = [number for number, _ in first]
        while (found := take()) is not None:
            numbers.append(found[0])
        yield torch.tensor(numbers), torch.tensor(numbers, dtype=torch.float32).unsqueeze(1).expand(-1, 3)

    monkeypatch.setattr(reading, "read_in_lanes", read_in_lanes)
    with threads(2):
        pooled = reading._pool_in_lanes(
            Encoder(), None, lambda place: np.zeros(lengths[place - 5]), range(5, 5 + documents)
        )
    assert torch.equal(pooled[:, 0], torch.arange(documents, dtype=torch.float32))
    assert len(begun) == expected
    assert max(begun) <= 1.15 * min(begun)
