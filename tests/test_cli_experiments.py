"""`ulmfit experiment` and `ulmfit ablate`: what they print, write and refuse."""

import json

import pytest

from ulmfit.experiments.recipes import EXPERIMENTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def flags(tiny):
    """Tiny settings, an epoch or two a stage."""
    training = {**tiny.LANGUAGE_MODEL, "phases": [{"rate": 0.02, "epochs": 1, "discriminative": 1.0}]}
    phases = [{"rate": 0.05, "epochs": 2, "discriminative": 1.3}]
    return ["--base", tiny.base, *tiny.flags("tune", "classify", tune__training=training, classify__phases=phases)]


def test_the_list_names_every_experiment(ulmfit):
    ran = ulmfit("experiment", "list")
    assert ran.code == 0
    for experiment in EXPERIMENTS:
        assert experiment.name in ran.out
    assert "yelp_full" in ran.out


def test_an_experiment_on_a_user_s_file_prints_and_writes_its_table(ulmfit, tiny, tmp_path, flags):
    out = tmp_path / "out"
    command = ["experiment", "low-shot", "--data", tiny.labelled, "--unlabelled", tiny.unlabelled, "--test", tiny.test]
    command += ["--labels", "20,all", "--rows", "tf-idf", "semi-supervised", "--seeds", "2", "--out", out, *flags]
    ran = ulmfit(*command)
    assert ran.code == 0, ran.err
    assert "few labels: labelled.csv" in ran.out
    assert ran.out.splitlines()[-1] == f"Next: ulmfit experiment report --out {out}"
    (table,) = json.loads((out / "tables.json").read_text(encoding="utf-8"))
    assert [(cell["row"], cell["labels"], cell["n"]) for cell in table["cells"]] == [
        ("semi-supervised", 20, 2),
        ("tf-idf", 20, 2),
        ("semi-supervised", None, 2),
        ("tf-idf", None, 2),
    ]
    before = (out / "results.jsonl").read_bytes()
    again = ulmfit(*command)
    assert again.code == 0
    assert "8 runs, 8 of them done before" in again.err
    assert (out / "results.jsonl").read_bytes() == before
    (out / "tables.md").unlink()
    assert ulmfit("experiment", "report", "--out", out).code == 0
    assert (out / "tables.md").is_file()


def test_the_command_in_a_line_makes_that_line_again(ulmfit, tiny, tmp_path, flags, monkeypatch):
    import shlex

    out = tmp_path / "out"
    given = ["--rows", "last", "--out", out, *flags]
    assert ulmfit("experiment", "classifier-tuning", "--data", tiny.labelled, *given).code == 0
    line = json.loads((out / "results.jsonl").read_text(encoding="utf-8"))
    name, *words = shlex.split(line["command"])
    monkeypatch.chdir(tiny.folder)
    assert name == "ulmfit"
    assert ulmfit(*[str(tmp_path / "again") if word == "DIR" else word for word in words]).code == 0
    again = json.loads((tmp_path / "again" / "results.jsonl").read_text(encoding="utf-8"))
    for key in ("digest", "error", "settings", "command"):
        assert again[key] == line[key]
    assert [epoch["train_loss"] for epoch in again["epochs"]] == [epoch["train_loss"] for epoch in line["epochs"]]


def test_an_ablation_prints_the_tables(ulmfit, tiny, tmp_path, flags):
    out = tmp_path / "out"
    command = ["ablate", tiny.labelled, "--unlabelled", tiny.unlabelled, "--minutes", "10", "--out", out]
    ran = ulmfit(*command, "--only", "pretraining", "lm-quality", "--seeds", "1", *flags)
    assert ran.code == 0, ran.err
    assert "for 10 minutes: 96 of 96 labelled documents" in ran.err
    assert {"Table 4", "Table 5"} <= {line.strip()[:7] for line in ran.out.splitlines()}
    assert (out / "tables.md").is_file()
    assert "Left out" not in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment", "low-shoot"], "no experiment 'low-shoot'; did you mean 'low-shot'?"),
        (["experiment", "results", "--data", "reuters"], "no data set 'reuters'; give one of imdb"),
        (["experiment", "report"], "no results there yet; run ulmfit experiment NAME"),
        (["ablate", "absent.csv", "--out", "x"], "absent.csv: no such file"),
        (["experiment", "low-shot", "--data", "LABELLED", "--labels", "10,some"], "'some' is no number"),
        (["experiment", "low-shot", "--data", "LABELLED", "--language-models", "0"], "expected one at least"),
        (["experiment", "low-shot", "--data", "LABELLED", "--set", "tune.learnt=1"], "unknown setting 'tune.learnt'"),
    ],
)
def test_what_cannot_be_done_is_one_line(ulmfit, tiny, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ULMFIT_DATA", str(tmp_path))
    ran = ulmfit(*[tiny.labelled if word == "LABELLED" else word for word in arguments])
    assert ran.code == 2
    assert message in ran.err
    assert len([line for line in ran.err.splitlines() if line.startswith("ulmfit: error: ")]) == 1
