"""The gates' kernel against PyTorch's operations, there and back, and what a layer makes of it."""

import pytest
import torch

from ulmfit.compute import cpu_kernels_can_be_made
from ulmfit.models import lstm_products
from ulmfit.models.lstm_products import back_through_time, through_time

pytestmark = pytest.mark.skipif(not cpu_kernels_can_be_made(), reason="needs Numba")

TIME = 7


def only_gates(rows, addend):
    """A product that adds nothing: what goes into the gates is what the inputs gave."""
    return addend


def case(batch, units):
    generator = torch.Generator().manual_seed(0)
    gates = torch.randn(TIME, batch, 4 * units, generator=generator).mul_(2).to(torch.bfloat16)
    cells = torch.randn(TIME + 1, batch, units, generator=generator)
    return gates, cells, torch.zeros(TIME + 1, batch, units, dtype=torch.bfloat16)


@pytest.fixture(params=["kernel", "operations"])
def both_ways(request, monkeypatch):
    monkeypatch.setattr(lstm_products, "cpu_kernels_can_be_made", lambda: request.param == "kernel")


def in_float64(gates, before):
    """Gates and cells of all steps."""
    entry, forget, candidate, exit_ = gates.double().chunk(4, 2)
    kept = torch.cat([entry.sigmoid(), forget.sigmoid(), candidate.tanh(), exit_.sigmoid()], 2)
    cells = [before.double()]
    for step in kept:
        entry, forget, candidate, exit_ = step.chunk(4, 1)
        cells.append(forget * cells[-1] + entry * candidate)
    return kept, torch.stack(cells)


@pytest.mark.parametrize(("batch", "units"), [(1, 16), (3, 48), (16, 96), (5, 400)])
@pytest.mark.usefixtures("both_ways")
def test_forward_equals_the_equations_in_float64(batch, units):
    gates, cells, hiddens = case(batch, units)
    kept = torch.empty_like(gates)
    through_time(hiddens, cells, gates, only_gates, kept=kept)
    expected, expected_cells = in_float64(gates, cells[0])
    torch.testing.assert_close(cells.double(), expected_cells, rtol=0, atol=1e-5)
    torch.testing.assert_close(kept.double(), expected, rtol=2**-8, atol=1e-6)
    exit_ = expected[:, :, 3 * units :]
    torch.testing.assert_close(hiddens[1:].double(), exit_ * expected_cells[1:].tanh(), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize(("batch", "units"), [(1, 16), (3, 48), (16, 96), (5, 400)])
@pytest.mark.usefixtures("both_ways")
def test_backward_equals_autograd_through_the_equations(batch, units):
    gates, cells, hiddens = case(batch, units)
    kept = torch.empty_like(gates)
    through_time(hiddens, cells, gates, only_gates, kept=kept)
    generator = torch.Generator().manual_seed(1)
    of_outputs = torch.randn(TIME, batch, units, generator=generator).to(torch.bfloat16)
    of_cell = torch.randn(batch, units, generator=generator)

    # From the rounded gates, which are what is kept for the way back, and the cells that they make.
    slopes = kept.double()
    for step in range(TIME):
        entry, forget, candidate, _ = slopes[step].chunk(4, 1)
        cells[step + 1] = forget * cells[step] + entry * candidate
    entry, forget, candidate, exit_ = (part.clone().requires_grad_() for part in slopes.chunk(4, 2))
    first = cells[0].double().requires_grad_()
    cell, loss = first, torch.zeros((), dtype=torch.float64)
    for step in range(TIME):
        cell = forget[step] * cell + entry[step] * candidate[step]
        loss = loss + (exit_[step] * cell.tanh() * of_outputs[step].double()).sum()
    (loss + (cell * of_cell.double()).sum()).backward()
    sigmoids = [part.grad * (part * (1 - part)).detach() for part in (entry, forget, exit_)]
    tanh = candidate.grad * (1 - candidate.detach() ** 2)
    expected = torch.cat([sigmoids[0], sigmoids[1], tanh, sigmoids[2]], 2)

    back_through_time(of_outputs, torch.zeros(batch, units, dtype=torch.bfloat16), of_cell, only_gates, kept, cells)
    torch.testing.assert_close(kept.double(), expected, rtol=2**-7, atol=1e-4)
    torch.testing.assert_close(of_cell.double(), first.grad, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("both_ways")
def test_what_is_no_number_is_passed_on():
    gates, cells, hiddens = case(2, 16)
    gates[0, 1, 3] = torch.nan
    through_time(hiddens, cells, gates, only_gates, kept=None)
    assert hiddens[1, 1, 3].isnan() and cells[1, 1, 3].isnan()
    assert hiddens[1, 0].isfinite().all()


def test_sizes_that_are_no_multiple_of_sixteen_go_the_other_way():
    gates, cells, hiddens = case(2, 20)
    kept = torch.empty_like(gates)
    through_time(hiddens, cells, gates, only_gates, kept=kept)
    torch.testing.assert_close(cells.double(), in_float64(gates, cells[0])[1], rtol=0, atol=1e-5)
