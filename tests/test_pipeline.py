"""The whole recipe on a language of fifty words: what it learns, what each setting does to it, and that it repeats."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ulmfit.bundle import ClassifierBundle, LanguageModelBundle
from ulmfit.config import ClassifyConfig, PretrainConfig, TrainConfig, TuneConfig
from ulmfit.errors import ConfigError, DataError, OutputError
from ulmfit.pipeline import check_labels, pretrain, train, train_classifier, tune_language_model
from ulmfit.predict import Predictor, evaluate, evaluate_language_model
from ulmfit.training.events import EpochEnded, Note, StageEnded, StageStarted

SHORT = [{"groups": [-1], "rate": 0.05}, {"rate": 0.05, "epochs": 2}]
STILL = [{"rate": 1e-20}]
"""a phase that runs and changes nothing"""


# Threads that wait for each other on a busy machine make steps this small fifty times slower.
pytestmark = pytest.mark.usefixtures("one_thread")


def train_on(tiny, out, *, labelled=None, unlabelled=(), base=None, resume=False, report=lambda _: None, **changed):
    """`train` with the tiny settings and these changes."""
    return train(
        labelled or tiny.labelled,
        unlabelled=unlabelled,
        base=base or tiny.base,
        config=TrainConfig().override(tiny.settings("tune", "classify", **changed)),
        out=out,
        resume=resume,
        report=report,
    )


def accuracy(bundle, labelled):
    return evaluate(Predictor(bundle, precision="float32"), labelled)["accuracy"]


def stored(folder):
    """The bytes of every file of weights, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


# --- what is learnt -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_direction_is_right_on_texts_it_never_saw(tiny, tmp_path, direction):
    more = tiny.file("more_labelled", 240, seed=2)
    phases = [
        {"groups": [-1], "rate": 0.05},
        {"rate": 0.05, "epochs": 8, "discriminative": 1.3, "schedule": "one_cycle"},
    ]
    bundle = train_on(tiny, tmp_path / "model", labelled=more, run__direction=direction, classify__phases=phases)
    assert bundle.directions == (direction,)
    assert accuracy(bundle, tiny.test) >= 0.95


def test_both_directions_are_one_model_that_is_right_on_texts_it_never_saw(tiny):
    bundle = ClassifierBundle.load(tiny.model)
    assert bundle.directions == ("forward", "backward")
    assert bundle.labels == ("bad", "good")
    assert accuracy(bundle, tiny.test) >= 0.95


def test_both_directions_together_are_the_mean_of_each_alone(tiny):
    bundle = ClassifierBundle.load(tiny.model)
    texts = [text for text, _ in tiny.reviews(30, seed=5)]

    def probabilities(**models):
        return Predictor(replace(bundle, models=models), precision="float32").probabilities(texts)

    both = probabilities(**bundle.models)
    forward, backward = (probabilities(**{name: model}) for name, model in bundle.models.items())
    assert not np.allclose(forward, backward, atol=1e-4)
    np.testing.assert_allclose(both, (forward + backward) / 2, atol=1e-6)


def test_backward_is_forward_on_reversed_text_through_all_stages(tiny, tmp_path):
    turned = {}
    for name in ("general", "labelled", "unlabelled"):
        records = [(" ".join(reversed(text.split())), label) for text, label in read(getattr(tiny, name))]
        turned[name] = tiny.write(tmp_path / f"{name}.csv", records)
    changed = {"classify__phases": SHORT, "run__direction": "forward"}
    config = PretrainConfig().override(tiny.settings("pretrain"))
    base = tmp_path / "base"
    pretrain([turned["general"]], config=config, out=base)
    train_on(tiny, tmp_path / "f", labelled=turned["labelled"], unlabelled=[turned["unlabelled"]], base=base, **changed)
    changed["run__direction"] = "backward"
    train_on(tiny, tmp_path / "b", unlabelled=[tiny.unlabelled], **changed)
    for place, kind in ((".", ClassifierBundle), ("language_model", LanguageModelBundle)):
        forward, backward = (kind.load(tmp_path / name / place) for name in ("f", "b"))
        assert forward.tokenizer == backward.tokenizer
        assert equal(forward.models["forward"].state_dict(), backward.models["backward"].state_dict())


def read(path):
    """The rows of a csv file of ours; no value in it has a comma."""
    return [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def test_train_is_tuning_and_then_the_classifier(tiny, tmp_path):
    whole = train_on(tiny, tmp_path / "whole", unlabelled=[tiny.unlabelled])
    config = TuneConfig().override(tiny.settings("tune"))
    tune_language_model([tiny.labelled, tiny.unlabelled], base=tiny.base, config=config, out=tmp_path / "tuned")
    config = ClassifyConfig().override(tiny.settings("classify"))
    alone = train_classifier(tiny.labelled, language_model=tmp_path / "tuned", config=config, out=tmp_path / "alone")
    assert stored(tmp_path / "tuned") == stored(tmp_path / "whole" / "language_model")
    assert equal(whole.models["forward"].state_dict(), alone.models["forward"].state_dict())


def test_unlabelled_text_joins_the_tuning_and_its_words_the_vocabulary(tiny, tmp_path):
    more = tiny.write(tmp_path / "more.csv", [(f"{text} because",) for text, _ in tiny.reviews(40, seed=6)], ["text"])
    phases = {"tune__training": {**tiny.LANGUAGE_MODEL, "phases": STILL}, "classify__phases": STILL}
    supervised = train_on(tiny, tmp_path / "supervised", **phases)
    semi_supervised = train_on(tiny, tmp_path / "semi", unlabelled=[more], **phases)
    assert "because" in semi_supervised.tokenizer.tokens
    assert "because" not in supervised.tokenizer.tokens
    documents = [
        LanguageModelBundle.load(tmp_path / name / "language_model").facts["data"]["documents"]
        for name in ("supervised", "semi")
    ]
    assert documents == [120, 160]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_subwords_go_through_all_stages_with_the_base_s_pieces(tiny, tmp_path, kind):
    config = PretrainConfig().override(tiny.settings("pretrain", pretrain__tokenizer__kind=kind))
    base = pretrain([tiny.general], config=config, out=tmp_path / "base")
    bundle = train_on(tiny, tmp_path / "model", base=tmp_path / "base")
    assert bundle.tokenizer.kind == kind
    assert bundle.tokenizer == base.tokenizer
    assert accuracy(bundle, tiny.test) >= 0.75  # of some pieces a letter long


def test_more_than_two_classes_are_told_apart(tiny, tmp_path):
    def third(rows):
        return [(f"{text.replace('film', 'meal').replace('story', 'soup')} soup", "food") for text, _ in rows]

    labelled = tiny.write(tmp_path / "three.csv", [*tiny.reviews(100, seed=2), *third(tiny.reviews(50, seed=7))])
    test = tiny.write(tmp_path / "test.csv", [*tiny.reviews(40, seed=4), *third(tiny.reviews(20, seed=8))])
    longer = [
        {"groups": [-1], "rate": 0.05},
        {"rate": 0.05, "epochs": 24, "discriminative": 1.3, "schedule": "one_cycle"},
    ]
    bundle = train_on(tiny, tmp_path / "model", labelled=labelled, classify__phases=longer)
    assert bundle.labels == ("bad", "food", "good")
    assert accuracy(bundle, test) >= 0.9


# --- language models ------------------------------------------------------------------------------------------------


def test_pretraining_learns_the_language(tiny):
    bundle = LanguageModelBundle.load(tiny.base)
    words = len(bundle.tokenizer)
    for direction in ("forward", "backward"):
        perplexities = [r["perplexity"] for r in bundle.facts["history"] if r["stage"] == f"pretrain {direction}"]
        assert perplexities[-1] < perplexities[0] < words  # which is that of guessing


def test_the_perplexity_told_is_the_one_measured_on_the_valid_text(tiny, tmp_path):
    config = TuneConfig().override(tiny.settings("tune", run__direction="both"))
    told = tune_language_model(
        [tiny.labelled], valid=[tiny.test], base=tiny.base, config=config, out=tmp_path / "tuned"
    )
    measured = evaluate_language_model(told, [tiny.test], precision="float32")
    for direction, values in measured["directions"].items():
        expected = told.facts["results"][f"tune {direction}"]["perplexity"]
        assert values["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_tuning_keeps_the_rows_of_known_words_and_gives_the_mean_to_new_ones(tiny, tmp_path):
    texts = tiny.write(tmp_path / "new.csv", [(f"{text} mediocre",) for text, _ in tiny.reviews(40, seed=6)], ["text"])
    settings = tiny.settings("tune", tune__training={**tiny.LANGUAGE_MODEL, "phases": STILL})
    config = TuneConfig().override(settings)
    tuned = tune_language_model([texts], base=tiny.base, config=config, out=tmp_path / "tuned")
    base = LanguageModelBundle.load(tiny.base)
    before, after = weights(base.models["forward"]), weights(tuned.models["forward"])
    row = {token: index for index, token in enumerate(base.tokenizer.tokens)}
    assert "mediocre" not in row
    assert "mediocre" in tuned.tokenizer.tokens
    for name in ("encoder.embedding.weight", "decoder_bias"):
        mean = before[name].mean(0)
        for index, token in enumerate(tuned.tokenizer.tokens):
            expected = before[name][row[token]] if token in row else mean
            torch.testing.assert_close(after[name][index], expected)


def test_a_base_that_knows_no_word_of_the_text_is_refused(tiny, tmp_path):
    text = tiny.write(tmp_path / "foreign.csv", [("dieser unsinn ist deutsch",)] * 5, ["text"])
    with pytest.raises(ConfigError, match="knows none of the words of this text; is it this language"):
        tune_language_model([text], base=tiny.base, config=TuneConfig(), out=tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_a_base_of_another_direction_is_refused_with_the_way_out(tiny, tmp_path):
    config = TuneConfig().override(tiny.settings("tune", tune__training={**tiny.LANGUAGE_MODEL, "phases": STILL}))
    tune_language_model([tiny.labelled], base=tiny.base, config=config, out=tmp_path / "forward")
    for direction in ("backward", "both"):
        with pytest.raises(ConfigError, match="reads forward only; pass --direction forward or a base pretrained back"):
            train_on(tiny, tmp_path / "model", base=tmp_path / "forward", run__direction=direction)
        config = ClassifyConfig().override(tiny.settings("classify", run__direction=direction))
        with pytest.raises(ConfigError, match="reads forward only; pass that --direction"):
            train_classifier(tiny.labelled, language_model=tmp_path / "forward", config=config, out=tmp_path / "model")
        assert not (tmp_path / "model").exists()


# --- settings of the classifier -------------------------------------------------------------------------------------


@pytest.fixture
def classify(tiny, tmp_path):
    """Train a classifier on that model with these changes to the settings."""

    def run(name="model", labelled=None, **changed):
        config = ClassifyConfig().override(tiny.settings("classify", **changed))
        return train_classifier(
            labelled or tiny.labelled, language_model=tiny.tuned, config=config, out=tmp_path / name
        )

    return run


def test_the_language_model_s_loss_moves_the_shared_encoder_and_its_decoder(classify, tiny):
    # Nothing is held out, so that the last epoch is kept, in which all layers have learnt.
    changed = {"classify__phases": SHORT, "classify__valid_share": 0.0}
    plain = weights(classify("plain", **changed).models["forward"])
    both = weights(classify("both", **changed, classify__language_model_weight=0.5).models["forward"])
    before = weights(LanguageModelBundle.load(tiny.tuned).models["forward"])
    for name in before:
        if name.startswith("encoder."):
            assert not torch.equal(plain[name], both[name]), name
    assert torch.equal(plain["decoder_bias"], before["decoder_bias"])
    assert not torch.equal(both["decoder_bias"], before["decoder_bias"])


def test_a_language_model_s_weight_that_decays_to_nothing_leaves_the_first_epoch_s_share(classify):
    """Decay acts from the second epoch on; one that is nearly 0 leaves multi-task learning in the first alone."""
    one, two = [{"rate": 0.05}], [{"rate": 0.05}, {"rate": 0.05}]
    settings = {"classify__language_model_weight": 0.5, "classify__valid_share": 0.0}
    gone = {**settings, "classify__language_model_decay": 1e-30}
    first = [
        weights(classify(f"one {i}", classify__phases=one, **s).models["forward"])
        for i, s in enumerate((settings, gone))
    ]
    assert equal(*first)
    second = [
        weights(classify(f"two {i}", classify__phases=two, **s).models["forward"])
        for i, s in enumerate((settings, gone))
    ]
    assert not equal(*second)


def test_class_weights_move_predictions_to_the_heavy_class(classify, tiny, tmp_path):
    torn = [(text, label) for text, _ in tiny.reviews(40, seed=9) for label in ("good", "bad")]
    labelled = tiny.write(tmp_path / "torn.csv", torn)
    texts = [text for text, _ in torn]

    def share_of_good(name, **given):
        bundle = classify(name, labelled=labelled, classify__phases=SHORT, classify__class_weights=given)
        return Predictor(bundle, precision="float32").probabilities(texts)[:, bundle.labels.index("good")].mean()

    assert share_of_good("bad", bad=20.0) < 0.4 < 0.6 < share_of_good("good", good=20.0)


def test_balanced_class_weights_are_weights_by_name_inverse_to_the_counts(classify, tiny, tmp_path):
    rows = tiny.reviews(80, seed=9)
    labelled = tiny.write(tmp_path / "uneven.csv", [row for i, row in enumerate(rows) if row[1] == "bad" or i < 20])
    settings = {"labelled": labelled, "classify__phases": SHORT, "classify__valid_share": 0.0}
    balanced = classify("balanced", classify__class_weights="balanced", **settings)
    named = classify("named", classify__class_weights={"bad": 50 / (2 * 40), "good": 50 / (2 * 10)}, **settings)
    assert equal(balanced.models["forward"].state_dict(), named.models["forward"].state_dict())
    even = classify("even", **settings)
    assert not equal(balanced.models["forward"].state_dict(), even.models["forward"].state_dict())


def test_a_weight_for_an_unknown_class_is_refused_before_anything_is_learnt(tiny, classify, tmp_path):
    events = []
    with pytest.raises(ConfigError, match="names the class 'ugly'; the data has bad, good"):
        train_on(tiny, tmp_path / "model", classify__class_weights={"ugly": 2.0}, report=events.append)
    with pytest.raises(ConfigError, match="names the class 'ugly'; the data has bad, good"):
        classify(classify__class_weights={"ugly": 2.0})
    assert not any(isinstance(event, StageStarted) for event in events)
    assert not (tmp_path / "model").exists()


def test_a_plan_by_name_is_its_phases_written_out(classify):
    plan = {"plan": "gradual", "rate": 0.03, "epochs": 2}
    written = [{"groups": list(range(-depth, 0)), "rate": 0.03} for depth in (1, 2, 3)]
    by_name = classify("name", classify__phases=plan)
    by_phases = classify("phases", classify__phases=[*written, {"rate": 0.03, "epochs": 2}])
    assert equal(by_name.models["forward"].state_dict(), by_phases.models["forward"].state_dict())


def test_the_plan_last_leaves_the_encoder_as_it_was_tuned(classify, tiny):
    before = weights(LanguageModelBundle.load(tiny.tuned).models["forward"])
    model = classify(classify__phases={"plan": "last", "rate": 0.05, "epochs": 2}).models["forward"]
    after = weights(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    head = model.state_dict()
    torch.manual_seed(0)
    fresh = type(model)(model.config).state_dict()
    assert not torch.equal(head["head.layers.2.weight"], fresh["head.layers.2.weight"])


def test_training_stops_early_as_soon_as_patience_ends(classify, tmp_path):
    phases = [{"rate": 0.05, "epochs": 15, "schedule": "constant"}]
    classify("patient", classify__phases=phases)
    classify("hasty", classify__phases=phases, classify__patience=2)
    unbroken = [(record["error"], record["valid_loss"]) for record in metrics(tmp_path / "patient")]
    stop = next(end for end in range(3, 16) if unbroken.index(min(unbroken[:end])) == end - 3)
    assert [(record["error"], record["valid_loss"]) for record in metrics(tmp_path / "hasty")] == unbroken[:stop]
    assert stop < 15


def test_the_best_epoch_is_kept_and_told(classify, tiny, tmp_path):
    learn = {"rate": 0.05, "epochs": 10, "discriminative": 1.3, "schedule": "one_cycle"}
    bundle = classify(classify__phases=[learn, {"rate": 30.0, "epochs": 2}])
    history = metrics(tmp_path / "model")
    best = min(history, key=lambda record: (record["error"], record["valid_loss"]))
    assert best["error"] < history[-1]["error"], "this rate should have spoilt it"
    assert bundle.facts["results"]["classify forward"]["epoch"] == best["epoch"]
    assert accuracy(bundle, tiny.test) >= 0.95


# --- the same again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "direction"), [("float32", "both"), ("bfloat16", "forward")])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tiny, tmp_path, precision, direction):
    made = {}
    labelled = tiny.file("few", 40, seed=11)
    language_model = {**tiny.LANGUAGE_MODEL, "phases": [{"rate": 0.02}]}
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        changed = {"run__seed": seed, "run__precision": precision, "run__direction": direction}
        config = PretrainConfig().override(tiny.settings("pretrain", pretrain__training=language_model, **changed))
        out = tmp_path / name
        pretrain([tiny.unlabelled], config=config, out=out / "base")
        changed |= {"tune__training": language_model, "classify__phases": SHORT}
        train_on(tiny, out / "model", base=out / "base", labelled=labelled, **changed)
        made[name] = stored(out)
    assert len(made["one"]) == {"both": 6, "forward": 3}[direction]
    assert made["one"] == made["two"]
    assert all(made["one"][name] != made["other"][name] for name in made["one"])


def test_classes_are_counted_in_the_order_of_their_names(tiny, tmp_path):
    labelled = tiny.write(tmp_path / "labelled.csv", tiny.reviews(5, seed=2))
    counts = check_labels(labelled, text_column="text", label_column="label")
    assert list(counts.items()) == [("bad", 2), ("good", 3)]


def test_what_is_returned_is_what_was_saved_in_int8_too(tiny, tmp_path):
    bundle = train_on(tiny, tmp_path / "model", run__storage="int8", classify__phases=SHORT)
    texts = [text for text, _ in tiny.reviews(10, seed=5)]
    returned = Predictor(bundle, precision="float32").probabilities(texts)
    loaded = Predictor.load(tmp_path / "model", precision="float32").probabilities(texts)
    np.testing.assert_array_equal(returned, loaded)


# --- the run's folder and what it tells -----------------------------------------------------------------------------


def test_a_finished_run_holds_its_settings_and_metrics_and_no_working_files(tiny):
    for folder in (tiny.base, tiny.model, tiny.model / "language_model"):
        assert not (folder / "work").exists()
        assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]["run"]["precision"] == "float32"
        assert not list(folder.glob(".*"))
    history = metrics(tiny.model)
    assert list(dict.fromkeys(record["stage"] for record in history)) == [
        "tune forward",
        "tune backward",
        "classify forward",
        "classify backward",
    ]
    assert history[: len(metrics(tiny.model / "language_model"))] == metrics(tiny.model / "language_model")
    assert [record["epoch"] for record in history if record["stage"] == "classify forward"] == list(range(1, 12))


def test_a_run_tells_its_stages_epochs_and_end(tiny, tmp_path):
    events = []
    train_on(tiny, tmp_path / "model", classify__phases=SHORT, report=events.append)
    told = [type(event) for event in events if not isinstance(event, Note)]
    assert [kind for kind in told if kind in (StageStarted, EpochEnded, StageEnded)] == [
        *(StageStarted, *[EpochEnded] * 3, StageEnded),
        *(StageStarted, *[EpochEnded] * 3, StageEnded),
    ]
    assert [event.record for event in events if isinstance(event, EpochEnded)] == metrics(tmp_path / "model")


def test_a_folder_that_holds_anything_is_refused_and_left_alone(tiny, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputError, match="is not an empty folder; pass --resume"):
        train_on(tiny, out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_finished_run_is_not_done_again(tiny, tmp_path):
    events = []
    out = tmp_path / "model"
    before = train_on(tiny, out, classify__phases=SHORT)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    after = train_on(tiny, out, classify__phases=SHORT, resume=True, report=events.append)
    assert equal(before.models["forward"].state_dict(), after.models["forward"].state_dict())
    assert events == []
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert not (out / "work").exists()


# --- what experiments ask for ---------------------------------------------------------------------------------------


def tuned_by(tiny, out, *, base=None, corpora=None, **changed):
    config = TuneConfig().override(tiny.settings("tune", **changed))
    return tune_language_model([tiny.labelled], base=base or tiny.base, config=config, out=out, corpora=corpora)


def test_an_untrained_start_is_the_base_over_the_domain_s_words(tiny, tmp_path):
    base = LanguageModelBundle.load(tiny.base)
    untrained = tuned_by(tiny, tmp_path / "untrained", tune__learn=False)
    assert untrained.facts["history"] == []
    before, after = (bundle.models["forward"].state_dict() for bundle in (base, untrained))
    for name in before.keys() - {"encoder.embedding.weight", "decoder_bias"}:
        assert torch.equal(before[name], after[name])
    for row, word in enumerate(untrained.tokenizer.tokens):
        known = base.tokenizer.tokens.index(word) if word in base.tokenizer.tokens else None
        table = before["encoder.embedding.weight"]
        expected = table.mean(0) if known is None else table[known]
        torch.testing.assert_close(after["encoder.embedding.weight"][row], expected)


def test_the_base_s_words_can_stand_behind_the_domain_s(tiny, tmp_path):
    base = LanguageModelBundle.load(tiny.base)
    text = tiny.write(tmp_path / "text.csv", [("the film was because because",)], ["text"])
    config = TuneConfig().override(tiny.settings("tune", tune__learn=False, tune__base_words=True))
    tuned = tune_language_model([text], base=tiny.base, config=config, out=tmp_path / "tuned")
    assert sorted(tuned.tokenizer.tokens) == sorted([*base.tokenizer.tokens, "because"])
    assert tuned.tokenizer.tokens.index("because") < tuned.tokenizer.tokens.index("film")
    before, after = (bundle.models["forward"].state_dict() for bundle in (base, tuned))
    for word in ("film", "dull"):
        rows = [bundle.tokenizer.tokens.index(word) for bundle in (base, tuned)]
        for name in ("encoder.embedding.weight", "decoder_bias"):
            assert torch.equal(before[name][rows[0]], after[name][rows[1]])
    smaller = config.override({"tune.vocab_size": 30})
    assert len(tune_language_model([text], base=tiny.base, config=smaller, out=tmp_path / "s").tokenizer.tokens) == 30


def test_a_random_start_has_the_base_s_sizes_and_none_of_its_weights(tiny, tmp_path):
    changed = {"tune__learn": False, "tune__start": "random", "run__direction": "both"}
    first, again = (tuned_by(tiny, tmp_path / str(turn), **changed) for turn in range(2))
    other = tuned_by(tiny, tmp_path / "other seed", run__seed=1, **changed)
    from_base = tuned_by(tiny, tmp_path / "base", tune__learn=False, run__direction="both")
    for direction in ("forward", "backward"):
        states = [bundle.models[direction].state_dict() for bundle in (first, again, other, from_base)]
        assert equal(states[0], states[1])
        assert {name: tensor.shape for name, tensor in states[0].items()} == {
            name: tensor.shape for name, tensor in states[3].items()
        }
        for different in states[2:]:
            assert not torch.equal(states[0]["encoder.embedding.weight"], different["encoder.embedding.weight"])
    assert first.facts["base"] is None


def test_runs_that_share_tokenised_text_learn_what_they_would_alone(tiny, tmp_path):
    corpora = tmp_path / "corpora"
    still = {"tune__training": {**tiny.LANGUAGE_MODEL, "phases": STILL[:1]}}
    alone = tuned_by(tiny, tmp_path / "alone")
    tuned_by(tiny, tmp_path / "first", corpora=corpora, **still)
    made = {path.name: path.stat().st_mtime_ns for path in corpora.iterdir() if not path.name.startswith(".")}
    assert sorted(name.split("-")[0] for name in made) == ["corpus", "tokenizer"]
    shared = tuned_by(tiny, tmp_path / "second", corpora=corpora)
    assert {path.name: path.stat().st_mtime_ns for path in corpora.iterdir() if path.name in made} == made
    assert equal(alone.models["forward"].state_dict(), shared.models["forward"].state_dict())


def test_shared_text_that_was_changed_is_read_anew(tiny, tmp_path):
    text = tiny.write(tmp_path / "text.csv", tiny.reviews(60, seed=1))
    config = TuneConfig().override(tiny.settings("tune", tune__learn=False))
    options = {"base": tiny.base, "config": config, "corpora": tmp_path / "corpora"}
    tune_language_model([text], out=tmp_path / "before", **options)
    tiny.write(text, [(f"{review} because", label) for review, label in tiny.reviews(60, seed=1)])
    assert "because" in tune_language_model([text], out=tmp_path / "after", **options).tokenizer.tokens


def test_a_classifier_s_epochs_are_measured_on_the_file_given(tiny, tmp_path):
    tuned_by(tiny, tmp_path / "tuned")
    config = ClassifyConfig().override(tiny.settings("classify"))
    options = {"language_model": tmp_path / "tuned", "config": config}
    bundle = train_classifier(tiny.labelled, valid=tiny.test, out=tmp_path / "model", **options)
    kept = min(record["error"] for record in metrics(tmp_path / "model"))
    assert 1 - accuracy(bundle, tiny.test) == pytest.approx(kept)
    strange = tiny.write(tmp_path / "strange.csv", [("the film was dull", "odd"), ("the song felt warm", "good")])
    with pytest.raises(DataError, match=r"strange\.csv: the label 'odd' is not among the training labels bad, good"):
        train_classifier(tiny.labelled, valid=strange, out=tmp_path / "other", **options)
