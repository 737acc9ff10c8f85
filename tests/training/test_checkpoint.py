"""Checkpoints through the disk, and through every damage that a disk or a kill can do."""

import json
import math
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ulmfit.errors import CheckpointError, OutputError
from ulmfit.training.checkpoint import Checkpoints

FILES = ("tensors.safetensors", "facts.json")


def tensors(value=0):
    generator = torch.Generator().manual_seed(value)
    return {
        "model.weight": torch.randn(5, 3, generator=generator),
        "model.half": torch.randn(4, generator=generator).bfloat16(),
        "model.count": torch.tensor(value),
        "state.0": torch.randn(1, 2, 3, generator=generator)[:, :1],  # a view
        "empty": torch.zeros(0, 3),
    }


def facts(value=0):
    return {"position": {"step": value, "loss": 0.1 + value, "best": math.inf, "history": [{"x": [1, 2]}]}, "n": None}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


@pytest.fixture
def three_saved(tmp_path):
    """Checkpoints 0, 1, 2 saved, of which the last two are left."""
    checkpoints = Checkpoints(tmp_path / "run" / "latest")
    for value in range(3):
        checkpoints.save(tensors(value), facts(value))
    return checkpoints


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_what_is_saved_comes_back_bit_by_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "deep" / "latest")
    checkpoints.save(tensors(3), facts(3))
    saved = checkpoints.load()
    assert same(tensors(3), saved.tensors)
    assert saved.facts == facts(3)
    assert saved.passed_over == []


def test_the_newest_is_read_and_two_are_kept(three_saved):
    assert names(three_saved) == ["checkpoint-000000001", "checkpoint-000000002"]
    assert same(tensors(2), three_saved.load().tensors)


def test_an_empty_or_missing_folder_holds_none(tmp_path):
    assert Checkpoints(tmp_path).load() is None
    assert Checkpoints(tmp_path / "nowhere").load() is None


def test_clear_removes_them_and_the_next_starts_over(three_saved):
    three_saved.clear()
    assert three_saved.load() is None
    three_saved.clear()
    three_saved.save(tensors(7), facts(7))
    assert same(tensors(7), three_saved.load().tensors)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def check_falls_back(checkpoints):
    saved = checkpoints.load()
    assert same(tensors(1), saved.tensors) and saved.facts == facts(1)
    (message,) = saved.passed_over
    assert "checkpoint-000000002" in message


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), share=st.floats(0, 1, exclude_max=True))
def test_a_flipped_byte_anywhere_falls_back_to_the_older_one(three_saved, name, share):
    path = three_saved.folder / "checkpoint-000000002" / name
    sound = path.read_bytes()
    flip(path, int(share * len(sound)))
    check_falls_back(three_saved)
    path.write_bytes(sound)
    assert three_saved.load().passed_over == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_cut_file_falls_back_to_the_older_one(three_saved, name, kept):
    path = three_saved.folder / "checkpoint-000000002" / name
    path.write_bytes(path.read_bytes()[:kept])
    check_falls_back(three_saved)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_falls_back_to_the_older_one(three_saved, name):
    (three_saved.folder / "checkpoint-000000002" / name).unlink()
    check_falls_back(three_saved)


@pytest.mark.parametrize("content", ["[]", "{}", "null", "7", '{"format": 1}', '{"format": 1, "facts": {}}'])
def test_missing_facts_fall_back_to_the_older_one(three_saved, content):
    (three_saved.folder / "checkpoint-000000002" / "facts.json").write_text(content)
    check_falls_back(three_saved)


def test_tensors_of_another_save_fall_back_to_the_older_one(three_saved):
    save_file({"model.weight": torch.ones(5, 3)}, three_saved.folder / "checkpoint-000000002" / FILES[0])
    check_falls_back(three_saved)


def test_another_format_is_passed_over_by_name(three_saved):
    path = three_saved.folder / "checkpoint-000000002" / "facts.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    check_falls_back(three_saved)
    assert "format 99" in three_saved.load().passed_over[0]


def test_all_damaged_is_an_error_that_names_each_and_the_way_out(three_saved):
    for path in three_saved.folder.iterdir():
        flip(path / "tensors.safetensors", -1)
    with pytest.raises(CheckpointError, match=r"000000002.*000000001.*without --resume"):
        three_saved.load()


def test_a_damaged_one_is_not_counted_as_lost_when_the_next_is_saved(three_saved):
    flip(three_saved.folder / "checkpoint-000000002" / "tensors.safetensors", -1)
    three_saved.save(tensors(3), facts(3))
    assert same(tensors(3), three_saved.load().tensors)


def test_a_left_over_temporary_is_ignored_and_replaced(three_saved):
    left = three_saved.folder / ".writing-000000003"
    shutil.copytree(three_saved.folder / "checkpoint-000000002", left)
    (left / "stray").write_text("half a write")
    assert same(tensors(2), three_saved.load().tensors)
    three_saved.save(tensors(3), facts(3))
    assert names(three_saved) == ["checkpoint-000000002", "checkpoint-000000003"]
    assert sorted(path.name for path in (three_saved.folder / "checkpoint-000000003").iterdir()) == sorted(FILES)


def test_foreign_files_are_left_alone(three_saved):
    (three_saved.folder / "notes.txt").write_text("mine")
    three_saved.save(tensors(3), facts(3))
    assert same(tensors(3), three_saved.load().tensors)
    assert (three_saved.folder / "notes.txt").read_text() == "mine"


def test_a_file_in_the_folders_place_is_an_output_error_and_stays(tmp_path):
    place = tmp_path / "latest"
    place.write_text("precious")
    with pytest.raises(OutputError, match=r"latest: cannot write a checkpoint.*--out"):
        Checkpoints(place).save(tensors(), facts())
    assert place.read_text() == "precious"


@pytest.mark.parametrize("blocked", ["fsync", "rename"])
def test_a_failed_write_is_an_output_error_and_loses_nothing(three_saved, monkeypatch, blocked):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync" if blocked == "fsync" else "pathlib.Path.rename", full)
        with pytest.raises(OutputError, match="No space left"):
            three_saved.save(tensors(3), facts(3))
    assert names(three_saved) == ["checkpoint-000000001", "checkpoint-000000002"]
    assert same(tensors(2), three_saved.load().tensors)


def test_tensors_that_need_gradients_are_saved_as_values(tmp_path):
    weight = torch.nn.Parameter(torch.randn(2, 3))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"weight": weight, "turned": weight.t()}, {})
    saved = checkpoints.load().tensors
    assert torch.equal(saved["weight"], weight) and torch.equal(saved["turned"], weight.t())
