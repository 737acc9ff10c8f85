"""Gradients summed while the backward pass runs, against the sums of what each process made alone."""

import torch

from ulmfit.training.distributed import ALONE
from ulmfit.training.exchange import GradientExchange


def test_sums_are_those_of_all_processes_whatever_each_one_reaches_and_in_which_order(two_processes):
    """The second step makes gradients in the other order in process 1, and the third lacks one there."""
    ran = two_processes(
        """
        from ulmfit.training import exchange as module
        from ulmfit.training.distributed import joined

        module.SMALL = 4  # so that the larger two set off by themselves

        def parameters():
            generator = torch.Generator().manual_seed(0)
            return [torch.randn(size, generator=generator).requires_grad_() for size in (6, 8, 2)]

        def loss(rank, step, first, second, small):
            order = (first, second) if (step, rank) != (1, 1) else (second, first)
            deep = order[0].sum().cos() * (rank + 1)
            if (step, rank) == (2, 1):
                return deep * (step + 2)
            return ((deep + order[1].square().sum()).sin() + small.prod()) * (step + 2)

        with joined() as processes:
            own = parameters()
            with module.GradientExchange(processes, own) as exchange:
                for step in range(3):
                    for parameter in own:
                        parameter.grad = None
                    made = loss(RANK, step, *own)
                    made.backward()
                    exchange.finish(logged := made.detach())
                    both = []
                    for rank in range(2):
                        alone = parameters()
                        made = loss(rank, step, *alone)
                        made.backward()
                        gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in alone)
                        both.append([*gradients, made.detach()])
                    for found, *expected in zip([*(p.grad for p in own), logged], *both, strict=True):
                        torch.testing.assert_close(found, sum(expected))
            made = own[0].sum()
            made.backward()  # outside nothing is exchanged, or this process would wait
        """
    )
    assert [code for code, _ in ran] == [0, 0], "\n".join(said for _, said in ran)


def test_a_process_on_its_own_exchanges_nothing():
    weight = torch.ones(3, requires_grad=True)
    with GradientExchange(ALONE, [weight]) as exchange:
        weight.sum().backward()
        exchange.finish(torch.zeros(()))
    assert torch.equal(weight.grad, torch.ones(3))
