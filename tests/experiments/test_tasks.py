"""Data sets are found by name, and their splits are sound, the same every time, and within the limits."""

import csv
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ulmfit.errors import ConfigError, DataError
from ulmfit.experiments.tasks import OFFICIAL_CSV, PARQUET, Limits, prepare, task_named, task_of_files
from ulmfit.text.sources import read_records


def rows(path):
    table = pq.read_table(path).to_pydict()
    return list(zip(table["text"], table.get("label", [""] * len(table["text"])), strict=True))


@pytest.fixture
def task(tiny):
    return task_of_files(tiny.labelled, unlabelled=[tiny.unlabelled], test=tiny.test)


def test_the_splits_are_the_files_and_two_parts_of_the_labelled_one(tiny, task, tmp_path):
    data = prepare(task, tmp_path)
    assert Counter(rows(data.split("train"))) == Counter(tiny.reviews(120, seed=2))
    assert Counter(rows(data.split("test"))) == Counter(tiny.reviews(100, seed=4))
    parts = [rows(data.split(name)) for name in ("learn", "valid")]
    assert Counter(parts[0] + parts[1]) == Counter(rows(data.split("train")))
    assert [Counter(label for _, label in part) for part in parts] == [
        {"good": 45, "bad": 45},
        {"good": 15, "bad": 15},
    ]
    texts = [record.text for record in read_records(data.texts)]
    assert Counter(texts) == Counter(
        text for count, seed in ((120, 2), (80, 3)) for text, _ in tiny.reviews(count, seed=seed)
    )
    assert data.characters == sum(map(len, texts))


def test_without_a_test_file_a_fifth_is_set_aside(tiny, tmp_path):
    data = prepare(task_of_files(tiny.labelled), tmp_path)
    assert data.counts == {"train": 96, "learn": 72, "valid": 24, "test": 24, "unlabelled": 0}
    assert data.texts == [data.split("train")]
    everything = rows(data.split("train")) + rows(data.split("test"))
    assert Counter(everything) == Counter(tiny.reviews(120, seed=2))


def test_draws_keep_the_shares_of_classes_and_differ_by_seed(task, tmp_path):
    data = prepare(task, tmp_path)
    draws = [rows(data.draw("test", 20, seed=seed)) for seed in (0, 1)]
    assert draws[0] != draws[1]
    assert rows(data.draw("test", 20, seed=0)) == draws[0]
    for draw in draws:
        assert Counter(label for _, label in draw) == {"good": 10, "bad": 10}
        assert not Counter(draw) - Counter(rows(data.split("train")))
    assert data.draw("valid", 90, seed=0) == data.draw("valid", None, seed=5) == data.split("learn")


def test_limits_take_fewer_and_turn_labelled_documents_that_are_left_into_text(tiny, task, tmp_path):
    data = prepare(task, tmp_path, limits=Limits(labelled=40, texts=100, test=30))
    assert {name: data.counts[name] for name in ("train", "unlabelled", "test")} == {
        "train": 40,
        "unlabelled": 60,
        "test": 30,
    }
    everything = Counter(text for count, seed in ((120, 2), (80, 3)) for text, _ in tiny.reviews(count, seed=seed))
    assert not Counter(record.text for record in read_records(data.texts)) - everything


def test_prepared_splits_are_known_again_and_other_data_refused(tiny, task, tmp_path):
    before = prepare(task, tmp_path)
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert prepare(task, tmp_path) == before
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    with pytest.raises(DataError, match="holds the splits of other data"):
        prepare(task_of_files(tiny.labelled, test=tiny.test), tmp_path)


def test_too_few_documents_of_a_class_are_refused(tiny, tmp_path):
    few = tiny.write(tmp_path / "few.csv", [*tiny.reviews(8, seed=1), ("the film was odd", "odd")])
    with pytest.raises(DataError, match=r"few\.csv: 1 documents have the label 'odd'; an experiment needs two classes"):
        prepare(task_of_files(few), tmp_path / "splits")


def test_a_test_label_that_training_lacks_is_refused(tiny, tmp_path):
    odd = tiny.write(tmp_path / "odd.csv", [("the film was odd", "odd")])
    with pytest.raises(DataError, match=r"odd\.csv: the label 'odd' is not among the training labels"):
        prepare(task_of_files(tiny.labelled, test=odd), tmp_path / "splits")


@pytest.mark.parametrize("name", PARQUET)
def test_the_data_sets_that_are_there_are_read(data, monkeypatch, name):
    monkeypatch.setenv("ULMFIT_DATA", str(data))
    task = task_named(name)
    text, label = next(iter(task.train.labelled()))
    assert text and label
    assert (len(task.unlabelled) == 1) == (name == "imdb")


@pytest.mark.parametrize("name", OFFICIAL_CSV)
def test_official_data_sets_are_read_from_their_folder(monkeypatch, tmp_path, name):
    monkeypatch.setenv("ULMFIT_DATA", str(tmp_path))
    title, folder, classes = OFFICIAL_CSV[name]
    fields = ["title", "a text"] if name == "dbpedia" else ["a text"]
    (tmp_path / folder).mkdir()
    for split, count in (("train", 4), ("test", 1)):
        with (tmp_path / folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows([index, *fields] for index in range(1, len(classes) + 1) for _ in range(count))
    prepared = prepare(task_named(name), tmp_path / "splits")
    assert (prepared.title, prepared.classes) == (title, sorted(classes))
    assert Counter(rows(prepared.split("test"))) == Counter((" ".join(fields), label) for label in classes)
    assert prepared.flags == ["--data", name]


def test_a_data_set_that_is_not_there_is_named_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("ULMFIT_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"yelp_review_full_csv/train\.csv: no such file.*set ULMFIT_DATA"):
        task_named("yelp_full")
    with pytest.raises(ConfigError, match="no data set 'reuters'; give one of imdb, trec6"):
        task_named("reuters")


def test_a_file_called_like_a_data_set_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "label": ["b"]}), tmp_path / "imdb.parquet")
    with pytest.raises(ConfigError, match="may not be called 'imdb'"):
        task_of_files(tmp_path / "imdb.parquet")
