"""The bundled sample is sound, and the demo on a piece of it measures what it says."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ulmfit import demo, pretrained
from ulmfit.baseline import train_baseline
from ulmfit.bundle import ClassifierBundle
from ulmfit.config import TrainConfig
from ulmfit.predict import Predictor, evaluate
from ulmfit.training.events import StageStarted

pytestmark = pytest.mark.usefixtures("one_thread")

PARTS = ("train", "unlabelled", "test")


# --- the sample -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample():
    return {part: pq.read_table(demo.SAMPLE / f"{part}.parquet").to_pydict() for part in PARTS}


def test_the_sample_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in demo.SAMPLE.iterdir()) <= 3_000_000


def test_the_sample_has_the_sizes_that_were_promised(sample):
    sizes = {part: len(sample[part]["text"]) for part in PARTS}
    assert sizes["test"] == 1000
    assert 200 <= sizes["train"] < 1000
    assert 1000 <= sizes["unlabelled"] <= 3000


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_classes_are_balanced(sample, part):
    labels = sample[part]["label"]
    assert len(set(labels)) == 2
    assert {labels.count(label) for label in labels} == {len(labels) // 2}


def test_unlabelled_reviews_have_no_label(sample):
    assert list(sample["unlabelled"]) == ["text"]


def test_no_review_is_in_the_sample_twice(sample):
    texts = [" ".join(text.split()).lower() for part in PARTS for text in sample[part]["text"]]
    assert len(set(texts)) == len(texts)
    assert all(texts)


# --- the demo -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tiny, sample, tmp_path, monkeypatch):
    """Some dozens of the sample's reviews, a tiny model by the name of `en`, and settings to go with it."""
    folder = tmp_path / "sample"
    folder.mkdir()
    for part, count in {"train": 40, "unlabelled": 30, "test": 50}.items():
        rows = {name: values[:count] for name, values in sample[part].items()}
        pq.write_table(pa.table(rows), folder / f"{part}.parquet")
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped/en").symlink_to(tiny.base)
    config = TrainConfig().override(tiny.settings("tune", "classify", **tiny.SHORT))
    monkeypatch.setattr(demo, "SAMPLE", folder)
    monkeypatch.setattr(demo, "tune_preset", lambda name: config.tune)
    monkeypatch.setattr(demo, "classify_preset", lambda name, labelled: config.classify)
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "shipped")
    return folder


def test_the_demo_measures_both_classifiers_on_the_test_reviews(small, tmp_path):
    started = []
    out = tmp_path / "model"
    result = demo.run_demo(out=out, minutes=1.0, seed=3, report=started.append)
    assert (result.labelled, result.unlabelled, result.test) == (40, 30, 50)
    measures = evaluate(Predictor.load(out), small / "test.parquet")
    train, test = (pq.read_table(small / f"{part}.parquet").to_pydict() for part in ("train", "test"))
    baseline = train_baseline(train["text"], train["label"]).score(test["text"], test["label"])
    assert result.accuracy == {"ulmfit": measures["accuracy"], demo.BASELINE: baseline}
    stages = [event.name for event in started if isinstance(event, StageStarted)]
    assert stages == ["tune forward", "classify forward"]
    assert set(result.seconds) == {demo.BASELINE, *stages, "planning, reading and saving", "predict the test reviews"}
    assert all(spent >= 0 for spent in result.seconds.values())
    assert ClassifierBundle.load(out).facts["training"]["seed"] == 3


def test_the_command_prints_accuracies_times_and_what_to_try_next_and_leaves_nothing_behind(
    small, ulmfit, tmp_path, monkeypatch
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    ran = ulmfit("demo", "--minutes", "1")
    assert ran.code == 0, ran.err
    assert "Accuracy on 50 test reviews, from 40 labels" in ran.out
    for row in ("ulmfit", demo.BASELINE, "tune forward", "classify forward", "all"):
        assert any(line.strip("│ ").startswith(row) for line in ran.out.splitlines()), row
    assert ran.out.splitlines()[-1].startswith("Next: ulmfit train ")
    assert not list((tmp_path / "temporary").iterdir())


def test_a_folder_in_use_is_refused(small, ulmfit, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/notes.txt").write_text("mine", encoding="utf-8")
    ran = ulmfit("demo", "--minutes", "1", "--out", tmp_path / "model")
    assert ran.code == 2
    assert "is not an empty folder" in ran.err
