"""Parameter groups, rates and freezing against plain Adam."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ulmfit.config import OptimizerConfig, Phase
from ulmfit.training.optimizer import (
    build_optimizer,
    clip_gradients,
    load_optimizer_tensors,
    optimizer_tensors,
    set_rates,
)

NAMES = ("bottom", "middle", "top")


def make():
    torch.manual_seed(0)
    return nn.ModuleDict({"bottom": nn.Linear(4, 6), "middle": nn.LayerNorm(6), "top": nn.Linear(6, 3)})


def groups_in(model):
    return {name: tuple(model[name].parameters()) for name in NAMES}


def step(model, optimizer, seed=0):
    """One step on random inputs; a middle part without gradient when frozen."""
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model["top"](model["middle"](model["bottom"](inputs)).tanh()).cos().sum().backward()
    optimizer.step()


def rate_of(optimizer, parameter, key="lr"):
    (found,) = [entry[key] for entry in optimizer.param_groups if any(held is parameter for held in entry["params"])]
    return found


@pytest.mark.parametrize(
    ("chosen", "learning"), [(None, {0, 1, 2}), ((-1,), {2}), ((0,), {0}), ((-2, -1), {1, 2}), ((0, 2), {0, 2})]
)
def test_frozen_groups_want_no_gradient_and_do_not_move(chosen, learning):
    model = make()
    optimizer = build_optimizer(groups_in(model), Phase(groups=chosen, rate=0.1), OptimizerConfig(weight_decay=0.5))
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer)
    for index, name in enumerate(NAMES):
        for key, parameter in model[name].named_parameters():
            assert parameter.requires_grad == (index in learning)
            assert torch.equal(parameter, before[f"{name}.{key}"]) == (index not in learning), (name, key)


def test_a_later_phase_thaws_what_an_earlier_one_froze_and_drops_old_gradients():
    model = make()
    everything = Phase(rate=0.1)
    step(model, build_optimizer(groups_in(model), everything, OptimizerConfig()))
    build_optimizer(groups_in(model), Phase(groups=(-1,), rate=0.1), OptimizerConfig())
    assert all(parameter.grad is None for parameter in model.parameters())
    build_optimizer(groups_in(model), everything, OptimizerConfig())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("chosen", [None, (0, 2), (1,)])
def test_each_group_has_its_discriminative_rate_in_the_whole_model(chosen):
    model = make()
    optimizer = build_optimizer(groups_in(model), Phase(groups=chosen, rate=0.1, discriminative=2.0), OptimizerConfig())
    for share in (1.0, 0.25):
        set_rates(optimizer, share)
        for index, name in enumerate(NAMES):
            if chosen is None or index in chosen:
                for parameter in model[name].parameters():
                    assert rate_of(optimizer, parameter) == pytest.approx(share * 0.1 / 2.0 ** (2 - index))


def test_weight_decay_acts_on_matrices_alone():
    model = make()
    optimizer = build_optimizer(groups_in(model), Phase(rate=0.1), OptimizerConfig(weight_decay=0.3))
    for parameter in model.parameters():
        assert rate_of(optimizer, parameter, "weight_decay") == (0.3 if parameter.dim() == 2 else 0.0)


@pytest.mark.parametrize(("name", "plain"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_steps_equal_plain_adam_with_the_same_groups(name, plain):
    model = make()
    twin = copy.deepcopy(model)
    config = OptimizerConfig(name=name, beta1=0.6, beta2=0.95, epsilon=1e-6, weight_decay=0.2)
    optimizer = build_optimizer(groups_in(model), Phase(rate=0.05, discriminative=2.0), config)
    entries = [
        {"params": [parameter], "lr": 0.05 / 2.0 ** (2 - index), "weight_decay": 0.2 if parameter.dim() > 1 else 0.0}
        for index, group in enumerate(NAMES)
        for parameter in twin[group].parameters()
    ]
    reference = plain(entries, betas=(0.6, 0.95), eps=1e-6)
    for seed in range(4):
        step(model, optimizer, seed)
        step(twin, reference, seed)
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("chosen", [None, (-1,), (0, 2)])
def test_its_tensors_through_a_file_give_the_identical_next_steps(tmp_path, name, chosen):
    phase, config = Phase(groups=chosen, rate=0.1), OptimizerConfig(name=name)
    model = make()
    optimizer = build_optimizer(groups_in(model), phase, config)
    for seed in range(3):
        step(model, optimizer, seed)
    save_file(optimizer_tensors(optimizer), tmp_path / "optimizer.safetensors")
    resumed = copy.deepcopy(model)
    continued = build_optimizer(groups_in(resumed), phase, config)
    load_optimizer_tensors(continued, load_file(tmp_path / "optimizer.safetensors"))
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(resumed, continued, seed)
    assert all(torch.equal(tensor, resumed.state_dict()[key]) for key, tensor in model.state_dict().items())
    theirs = optimizer_tensors(continued)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in optimizer_tensors(optimizer).items())


def test_a_parameter_that_never_had_a_gradient_survives_the_round_trip():
    model = make()
    groups = {**groups_in(model), "unused": (nn.Parameter(torch.ones(3)),)}
    phase = Phase(rate=0.1)
    optimizer = build_optimizer(groups, phase, OptimizerConfig())
    step(model, optimizer)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    continued = build_optimizer(groups, phase, OptimizerConfig())
    load_optimizer_tensors(continued, tensors)
    assert optimizer_tensors(continued).keys() == tensors.keys()
    step(model, continued)
    assert torch.equal(groups["unused"][0], torch.ones(3))


def test_before_its_first_step_it_has_no_tensors():
    assert optimizer_tensors(build_optimizer(groups_in(make()), Phase(rate=0.1), OptimizerConfig())) == {}


# --- tables of which a step reads few rows --------------------------------------------------------------------------

READS = [[3, 1, 3, 3], [5], [1, 5, 0], [3, 2, 3], [1], [0, 3]]  # rows of a table that each step reads, some twice


class Table(nn.Module):
    """A table beside a matrix; row 4 is never read."""

    def __init__(self, *, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 4, sparse=sparse)
        self.matrix = nn.Linear(4, 3)

    def backward(self, rows):
        self.zero_grad()
        self.matrix(self.table(torch.tensor(rows))).cos().sum().backward()


def table_groups(model):
    return {"table": (model.table.weight,), "matrix": tuple(model.matrix.parameters())}


@pytest.mark.parametrize(("name", "plain"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_each_row_moves_as_plain_adam_would_move_it_if_the_steps_that_read_it_were_all_there_are(name, plain):
    config = OptimizerConfig(name=name, beta1=0.6, beta2=0.95, epsilon=1e-6, weight_decay=0.2)
    model = Table(sparse=True)
    optimizer = build_optimizer(table_groups(model), Phase(rate=0.05, discriminative=1.0), config)
    twin = Table(sparse=False)
    rows = [row.clone().requires_grad_() for row in twin.table.weight.detach()]
    settings = {"lr": 0.05, "betas": (0.6, 0.95), "eps": 1e-6}
    by_row = [plain([row], weight_decay=0.2, **settings) for row in rows]
    matrix = plain([twin.matrix.weight], weight_decay=0.2, **settings)
    bias = plain([twin.matrix.bias], weight_decay=0.0, **settings)
    for step, read in enumerate(READS):
        share = 1 - step / len(READS)
        set_rates(optimizer, share)
        for reference in (*by_row, matrix, bias):
            reference.param_groups[0]["lr"] = 0.05 * share
        model.backward(read)
        optimizer.step()
        twin.backward(read)
        for row in set(read):
            rows[row].grad = twin.table.weight.grad[row]
            by_row[row].step()
        matrix.step()
        bias.step()
        with torch.no_grad():
            twin.table.weight.copy_(torch.stack(rows))
        torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


def test_a_row_that_is_not_read_stands_still_to_the_bit():
    model = Table(sparse=True)
    optimizer = build_optimizer(table_groups(model), Phase(rate=0.05), OptimizerConfig(weight_decay=0.5))
    for read in READS:
        before = model.table.weight.detach().clone()
        model.backward(read)
        optimizer.step()
        moved = (model.table.weight != before).any(1)
        assert moved.nonzero().flatten().tolist() == sorted(set(read))


def test_a_table_read_whole_in_every_step_learns_as_with_a_dense_gradient():
    models = [Table(sparse=True), Table(sparse=False)]
    for model in models:
        optimizer = build_optimizer(table_groups(model), Phase(rate=0.05), OptimizerConfig(weight_decay=0.3))
        for turn in range(4):
            model.backward([0, 1, 2, 3, 4, 5, turn])
            clip_gradients(model.parameters(), 0.5)
            optimizer.step()
    torch.testing.assert_close(*(dict(model.state_dict()) for model in models))


@pytest.mark.parametrize("limit", [1e-3, 0.3, 1e3])
@pytest.mark.parametrize("sparse", [False, True])
def test_clipping_equals_torch_s_whether_the_table_s_gradient_is_sparse_or_not(sparse, limit):
    model, twin = Table(sparse=sparse), Table(sparse=False)
    for each in (model, twin):
        each.backward([3, 1, 3, 3])
    clip_gradients(model.parameters(), limit)
    torch.nn.utils.clip_grad_norm_(twin.parameters(), limit)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad.is_sparse == (sparse and ours is model.table.weight)
        torch.testing.assert_close(ours.grad.to_dense(), theirs.grad)


def test_clipping_nothing_is_no_error():
    clip_gradients(Table(sparse=True).parameters(), 1.0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_rows_clocks_go_through_a_file_and_give_the_identical_next_steps(tmp_path, name):
    phase, config = Phase(rate=0.1), OptimizerConfig(name=name)

    def step(model, optimizer, read):
        model.backward(read)
        clip_gradients(model.parameters(), 0.4)
        optimizer.step()

    model = Table(sparse=True)
    optimizer = build_optimizer(table_groups(model), phase, config)
    for read in READS[:3]:
        step(model, optimizer, read)
    save_file(optimizer_tensors(optimizer), tmp_path / "optimizer.safetensors")
    resumed = copy.deepcopy(model)
    continued = build_optimizer(table_groups(resumed), phase, config)
    load_optimizer_tensors(continued, load_file(tmp_path / "optimizer.safetensors"))
    for read in READS[3:]:
        step(model, optimizer, read)
        step(resumed, continued, read)
    assert all(torch.equal(tensor, resumed.state_dict()[key]) for key, tensor in model.state_dict().items())
    theirs = optimizer_tensors(continued)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in optimizer_tensors(optimizer).items())
