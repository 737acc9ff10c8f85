"""Self-training: which texts teach the second classifier, with which labels, and for how long."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ulmfit.config import ClassifyConfig, Phase, UnfreezingPlan
from ulmfit.errors import CheckpointError
from ulmfit.learning.labelled_text import LabelledText
from ulmfit.learning.self_training import CHOSEN, Labels, candidates, joined, surest
from ulmfit.pipeline import train_classifier
from ulmfit.predict import Predictor
from ulmfit.run_folder import RunFolder
from ulmfit.text.batches import DocumentBatches
from ulmfit.text.corpus import Corpus
from ulmfit.text.sources import read_records
from ulmfit.training.schedules import phases_over_more

HALF = {"classify__self_training": 0.5}


def test_of_each_class_the_surest_share_is_taken_in_the_order_of_the_rows():
    sure = [0.9, 0.6, 0.8, 0.7, 0.95, 0.5001]
    classes = [0, 0, 0, 0, 1, 1]
    rows = torch.tensor([[p, 1 - p] if kind == 0 else [1 - p, p] for p, kind in zip(sure, classes, strict=True)])
    places, labels = surest(rows, 0.5)
    assert places.tolist() == [0, 2, 4]
    assert labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("share", "count"), [(0.0001, 1), (0.25, 2), (0.3, 3), (1.0, 8)])
def test_a_share_of_a_class_is_rounded_up(share, count):
    places, _ = surest(torch.linspace(0.6, 0.9, 8).unsqueeze(1).repeat(1, 2) * torch.tensor([1.0, 0.1]), share)
    assert places.tolist() == list(range(8 - count, 8))


def test_candidates_are_neither_empty_nor_labelled_and_drawn_by_the_seed():
    labelled = Corpus.from_documents([[2, 5, 6], [2, 7]], vocab_size=30, labels=[0, 1])
    others = Corpus.from_documents([[2], [2, 5, 6], *([2, word] for word in range(8, 28))], vocab_size=30)
    everything = candidates(others, labelled, most=100, seed=0)
    assert everything.tolist() == list(range(2, 22))
    few = candidates(others, labelled, most=7, seed=0)
    assert len(few) == 7
    assert set(few) < set(everything)
    assert few.tolist() == candidates(others, labelled, most=7, seed=0).tolist()
    assert few.tolist() != candidates(others, labelled, most=7, seed=1).tolist()


def test_what_was_chosen_comes_behind_the_labelled_documents_and_nothing_else_changes():
    corpus = Corpus.from_documents([[2, 5], [2, 6], [2, 7]], vocab_size=30, labels=[1, 0, 1], label_names=["a", "b"])
    source = LabelledText(None, corpus, np.array([0, 2]), corpus, np.array([1]))
    others = Corpus.from_documents([[2, 8], [2, 9, 10]], vocab_size=30)
    more = joined(source, others, Labels(np.array([1]), np.array([0], dtype=np.int32)))
    assert [more.corpus.document(place).tolist() for place in range(4)] == [[2, 5], [2, 6], [2, 7], [2, 9, 10]]
    assert more.corpus.labels.tolist() == [1, 0, 1, 0]
    assert more.documents.tolist() == [0, 2, 3]
    assert more.valid_corpus is corpus
    assert more.valid_documents.tolist() == [1]


@pytest.mark.parametrize(("epochs", "of", "expected"), [(8, 200, 8), (8, 400, 4), (8, 10_000, 2), (1, 10_000, 1)])
def test_over_more_documents_there_are_about_twice_the_steps_and_two_epochs_if_there_were_two(epochs, of, expected):
    phases = phases_over_more((Phase(rate=1e-2, epochs=epochs),), documents=100, of=of)
    assert [phase.epochs for phase in phases] == [expected]
    plan = phases_over_more(UnfreezingPlan(plan="gradual", rate=1e-2, epochs=epochs), documents=100, of=of)
    assert plan.epochs == expected


# --- a whole run ----------------------------------------------------------------------------------------------------


@pytest.fixture
def classify(tiny, tmp_path):
    def run(name="model", *, unlabelled=(), resume=False, **changed):
        config = ClassifyConfig().override(tiny.settings("classify", **changed))
        return train_classifier(
            tiny.labelled,
            language_model=tiny.tuned,
            unlabelled=unlabelled,
            config=config,
            out=tmp_path / name,
            resume=resume,
        )

    return run


def stages(bundle):
    return list(dict.fromkeys(record["stage"] for record in bundle.facts["history"]))


def assert_same_weights(mine, other):
    for one, two in zip(mine.models["forward"].parameters(), other.models["forward"].parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_second_classifier_learns_and_is_the_one_that_is_kept(classify, tiny):
    plain = classify("plain", unlabelled=[tiny.unlabelled])
    taught = classify("taught", unlabelled=[tiny.unlabelled], **HALF)
    assert stages(plain) == ["classify forward"]
    assert stages(taught) == ["classify forward", "self-train forward"]
    heads = [next(bundle.models["forward"].head.parameters()) for bundle in (plain, taught)]
    assert not torch.equal(*heads)


@pytest.mark.parametrize(("given", "expected"), [({}, [4, 4]), ({"classify__self_training_batch_size": 8}, [4, 8])])
def test_the_second_classifier_has_as_many_documents_a_batch_as_the_first_or_as_are_given(
    classify, tiny, monkeypatch, given, expected
):
    sizes = []

    def seen(*arguments, **named):
        sizes.append(named["batch_size"])
        return DocumentBatches(*arguments, **named)

    monkeypatch.setattr("ulmfit.learning.classifier.DocumentBatches", seen)
    classify(unlabelled=[tiny.unlabelled], classify__batch_size=4, **HALF, **given)
    assert sizes == expected


def test_the_teacher_of_the_second_classifier_is_what_the_run_would_be_without_it(classify, tiny, monkeypatch):
    """Network and bag of words together, whose vote is that of the product."""
    plain = classify("plain", unlabelled=[tiny.unlabelled], classify__bag_of_words=0.5)
    texts = [record.text for record in read_records([tiny.unlabelled])]
    votes = []

    def seen(probabilities, share):
        votes.append(probabilities)
        return surest(probabilities, share)

    monkeypatch.setattr("ulmfit.learning.self_training.surest", seen)
    taught = classify("taught", unlabelled=[tiny.unlabelled], classify__bag_of_words=0.5, **HALF)
    assert stages(taught) == ["classify forward", "self-train forward"]
    assert len(votes) == 1 and len(votes[0]) == len(texts)
    np.testing.assert_allclose(votes[0], Predictor(plain, precision="float32").probabilities(texts), atol=1e-5)
    alone = Predictor(replace(plain, bag_of_words=None), precision="float32").probabilities(texts)
    assert np.abs(votes[0].numpy() - alone).max() > 1e-3


def test_without_unlabelled_text_there_is_one_classifier_the_same_as_without_self_training(classify, tiny):
    plain = classify("plain")
    for name, texts in (("none", []), ("labelled alone", [tiny.labelled])):
        other = classify(name, unlabelled=texts, **HALF)
        assert stages(other) == ["classify forward"]
        assert_same_weights(other, plain)


def test_a_run_killed_between_the_two_goes_on_with_the_same_texts_to_the_same_bits(classify, tiny, monkeypatch):
    unbroken = classify("unbroken", unlabelled=[tiny.unlabelled], **HALF)
    with monkeypatch.context() as patched:
        patched.setattr("ulmfit.learning.voters.taught", _killed)
        with pytest.raises(KeyboardInterrupt):
            classify("broken", unlabelled=[tiny.unlabelled], **HALF)
    monkeypatch.setattr("ulmfit.learning.self_training.surest", lambda *_: pytest.fail("chosen again"))
    resumed = classify("broken", unlabelled=[tiny.unlabelled], resume=True, **HALF)
    assert_same_weights(resumed, unbroken)


def _killed(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["{", "[[0], [7]]", "[[0, 1], [0]]", "[[100000], [0]]"])
def test_a_damaged_choice_is_named_with_the_way_out(classify, tiny, tmp_path, monkeypatch, damage):
    with monkeypatch.context() as patched:
        patched.setattr("ulmfit.learning.voters.taught", _killed)
        with pytest.raises(KeyboardInterrupt):
            classify(unlabelled=[tiny.unlabelled], **HALF)
    chosen = RunFolder(tmp_path / "model").work / CHOSEN
    assert json.loads(chosen.read_text())
    chosen.write_text(damage)
    with pytest.raises(CheckpointError, match=f"{CHOSEN}: damaged; delete it and pass --resume"):
        classify(unlabelled=[tiny.unlabelled], resume=True, **HALF)
