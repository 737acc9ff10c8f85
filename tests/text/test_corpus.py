"""Corpora against plain lists of encoded documents: built, killed, resumed, damaged and split."""

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulmfit.config import TokenizerConfig
from ulmfit.errors import DataError, OutputError, UlmfitError
from ulmfit.text import corpus as corpus_module
from ulmfit.text import parts as parts_module
from ulmfit.text.corpus import Corpus, build_corpus, split_documents
from ulmfit.text.tokenizer import Tokenizer, train_tokenizer

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]


def write_table(path: Path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def rows():
    generator = random.Random(0)
    made = [
        (" ".join(generator.choices(WORDS, k=generator.randrange(1, 60))), generator.choice(["neg", "pos", "so-so"]))
        for _ in range(600)
    ]
    made[3] = ("Ünïcödé, two\nlines and a Kapital", "pos")
    return made


@pytest.fixture(scope="module")
def tokenizer(rows) -> Tokenizer:
    return train_tokenizer((text for text, _ in rows), config=TokenizerConfig(vocab_size=400), processes=1)


@pytest.fixture(scope="module")
def table(tmp_path_factory, rows) -> Path:
    return write_table(tmp_path_factory.mktemp("tables") / "rows.csv", rows)


@pytest.fixture
def small_chunks(monkeypatch):
    """About 25 parts from the table, so that parts, pools and joins all do something."""
    monkeypatch.setattr(parts_module, "_CHUNK_CHARACTERS", 8_000)


def contents(folder: Path):
    """Every file of a folder, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_holds(corpus: Corpus, rows, tokenizer, *, labelled):
    assert len(corpus) == len(rows)
    encoded = [tokenizer.encode(text) for text, _ in rows]
    assert corpus.tokens == sum(map(len, encoded))
    assert corpus.lengths.tolist() == [len(ids) for ids in encoded]
    for index, ids in enumerate(encoded):
        assert corpus.document(index).tolist() == ids
    if labelled:
        assert corpus.label_names == tuple(sorted({label for _, label in rows}))
        assert [corpus.label_names[label] for label in corpus.labels] == [label for _, label in rows]
    else:
        assert corpus.labels is None
        assert corpus.label_names == ()


# --- building -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [False, True])
def test_a_built_corpus_holds_the_encoded_documents_and_labels_in_order(tmp_path, table, rows, tokenizer, labelled):
    column = "label" if labelled else None
    corpus = build_corpus([table], tokenizer, out=tmp_path / "a" / "corpus", label_column=column)
    assert_holds(corpus, rows, tokenizer, labelled=labelled)
    assert isinstance(corpus.ids, np.memmap)
    assert corpus.ids.dtype == np.uint16
    assert corpus.lengths.dtype == np.int64
    assert corpus.tokenizer_fingerprint == tokenizer.fingerprint
    assert corpus.vocab_size == len(tokenizer)
    assert sorted(contents(tmp_path / "a" / "corpus")) == sorted(
        ["ids.bin", "offsets.bin", "corpus.json", *(["labels.bin"] if labelled else [])]
    )


def test_any_number_of_processes_gives_the_same_bytes(tmp_path, table, rows, tokenizer, small_chunks, monkeypatch):
    alone = build_corpus([table], tokenizer, out=tmp_path / "1", label_column="label", processes=1)
    build_corpus([table], tokenizer, out=tmp_path / "2", label_column="label", processes=2)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert_holds(alone, rows, tokenizer, labelled=True)


def test_the_cut_into_parts_shows_in_ids_and_labels_nowhere(tmp_path, table, tokenizer, monkeypatch):
    whole = build_corpus([table], tokenizer, out=tmp_path / "whole", label_column="label")
    monkeypatch.setattr(parts_module, "_CHUNK_CHARACTERS", 1)
    single = build_corpus([table], tokenizer, out=tmp_path / "single", label_column="label", processes=1)
    for name in ("ids.bin", "offsets.bin", "labels.bin"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "single" / name).read_bytes()
    assert whole.fingerprint == single.fingerprint


def test_several_files_are_one_corpus_in_their_order(tmp_path, rows, tokenizer):
    first, second = write_table(tmp_path / "b.csv", rows[:7]), write_table(tmp_path / "a.csv", rows[7:20])
    corpus = build_corpus([first, second], tokenizer, out=tmp_path / "corpus", label_column="label")
    assert_holds(corpus, rows[:20], tokenizer, labelled=True)


KILLED = """
import sys
from pathlib import Path
from ulmfit.text import corpus, parts
from ulmfit.text.tokenizer import Tokenizer

if __name__ == "__main__":
    parts._CHUNK_CHARACTERS = 8_000
    table, tokenizer, out, processes = sys.argv[1:]
    def slowly(documents):
        import time
        time.sleep(0.05)
    corpus.build_corpus([Path(table)], Tokenizer.from_json(Path(tokenizer).read_text(encoding="utf-8")), out=Path(out),
                        label_column="label", processes=int(processes), on_progress=slowly)
"""


def children(process: int):
    """The processes it started, where the system tells."""
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in listed.read_text().split()] if listed.exists() else []


def is_running(process: int):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_build_started_again_ends_in_the_same_bytes_and_keeps_its_parts(
    tmp_path, table, tokenizer, small_chunks, processes
):
    script, saved, out = tmp_path / "build.py", tmp_path / "tokenizer.json", tmp_path / "killed"
    script.write_text(KILLED)
    saved.write_text(tokenizer.to_json(), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(table), str(saved), str(out), str(processes)]
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 30
    while len(list((out / "parts").glob("part-??????"))) < 4:
        assert process.poll() is None and time.monotonic() < deadline, "the build ended before it could be killed"
        time.sleep(0.005)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived the build"
        time.sleep(0.01)
    with pytest.raises(DataError, match=r"corpus\.json is missing"):
        Corpus.open(out)
    done = {path: path.stat().st_mtime_ns for path in (out / "parts").glob("part-??????")}

    kept = {}
    real_join = corpus_module._join

    def look_then_join(parts, *arguments, **settings_):
        kept.update({path: path.stat().st_mtime_ns for path in done})
        real_join(parts, *arguments, **settings_)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "_join", look_then_join)
        corpus = build_corpus([table], tokenizer, out=out, label_column="label", processes=1)
    assert kept == done
    build_corpus([table], tokenizer, out=tmp_path / "whole", label_column="label", processes=1)
    assert contents(out) == contents(tmp_path / "whole")
    assert corpus.fingerprint == Corpus.open(tmp_path / "whole").fingerprint


def interrupted_build(table, tokenizer, out, *, after=300):
    """Parts of about half the table, left behind by an exception."""

    class Interrupted(Exception):
        pass

    def stop(documents):
        if documents >= after:
            raise Interrupted

    with pytest.raises(Interrupted):
        build_corpus([table], tokenizer, out=out, label_column="label", processes=1, on_progress=stop)
    return sorted(path.name for path in (out / "parts").iterdir())


def test_parts_of_another_text_or_tokenizer_are_done_anew(tmp_path, table, rows, tokenizer, small_chunks):
    out = tmp_path / "corpus"
    left = interrupted_build(table, tokenizer, out)
    assert 5 < len(left) < 20
    changed = [
        (text, label) if index != 100 else ("another text here", label) for index, (text, label) in enumerate(rows)
    ]
    corpus = build_corpus(
        [write_table(tmp_path / "t.csv", changed)], tokenizer, out=out, label_column="label", processes=1
    )
    assert_holds(corpus, changed, tokenizer, labelled=True)

    interrupted_build(table, tokenizer, tmp_path / "other")
    smaller = train_tokenizer((text for text, _ in rows), config=TokenizerConfig(vocab_size=100), processes=1)
    corpus = build_corpus([table], smaller, out=tmp_path / "other", label_column="label", processes=1)
    assert_holds(corpus, rows, smaller, labelled=True)


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"no json\n", b'["list"]\n', b"\xff\xfe\n"])
def test_a_part_that_is_no_part_is_done_anew(tmp_path, table, rows, tokenizer, small_chunks, damage):
    left = interrupted_build(table, tokenizer, tmp_path / "corpus")
    (tmp_path / "corpus" / "parts" / left[2]).write_bytes(damage)
    (tmp_path / "corpus" / "parts" / "part-000001.999.tmp").write_bytes(b"half")
    (tmp_path / "corpus" / "parts" / "part-009999").write_bytes(b"of a longer text")
    corpus = build_corpus([table], tokenizer, out=tmp_path / "corpus", label_column="label", processes=1)
    assert_holds(corpus, rows, tokenizer, labelled=True)
    assert not (tmp_path / "corpus" / "parts").exists()


def test_a_cut_part_is_done_anew(tmp_path, table, rows, tokenizer, small_chunks):
    left = interrupted_build(table, tokenizer, tmp_path / "corpus")
    part = tmp_path / "corpus" / "parts" / left[2]
    part.write_bytes(part.read_bytes()[:-3])
    corpus = build_corpus([table], tokenizer, out=tmp_path / "corpus", label_column="label", processes=1)
    assert_holds(corpus, rows, tokenizer, labelled=True)


def test_a_finished_corpus_of_the_same_text_is_used_again_and_of_another_replaced(tmp_path, rows, tokenizer):
    table, out = write_table(tmp_path / "t.csv", rows[:50]), tmp_path / "corpus"
    build_corpus([table], tokenizer, out=out, label_column="label")
    (out / "notes.txt").write_text("mine")
    before = (out / "ids.bin").stat().st_ino
    moved = shutil.copy(table, tmp_path / "moved.csv")
    build_corpus([Path(moved)], tokenizer, out=out, label_column="label")
    assert (out / "ids.bin").stat().st_ino == before
    write_table(table, rows[1:40])
    assert_holds(build_corpus([table], tokenizer, out=out, label_column="label"), rows[1:40], tokenizer, labelled=True)
    assert_holds(build_corpus([table], tokenizer, out=out), rows[1:40], tokenizer, labelled=False)
    assert sorted(contents(out)) == ["corpus.json", "ids.bin", "notes.txt", "offsets.bin"]


def test_a_damaged_corpus_is_built_again(tmp_path, rows, tokenizer):
    table, out = write_table(tmp_path / "t.csv", rows[:50]), tmp_path / "corpus"
    build_corpus([table], tokenizer, out=out)
    whole = contents(out)
    (out / "ids.bin").write_bytes(whole["ids.bin"][:-1])
    build_corpus([table], tokenizer, out=out)
    assert contents(out) == whole


def test_progress_tells_the_documents_read(tmp_path, table, rows, tokenizer, small_chunks):
    told = []
    build_corpus([table], tokenizer, out=tmp_path / "corpus", processes=1, on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == len(rows)
    assert len(told) > 10


def test_no_text_is_an_error_that_names_the_files(tmp_path, tokenizer):
    table = write_table(tmp_path / "empty.csv", [])
    with pytest.raises(DataError, match=r"empty\.csv"):
        build_corpus([table], tokenizer, out=tmp_path / "corpus")


@pytest.mark.skipif(sys.platform == "win32", reason="no such lock")
def test_two_builders_of_one_folder_are_kept_apart(tmp_path, table, tokenizer):
    with (
        corpus_module._only_builder(tmp_path / "corpus"),
        pytest.raises(OutputError, match="another process is building"),
    ):
        build_corpus([table], tokenizer, out=tmp_path / "corpus")
    build_corpus([table], tokenizer, out=tmp_path / "corpus")


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path, table, tokenizer):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        build_corpus([table], tokenizer, out=tmp_path / "file" / "corpus")


def test_a_full_disk_is_an_output_error_that_leaves_no_half_part(full_disk, tmp_path, table, rows, tokenizer):
    with full_disk(1000), pytest.raises(OutputError, match=r"part-000000: cannot be written"):
        build_corpus([table], tokenizer, out=tmp_path / "corpus")
    assert contents(tmp_path / "corpus") == {}
    assert_holds(build_corpus([table], tokenizer, out=tmp_path / "corpus"), rows, tokenizer, labelled=False)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_worker_that_dies_is_one_line_and_the_next_run_goes_on(tmp_path, table, rows, tokenizer, small_chunks):
    def kill_one(documents):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(UlmfitError, match="a process encoding text died; what is done is kept"):
        build_corpus([table], tokenizer, out=tmp_path / "corpus", processes=2, on_progress=kill_one)
    assert_holds(
        build_corpus([table], tokenizer, out=tmp_path / "corpus", processes=2), rows, tokenizer, labelled=False
    )


# --- opening --------------------------------------------------------------------------------------------------------


def test_a_corpus_works_wherever_it_is_moved(tmp_path, rows, tokenizer):
    table = write_table(tmp_path / "t.csv", rows[:50])
    built = build_corpus([table], tokenizer, out=tmp_path / "here", label_column="label")
    table.unlink()
    (tmp_path / "here").rename(tmp_path / "there")
    opened = Corpus.open(tmp_path / "there")
    assert_holds(opened, rows[:50], tokenizer, labelled=True)
    assert opened.fingerprint == built.fingerprint
    assert str(tmp_path) not in (tmp_path / "there" / "corpus.json").read_text()


def cut(name):
    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])

    return damage


def lengthen(name):
    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes() + b"\0")

    return damage


def remove(name):
    def damage(folder):
        (folder / name).unlink()

    return damage


def set_number(name, dtype, index, value):
    def damage(folder):
        numbers = np.fromfile(folder / name, dtype=dtype)
        numbers[index] = value
        numbers.tofile(folder / name)

    return damage


def set_fact(name, value):
    def damage(folder):
        facts = json.loads((folder / "corpus.json").read_text())
        facts[name] = value
        (folder / "corpus.json").write_text(json.dumps(facts))

    return damage


def write_facts(text):
    def damage(folder):
        (folder / "corpus.json").write_bytes(text)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("ids.bin"), r"ids\.bin: damaged, \d+ bytes, but corpus\.json says \d+"),
        (lengthen("ids.bin"), r"ids\.bin: damaged"),
        (cut("offsets.bin"), r"offsets\.bin: damaged"),
        (cut("labels.bin"), r"labels\.bin: damaged"),
        (remove("ids.bin"), r"ids\.bin: cannot be read"),
        (remove("offsets.bin"), r"offsets\.bin: cannot be read"),
        (remove("labels.bin"), r"labels\.bin: cannot be read"),
        (remove("corpus.json"), r"corpus\.json is missing"),
        (set_number("offsets.bin", "<i8", 0, 1), r"offsets do not rise from 0"),
        (set_number("offsets.bin", "<i8", 5, -1), r"offsets do not rise"),
        (set_number("offsets.bin", "<i8", 5, 1 << 60), r"offsets do not rise"),
        (set_number("offsets.bin", "<i8", -1, 3), r"offsets do not rise"),
        (set_number("ids.bin", "<u2", 77, 60_000), r"ids\.bin: damaged, id 60000 in a vocabulary of \d+ tokens"),
        (set_number("labels.bin", "<i4", 7, 3), r"labels\.bin: damaged, labels 0 to 3, expected -1 to 2"),
        (set_number("labels.bin", "<i4", 7, -2), r"labels\.bin: damaged"),
        (write_facts(b""), "not JSON"),
        (write_facts(b"\xff"), "not JSON"),
        (write_facts(b"[]"), "not the description of a corpus"),
        (write_facts(b'{"format": "other"}'), "not the description of a corpus"),
        (set_fact("version", 2), "version 2, but this ulmfit reads version 1"),
        (set_fact("documents", "many"), "an entry is missing, unknown or out of range"),
        (set_fact("documents", True), "an entry is missing"),
        (set_fact("tokens", -1), "an entry is missing"),
        (set_fact("tokens", 10), r"ids\.bin: damaged"),
        (set_fact("dtype", "uint32"), "an entry is missing"),
        (set_fact("vocab_size", 10), "id .* in a vocabulary of 10 tokens"),
        (set_fact("label_names", ["a", 1]), "an entry is missing"),
        (set_fact("surprise", 1), "an entry is missing, unknown"),
    ],
)
def test_a_damaged_corpus_is_refused_in_one_line(tmp_path, rows, tokenizer, damage, message):
    build_corpus([write_table(tmp_path / "t.csv", rows[:50])], tokenizer, out=tmp_path / "c", label_column="label")
    damage(tmp_path / "c")
    with pytest.raises(DataError, match=message) as caught:
        Corpus.open(tmp_path / "c")
    assert "\n" not in str(caught.value)


def test_no_folder_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no corpus here"):
        Corpus.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="no corpus here"):
        Corpus.open(tmp_path / "file")


# --- in memory ------------------------------------------------------------------------------------------------------


def test_a_corpus_in_memory_equals_the_one_on_disk_down_to_its_fingerprint(tmp_path, rows, tokenizer):
    built = build_corpus(
        [write_table(tmp_path / "t.csv", rows[:50])], tokenizer, out=tmp_path / "c", label_column="label"
    )
    made = Corpus.from_documents(
        [tokenizer.encode(text) for text, _ in rows[:50]],
        vocab_size=len(tokenizer),
        labels=built.labels,
        label_names=built.label_names,
    )
    assert_holds(made, rows[:50], tokenizer, labelled=True)
    assert made.fingerprint == built.fingerprint
    assert made.ids.dtype == built.ids.dtype


def test_the_fingerprint_tells_any_difference():
    def fingerprint(documents, **settings_):
        return Corpus.from_documents(documents, **{"vocab_size": 9, **settings_}).fingerprint

    prints = [
        fingerprint([[2, 3], [2, 4]]),
        fingerprint([[2, 3], [2, 5]]),
        fingerprint([[2, 3, 2], [4]]),
        fingerprint([[2, 3], [2, 4]], vocab_size=10),
        fingerprint([[2, 3], [2, 4]], labels=[0, 1]),
        fingerprint([[2, 3], [2, 4]], labels=[1, 0]),
        fingerprint([[2, 3], [2, 4]], labels=[1, 0], label_names=["a", "b"]),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint([[2, 3], [2, 4]]) == fingerprint([np.array([2, 3], np.uint16), (2, 4)])


@pytest.mark.parametrize(
    ("documents", "settings_", "message"),
    [
        ([[2], []], {}, "document 1 has no tokens"),
        ([[2, 9]], {}, "ids 2 to 9, but the vocabulary has 9"),
        ([[-1]], {}, "ids -1 to -1"),
        ([[2]], {"labels": [0, 1]}, "2 labels for 1 documents"),
        ([[2]], {"labels": [1], "label_names": ["a"]}, "labels 1 to 1, but there are 1 label names"),
        ([[2]], {"labels": [-2]}, "labels -2 to -2"),
    ],
)
def test_impossible_documents_and_labels_are_refused(documents, settings_, message):
    with pytest.raises(DataError, match=message):
        Corpus.from_documents(documents, vocab_size=9, **settings_)


def test_ids_take_two_bytes_below_65536_tokens_and_four_from_there():
    assert Corpus.from_documents([[65_534]], vocab_size=65_535).ids.dtype == np.uint16
    assert Corpus.from_documents([[65_535]], vocab_size=65_536).ids.dtype == np.uint32


def test_a_document_that_is_not_there_is_an_index_error():
    corpus = Corpus.from_documents([[2, 3], [2]], vocab_size=5)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            corpus.document(index)


# --- splitting ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(-1, 5), max_size=80),
    st.floats(0, 0.99),
    st.integers(0, 2**31 - 1),
    st.booleans(),
)
def test_a_split_puts_each_document_on_one_side_and_each_class_on_both(labels, valid_share, seed, stratified):
    given_labels = np.array(labels, dtype=np.int32) if stratified else None
    train, valid = split_documents(len(labels), valid_share=valid_share, seed=seed, labels=given_labels)
    assert train.dtype == valid.dtype == np.int64
    assert sorted([*train, *valid]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(valid) > 0).all()
    again = split_documents(len(labels), valid_share=valid_share, seed=seed, labels=given_labels)
    assert [side.tolist() for side in again] == [train.tolist(), valid.tolist()]
    if valid_share == 0:
        assert len(valid) == 0
        return
    for name in set(labels) if stratified else {None}:
        members = [index for index, label in enumerate(labels) if name is None or label == name]
        inside = len(set(members) & set(valid.tolist()))
        assert inside >= (len(members) >= 2)
        assert inside <= max(0, len(members) - 1)
        if len(members) >= 2:
            assert abs(inside - len(members) * valid_share) <= 1


def test_a_split_keeps_the_share_as_a_whole_and_other_seeds_draw_others():
    labels = np.repeat(np.arange(50), 15)
    train, valid = split_documents(750, valid_share=0.1, seed=1, labels=labels)
    assert (len(train), len(valid)) == (675, 75)
    assert set(np.bincount(labels[valid])) == {1, 2}
    assert split_documents(750, valid_share=0.1, seed=2, labels=labels)[1].tolist() != valid.tolist()
    assert len(split_documents(750, valid_share=0.1, seed=1)[1]) == 75
