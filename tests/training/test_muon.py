"""Muon against the singular value decomposition, and against AdamW where it must be AdamW."""

import math

import pytest
import torch
from torch import nn

from ulmfit.config import OptimizerConfig, Phase
from ulmfit.training.muon import MOMENTUM, orthogonalise
from ulmfit.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors

RATE, DECAY = 0.01, 0.1


def make(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)


def muon(parameters, *, stacked):
    config = OptimizerConfig(name="muon", weight_decay=DECAY)
    return build_optimizer({"layer": parameters}, Phase(rate=RATE), config, stacked={"layer": stacked})


def give_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 16, 40), (2, 40, 16)])
def test_the_iteration_keeps_singular_vectors_and_brings_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonalise(matrices).float() @ right.mT
    values = found.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.3 and values.max() < 1.3
    # Off the diagonal nothing but bfloat16's rounding: the singular vectors are those of the matrix.
    assert (found - torch.diag_embed(values)).abs().max() < 0.05


def test_each_stacked_matrix_moves_as_if_it_were_alone():
    (together,) = make((4 * 6, 10))
    apart = [part.detach().clone().requires_grad_() for part in together.split(6)]
    for _ in range(3):
        give_gradients([together], seed=3)
        for part, gradient in zip(apart, together.grad.split(6), strict=True):
            part.grad = gradient.clone()
        for parameters, stacked in (([together], 4), (apart, 1)):
            muon(parameters, stacked=stacked).step()
    assert torch.allclose(together, torch.cat(apart), atol=1e-3)


def test_a_step_is_the_formula_of_nesterov_momentum_decay_and_scale():
    (weight,) = make((8, 12))
    before = weight.detach().clone()
    optimizer = muon([weight], stacked=1)
    momentum = torch.zeros_like(before)
    for seed in (5, 6):
        give_gradients([weight], seed=seed)
        gradient = weight.grad.clone()
        optimizer.step()
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        ahead = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        update = 0.2 * math.sqrt(12) * orthogonalise(ahead.unsqueeze(0))[0].float()
        before = before * (1 - RATE * DECAY) - RATE * update
    assert torch.allclose(weight, before, atol=1e-4)


def test_two_processes_share_the_matrices_out_and_move_all_of_them_as_one_would(two_processes):
    """Three of one shape, two here and one there, and a single one, of which the second process has none."""
    ran = two_processes("""
    from ulmfit.config import OptimizerConfig, Phase
    from ulmfit.training.distributed import ALONE, joined
    from ulmfit.training.optimizer import build_optimizer

    def moved(processes):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((12, 6), (4, 9), (5,))]
        groups, config = {"three": parameters[:1], "one": parameters[1:]}, OptimizerConfig(name="muon")
        stacked = {"three": 3, "one": 1}
        optimizer = build_optimizer(groups, Phase(rate=0.01), config, stacked=stacked, processes=processes)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape)
            optimizer.step()
        return parameters

    with joined() as processes:
        assert processes.size == 2
        torch.testing.assert_close(moved(processes), moved(ALONE), atol=1e-4, rtol=0)
    """)
    assert [code for code, _ in ran] == [0, 0], "\n".join(said for _, said in ran)


def test_biases_and_groups_that_stack_nothing_learn_by_adamw():
    ours, theirs = make((5, 4), (5,)), make((5, 4), (5,))
    optimizers = [
        muon(ours, stacked=0),
        build_optimizer({"layer": theirs}, Phase(rate=RATE), OptimizerConfig(name="adamw", weight_decay=DECAY)),
    ]
    for seed in range(3):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            give_gradients(parameters, seed)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_saved_and_loaded_it_goes_on_to_the_bit():
    straight, broken = make((8, 6), (8,)), make((8, 6), (8,))
    first = muon(straight, stacked=2)
    second = muon(broken, stacked=2)
    for seed in range(4):
        give_gradients(straight, seed)
        first.step()
        if seed == 2:
            tensors = optimizer_tensors(second)
            second = muon(broken, stacked=2)
            load_optimizer_tensors(second, tensors)
        give_gradients(broken, seed)
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, broken, strict=True))


def test_what_muon_leaves_to_adamw_learns_at_a_multiple_of_its_rate():
    groups = {
        "recurrent": [nn.Parameter(torch.eye(4)), nn.Parameter(torch.ones(4))],
        "table": [nn.Parameter(torch.eye(4))],
    }
    phase = Phase(rate=0.1, discriminative=2.0)
    config = OptimizerConfig(name="muon", adam_rate=3.0)
    optimizer = build_optimizer(groups, phase, config, stacked={"recurrent": 1})
    assert [entry["peak"] for entry in optimizer.param_groups] == pytest.approx([0.05, 0.15, 0.3])
    same = build_optimizer(groups, phase, config.model_copy(update={"name": "adamw"}), stacked={"recurrent": 1})
    assert [entry["peak"] for entry in same.param_groups] == pytest.approx([0.05, 0.05, 0.1])
