"""A run that is killed, wherever that is, and resumed ends with the same bits as one that nobody disturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ulmfit import cli
from ulmfit.config import TrainConfig
from ulmfit.errors import OutputError
from ulmfit.pipeline import train
from ulmfit.training.events import StageEnded, StageStarted

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY_STEP = {"run__checkpoint_minutes": 1e-9}
CLOCKS = {"seconds", "tokens_per_second"}
PATIENCE = 60.0
"""seconds after which a test gives up waiting for another process"""


@pytest.fixture(scope="module")
def start(forks):
    """Start `ulmfit` with these arguments in a process of its own, forked from one that has loaded torch."""
    running = []

    def run(arguments):
        process = forks.Process(target=cli.main, args=(arguments,), daemon=True)
        process.start()
        running.append(process)
        return process

    yield run
    for process in running:
        if process.is_alive():
            process.kill()
        process.join()


def finish(arguments):
    """Run `ulmfit` here, to its end."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0


def seen(happened, process):
    """Wait until something is true on disk; False where the process came to its end before we saw it."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        if process.exitcode is not None:
            return False
        time.sleep(0.001)
    return True


@pytest.fixture
def struck(tiny, start, tmp_path):
    """Run `train_arguments` until that moment and send a signal; again where the run was faster than we are."""

    def run(moment, signal_number=signal.SIGKILL):
        for attempt in range(5):
            out = tmp_path / f"model {attempt}"
            process = start(train_arguments(tiny, out))
            if seen(moment(out), process):
                os.kill(process.pid, signal_number)
                if signal_number != signal.SIGSTOP:
                    process.join(PATIENCE)
                if not (out / "config.json").exists():
                    return out, process
        raise AssertionError("every run was over before the signal")

    return run


def lines(path):
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def outcome(out):
    """All that must be equal: weights and tokenizers to the byte, metrics but for what a clock measured."""
    files = [*out.rglob("*.safetensors"), *out.rglob("tokenizer.json")]
    metrics = {
        path.relative_to(out): [
            {name: value for name, value in json.loads(line).items() if name not in CLOCKS} for line in lines(path)
        ]
        for path in out.rglob("metrics.jsonl")
    }
    return {path.relative_to(out): path.read_bytes() for path in files}, metrics


def train_arguments(tiny, out, **changed):
    """A short `train` of both stages: two language model epochs, then four of the classifier."""
    short = {
        "tune__training": {**tiny.LANGUAGE_MODEL, "phases": [{"rate": 0.02, "epochs": 2}]},
        "classify__phases": [{"groups": [-1], "rate": 0.05}, {"rate": 0.05, "epochs": 3}],
    }
    flags = tiny.flags("tune", "classify", **EVERY_STEP, **short, **changed)
    files = ["train", few(tiny), "--unlabelled", more(tiny), "--base", tiny.base, "--out", out]
    return [*map(str, files), *flags]


def few(tiny):
    """So few reviews that a checkpoint after each step takes no time."""
    return tiny.file("few", 40, seed=11)


def more(tiny):
    return tiny.file("more", 30, seed=12)


@pytest.fixture(scope="module")
def unbroken(tiny, tmp_path_factory):
    """What `train_arguments` lead to when nobody disturbs the run."""
    out = tmp_path_factory.mktemp("unbroken") / "model"
    finish(train_arguments(tiny, out))
    return outcome(out)


def in_tuning(out):
    return lambda: len(lines(out / "language_model/metrics.jsonl")) >= 1


def between_the_stages(out):
    return (out / "language_model/config.json").exists


def in_the_classifier(out):
    return lambda: len(lines(out / "metrics.jsonl")) >= 4


def before_anything_is_learnt(out):
    return (out / "run.json").exists


@pytest.mark.parametrize(
    "moment", [before_anything_is_learnt, in_tuning, between_the_stages, in_the_classifier], ids=lambda m: m.__name__
)
def test_a_run_killed_then_and_resumed_ends_as_an_unbroken_one(tiny, struck, unbroken, moment):
    out, process = struck(moment)
    assert process.exitcode == -signal.SIGKILL
    finish([*train_arguments(tiny, out), "--resume"])
    assert outcome(out) == unbroken
    assert not list(out.rglob("work"))


def test_a_run_killed_again_and_again_after_ever_longer_delays_ends_as_an_unbroken_one(tiny, start, unbroken, tmp_path):
    out = tmp_path / "model"
    arguments = train_arguments(tiny, out)
    for turn in range(6):
        process = start(arguments if turn == 0 else [*arguments, "--resume"])
        assert seen((out / "run.json").exists, process)
        process.join(0.03 * 2**turn)
        process.kill()
        process.join()
    finish([*arguments, "--resume"])
    assert outcome(out) == unbroken


def test_a_real_process_killed_in_pretraining_and_resumed_ends_as_an_unbroken_one(tiny, tmp_path):
    def arguments(out):
        training = {**tiny.LANGUAGE_MODEL, "phases": [{"rate": 0.02}]}
        flags = tiny.flags("pretrain", run__direction="both", pretrain__training=training, **EVERY_STEP)
        return ["pretrain", str(few(tiny)), str(more(tiny)), "--out", str(out), *flags]

    finish(arguments(tmp_path / "unbroken"))
    for attempt in range(5):
        out = tmp_path / f"killed {attempt}"
        command = [sys.executable, "-m", "ulmfit", *arguments(out)]
        with (
            (tmp_path / "output").open("w") as output,
            subprocess.Popen(command, env=environment(), stdout=output, stderr=output) as process,
        ):
            while process.poll() is None and not lines(out / "metrics.jsonl"):
                time.sleep(0.001)
            time.sleep(0.02)  # into the backward model's epoch, not at the forward one's end
            process.kill()
        if process.returncode == -signal.SIGKILL and not (out / "config.json").exists():
            break
    assert process.returncode == -signal.SIGKILL, (tmp_path / "output").read_text()
    finish([*arguments(out), "--resume"])
    assert outcome(out) == outcome(tmp_path / "unbroken")


def environment():
    """As here, with the package's own folder to import from, and one thread."""
    source = str(Path(cli.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_a_run_stopped_between_the_stages_goes_on_from_what_was_stored(tiny, tmp_path, storage):
    short = {
        "tune__training": {**tiny.LANGUAGE_MODEL, "phases": [{"rate": 0.02}]},
        "classify__phases": [{"rate": 0.05}],
    }
    config = TrainConfig().override(tiny.settings("tune", "classify", run__storage=storage, **short))

    def run(name, **given):
        return train(tiny.labelled, base=tiny.base, config=config, out=tmp_path / name, **given)

    def stop_after_tuning(event):
        if isinstance(event, StageEnded):
            raise KeyboardInterrupt

    def stop_before_the_classifier(event):
        if isinstance(event, StageStarted) and event.name.startswith("classify"):
            raise KeyboardInterrupt

    run("unbroken")
    for stop in (stop_after_tuning, stop_before_the_classifier):
        name = stop.__name__
        with pytest.raises(KeyboardInterrupt):
            run(name, report=stop)
        run(name, resume=True)
        assert outcome(tmp_path / name) == outcome(tmp_path / "unbroken")


def test_metrics_of_a_resumed_run_never_lose_an_epoch(tiny, tmp_path):
    """While the run goes on, not only at its end."""
    phases = [{"rate": 0.05, "epochs": 4}]
    config = TrainConfig().override(tiny.settings("tune", "classify", classify__phases=phases))
    out = tmp_path / "model"

    def stop_at(count):
        def report(event):
            if len(lines(out / "metrics.jsonl")) == count:
                raise KeyboardInterrupt

        return report

    for count in (5, 6):  # three epochs of tuning come first
        with pytest.raises(KeyboardInterrupt):
            train(tiny.labelled, base=tiny.base, config=config, out=out, resume=count > 5, report=stop_at(count))
        assert len(lines(out / "metrics.jsonl")) == count


def test_a_run_resumed_with_another_setting_is_refused_by_name_and_left_as_it_was(tiny, struck, unbroken, capsys):
    out, _ = struck(in_tuning)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other_setting = train_arguments(tiny, out, classify__window=13)
    other_input = [argument.replace("more.csv", "test.csv") for argument in train_arguments(tiny, out)]
    assert tiny.test.exists()
    for arguments, told in (
        (other_setting, "config.classify.window was 12 and is now 13; use the same again, or another --out"),
        (other_input, "inputs.unlabelled was [['more.csv', "),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--resume"])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    finish([*train_arguments(tiny, out), "--resume"])
    assert outcome(out) == unbroken


def test_a_killed_run_is_not_overwritten_without_resume(tiny, struck):
    out, _ = struck(in_tuning)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="is not an empty folder; pass --resume to go on with the run in it"):
        train(tiny.labelled, base=tiny.base, config=TrainConfig(), out=out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_two_runs_cannot_write_into_one_folder(tiny, struck):
    out, _ = struck(in_tuning, signal.SIGSTOP)
    config = TrainConfig().override(tiny.settings("tune", "classify"))
    with pytest.raises(OutputError, match="another run is writing there; wait for it or choose another --out"):
        train(tiny.labelled, base=tiny.base, config=config, out=out, resume=True)


def test_an_error_after_a_checkpoint_keeps_what_was_learnt(tiny, tmp_path):
    """A disk that fills up in the second epoch must not cost the first, in a folder made for this run."""
    short = {"classify__phases": [{"rate": 0.05, "epochs": 2}]}
    config = TrainConfig().override(tiny.settings("tune", "classify", **EVERY_STEP, **short))
    out = tmp_path / "model"

    def fail(event):
        if in_tuning(out)():
            raise OutputError("the disk is full")

    with pytest.raises(OutputError, match="the disk is full"):
        train(few(tiny), base=tiny.base, config=config, out=out, report=fail)
    assert list(out.rglob("checkpoint-*"))
    train(few(tiny), base=tiny.base, config=config, out=out, resume=True)
    train(few(tiny), base=tiny.base, config=config, out=tmp_path / "unbroken")
    assert outcome(out) == outcome(tmp_path / "unbroken")


def test_ctrl_c_ends_a_run_with_code_130_and_it_can_be_resumed(tiny, struck, unbroken):
    out, process = struck(in_tuning, signal.SIGINT)
    assert process.exitcode == 130
    finish([*train_arguments(tiny, out), "--resume"])
    assert outcome(out) == unbroken
