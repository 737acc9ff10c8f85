"""Every experiment from end to end on a language of fifty words: what is made, shared, skipped, and gone on with."""

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest

from ulmfit.baseline import train_baseline
from ulmfit.config import ClassifyConfig
from ulmfit.errors import ConfigError, ProcessError
from ulmfit.experiments.lines import RESULTS, append_line, read_lines
from ulmfit.experiments.products import Shelf
from ulmfit.experiments.recipes import EXPERIMENTS
from ulmfit.experiments.runner import Run, known_base, parts_of, prepare_all, run_experiment, run_of
from ulmfit.experiments.workers import started, work_side_by_side
from ulmfit.pipeline import train_classifier
from ulmfit.predict import Predictor, evaluate
from ulmfit.text.counts import count_tokens
from ulmfit.text.sources import read_records
from ulmfit.training.events import EpochEnded, Note, StageStarted

WRITTEN_ONCE = ("experiment", "task", "row", "labels", "seed")


def identity(line):
    """What a run's line says that does not depend on the clock."""
    epochs = [{key: epoch[key] for key in ("train_loss", "error", "epoch") if key in epoch} for epoch in line["epochs"]]
    return {key: line[key] for key in (*WRITTEN_ONCE, "error", "digest", "settings")} | {"epochs": epochs}


def stages(events, kind):
    return [event.name for event in events if isinstance(event, StageStarted) and event.name.startswith(kind)]


def notes(events):
    return " / ".join(event.text for event in events if isinstance(event, Note))


@pytest.fixture
def data(everything):
    return prepare_all([everything.task], everything.options)["labelled"]


# --- what is made ---------------------------------------------------------------------------------------------------


def test_every_row_of_every_experiment_has_a_line(everything):
    found = {(line["experiment"], line["row"], line["labels"]) for line in everything.lines}
    expected = {
        (known.name, row.name, labels)
        for known in EXPERIMENTS
        for row in known.rows
        for labels in ((20, None) if len(known.labels) > 1 else (None,))
    }
    assert found == expected
    assert len(everything.lines) == len(expected)


def test_a_line_says_all_that_makes_the_run_again(everything):
    for line in everything.lines:
        assert 0 <= line["error"] <= 1
        assert line["command"].startswith(f"ulmfit experiment {line['experiment']} --data labelled.csv --unlabelled ")
        assert {"torch", "python", "ulmfit", "numpy"} == line["versions"].keys()
        assert {"device", "threads"} <= line["hardware"].keys()
        assert line["documents"]["measured"] == (100 if line["measure"] == "test" else 30)
        if line["row"] != "tf-idf":
            assert line["epochs"]
            for direction, settings in line["settings"].items():
                assert settings["classify"]["run"]["seed"] == line["seed"]
                assert settings["classify"]["run"]["direction"] == direction
        assert "device" not in json.dumps(line["settings"])


def test_a_run_is_what_the_pipeline_gives_with_the_settings_of_its_line(everything, tmp_path):
    line = everything.of("lm-tuning")["full", None, 0]
    config = ClassifyConfig.parse(line["settings"]["forward"]["classify"])
    language_model = everything.out / "language_models" / line["language_models"]["forward"]["key"]
    data = everything.out / "data" / "labelled"
    bundle = train_classifier(
        data / "learn.parquet", valid=data / "valid.parquet", language_model=language_model, config=config, out=tmp_path
    )
    measures = evaluate(Predictor(bundle, precision="float32"), data / "valid.parquet")
    assert measures["error"] == pytest.approx(line["error"])
    records = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["train_loss"] for record in records] == [epoch["train_loss"] for epoch in line["epochs"]]


def test_both_directions_are_the_mean_of_the_two(everything, data):
    lines = everything.of("results")
    (forward,) = parts_of(Run("results", "labelled", "forward", None, 0), data, everything.options)
    (backward,) = parts_of(Run("results", "labelled", "backward", None, 0), data, everything.options)
    rows = [np.load(everything.out / "measured" / f"{part.classifier}.npy") for part in (forward, backward)]
    truth = np.array([record.label == "good" for record in read_records([data.split("test")], label_column="label")])
    errors = [float(((row[:, 1] > row[:, 0]) != truth).mean()) for row in (*rows, (rows[0] + rows[1]) / 2)]
    assert [lines[name, None, 0]["error"] for name in ("forward", "backward", "both")] == pytest.approx(errors)
    assert len(lines["both", None, 0]["language_models"]) == 2


def test_tf_idf_is_the_baseline_on_the_same_draw(everything, data):
    draw = list(read_records([data.draw("test", 20, seed=0)], label_column="label"))
    model = train_baseline([record.text for record in draw], [record.label for record in draw])
    test = list(read_records([data.split("test")], label_column="label"))
    wrong = np.mean(model.predict([record.text for record in test]) != np.array([record.label for record in test]))
    assert everything.of("low-shot")["tf-idf", 20, 0]["error"] == pytest.approx(float(wrong))


def test_from_scratch_reads_the_drawn_texts_alone(everything):
    line = everything.of("low-shot")["from scratch", 20, 0]
    assert line["settings"]["forward"]["tune"]["tune"]["start"] == "random"
    assert line["language_models"]["forward"]["epochs"] == []
    assert line["documents"]["labelled"] == 20


# --- what is shared -------------------------------------------------------------------------------------------------


def test_a_language_model_is_tuned_once_for_all_rows_that_start_from_it(everything):
    keys = {model["key"] for line in everything.lines for model in line["language_models"].values()}
    tuned = stages(everything.events, "tune")
    assert len(tuned) == len(keys)
    # The recipe's; full, full + discr, none; without; vanilla; the preset's in both directions; scratch; and of the few
    # labels' texts, and all labelled texts, supervised and from scratch.
    assert len(keys) == 1 + 3 + 1 + 1 + 2 + 1 + 4


def test_a_classifier_that_two_experiments_have_is_trained_once(everything):
    same = [
        everything.of(experiment)[row, None, 0]
        for experiment, row in (
            ("pretraining", "with"),
            ("lm-quality", "AWD-LSTM"),
            ("lm-tuning", "full + discr + stlr"),
            ("classifier-tuning", "freez + discr + stlr"),
            ("forgetting", "ULMFiT"),
        )
    ]
    assert len({line["digest"] for line in same}) == 1
    assert len({json.dumps(line["epochs"]) for line in same}) == 1
    data = prepare_all([everything.task], everything.options)[everything.task.name]
    parts = [part for line in everything.lines for part in parts_of(run_of(line), data, everything.options)]
    assert len(stages(everything.events, "classify")) == len({part.classifier for part in parts})


def test_language_models_of_drawn_texts_are_not_kept(everything):
    kept = {path.name for path in (everything.out / "language_models").iterdir()}
    line = everything.of("low-shot")["supervised", 20, 0]
    assert line["language_models"]["forward"]["key"] not in kept
    assert everything.of("low-shot")["semi-supervised", 20, 0]["language_models"]["forward"]["key"] in kept


def test_seeds_may_share_language_models(run, options, tiny_task, tmp_path):
    ran = run(
        replace(options, out=tmp_path / "out", language_models=1), tiny_task, "forgetting", seeds=2, rows=["full"]
    )
    assert stages(ran.events, "tune") == ["tune forward"]
    assert len(stages(ran.events, "classify")) == 2
    assert [line["language_models"]["forward"]["seed"] for line in ran.lines] == [0, 0]
    assert ran.lines[0]["epochs"][0]["train_loss"] != ran.lines[1]["epochs"][0]["train_loss"]


# --- what is skipped and gone on with -------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(run, everything):
    before = (everything.out / RESULTS).read_bytes()
    again = run(everything.options, everything.task, "schedule", "low-shot", labels=[20, None])
    assert not any(isinstance(event, StageStarted) for event in again.events)
    assert (everything.out / RESULTS).read_bytes() == before
    assert {line["experiment"] for line in again.lines} == {"schedule", "low-shot"}


def test_other_settings_in_the_same_folder_are_refused(run, everything):
    other = replace(everything.options, settings={**everything.options.settings, "classify.batch_size": 6})
    with pytest.raises(
        ConfigError, match=r"results\.jsonl: holds 'pretraining: labelled, without.*choose another --out"
    ):
        run(other, everything.task, "pretraining")


def test_a_result_that_was_removed_is_made_again_from_what_is_left(run, everything, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(everything.out, out)
    lines = read_lines(out)
    (out / RESULTS).unlink()
    again = run(replace(everything.options, out=out), everything.task, "classifier-tuning")
    assert not any(isinstance(event, StageStarted) for event in again.events)
    expected = [identity(line) for line in lines if line["experiment"] == "classifier-tuning"]
    assert [identity(line) for line in again.lines] == expected


def _killed(options, task, rows, after):
    """Run until so many epochs have ended, then die at once."""
    ended = 0

    def report(event):
        nonlocal ended
        ended += isinstance(event, EpochEnded)
        if ended == after:
            os.kill(os.getpid(), signal.SIGKILL)

    run_experiment(["classifier-tuning"], [task], options=options, rows=rows, report=report)


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    run, forks, options, everything, tiny_task, tmp_path, after
):
    rows = ["full", "freez"]
    broken = replace(options, out=tmp_path / "out")
    process = forks.Process(target=_killed, args=(broken, tiny_task, rows, after))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    done = len(read_lines(broken.out))
    ran = run(broken, tiny_task, "classifier-tuning", rows=rows)
    assert f"2 runs, {done} of them done before" in notes(ran.events)
    whole = everything.of("classifier-tuning")
    assert [identity(line) for line in ran.lines] == [identity(whole[row, None, 0]) for row in rows]


def test_several_processes_make_what_one_makes_and_each_run_once(run, options, everything, tiny_task, tmp_path):
    rows = ["full", "last", "freez"]
    ran = run(replace(options, out=tmp_path / "out"), tiny_task, "classifier-tuning", rows=rows, workers=2)
    whole = everything.of("classifier-tuning")
    found = {line["row"]: identity(line) for line in ran.lines}
    assert found == {row: identity(whole[row, None, 0]) for row in rows}
    assert len(read_lines(tmp_path / "out")) == 3


def test_a_worker_may_read_much_text_with_processes_of_its_own():
    worker = started(count_tokens, ["a" * 4_000_000] * 8)
    worker.join(120)
    assert worker.exitcode == 0


def test_what_a_worker_fails_with_is_told_in_its_words(options, tiny_task, tmp_path):
    broken = replace(options, out=tmp_path / "out")
    data = prepare_all([tiny_task], broken)
    data["labelled"].split("learn").unlink()
    runs = [Run("classifier-tuning", "labelled", row, None, 0) for row in ("full", "last")]
    with pytest.raises(ProcessError, match=r"learn\.parquet: no such file"):
        work_side_by_side(runs, data, options=broken, workers=2, report=lambda _: None)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_base_that_reads_forward_only_makes_the_forward_rows(run, tiny, options, tiny_task, tmp_path):
    from ulmfit.bundle import LanguageModelBundle

    bundle = LanguageModelBundle.load(tiny.base)
    replace(bundle, models={"forward": bundle.models["forward"]}).save(tmp_path / "forward")
    forward = replace(options, out=tmp_path / "out", base=str(tmp_path / "forward"))
    ran = run(forward, tiny_task, "bidirectional")
    assert [line["row"] for line in ran.lines] == ["forward"]
    assert "does not read backward; pass --backward-base a base that does" in notes(ran.events)
    with pytest.raises(ConfigError, match="does not read backward"):
        run(forward, tiny_task, "bidirectional", rows=["backward"])
    with_both = replace(forward, backward_base=str(tiny.base))
    assert len(run(with_both, tiny_task, "bidirectional").lines) == 3


def test_another_base_in_the_same_place_makes_other_language_models(tiny, options, data, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny.base, base)
    run = Run("pretraining", "labelled", "with", None, 0)
    elsewhere = replace(options, base=str(base))
    (before,) = parts_of(run, data, elsewhere)
    assert [before] == [replace(part, base=str(base)) for part in parts_of(run, data, options)]
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["facts"]["training"]["seed"] = 7
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    known_base.cache_clear()
    (after,) = parts_of(run, data, elsewhere)
    assert after.language_model != before.language_model and after.classifier != before.classifier


def test_too_few_labels_or_seeds_and_unknown_rows_are_refused(run, options, tiny_task, tmp_path):
    fresh = replace(options, out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--labels 3: labelled\.csv has 2 classes; expected two of each"):
        run(fresh, tiny_task, "low-shot", labels=[3])
    with pytest.raises(ConfigError, match="--seeds 0"):
        run(fresh, tiny_task, "low-shot", seeds=0)
    with pytest.raises(ConfigError, match="has no row 'freeze'; did you mean 'freez'"):
        run(fresh, tiny_task, "classifier-tuning", rows=["freeze"])


# --- the results file -----------------------------------------------------------------------------------------------


def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path):
    append_line(tmp_path, {"row": "é", "error": 0.5})
    with (tmp_path / RESULTS).open("a", encoding="utf-8") as file:
        file.write('{"row": "b", "err')
    assert read_lines(tmp_path) == [{"row": "é", "error": 0.5}]
    append_line(tmp_path, {"row": "c"})
    assert read_lines(tmp_path) == [{"row": "é", "error": 0.5}, {"row": "c"}]


def test_a_product_that_another_process_makes_is_waited_for_or_told(tmp_path):
    from ulmfit.experiments.products import Busy

    with Shelf(tmp_path).alone("key"):
        with pytest.raises(Busy), Shelf(tmp_path, wait=False).alone("key"):
            pass
        with Shelf(tmp_path, wait=False).alone("other"):
            pass
