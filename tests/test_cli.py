"""The commands and flags that stay, what they print, and how they end."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as reference

import ulmfit.cli
from ulmfit.predict import Predictor

pytestmark = pytest.mark.usefixtures("one_thread")

CONTRACT = {
    "pretrain": "--out --direction --vocab-size --preset --resume",
    "tune": "--base --out",
    "train": (
        "--out --unlabelled --test --base --direction --text-column --label-column --preset --seed --resume --minutes"
    ),
    "evaluate": "--json",
    "predict": "--out",
    "merge": "--out --storage",
    "generate": "--length --temperature --top-p --seed --direction",
    "info": "",
    "demo": "--minutes --out",
}


def command_line(*arguments):
    """A real `python -m ulmfit ...`: the command and its environment."""
    source = str(Path(ulmfit.cli.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "ulmfit", *map(str, arguments)], environment


def assert_finished(ran, out, title):
    """The end of every long command: a short table, the next command, and a folder without working files."""
    assert ran.code == 0
    assert ran.out.splitlines()[0].strip() == title
    assert ran.out.splitlines()[-1].startswith("Next: ulmfit ")
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["config"]["run"]["seed"] == 0
    assert [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert not (out / "work").exists()
    assert "traceback" not in ran.err.lower()


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", CONTRACT)
def test_the_commands_have_the_flags_that_were_promised(ulmfit, command):
    ran = ulmfit(command, "--help")
    assert ran.code == 0
    missing = [flag for flag in CONTRACT[command].split() if flag not in ran.out.split()]
    assert not missing


def test_help_names_all_commands_and_loads_nothing_heavy():
    command, environment = command_line("--help")
    command[1:1] = ["-X", "importtime"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert all(name in ran.stdout for name in CONTRACT)
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in ran.stderr.splitlines() if "|" in line}
    assert "cyclopts" in imported
    assert not imported & {"torch", "numpy", "pyarrow", "sklearn", "tokenizers", "huggingface_hub"}


# --- the whole path -------------------------------------------------------------------------------------------------


def test_from_text_to_predictions_by_commands_alone(ulmfit, tiny, tmp_path):
    base, tuned, model = (tmp_path / name for name in ("base", "tuned", "model"))
    ran = ulmfit("pretrain", tiny.general, "--out", base, *tiny.flags("pretrain"))
    assert_finished(ran, base, "Pretrained")
    assert f"--base {base}" in ran.out
    ran = ulmfit("tune", tiny.labelled, tiny.unlabelled, "--base", base, "--out", tuned, *tiny.flags("tune"))
    assert_finished(ran, tuned, "Tuned")
    assert f"--base {tuned}" in ran.out
    files = ["--unlabelled", tiny.unlabelled, tiny.general, "--test", tiny.test]
    ran = ulmfit("train", tiny.labelled, *files, "--base", tuned, "--out", model, *tiny.flags("tune", "classify"))
    assert_finished(ran, model, "Trained")
    assert f"ulmfit predict {model}" in ran.out
    tested = json.loads((model / "test.json").read_text(encoding="utf-8"))
    assert tested["accuracy"] >= 0.95
    assert f"{tested['accuracy']:.2%}" in ran.out
    ran = ulmfit("evaluate", model, tiny.test, "--json")
    assert json.loads(ran.out) == tested
    inputs = json.loads((model / "run.json").read_text(encoding="utf-8"))["inputs"]
    assert [name for name, _ in inputs["unlabelled"]] == ["unlabelled.csv", "general.csv"]


def test_a_profiled_run_shows_and_saves_what_the_time_of_every_stage_went_to(ulmfit, tiny, tmp_path):
    out = tmp_path / "model"
    arguments = ["train", tiny.labelled, "--base", tiny.base, *tiny.flags("tune", "classify", **tiny.SHORT)]
    ran = ulmfit(*arguments, "--out", out, "--profile")
    assert_finished(ran, out, "Trained")
    profile = json.loads((out / "profile.json").read_text(encoding="utf-8"))
    assert list(profile) == ["tune forward", "classify forward"]
    for parts in profile.values():
        assert {"data", "forward", "backward", "optimizer", "evaluation", "checkpoints"} <= parts.keys()
        assert all(seconds >= 0 for seconds in parts.values())
    assert "Where the time went" in ran.out
    assert list(json.loads((out / "language_model/profile.json").read_text(encoding="utf-8"))) == ["tune forward"]
    ran = ulmfit(*arguments, "--out", tmp_path / "unprofiled")
    assert "Where the time went" not in ran.out
    assert not list((tmp_path / "unprofiled").rglob("profile.json"))


def test_minutes_are_planned_for_said_and_what_was_set_stays(ulmfit, tiny, tmp_path):
    arguments = ["train", tiny.labelled, "--unlabelled", tiny.unlabelled, "--base", tiny.base]
    flags = tiny.flags("tune", "classify", **tiny.SHORT)
    out = tmp_path / "model"
    ran = ulmfit(*arguments, *flags, "--out", out, "--minutes", 20)
    assert_finished(ran, out, "Trained")
    (said,) = [line for line in ran.err.splitlines() if line.startswith("for 20 minutes: ")]
    assert (
        "80 of 80 unlabelled texts beside the 120 labelled; epochs of tuning: 1, of the classifier: 1, "
        "which teaches a second one; about " in said
    )
    assert said.endswith("; tune.training.phases and classify.phases stay as set")
    assert any(line.startswith("took ") and line.endswith(" of the 20 minutes given") for line in ran.err.splitlines())
    assert json.loads((out / "plan.json").read_text(encoding="utf-8"))["plan"]["minutes"] == 20
    ran = ulmfit(*arguments, *flags, "--out", tmp_path / "none", "--minutes", 1e-6)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1].startswith(
        "ulmfit: error: --minutes 1e-06: too few for an epoch of each phase on 50 labelled texts alone; "
    )
    assert "would do here, with the phases as you set them, is --minutes 0." in ran.err.splitlines()[-1]
    assert not (tmp_path / "none").exists()


def test_flags_become_settings(ulmfit, tiny, tmp_path):
    rows = [(label, text) for text, label in tiny.reviews(40, seed=2)]
    labelled = tiny.write(tmp_path / "labelled.csv", rows, ["mood", "review"])
    columns = ["--text-column", "review", "--label-column", "mood"]
    flags = ["--direction", "both", "--seed", 7, "--device", "cpu", "--storage", "int8", "--preset", "paper"]
    out = tmp_path / "model"
    ran = ulmfit(
        "train",
        labelled,
        *columns,
        *flags,
        "--base",
        tiny.base,
        "--out",
        out,
        *tiny.flags("tune", "classify", **tiny.SHORT),
    )
    assert ran.code == 0, ran.err
    saved = json.loads((out / "run.json").read_text(encoding="utf-8"))
    run = saved["config"]["run"]
    assert (run["direction"], run["seed"], run["device"], run["storage"]) == ("both", 7, "cpu", "int8")
    assert saved["config"]["classify"]["window"] == 12
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert list(config["weights"]) == ["forward", "backward"]
    assert config["storage"] == "int8"


def test_the_vocabulary_is_as_large_as_asked_for(ulmfit, tiny, tmp_path):
    flags = tiny.flags("pretrain")
    at = flags.index("pretrain.tokenizer.vocab_size=100")
    del flags[at - 1 : at + 1]
    ran = ulmfit("pretrain", tiny.general, "--out", tmp_path / "base", "--vocab-size", 30, *flags)
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "base/config.json").read_text(encoding="utf-8"))["model"]["vocab_size"] == 30


def test_a_folder_of_folders_of_txt_is_a_labelled_set(ulmfit, tiny, tmp_path):
    for number, (text, label) in enumerate(tiny.reviews(40, seed=2)):
        (tmp_path / "reviews" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "reviews" / label / f"{number}.txt").write_text(text, encoding="utf-8")
    flags = tiny.flags("tune", "classify", classify__phases=[{"rate": 0.05}])
    ran = ulmfit("train", tmp_path / "reviews", "--base", tiny.base, "--out", tmp_path / "model", *flags)
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "model/config.json").read_text(encoding="utf-8"))["labels"] == ["bad", "good"]


# --- evaluate and info ----------------------------------------------------------------------------------------------


def test_evaluate_gives_the_measures_that_scikit_learn_gives(ulmfit, tiny, tmp_path):
    rows = [row for number, row in enumerate(tiny.reviews(60, seed=5)) if row[1] == "good" or number < 30]
    labelled = tiny.write(tmp_path / "uneven.csv", rows)
    ran = ulmfit("evaluate", tiny.model, labelled, "--json", "--precision", "float32")
    measures = json.loads(ran.out)
    assert ran.out.count("\n") == 1
    predictor = Predictor.load(tiny.model, precision="float32")
    probabilities = predictor.probabilities([text for text, _ in rows]).astype(np.float64)
    true = [predictor.labels.index(label) for _, label in rows]
    guessed = probabilities.argmax(1)
    assert measures["count"] == len(rows) == 45
    assert measures["accuracy"] == pytest.approx(reference.accuracy_score(true, guessed))
    assert measures["error"] == pytest.approx(1 - measures["accuracy"])
    assert measures["macro_f1"] == pytest.approx(reference.f1_score(true, guessed, average="macro"))
    sure = probabilities / probabilities.sum(1, keepdims=True)
    assert measures["log_loss"] == pytest.approx(reference.log_loss(true, sure), rel=1e-4)
    assert measures["confusion"] == reference.confusion_matrix(true, guessed).tolist()


def test_evaluate_prints_measures_and_a_row_for_each_class(ulmfit, tiny):
    ran = ulmfit("evaluate", tiny.model, tiny.test)
    assert ran.code == 0
    for heading in ("accuracy", "error", "macro F1", "log loss", "precision", "recall", "as bad", "as good"):
        assert heading in ran.out
    assert sum(line.strip("│ ").startswith(("bad", "good")) for line in ran.out.splitlines()) == 2


def test_evaluate_measures_a_language_model_by_its_perplexity(ulmfit, tiny):
    ran = ulmfit("evaluate", tiny.base, tiny.test, "--json")
    assert 1 < json.loads(ran.out)["directions"]["backward"]["perplexity"] < 60
    assert "perplexity" in ulmfit("evaluate", tiny.base, tiny.test).out
    refused = ulmfit("evaluate", tiny.base, tiny.test, "--precision", "int8")
    assert refused.code == 2 and "is a language model, and int8 is for classifiers" in refused.err


def test_evaluate_and_predict_take_int8(ulmfit, tiny):
    in_int8, in_float32 = (
        json.loads(ulmfit("evaluate", tiny.model, tiny.test, "--json", "--precision", precision).out)
        for precision in ("int8", "float32")
    )
    assert in_int8["log_loss"] != in_float32["log_loss"]
    assert in_int8["log_loss"] == pytest.approx(in_float32["log_loss"], abs=0.02)
    assert ulmfit("predict", tiny.model, tiny.test, "--precision", "int8").code == 0


def test_classes_may_be_named_like_markup(ulmfit, tiny, tmp_path):
    names = {"good": "[/b]", "bad": "[red]"}
    labelled = tiny.write(tmp_path / "[bold].csv", [(text, names[label]) for text, label in tiny.reviews(30, seed=2)])
    ran = ulmfit(
        "train",
        labelled,
        "--test",
        labelled,
        "--base",
        tiny.base,
        "--out",
        tmp_path / "model",
        *tiny.flags("tune", "classify", **tiny.SHORT),
    )
    assert ran.code == 0, ran.err
    assert "[/b]" in ran.out
    assert "as [red]" in ran.out
    assert "[bold].csv" in ran.out


def test_info_shows_the_card_of_either_kind_of_model(ulmfit, tiny):
    shown = ulmfit("info", tiny.model).out
    for fact in ("forward and backward classifier", "bad, good", "hidden 20", "classify backward"):
        assert fact in shown
    assert "language model" in ulmfit("info", tiny.base).out


def test_two_directions_trained_apart_become_one_model(ulmfit, tiny, tmp_path):
    for direction in ("forward", "backward"):
        flags = ("--direction", direction, *tiny.flags("tune"))
        assert ulmfit("tune", tiny.test, "--base", tiny.base, "--out", tmp_path / direction, *flags).code == 0
    ran = ulmfit("merge", tmp_path / "forward", tmp_path / "backward", "--out", tmp_path / "both")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == ["Merged: forward and backward", f"Next: ulmfit info {tmp_path / 'both'}"]
    measured = [
        json.loads(ulmfit("evaluate", tmp_path / name, tiny.test, "--json").out)["directions"]
        for name in ("forward", "backward", "both")
    ]
    assert measured[2] == measured[0] | measured[1]
    refused = ulmfit("merge", tmp_path / "forward", "--out", tmp_path / "one")
    assert refused.code == 2 and "two finished models" in refused.err


# --- predict --------------------------------------------------------------------------------------------------------

ADDED = ["label", "confidence", "probability_bad", "probability_good"]


@pytest.fixture(scope="module")
def texts(tiny):
    return [text for text, _ in tiny.reviews(20, seed=5)]


@pytest.fixture(scope="module")
def expected(tiny, texts):
    """The rows of probabilities that `Predictor` gives."""
    return Predictor.load(tiny.model).probabilities(texts)


def assert_predicted(rows, texts, expected):
    """Rows in input order, with label, confidence and each class's probability."""
    assert [row["text"] for row in rows] == texts
    found = [[float(row["probability_bad"]), float(row["probability_good"])] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [row["label"] for row in rows] == [("bad", "good")[best] for best in expected.argmax(1)]
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], expected.max(1), atol=1e-6)


def test_a_csv_file_comes_back_as_csv_with_its_columns(ulmfit, tiny, texts, expected, tmp_path):
    source = tiny.write(tmp_path / "in.csv", [(str(i), text) for i, text in enumerate(texts)], ["id", "text"])
    ran = ulmfit("predict", tiny.model, source, "--out", tmp_path / "out.csv")
    assert ran.code == 0, ran.err
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "text", *ADDED]
    assert [row["id"] for row in rows] == [str(i) for i in range(20)]
    assert_predicted(rows, texts, expected)


def test_a_jsonl_file_comes_back_as_jsonl_with_its_columns(ulmfit, tiny, texts, expected, tmp_path):
    rows = [{"text": text, "stars": [number]} for number, text in enumerate(texts)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ulmfit("predict", tiny.model, tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert list(rows[0]) == ["text", "stars", *ADDED]
    assert [row["stars"] for row in rows] == [[number] for number in range(20)]
    assert_predicted(rows, texts, expected)


def test_a_parquet_file_comes_back_as_parquet_with_its_columns(ulmfit, tiny, texts, expected, tmp_path):
    pq.write_table(pa.table({"text": texts, "id": range(20)}), tmp_path / "in.parquet")
    ulmfit("predict", tiny.model, tmp_path / "in.parquet", "--out", tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert list(rows[0]) == ["text", "id", *ADDED]
    assert_predicted(rows, texts, expected)


@pytest.mark.parametrize("where", [[], ["-"]], ids=["nothing", "a dash"])
def test_lines_of_standard_input_come_back_on_standard_output(ulmfit, tiny, texts, expected, where):
    ran = ulmfit("predict", tiny.model, *where, stdin="".join(f"{text}\n" for text in texts).encode())
    assert ran.code == 0, ran.err
    assert_predicted([json.loads(line) for line in ran.out.splitlines()], texts, expected)


def test_lines_of_standard_input_go_to_the_file_that_is_named(ulmfit, tiny, texts, expected, tmp_path):
    ran = ulmfit("predict", tiny.model, "--out", tmp_path / "out.csv", stdin="\n".join(texts).encode())
    assert (ran.code, ran.out) == (0, "")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert_predicted(rows, texts, expected)


def test_a_reader_that_has_seen_enough_ends_predict_without_a_word(tiny, tmp_path):
    """As `ulmfit predict MODEL big.csv | head -1`: far more rows than a pipe holds."""
    source = tiny.write(tmp_path / "big.csv", [("a film",)] * 2500, ["text"])
    command, environment = command_line("predict", tiny.model, source)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert json.loads(process.stdout.readline())["text"] == "a film"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141  # as a shell counts a program that SIGPIPE ended


# --- how errors end -------------------------------------------------------------------------------------------------


def assert_refused(ran, *told):
    """One line that says what is wrong, and exit code 2."""
    assert ran.code == 2
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1, ran.err
    assert ran.err.startswith("ulmfit: error: ")
    for words in told:
        assert words in ran.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "x.csv"], "--out"),
        (["train", "--out", "model"], "--labelled"),
        (["trian", "x.csv"], "trian"),
        (["train", "x.csv", "--out", "model", "--presets", "quick"], "--preset"),
        (["train", "x.csv", "--out", "model", "--preset", "slow"], "quick"),
        (["train", "x.csv", "--out", "model", "--direction", "up"], "forward"),
        (["train", "x.csv", "--out", "model", "--seed", "many"], "many"),
        (["predict"], "--model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_command_that_cannot_be_parsed_is_one_line_and_code_2(ulmfit, arguments, told):
    assert_refused(ulmfit(*arguments), told, "See ulmfit --help")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--set", "tune.training.windw=80"], "unknown setting 'tune.training.windw'; did you mean 'window'?"),
        (["--set", "tun.training.window=80"], "no group 'tun' here; there are run, tune, classify"),
        (["--set", "tune.training.window=wide"], "setting 'tune.training.window' is 'wide'"),
        (["--set", "tune.training.window"], "expected NAME=VALUE"),
        (["--set", "classify.phases=[]"], "setting 'classify.phases' is []"),
        (["--seed", "-1"], "setting 'seed' is -1"),
        (["--device", "tpu"], "setting 'device' is 'tpu'"),
        (["--device", "cuda:99"], "device 'cuda:99' is not there"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_told_by_name_and_nothing_is_made(ulmfit, tiny, tmp_path, flags, told):
    out = tmp_path / "model"
    assert_refused(ulmfit("train", tiny.labelled, "--base", tiny.base, "--out", out, *flags), told)
    assert not out.exists()


def test_a_real_process_ends_with_code_2_and_one_line(tmp_path):
    command, environment = command_line("info", tmp_path / "nothing")
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, input="")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("ulmfit: error: no model ")
    assert ran.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback(ulmfit, tiny, monkeypatch):
    def broken(name):
        raise ZeroDivisionError

    monkeypatch.setattr("ulmfit.pretrained.find_bundle", broken)
    with pytest.raises(ZeroDivisionError):
        ulmfit("info", tiny.model)
