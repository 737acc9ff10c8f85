"""Shards and int8 rows against the tensors that went in, and every kind of damage told in one line."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ulmfit import weights
from ulmfit.errors import BundleError
from ulmfit.int8_rows import quantise_rows, restore_rows
from ulmfit.weights import read_shards, write_shards


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "embedding": torch.randn(30, 4, generator=generator),
        "kernel": torch.randn(6, 3, 2, generator=generator),
        "bias": torch.randn(7, generator=generator),
        "count": torch.tensor(5),
    }


def expected(given=None):
    return {name: tensor.to("meta") for name, tensor in (given or tensors()).items()}


def problem(folder, names, wanted=None):
    """The one line that a damaged folder is answered with."""
    with pytest.raises(BundleError) as caught:
        read_shards(folder, names, expected=wanted or expected())
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def rewrite(folder: Path, name: str, **changes):
    """The shard again with some tensors replaced, or removed where None."""
    stored = {**load_file(folder / name), **changes}
    save_file({key: tensor for key, tensor in stored.items() if tensor is not None}, folder / name)


# --- int8 rows ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-30, 30), shape=st.sampled_from([(5, 3), (1, 1), (4, 2, 3)]))
def test_an_int8_entry_is_off_by_half_a_scale_at_most(seed, exponent, shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    quantised, scale = quantise_rows(matrix)
    assert quantised.dtype == torch.int8 and quantised.shape == matrix.shape
    assert scale.dtype == torch.float32 and scale.shape == (shape[0],)
    assert torch.equal(quantised.flatten(1).abs().amax(1), torch.full((shape[0],), 127, dtype=torch.int8))
    off = (restore_rows(quantised, scale).double() - matrix.double()).abs().flatten(1)
    # Beside the rounding to the grid there is that of float32 itself: an ulp or two of the row's largest entry.
    assert (off <= scale.double().unsqueeze(1) * (0.5 + 127 * 2**-22)).all()


def test_a_row_of_zeros_stays_zeros():
    quantised, scale = quantise_rows(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert torch.equal(restore_rows(quantised, scale)[0], torch.zeros(2))
    assert scale.isfinite().all() and (scale > 0).all()


def test_values_on_the_grid_are_kept_exactly():
    grid = torch.tensor([[127, -3, 0, 50], [-127, 1, 2, 126]])
    matrix = grid * torch.tensor([[0.5], [2.0**-20]])
    quantised, scale = quantise_rows(matrix)
    assert torch.equal(quantised, grid.to(torch.int8))
    assert torch.equal(restore_rows(quantised, scale), matrix)


def test_quantising_what_was_restored_gives_the_same_bytes():
    quantised, scale = quantise_rows(tensors()["kernel"])
    again, _ = quantise_rows(restore_rows(quantised, scale))
    assert torch.equal(again, quantised)


# --- shards ---------------------------------------------------------------------------------------------------------


def test_float32_shards_give_back_the_same_bits(tmp_path):
    names = write_shards(tensors(), tmp_path, prefix="forward", storage="float32")
    assert names == ["forward-00001-of-00001.safetensors"]
    read = read_shards(tmp_path, names, expected=expected())
    assert read.keys() == tensors().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors().items())


def test_int8_shards_hold_matrices_as_rows_and_all_else_as_it_is(tmp_path):
    names = write_shards(tensors(), tmp_path, prefix="forward", storage="int8")
    stored = load_file(tmp_path / names[0])
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    assert kinds == {
        "embedding": torch.int8,
        "embedding.scale": torch.float32,
        "kernel": torch.int8,
        "kernel.scale": torch.float32,
        "bias": torch.float32,
        "count": torch.int64,
    }
    read = read_shards(tmp_path, names, expected=expected())
    for name, tensor in tensors().items():
        wanted = restore_rows(*quantise_rows(tensor)) if tensor.dim() > 1 else tensor
        assert torch.equal(read[name], wanted)


def test_a_shard_closes_before_it_would_grow_over_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 100)
    # Of 4 bytes each: 15 + 10 fill a shard to the byte, 30 is over the limit by itself, 1 and 2 go together.
    given = {name: torch.full((size,), float(size)) for name, size in zip("abcde", (15, 10, 30, 1, 2), strict=True)}
    names = write_shards(given, tmp_path, prefix="backward", storage="float32")
    assert names == [f"backward-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [sorted(load_file(tmp_path / name)) for name in names] == [["a", "b"], ["c"], ["d", "e"]]
    read = read_shards(tmp_path, names, expected=expected(given))
    assert all(torch.equal(read[name], tensor) for name, tensor in given.items())


@pytest.mark.parametrize("limit", [1, 50, 200, 500, 10_000])
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_every_tensor_is_in_one_shard_whatever_the_limit(tmp_path, monkeypatch, limit, storage):
    monkeypatch.setattr(weights, "SHARD_BYTES", limit)
    names = write_shards(tensors(), tmp_path, prefix="forward", storage=storage)
    shards = [load_file(tmp_path / name) for name in names]
    keys = [key for shard in shards for key in shard]
    scales = ["embedding.scale", "kernel.scale"] if storage == "int8" else []
    assert sorted(keys) == sorted([*tensors(), *scales])
    for shard in shards:
        assert len(shard) == 1 or sum(tensor.numel() * tensor.element_size() for tensor in shard.values()) <= limit
    assert read_shards(tmp_path, names, expected=expected()).keys() == tensors().keys()


def test_a_shard_can_be_read_by_others(tmp_path):
    (name,) = write_shards(tensors(), tmp_path, prefix="forward", storage="float32")
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o644


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    return tmp_path, write_shards(tensors(), tmp_path, prefix="forward", storage="float32")


@pytest.fixture
def saved_int8(tmp_path):
    return tmp_path, write_shards(tensors(), tmp_path, prefix="forward", storage="int8")


def test_a_missing_shard_is_named(saved):
    folder, (name,) = saved
    (folder / name).unlink()
    assert f"the shard {name} is missing" in problem(folder, [name])


@pytest.mark.parametrize("left", [0, 4, 20, -1])
def test_a_cut_shard_is_named(saved, left):
    folder, (name,) = saved
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:left])
    assert name in problem(folder, [name])


@pytest.mark.parametrize("place", [0, 3, 7, 8, 9, 30])
def test_a_flipped_header_is_named(saved, place):
    folder, (name,) = saved
    damaged = bytearray((folder / name).read_bytes())
    damaged[place] ^= 0xFF
    (folder / name).write_bytes(damaged)
    assert name in problem(folder, [name])


def test_a_header_that_points_beyond_the_file_is_named(saved):
    folder, (name,) = saved
    header = json.dumps({"bias": {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}}).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(header)) + header)
    assert name in problem(folder, [name])


def test_a_pickle_is_not_read(saved):
    folder, (name,) = saved
    torch.save(tensors(), folder / name)
    assert name in problem(folder, [name])


@pytest.mark.parametrize("name", ["embedding", "bias", "count"])
def test_a_missing_tensor_is_named(saved, name):
    folder, (shard,) = saved
    rewrite(folder, shard, **{name: None})
    assert f"lacks the tensor {name};" in problem(folder, [shard])


@pytest.mark.parametrize("name", ["extra", "bias.scale"])
def test_an_unknown_tensor_is_named(saved, name):
    folder, (shard,) = saved
    rewrite(folder, shard, **{name: torch.zeros(7)})
    assert f"has an unknown tensor {name};" in problem(folder, [shard])


def test_a_tensor_that_is_there_twice_is_named(saved):
    folder, (shard,) = saved
    save_file({"bias": torch.zeros(7)}, folder / "more.safetensors")
    assert "the tensor bias is there twice" in problem(folder, [shard, "more.safetensors"])


@pytest.mark.parametrize("shape", [(4, 30), (120,), (30, 4, 1), (0, 4)])
def test_a_tensor_of_another_shape_is_named_with_both(saved, shape):
    folder, (shard,) = saved
    rewrite(folder, shard, embedding=torch.zeros(shape))
    assert f"the tensor embedding has the shape {shape}, (30, 4)" in problem(folder, [shard])


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("bias", torch.zeros(7, dtype=torch.int32)),
        ("bias", torch.zeros(7, dtype=torch.bool)),
        ("count", torch.ones(())),
    ],
)
def test_a_tensor_of_another_kind_of_number_is_named(saved, name, tensor):
    folder, (shard,) = saved
    rewrite(folder, shard, **{name: tensor})
    assert f"the tensor {name} holds" in problem(folder, [shard])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_any_width_are_read_as_float32(saved, dtype):
    folder, (shard,) = saved
    bias = tensors()["bias"].to(dtype)
    rewrite(folder, shard, bias=bias)
    assert torch.equal(read_shards(folder, [shard], expected=expected())["bias"], bias.float())


@pytest.mark.parametrize("scale", [None, torch.ones(29), torch.ones(30, 1), torch.ones(())])
def test_an_int8_tensor_without_a_scale_for_each_row_is_named(saved_int8, scale):
    folder, (shard,) = saved_int8
    rewrite(folder, shard, **{"embedding.scale": scale})
    assert "the int8 tensor embedding lacks its row scales" in problem(folder, [shard])


def test_a_lone_int8_number_is_no_matrix(saved):
    folder, (shard,) = saved
    rewrite(folder, shard, count=torch.tensor(5, dtype=torch.int8))
    assert "the int8 tensor count" in problem(folder, [shard])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("fixture", "name"), [("saved", "bias"), ("saved_int8", "embedding.scale")])
def test_values_that_are_not_finite_are_named(request, fixture, name, value):
    folder, (shard,) = request.getfixturevalue(fixture)
    damaged = load_file(folder / shard)[name].clone()
    damaged[3] = value
    rewrite(folder, shard, **{name: damaged})
    assert f"the tensor {name.removesuffix('.scale')} holds values that are not finite" in problem(folder, [shard])
