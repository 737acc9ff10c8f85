"""A table shared by windows against one lookup by PyTorch's own embedding."""

import torch
from torch.nn import functional

from ulmfit.models.shared_table import SharedTable


def test_windows_give_the_gradient_of_one_lookup():
    torch.manual_seed(0)
    weight = torch.randn(30, 4, requires_grad=True)
    ids = torch.randint(0, 20, (11, 3))
    table = SharedTable(weight)
    rows = torch.cat([table.rows(window) for window in ids.split(4)])
    assert torch.equal(rows, weight[ids])
    rows.cos().sum().backward()
    assert weight.grad.is_sparse
    (expected,) = torch.autograd.grad(functional.embedding(ids, weight, sparse=True).cos().sum(), weight)
    ours, theirs = weight.grad.coalesce(), expected.coalesce()
    assert torch.equal(ours.indices(), theirs.indices())
    torch.testing.assert_close(ours.values(), theirs.values())


def test_windows_without_gradient_leave_none():
    weight = torch.randn(9, 2, requires_grad=True)
    table = SharedTable(weight)
    with torch.no_grad():
        assert not table.rows(torch.tensor([1, 2])).requires_grad
    table.rows(torch.tensor([3])).sum().backward()
    assert weight.grad.coalesce().indices().tolist() == [[3]]


def test_a_frozen_table_learns_nothing():
    assert not SharedTable(torch.randn(9, 2)).rows(torch.tensor([1])).requires_grad
