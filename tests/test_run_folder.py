"""A run's folder: nothing earlier is lost, nothing is left after an early error, and one run at a time."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import ulmfit
from ulmfit.config import LanguageModelTraining, RunConfig, TrainConfig, TuneSettings
from ulmfit.errors import CheckpointError, OutputError
from ulmfit.run_folder import RunFolder, open_run

CONFIG = TrainConfig()
INPUTS = {"labelled": [["train.csv", 12]], "base": "en"}


def open_here(out, *, command="train", config=CONFIG, inputs=INPUTS, resume=False):
    return open_run(out, command=command, config=config, inputs=inputs, resume=resume)


def files(folder: Path):
    """Everything in a folder, by relative name; folders end in a slash."""
    paths = {path: str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))}
    return {name + "/" * path.is_dir(): None if path.is_dir() else path.read_bytes() for path, name in paths.items()}


def refusal(out, kind, **changes):
    """The one line that a run is refused with; the folder is left as it was."""
    before = files(out)
    with pytest.raises(kind) as caught, open_here(out, **changes):
        pytest.fail("the run began")
    assert "\n" not in str(caught.value)
    assert str(out) in str(caught.value)
    assert files(out) == before
    return str(caught.value)


@pytest.fixture
def begun(tmp_path):
    """The folder of a run that was killed after its first checkpoint."""
    out = tmp_path / "begun"
    with open_here(out) as run:
        (run.work / "latest" / "checkpoint-000000000").mkdir(parents=True)
        run.write_metrics([{"epoch": 1}])
    return out


# --- beginning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda out: None, Path.mkdir], ids=["none", "empty"])
def test_a_run_begins_in_a_new_or_empty_folder_and_keeps_its_settings(tmp_path, make):
    out = tmp_path / "out"
    make(out)
    with open_here(out) as run:
        assert run.work.is_dir() and not run.finished
        assert json.loads((out / "run.json").read_text(encoding="utf-8")) == {
            "command": "train",
            "inputs": INPUTS,
            "config": CONFIG.model_dump(mode="json"),
        }


def test_folders_above_are_made(tmp_path):
    with open_here(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b" / "out" / "run.json").is_file()


@pytest.mark.parametrize("name", ["thesis.txt", ".hidden", "config.json", "run.json"])
def test_a_folder_that_is_not_empty_is_refused_without_resume(tmp_path, name):
    (tmp_path / name).write_text("mine", encoding="utf-8")
    assert "is not an empty folder; pass --resume" in refusal(tmp_path, OutputError)


@pytest.mark.parametrize("name", ["thesis.txt", "config.json", "work/novel.txt", "work/.lock/deeper"])
def test_a_folder_of_other_things_is_refused_with_resume_too(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    assert "no run to go on with" in refusal(tmp_path, OutputError, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_in_the_folders_place_is_refused(tmp_path, resume):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError), open_here(out, resume=resume):
            pytest.fail("the run began")
    assert files(tmp_path) == {"file": b"mine"}


def test_resume_of_a_run_that_never_was_begins_it(tmp_path):
    with open_here(tmp_path / "out", resume=True) as run:
        assert (run.out / "run.json").is_file()


# --- one at a time --------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from ulmfit.config import TrainConfig
from ulmfit.run_folder import open_run
with open_run(Path(sys.argv[1]), command="train", config=TrainConfig(), inputs={}, resume=False) as run:
    (run.work / "checkpoint-000000000").mkdir()
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(out):
    """A run in its own process, which waits; yields the process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(ulmfit.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends_however_it_ends(tmp_path):
    out = tmp_path / "out"
    with another_process(out) as process:
        assert "another run is writing there" in refusal(out, OutputError, inputs={}, resume=True)
        assert "is not an empty folder" in refusal(out, OutputError, inputs={})
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open_here(out, inputs={}, resume=True) as run:
            assert (run.work / "checkpoint-000000000").is_dir()


# --- going on -------------------------------------------------------------------------------------------------------


def test_a_run_is_resumed_with_the_same_settings(begun):
    before = files(begun)
    with open_here(begun, resume=True) as run:
        assert run.out == begun
    assert files(begun) == before


def test_a_run_killed_before_it_wrote_its_settings_is_resumed(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".lock").touch()
    (tmp_path / ".run.json.writing").write_text('{"comm', encoding="utf-8")
    with open_here(tmp_path, resume=True) as run:
        assert json.loads((run.out / "run.json").read_text(encoding="utf-8"))["command"] == "train"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"command": "tune"}, "command was 'train' and is now 'tune'"),
        ({"inputs": {**INPUTS, "base": "de"}}, "inputs.base was 'en' and is now 'de'"),
        (
            {"inputs": {**INPUTS, "labelled": [["train.csv", 13]]}},
            "inputs.labelled was [['train.csv', 12]] and is now [['train.csv', 13]]",
        ),
        ({"inputs": {"base": "en"}}, "inputs.labelled was [['train.csv', 12]] and is now None"),
        ({"inputs": {**INPUTS, "text_column": "body"}}, "inputs.text_column was None and is now 'body'"),
        ({"config": TrainConfig(run=RunConfig(seed=1))}, "config.run.seed was 0 and is now 1"),
        (
            {"config": TrainConfig(tune=TuneSettings(training=LanguageModelTraining(window=80)))},
            "config.tune.training.window was 70 and is now 80",
        ),
    ],
)
def test_a_changed_setting_or_input_is_refused_by_name(begun, changes, said):
    assert f"cannot resume, {said};" in refusal(begun, CheckpointError, resume=True, **changes)


@pytest.mark.parametrize("text", ["", "{", "\udcff"])
def test_settings_that_cannot_be_read_are_told_in_one_line(begun, text):
    (begun / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "run.json: cannot be read" in refusal(begun, CheckpointError, resume=True)


def test_settings_of_another_kind_are_refused(begun):
    (begun / "run.json").write_text("[]", encoding="utf-8")
    refusal(begun, CheckpointError, resume=True)


# --- ending ---------------------------------------------------------------------------------------------------------


class Oops(Exception):
    """An error in a run."""


def fail_in(out, done=lambda run: None, **changes):
    with pytest.raises(Oops), open_here(out, **changes) as run:
        (run.work / "corpus").mkdir()
        (run.work / "corpus" / "ids.bin").write_bytes(b"ids")
        run.write_metrics([])
        done(run)
        raise Oops


@pytest.mark.parametrize("resume", [False, True])
def test_an_error_before_any_checkpoint_leaves_nothing(tmp_path, resume):
    fail_in(tmp_path / "out", resume=resume)
    assert files(tmp_path) == {}


def test_an_error_before_any_checkpoint_leaves_an_empty_folder_empty(tmp_path):
    (tmp_path / "out").mkdir()
    fail_in(tmp_path / "out")
    assert files(tmp_path) == {"out/": None}


def test_an_error_touches_no_file_that_came_to_the_folder_meanwhile(tmp_path):
    (tmp_path / "out").mkdir()
    fail_in(tmp_path / "out", lambda run: (run.out / "thesis.txt").write_text("mine", encoding="utf-8"))
    assert files(tmp_path / "out") == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("place", ["work/forward/latest/checkpoint-000000000", "language_model/config.json"])
def test_an_error_after_a_checkpoint_or_a_finished_stage_keeps_all_of_it(tmp_path, place):
    out = tmp_path / "out"
    fail_in(out, lambda run: (run.out / place).mkdir(parents=True))
    assert {"run.json", "work/corpus/ids.bin", f"{place}/"} <= files(out).keys()
    with open_here(out, resume=True):
        pass
    assert (out / place).exists()


def test_a_finished_run_keeps_its_result_and_drops_its_working_files(begun):
    with open_here(begun, resume=True) as run:
        (begun / "config.json").write_text("{}", encoding="utf-8")
        assert run.finished
    assert files(begun).keys() == {"run.json", "metrics.jsonl", "config.json"}
    assert "is not an empty folder" in refusal(begun, OutputError)


# --- writing --------------------------------------------------------------------------------------------------------


def test_metrics_are_replaced_whole(tmp_path):
    run = RunFolder(tmp_path)
    for records in ([{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 1.0}], [{"epoch": 1, "stage": "tüne"}], []):
        run.write_metrics(records)
        lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == records
    assert files(tmp_path).keys() == {"metrics.jsonl"}


def test_a_full_disk_leaves_the_metrics_as_they_were(full_disk, tmp_path):
    run = RunFolder(tmp_path)
    run.write_metrics([{"epoch": 1}])
    before = files(tmp_path)
    with full_disk(20), pytest.raises(OutputError, match=r"metrics\.jsonl: cannot be written"):
        run.write_metrics([{"epoch": epoch} for epoch in range(100)])
    assert files(tmp_path) == before


def test_a_reader_never_sees_half_of_the_metrics(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.write_metrics([{"epoch": 1}])
    rename = Path.rename

    def look(path, target):
        assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == '{"epoch": 1}\n'
        assert path.read_text(encoding="utf-8") == '{"epoch": 1}\n{"epoch": 2}\n'
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", look)
    run.write_metrics([{"epoch": 1}, {"epoch": 2}])
    assert len((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2
