"""A run over two processes ends as that of one, and survives the death of either."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ulmfit import cli
from ulmfit.config import PretrainConfig, TrainConfig
from ulmfit.pipeline import pretrain, train

pytestmark = pytest.mark.usefixtures("one_thread")

STILL = {"input": 0.0, "embedding": 0.0, "weight": 0.0, "hidden": 0.0}
CLOCKS = {"seconds", "tokens_per_second"}


def metrics(out):
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in CLOCKS} for line in lines]


def weights(out):
    return {
        (str(path.relative_to(out)), name): tensor
        for path in sorted(out.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_alike(out, reference, *, atol):
    """The same files with the same numbers but for rounding, and nothing else in the folder."""
    ours, theirs = weights(out), weights(reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], atol=atol, rtol=1e-4, msg=lambda text, at=name: f"{at}: {text}"
        )
    for record, expected in zip(metrics(out), metrics(reference), strict=True):
        assert record.pop("stage") == expected.pop("stage")
        assert record == pytest.approx(expected, rel=1e-4)
    assert {path.relative_to(out) for path in out.rglob("*")} == {
        path.relative_to(reference) for path in reference.rglob("*")
    }


def pretrain_settings(tiny, **changed):
    """Without dropout, whose masks are each process's own; 7 streams, which two cannot share evenly."""
    training = {**tiny.LANGUAGE_MODEL, "batch_size": 7, "phases": [{"rate": 0.02, "epochs": 2}]}
    return {
        "pretrain__encoder__dropouts": STILL,
        "pretrain__output_dropout": 0.0,
        "pretrain__training": training,
        **changed,
    }


def test_pretraining_by_torchrun_in_two_processes_ends_as_in_one(tiny, tmp_path):
    flags = tiny.flags("pretrain", **pretrain_settings(tiny))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "ulmfit", "pretrain", str(tiny.general), "--out", str(tmp_path / "two"), *flags]
    source = str(Path(cli.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Pretrained") == 1 and ran.stdout.count("Next: ") == 1
    assert ran.stderr.count("pretrain forward: epoch 2") == 1
    config = PretrainConfig().override(tiny.settings("pretrain", **pretrain_settings(tiny)))
    pretrain([tiny.general], config=config, out=tmp_path / "one")
    assert_alike(tmp_path / "two", tmp_path / "one", atol=1e-5)


@pytest.mark.parametrize("language_model_weight", [0.0, 0.5])
def test_tuning_and_classifying_in_two_processes_end_as_in_one(tiny, two_processes, tmp_path, language_model_weight):
    """With 7 documents a batch, frozen groups first; rates are low, as high ones make much of a rounding."""
    changed = {
        "tune__dropout_multiplier": 0,
        "tune__training": {**tiny.LANGUAGE_MODEL, "phases": [{"groups": [-1], "rate": 0.01}, {"rate": 0.01}]},
        "classify__dropout_multiplier": 0,
        "classify__batch_size": 7,
        "classify__horizon": 12,
        "classify__class_weights": "balanced",
        "classify__language_model_weight": language_model_weight,
        "classify__phases": [{"groups": [-1], "rate": 1e-2}, {"rate": 1e-3, "epochs": 2}],
    }
    settings = tiny.settings("tune", "classify", **changed)
    ran = two_processes(f"""
        from pathlib import Path
        from ulmfit.config import TrainConfig
        from ulmfit.pipeline import train

        config = TrainConfig().override({settings!r})
        train(Path({str(tiny.labelled)!r}), base={str(tiny.base)!r}, config=config, out=Path(FOLDER + "/two"))
        """)
    assert [code for code, _ in ran] == [0, 0], ran
    config = TrainConfig().override(settings)
    train(tiny.labelled, base=tiny.base, config=config, out=tmp_path / "one")
    assert_alike(tmp_path / "two", tmp_path / "one", atol=2e-4)


def test_two_processes_measure_together_choose_one_plan_and_are_not_disturbed_by_it(tiny, two_processes, tmp_path):
    changed = {
        "tune__training": {**tiny.LANGUAGE_MODEL, "batch_size": 7, "phases": [{"rate": 0.01}]},
        "classify__phases": [{"groups": [-1], "rate": 1e-2}, {"rate": 1e-3}],
    }
    settings = tiny.settings("tune", "classify", **changed)
    ran = two_processes(f"""
        from pathlib import Path
        from ulmfit.config import TrainConfig
        from ulmfit.learning.budget import Budget
        from ulmfit.pipeline import train

        given = dict(unlabelled=[Path({str(tiny.unlabelled)!r})], base={str(tiny.base)!r})
        given["config"] = TrainConfig().override({settings!r})
        for name, budget in (("plain", None), ("planned", Budget(30))):
            train(Path({str(tiny.labelled)!r}), out=Path(FOLDER) / name, budget=budget, **given)
        """)
    assert [code for code, _ in ran] == [0, 0], ran
    plain, planned = (weights(tmp_path / name) for name in ("plain", "planned"))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in planned.items())
    assert json.loads((tmp_path / "planned/plan.json").read_text(encoding="utf-8"))["plan"]["unlabelled"] == 80


def test_when_a_process_dies_one_line_says_so_and_the_run_goes_on_from_its_checkpoint(tiny, two_processes, tmp_path):
    """With dropout, in the middle of an epoch; resumed by two processes it is equal to the bit, by one it goes on."""
    training = {**tiny.LANGUAGE_MODEL, "batch_size": 7, "window": 4, "phases": [{"rate": 0.02, "epochs": 2}]}
    flags = tiny.flags("pretrain", pretrain__training=training, run__checkpoint_minutes=1e-9)

    def ran(name, *, steps=10**9, resume=False):
        arguments = ["pretrain", str(tiny.general), "--out", str(tmp_path / name), *flags, *["--resume"] * resume]
        return two_processes(f"""
            from ulmfit import cli

            backward = torch.Tensor.backward
            left = {steps}

            def counted(*arguments, **named):
                global left
                left -= 1
                if RANK == 1 and left < 0:
                    os._exit(9)
                backward(*arguments, **named)

            torch.Tensor.backward = counted
            cli.main({arguments!r})
            """)

    assert [code for code, _ in ran("unbroken")] == [0, 0]
    (code, told), (dead, _) = ran("by two", steps=40)
    assert (code, dead) == (2, 9)
    assert told.splitlines()[-1].startswith("ulmfit: error: another process of this run has ended")
    assert sum(line.startswith("ulmfit: error") for line in told.splitlines()) == 1
    assert list((tmp_path / "by two").rglob("checkpoint-*"))
    assert not metrics(tmp_path / "by two")  # the first epoch is not over
    shutil.copytree(tmp_path / "by two", tmp_path / "by one")
    ended = ran("by two", resume=True)
    assert [code for code, _ in ended] == [0, 0]
    assert not ended[1][1], "rank 1 has nothing to say"
    assert metrics(tmp_path / "by two") == metrics(tmp_path / "unbroken")
    ours, theirs = weights(tmp_path / "by two"), weights(tmp_path / "unbroken")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    with pytest.raises(SystemExit) as done:
        cli.main(["pretrain", str(tiny.general), "--out", str(tmp_path / "by one"), *flags, "--resume"])
    assert done.value.code == 0
    assert metrics(tmp_path / "by one")[-1]["perplexity"] < 20
