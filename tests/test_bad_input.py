"""Whatever comes in: a defined result, or one line with the way out, nothing half-written, nothing earlier lost."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from ulmfit.predict import Predictor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def train(ulmfit, tiny, tmp_path):
    """`ulmfit train` with short phases into `tmp_path / "model"`."""

    def run(labelled, *arguments, base=tiny.base, **changed):
        flags = tiny.flags("tune", "classify", **{**tiny.SHORT, **changed})
        return ulmfit("train", labelled, "--base", base, "--out", tmp_path / "model", *arguments, *flags)

    return run


def refused(ran, *told):
    """Exit code 2 and one line on stderr, in which these words stand."""
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1, ran.err
    assert ran.err.startswith("ulmfit: error: ")
    for words in told:
        assert words in ran.err


def everything(folder):
    """All files below a folder, with their bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- labelled files -------------------------------------------------------------------------------------------------

BAD_FILES = {
    "no text column": (
        b"review,label\na film,good\n",
        "no column 'text'; it has 'review', 'label'. Pass --text-column",
    ),
    "no label column": (b"text,mood\na film,good\n", "no column 'label'; it has 'text', 'mood'. Pass --label-column"),
    "nothing": (b"", "the file is empty"),
    "no rows": (b"text,label\n", "no rows"),
    "one class": (b"text,label\na film,good\na story,good\n", "all 2 documents have the label 'good'"),
    "a row without label": (b"text,label\na film,good\na story,\n", "row 2 has no label"),
    "not UTF-8": ("text,label\ncaf\u00e9,good\nth\u00e9,bad\n".encode("latin-1"), "UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_labelled_file_that_cannot_be_used_is_refused_before_anything_is_made(train, tmp_path, name):
    content, told = BAD_FILES[name]
    (tmp_path / "bad.csv").write_bytes(content)
    refused(train(tmp_path / "bad.csv"), "bad.csv", told)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


@pytest.mark.parametrize("name", [name for name in BAD_FILES if name not in ("no label column", "one class")])
def test_a_file_that_cannot_be_read_is_refused_by_predict_and_evaluate_too(ulmfit, tiny, tmp_path, name):
    content, told = BAD_FILES[name]
    (tmp_path / "bad.csv").write_bytes(content)
    refused(ulmfit("evaluate", tiny.model, tmp_path / "bad.csv"), told)
    if name != "a row without label":
        refused(ulmfit("predict", tiny.model, tmp_path / "bad.csv", "--out", tmp_path / "out.csv"), told)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


def test_a_file_that_is_not_there_is_refused(train, ulmfit, tiny, tmp_path):
    refused(train(tmp_path / "labeled.csv"), "labeled.csv: no such file")
    refused(train(tiny.labelled, "--unlabelled", tmp_path / "more.csv"), "more.csv: no such file")
    refused(train(tiny.labelled, "--test", tmp_path / "test.csv"), "test.csv: no such file")
    refused(ulmfit("pretrain", tmp_path / "wiki.csv", "--out", tmp_path / "model"), "wiki.csv: no such file")
    refused(ulmfit("pretrain", "--out", tmp_path / "model"), "no files or folders given")
    assert not list(tmp_path.iterdir())


def test_a_test_label_that_training_never_saw_is_refused_before_training(train, ulmfit, tiny, tmp_path):
    test = tiny.write(tmp_path / "test.csv", [*tiny.reviews(4, seed=4), ("a film", "ugly")])
    refused(
        train(tiny.labelled, "--test", test), "test.csv, row 5", "'ugly' is not among the training labels bad, good"
    )
    assert not (tmp_path / "model").exists()
    refused(ulmfit("evaluate", tiny.model, test), "test.csv, row 5", "'ugly' was not seen in training")


def test_invalid_bytes_on_standard_input_are_refused(ulmfit, tiny):
    refused(ulmfit("predict", tiny.model, stdin=b"a film\nth\xe9\n"), "standard input: line 2 is not UTF-8")
    refused(ulmfit("predict", tiny.model, stdin=b""), "standard input: no rows")


def test_a_label_column_of_numbers_is_a_label_column(train, ulmfit, tiny, tmp_path):
    rows = [(text, str(int(label == "good"))) for text, label in tiny.reviews(20, seed=2)]
    assert train(tiny.write(tmp_path / "numbers.csv", rows)).code == 0
    written = [json.dumps({"text": text, "label": float(label)}) for text, label in rows]
    (tmp_path / "numbers.jsonl").write_text("\n".join(written), encoding="utf-8")
    ran = ulmfit("evaluate", tmp_path / "model", tmp_path / "numbers.jsonl", "--json")
    assert list(json.loads(ran.out)["classes"]) == ["0", "1"]


# --- base models ----------------------------------------------------------------------------------------------------


def remove_a_shard(folder):
    next(folder.glob("forward-*.safetensors")).unlink()
    return "the shard forward-00001-of-00001.safetensors is missing"


def cut_a_shard(folder):
    shard = next(folder.glob("forward-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    return "the shard cannot be read"


def change_a_shape(folder):
    shard = next(folder.glob("forward-*.safetensors"))
    tensors = load_file(shard)
    tensors["decoder_bias"] = tensors["decoder_bias"][:-1].clone()
    save_file(tensors, shard)
    return "the tensor decoder_bias has the shape"


def change_config(folder, change):
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(values)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")


def add_a_key(folder):
    change_config(folder, lambda values: values["model"].update(hidden=3))
    return "unknown setting 'hidden'"


def another_layout(folder):
    change_config(folder, lambda values: values["model"]["encoder"].update(layers=3))
    return "lacks the tensor"


def another_size(folder):
    change_config(folder, lambda values: values["model"]["encoder"].update(hidden_size=21))
    return "has the shape"


def another_architecture(folder):
    change_config(folder, lambda values: values["model"]["encoder"].update(architecture="transformer"))
    return "transformer"


def another_version(folder):
    change_config(folder, lambda values: values.update(version=99))
    return "version 99"


def cut_the_config(folder):
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes()[:-20])
    return "cannot be read"


def remove_the_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json"


def cut_the_tokenizer(folder):
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:-20])
    return "damaged"


def remove_the_config(folder):
    (folder / "config.json").unlink()
    return "no config.json in it"


DAMAGES = [
    remove_a_shard,
    cut_a_shard,
    change_a_shape,
    add_a_key,
    another_layout,
    another_size,
    another_architecture,
    another_version,
    cut_the_config,
    remove_the_tokenizer,
    cut_the_tokenizer,
    remove_the_config,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_or_foreign_model_is_refused_as_base_and_to_predict(train, ulmfit, tiny, tmp_path, damage):
    for name in ("base", "model"):
        shutil.copytree(getattr(tiny, name), tmp_path / f"my-{name}")
    told = damage(tmp_path / "my-base")
    refused(train(tiny.labelled, base=tmp_path / "my-base"), "my-base", told)
    damage(tmp_path / "my-model")
    out = tmp_path / "out.csv"
    refused(ulmfit("predict", tmp_path / "my-model", tiny.test, "--out", out), "my-model", told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-base", "my-model"]


def test_a_classifier_is_no_base_and_a_language_model_predicts_no_labels(train, ulmfit, tiny):
    refused(train(tiny.labelled, base=tiny.model), "holds a classifier, a language model is needed here")
    refused(ulmfit("predict", tiny.base, tiny.test), "holds a language model, a classifier is needed here")


def test_a_name_that_is_no_model_is_refused_with_those_that_are(train, ulmfit, tiny, tmp_path):
    for ran in (train(tiny.labelled, base="english"), ulmfit("info", "english")):
        refused(ran, "no model 'english': neither a folder nor one of the shipped models (en)")
    assert not list(tmp_path.iterdir())


def test_a_base_of_another_direction_is_refused_with_the_way_out(train, tiny, tmp_path):
    shutil.copytree(tiny.base, tmp_path / "base")
    change_config(tmp_path / "base", lambda values: values["weights"].pop("backward"))
    told = "reads forward only; pass --direction forward or a base pretrained backward"
    refused(train(tiny.labelled, "--direction", "both", base=tmp_path / "base"), told)
    assert not (tmp_path / "model").exists()


# --- folders and disks ----------------------------------------------------------------------------------------------


def test_a_file_where_the_folder_should_be_stays(train, ulmfit, tiny, tmp_path):
    (tmp_path / "model").write_text("my notes", encoding="utf-8")
    refused(train(tiny.labelled), "is not an empty folder")
    refused(train(tiny.labelled, "--resume"), "choose another --out")
    out = tmp_path / "model" / "deeper"
    refused(ulmfit("tune", tiny.labelled, "--base", tiny.base, "--out", out), "choose another --out")
    refused(ulmfit("predict", tiny.model, tiny.test, "--out", out / "x.csv"), "x.csv")
    assert (tmp_path / "model").read_text(encoding="utf-8") == "my notes"


def test_a_finished_model_is_not_overwritten(train, tiny, tmp_path):
    assert train(tiny.labelled).code == 0
    before = everything(tmp_path)
    refused(train(tiny.labelled), "is not an empty folder; pass --resume to go on with the run in it, or another --out")
    assert everything(tmp_path) == before


def test_a_disk_that_is_full_at_any_moment_ends_a_run_in_one_line_and_costs_nothing(full_disk, train, tiny, tmp_path):
    """Every file the run writes is refused once, the smallest last; what was learnt is there to resume from."""
    labelled = tiny.file("few", 60, seed=11)
    out = tmp_path / "model"
    assert train(labelled).code == 0
    unbroken = everything(out)
    out.rename(tmp_path / "unbroken")
    sizes = sorted({len(content) for content in unbroken.values()})
    endings = set()
    for size in [0, *sizes]:
        shutil.rmtree(out, ignore_errors=True)
        with full_disk(size):
            ran = train(labelled)
        if ran.code == 0:
            continue
        last = ran.err.splitlines()[-1]
        assert (ran.code, ran.out) == (2, ""), ran.err
        assert last.startswith("ulmfit: error: "), ran.err
        assert "cannot" in last, last
        assert not (out / "config.json").exists()
        endings.add(last.split(" cannot ", 1)[1].split(" (", 1)[0])
        if out.exists():
            learnt = [*out.rglob("checkpoint-*"), *out.rglob("language_model/config.json")]
            assert learnt, f"{size}: nothing was learnt, and yet something is left"
        assert train(labelled, *(["--resume"] if out.exists() else [])).code == 0
        for path, content in unbroken.items():
            if path.suffix == ".safetensors":
                assert path.read_bytes() == content
    assert len(endings) >= 3, endings


def test_a_disk_that_is_full_leaves_no_half_of_a_table_and_keeps_the_one_before(full_disk, ulmfit, tiny, tmp_path):
    model, source = tiny.model, tiny.test  # made now, while there is room
    for name in ("new.csv", "new.jsonl", "new.parquet"):
        with full_disk(1000):
            refused(ulmfit("predict", model, source, "--out", tmp_path / name), name)
        assert not list(tmp_path.iterdir())
    (tmp_path / "old.csv").write_text("precious", encoding="utf-8")
    with full_disk(1000):
        refused(ulmfit("predict", model, source, "--out", tmp_path / "old.csv"), "old.csv")
    assert everything(tmp_path) == {tmp_path / "old.csv": b"precious"}


def test_a_test_result_that_cannot_be_written_is_one_line_and_the_model_is_there(train, tiny, tmp_path):
    test = tiny.file("few", 40, seed=11)
    assert train(test).code == 0
    (tmp_path / "model" / "test.json").mkdir()
    ran = train(test, "--test", test, "--resume")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith(f"ulmfit: error: {tmp_path / 'model' / 'test.json'}: cannot be written")
    assert not list((tmp_path / "model").glob(".*"))


# --- texts ----------------------------------------------------------------------------------------------------------

ODD = ["", "   \n\t ", "!!!", "\x00\x01", "\U0001f600" * 3, "A", "film " * 40, "xxunk xxpad xxbos"]


def test_any_text_is_learnt_from_and_gets_a_label(train, ulmfit, tiny, tmp_path):
    rows = [*[(text, "bad") for text in ODD], *tiny.reviews(20, seed=2)]
    (tmp_path / "odd.jsonl").write_text(
        "\n".join(json.dumps({"text": text, "label": label}) for text, label in rows), encoding="utf-8"
    )
    ran = train(tmp_path / "odd.jsonl", "--test", tmp_path / "odd.jsonl", "--direction", "both")
    assert ran.code == 0, ran.err
    ulmfit("predict", tmp_path / "model", tmp_path / "odd.jsonl", "--out", tmp_path / "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in found] == [text for text, _ in rows]
    for row in found:
        assert row["label"] in ("bad", "good")
        assert row["probability_bad"] + row["probability_good"] == pytest.approx(1)


def test_nothing_and_only_spaces_are_the_same_text(tiny):
    nothing, spaces = Predictor.load(tiny.model).probabilities(["", " \t\n  "])
    assert nothing.tolist() == pytest.approx(spaces.tolist(), abs=1e-6)


def test_two_million_characters_are_learnt_from_and_get_a_label(train, ulmfit, tiny, tmp_path):
    words = " ".join(text for text, _ in tiny.reviews(22_000, seed=3))[:2_000_000]
    giants = [(words, "good"), ("x" * 2_000_000, "bad"), (" " * 2_000_000, "bad"), ("ab" * 1_000_000, "good")]
    assert {len(text) for text, _ in giants} == {2_000_000}
    labelled = tiny.write(tmp_path / "giants.csv", [*giants, *tiny.reviews(8, seed=2)])
    wide = {**tiny.LANGUAGE_MODEL, "batch_size": 64, "window": 300, "phases": [{"rate": 0.01}]}
    ran = train(labelled, tune__training=wide, classify__window=2000, classify__horizon=2000)
    assert ran.code == 0, ran.err
    ran = ulmfit("predict", tmp_path / "model", labelled, "--out", tmp_path / "out.jsonl")
    assert ran.code == 0, ran.err
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [len(row["text"]) for row in found[:4]] == [2_000_000] * 4
    assert all(0.5 <= row["confidence"] <= 1 for row in found)


# --- very little of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("valid_share", [0.0, 0.2])
def test_two_to_five_labelled_documents_make_a_classifier(train, ulmfit, tiny, tmp_path, count, valid_share):
    labelled = tiny.write(tmp_path / "few.csv", tiny.reviews(count, seed=2))
    ran = train(labelled, "--test", tiny.test, classify__valid_share=valid_share)
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "model/test.json").read_text(encoding="utf-8"))["count"] == 100


def test_the_default_settings_do_with_two_documents_too(ulmfit, tiny, tmp_path):
    labelled = tiny.write(tmp_path / "few.csv", tiny.reviews(2, seed=2))
    ran = ulmfit("train", labelled, "--base", tiny.base, "--out", tmp_path / "model")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "texts",
    [
        [
            "a fine film",
            "dull",
            "so so",
            "ok",
            "a very long story",
            "the actor was good",
            "no",
            "yes",
            "film",
            "a",
            "b",
        ],
        ["", "", "", "", "", "a fine film and a dull story"],
        ["a fine film and a dull story"],
    ],
    ids=["short ones", "empty ones", "one"],
)
def test_a_handful_of_texts_is_enough_to_tune_on(ulmfit, tiny, tmp_path, texts, seed):
    source = tiny.write(tmp_path / "texts.csv", [(text, "") for text in texts], ["text", "nothing"])
    ran = ulmfit("tune", source, "--base", tiny.base, "--out", tmp_path / "tuned", *tiny.flags("tune", run__seed=seed))
    assert ran.code == 0, ran.err


def test_text_without_a_single_word_is_refused_by_name(ulmfit, tiny, tmp_path):
    source = tiny.write(tmp_path / "texts.csv", [("", "")], ["text", "nothing"])
    ran = ulmfit("tune", source, "--base", tiny.base, "--out", tmp_path / "tuned", *tiny.flags("tune"))
    refused(ran, "hold no words; pass texts that are not empty")
    assert not (tmp_path / "tuned").exists()
