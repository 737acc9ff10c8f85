"""A run fitted into minutes: planned once, said, kept, gone on with, and the plain run where there is time enough."""

import json
import math
import random

import pytest

from ulmfit.bundle import ClassifierBundle
from ulmfit.config import TokenizerConfig, TrainConfig
from ulmfit.errors import CheckpointError, ConfigError
from ulmfit.learning import budget as budget_module
from ulmfit.learning import planning
from ulmfit.learning.budget import Budget, FewerLabels
from ulmfit.learning.costs import Costs, Sizes, Vocabulary
from ulmfit.learning.setting import open_setting
from ulmfit.pipeline import train
from ulmfit.text.draw import drawn, look_at
from ulmfit.text.sources import Record, read_records
from ulmfit.text.tokenizer import train_tokenizer
from ulmfit.training.events import EpochEnded, Note, StageStarted

pytestmark = pytest.mark.usefixtures("one_thread")

SLOW = Costs(reading=0.0, tuning=1e-2, softmax=0.0, classifying=2e-2, head=1e-2, saving=0.0, fixed=0.0)
SIZES = Sizes(
    labelled=120,
    labelled_tokens=2_500,
    unlabelled=80,
    unlabelled_tokens=1_600,
    vocabulary=Vocabulary(size=53, tokens=4_100, exponent=0.0, limit=53),
    groups=4,
)


def config_of(tiny, **changed):
    return TrainConfig().override(tiny.settings("tune", "classify", **changed))


def stored(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def written(out):
    return json.loads((out / "plan.json").read_text(encoding="utf-8"))


@pytest.fixture
def slow(monkeypatch):
    """A machine on which the least plan takes 100 seconds."""
    monkeypatch.setattr(planning, "measure", lambda *_, **__: (SLOW, SIZES))
    monkeypatch.setattr(budget_module, "WORTH_REPEATING", 1_000)


def run(tiny, out, *, config=None, budget=None, resume=False, report=lambda _: None):
    return train(
        tiny.labelled,
        unlabelled=[tiny.unlabelled],
        base=tiny.base,
        config=config or config_of(tiny),
        out=out,
        budget=budget,
        resume=resume,
        report=report,
    )


# --- on this machine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_with_minutes_enough_the_run_is_the_plain_one_to_the_bit(tiny, tmp_path, direction):
    short = [{"groups": [-1], "rate": 0.05}, {"rate": 0.05, "epochs": 2}]
    config = config_of(tiny, run__direction=direction, classify__phases=short)
    events = []
    run(tiny, tmp_path / "planned", config=config, budget=Budget(30), report=events.append)
    run(tiny, tmp_path / "plain", config=config)
    assert stored(tmp_path / "planned") == stored(tmp_path / "plain")
    plan = written(tmp_path / "planned")["plan"]
    assert (plan["unlabelled"], plan["of"]) == (80, 80)
    assert TrainConfig.parse(plan["config"]) == config
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes[0].startswith(
        "for 30 minutes: 80 of 80 unlabelled texts beside the 120 labelled; epochs of tuning: 3, "
    )
    assert notes[-1].startswith("took ") and notes[-1].endswith(" of the 30 minutes given")
    assert not (tmp_path / "planned/work").exists()


def test_what_is_measured_is_of_this_text_and_leaves_nothing_behind(tiny, tmp_path):
    run(tiny, tmp_path / "model", budget=Budget(30))
    measured = written(tmp_path / "model")["measured"]
    assert all(seconds > 0 for name, seconds in measured["costs"].items() if name != "softmax")
    assert measured["costs"]["softmax"] >= 0
    sizes = measured["sizes"]
    assert (sizes["labelled"], sizes["unlabelled"], sizes["groups"]) == (120, 80, 4)
    # Every text's tokens are its words and one that begins it.
    for name, file in (("labelled", tiny.labelled), ("unlabelled", tiny.unlabelled)):
        words = sum(1 + len(record.text.split()) for record in read_records([file]))
        assert sizes[f"{name}_tokens"] == pytest.approx(words)
    assert sorted(path.name for path in (tmp_path / "model").iterdir() if path.name.startswith("plan")) == ["plan.json"]


def test_where_the_vocabulary_grows_with_the_text_that_of_the_least_and_of_the_most_is_tried(
    tiny, tmp_path, monkeypatch
):
    dice = random.Random(0)
    rows = [(f"{text} w{int(dice.paretovariate(0.5)) % 4_000}", label) for text, label in tiny.reviews(1_000, seed=6)]
    labelled = look_at([Record(text, label, "", row) for row, (text, label) in enumerate(rows[:60])], seed=0)
    unlabelled = look_at([Record(text, None, "", row) for row, (text, _) in enumerate(rows[60:])], seed=0)
    tried = []
    trial = planning._Trials.tuning

    def noted(trials, words):
        tried.append(words)
        seconds = trial(trials, words)
        assert trials.model.config.vocab_size == words
        return seconds

    monkeypatch.setattr(planning._Trials, "tuning", noted)
    config = config_of(tiny)
    told = {"command": "test", "inputs": {}, "resume": False, "report": print, "profile": False}
    with open_setting(tmp_path / "out", config=config, **told) as setting:
        budget, classes = Budget(30), ["bad", "good"]
        costs, sizes = planning.measure(
            setting, budget, labelled, unlabelled, classes=classes, base=tiny.base, config=config
        )
    vocabulary = sizes.vocabulary
    assert 0 < vocabulary.exponent < 1
    assert tried == [math.ceil(vocabulary.at(tokens)) for tokens in (sizes.labelled_tokens, sizes.tokens(940))]
    assert tried[1] > planning.LARGER * tried[0]
    words = train_tokenizer([text for text, _ in rows], config=TokenizerConfig(), processes=1)
    assert tried[1] == pytest.approx(len(words), rel=0.02)
    assert costs.tuning_a_token(tried[1]) >= costs.tuning_a_token(tried[0]) > 0


def test_too_few_minutes_are_refused_and_the_folder_is_free_again(tiny, tmp_path):
    out = tmp_path / "model"
    with pytest.raises(
        ConfigError, match=r"--minutes 1e-06: too few .* on the 120 labelled texts alone; the least that"
    ):
        run(tiny, out, budget=Budget(1e-6))
    assert not out.exists()


def test_a_base_that_lacks_the_direction_is_refused_before_anything_is_measured(tiny, tmp_path):
    tuned = tmp_path / "forward"
    train(tiny.labelled, base=tiny.base, config=config_of(tiny, classify__phases=[{"rate": 0.01}]), out=tuned)
    with pytest.raises(ConfigError, match="reads forward only; pass --direction forward or a base pretrained backward"):
        train(
            tiny.labelled,
            base=tuned / "language_model",
            config=config_of(tiny, run__direction="backward"),
            out=tmp_path / "out",
            budget=Budget(30),
        )


# --- on a slower one ------------------------------------------------------------------------------------------------


def test_the_plan_is_what_is_done(tiny, tmp_path, slow):
    events, out = [], tmp_path / "model"
    run(tiny, out, budget=Budget(4), report=events.append)
    plan = written(out)["plan"]
    assert 0 < plan["unlabelled"] < 80
    tuning = [phase["epochs"] for phase in plan["config"]["tune"]["training"]["phases"]]
    classifying = [phase["epochs"] for phase in plan["config"]["classify"]["phases"]]
    assert tuning == [3] and 1 <= classifying[1] < 10
    ended = [event.record["stage"] for event in events if isinstance(event, EpochEnded)]
    assert ended == ["tune forward"] * 3 + ["classify forward"] * sum(classifying)
    facts = json.loads((out / "language_model/config.json").read_text(encoding="utf-8"))["facts"]
    assert facts["data"]["documents"] == 120 + plan["unlabelled"]
    tuned = json.loads((out / "language_model/run.json").read_text(encoding="utf-8"))
    assert [name for name, _ in tuned["inputs"]["texts"]] == ["labelled.csv", "unlabelled.parquet"]
    assert tuned["config"]["tune"] == plan["config"]["tune"]
    asked = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert asked["inputs"]["minutes"] == 4
    assert asked["config"] == config_of(tiny).model_dump(mode="json")


def test_the_texts_drawn_are_those_of_the_seed(tiny, tmp_path, slow):
    texts = [record.text for record in read_records([tiny.unlabelled])]
    seen = []

    def stop(event):
        if isinstance(event, StageStarted):
            file = tmp_path / "model/work/unlabelled.parquet"
            seen.extend(record.text for record in read_records([file]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "model", budget=Budget(4), report=stop)
    count = written(tmp_path / "model")["plan"]["unlabelled"]
    assert seen == [texts[place] for place in drawn(count, 80, seed=0)]


@pytest.mark.parametrize("stage", ["tune forward", "classify forward"])
def test_a_killed_run_goes_on_with_its_plan_and_ends_the_same(tiny, tmp_path, slow, monkeypatch, stage):
    run(tiny, tmp_path / "unbroken", budget=Budget(4))
    out = tmp_path / "broken"

    def kill(event):
        if isinstance(event, EpochEnded) and event.name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, out, budget=Budget(4), report=kill)
    # On a machine that has become too slow for any plan: it is not asked again.
    monkeypatch.setattr(planning, "measure", None)
    run(tiny, out, budget=Budget(4), resume=True)
    assert stored(out) == stored(tmp_path / "unbroken")
    plans = [written(folder)["plan"] for folder in (out, tmp_path / "unbroken")]
    assert plans[0]["config"] == plans[1]["config"]
    assert ClassifierBundle.load(out).labels == ("bad", "good")


def test_with_too_few_minutes_the_network_learns_from_a_part_and_the_bag_of_words_from_all(tiny, tmp_path, slow):
    out = tmp_path / "model"
    budget = Budget(1, fewer_labels=FewerLabels(config_of(tiny), 120))

    def kill(event):
        if isinstance(event, EpochEnded) and event.name == "classify forward":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, out, budget=budget, report=kill)
    plan = written(out)["plan"]
    assert 50 <= plan["labelled"] < plan["of_labelled"] == 120
    parts = [
        [(record.text, record.label) for record in read_records([out / "work" / name], label_column="label")]
        for name in ("labelled.parquet", "other-labelled.parquet")
    ]
    whole = [(record.text, record.label) for record in read_records([tiny.labelled], label_column="label")]
    assert len(parts[0]) == plan["labelled"] and sorted(parts[0] + parts[1]) == sorted(whole)
    share = sum(label == "good" for _, label in parts[0]) / len(parts[0])
    assert share == pytest.approx(sum(label == "good" for _, label in whole) / len(whole), abs=0.02)
    bundle = run(tiny, out, budget=budget, resume=True)
    assert bundle.facts["data"]["documents"] == plan["labelled"]
    held_out = round(config_of(tiny).classify.valid_share * plan["labelled"])
    assert bundle.facts["results"]["bag of words"]["labelled"] == 120 - held_out
    assert bundle.bag_of_words is not None and bundle.labels == ("bad", "good")


def test_a_run_is_not_gone_on_with_in_other_minutes_or_none(tiny, tmp_path, slow):
    out = tmp_path / "model"

    def kill(event):
        if isinstance(event, EpochEnded):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, out, budget=Budget(4), report=kill)
    with pytest.raises(CheckpointError, match=r"inputs\.minutes was 4 and is now 10"):
        run(tiny, out, budget=Budget(10), resume=True)
    with pytest.raises(CheckpointError, match=r"was .* and is now None"):
        run(tiny, out, resume=True)
    (out / "plan.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"plan\.json: cannot be read"):
        run(tiny, out, budget=Budget(4), resume=True)


def test_with_no_unlabelled_text_there_is_none_to_draw(tiny, tmp_path):
    config = config_of(tiny, classify__phases=[{"rate": 0.01}])
    train(tiny.labelled, base=tiny.base, config=config, out=tmp_path / "model", budget=Budget(30))
    plan = written(tmp_path / "model")["plan"]
    assert (plan["unlabelled"], plan["of"]) == (0, 0)
