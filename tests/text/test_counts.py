from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from ulmfit.text import counts
from ulmfit.text.counts import count_tokens
from ulmfit.text.fields import locate_tokens
from ulmfit.text.words import chunk_tokens

TEXTS = ["The film, the FILM!", "It's good good good good.", "soooo<br />good &amp; bad", "", "今天天气"] * 7


def test_counts_are_those_of_the_tokens_one_by_one() -> None:
    expected = Counter(token.text for text in TEXTS for token in locate_tokens(text, chunk_tokens))
    assert count_tokens(TEXTS) == expected
    assert expected["xxwrep"] == 7


def test_most_frequent_come_first_and_equal_ones_in_alphabetical_order() -> None:
    assert list(count_tokens(["b a c c", "d a"]).items()) == [("a", 2), ("c", 2), ("b", 1), ("d", 1)]


def test_whole_runs_are_counted_as_one() -> None:
    assert count_tokens(["今天天气 ok"], whole_runs=True) == {"今天天气": 1, "ok": 1}


def test_texts_are_read_once_and_none_is_none() -> None:
    assert count_tokens(iter(TEXTS)) == count_tokens(TEXTS)
    assert count_tokens([]) == {}


def test_processes_change_nothing_in_the_result_nor_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "_BATCH", 100)
    alone, together = count_tokens(TEXTS * 5, processes=1), count_tokens(TEXTS * 5, processes=2)
    assert list(alone.items()) == list(together.items())


def test_texts_are_drawn_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "_BATCH", 10)
    drawn = 0
    ahead = []

    def texts() -> Iterator[str]:
        nonlocal drawn
        for _ in range(500):
            drawn += 1
            yield "twenty characters or"

    original = counts._count_batch

    def watched(batch: list[str], *, whole_runs: bool) -> Counter[str]:
        ahead.append(drawn)
        return original(batch, whole_runs=whole_runs)

    monkeypatch.setattr(counts, "_count_batch", watched)
    assert count_tokens(texts(), processes=1)["twenty"] == 500
    assert max(drawn_then - place for place, drawn_then in enumerate(ahead)) <= 10


def test_with_too_many_distinct_tokens_the_rarest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "_BATCH", 10)
    monkeypatch.setattr(counts, "MOST_COUNTED", 50)
    texts = [f"often often word{place}" for place in range(400)]
    found = count_tokens(texts, processes=1)
    assert found["often"] == 800
    assert len(found) <= 50
