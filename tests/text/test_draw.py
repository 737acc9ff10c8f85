"""A look at how much text there is, and a part of it drawn by chance."""

import random

import numpy as np
import pytest

from ulmfit.text.draw import drawn, look_at, write_chosen
from ulmfit.text.sources import Record, read_records


def records(count):
    return [Record(f"text {number}" * (1 + number % 3), None, "here", number) for number in range(count)]


def test_a_look_counts_all_and_keeps_some():
    everything = records(5_000)
    look = look_at(iter(everything), seed=1)
    assert look.documents == 5_000
    assert look.characters == sum(len(record.text) for record in everything)
    assert len(look.sample) == 2_000
    assert len({record.row for record in look.sample}) == 2_000
    assert look == look_at(iter(everything), seed=1)
    assert look != look_at(iter(everything), seed=2)


def test_every_text_is_as_likely_to_be_looked_at():
    rows = np.concatenate([[record.row for record in look_at(records(4_000), seed=seed).sample] for seed in range(20)])
    # 20 times half of 4,000 rows: each quarter is drawn 10,000 times, give or take a few hundred.
    assert np.histogram(rows, bins=4, range=(0, 4_000))[0] == pytest.approx([10_000] * 4, rel=0.03)


def test_few_texts_are_all_kept_and_long_ones_cut():
    look = look_at([Record("a" * 50_000, "x", "here", 0), Record("b", "y", "here", 1)], seed=0)
    assert look.characters == 50_001
    assert sorted(len(record.text) for record in look.sample) == [1, 10_000]
    assert look_at([], seed=0).documents == 0


def test_fewer_drawn_are_among_more():
    few, more = (set(drawn(count, 100, seed=3).tolist()) for count in (20, 60))
    assert len(few) == 20 and few < more < set(range(100))
    assert few != set(drawn(20, 100, seed=4).tolist())


@pytest.mark.parametrize("count", [1, 7, 5_000, 9_999, 10_000])
def test_the_file_holds_the_drawn_texts_in_their_order(tmp_path, count):
    texts = [str(random.Random(number).random()) for number in range(10_000)]
    for name, part in (("a", texts[:4_000]), ("b", texts[4_000:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["review", *part]) + "\n", encoding="utf-8")
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    out = tmp_path / "drawn.parquet"
    write_chosen(files, out, chosen=drawn(count, 10_000, seed=5), text_column="review")
    written = [record.text for record in read_records([out], text_column="review")]
    assert written == [texts[place] for place in drawn(count, 10_000, seed=5)]


def test_labels_are_written_beside_the_texts(tmp_path):
    (tmp_path / "all.csv").write_text("kind,review\na,one\nb,two\na,three\n", encoding="utf-8")
    out = tmp_path / "chosen.parquet"
    columns = {"text_column": "review", "label_column": "kind"}
    write_chosen([tmp_path / "all.csv"], out, chosen=np.array([0, 1]), **columns)
    assert [(record.text, record.label) for record in read_records([out], **columns)] == [("one", "a"), ("two", "b")]
