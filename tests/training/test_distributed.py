"""Two connected processes against what one would have computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ulmfit.errors import ProcessError
from ulmfit.training.distributed import ALONE, Processes, joined


def finished(ran):
    """Both processes came to their end; what failed inside of one is its stderr."""
    assert [code for code, _ in ran] == [0, 0], "\n".join(said for _, said in ran)


@given(total=st.integers(0, 100), size=st.integers(1, 9))
def test_shares_are_as_even_as_can_be_and_leave_nothing_out(total, size):
    counts = Processes(0, size).counts(total)
    assert sum(counts) == total and max(counts) - min(counts) <= 1
    parts = [list(range(total))[Processes(rank, size).share(total)] for rank in range(size)]
    assert [thing for part in parts for thing in part] == list(range(total))
    assert list(map(len, parts)) == counts


def test_dealing_in_turn_gives_the_same_counts():
    for total in range(20):
        assert [len(range(total)[rank::3]) for rank in range(3)] == Processes(0, 3).counts(total)


def test_a_process_on_its_own_is_connected_to_nothing():
    with joined() as processes:
        assert processes is ALONE and processes.leads
        assert not torch.distributed.is_initialized()
        rows = torch.ones(2, 3, requires_grad=True)
        assert processes.gather(rows, 2) is rows
        assert processes.agree({"a": (1,)}) == {"a": (1,)}
        processes.sum([rows])


def test_two_processes_gather_sum_and_agree(two_processes):
    finished(
        two_processes("""
        import math
        from ulmfit.training.distributed import joined
        from ulmfit.training.exchange import GradientExchange

        with joined() as processes:
            assert (processes.rank, processes.size) == (RANK, 2)
            with joined() as again:
                assert again == processes

            # A mean over five rows, three of them here and two there, through a weight that both have.
            every = torch.arange(10.0).view(5, 2)
            weight = torch.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
            inner = torch.tensor([2.0, 3.0], requires_grad=True)
            unused = torch.zeros(2, requires_grad=True)
            own = every[processes.share(5)] * inner
            whole = processes.gather(own, 5)
            loss = (whole @ weight).cos().mean() / processes.size
            with GradientExchange(processes, [weight, inner, unused]) as exchange:
                loss.backward()
                exchange.finish(part := loss.detach())
            alone, its_inner = weight.detach().clone().requires_grad_(), inner.detach().clone().requires_grad_()
            expected = (every * its_inner @ alone).cos().mean()
            expected.backward()
            torch.testing.assert_close(part, expected.detach())
            torch.testing.assert_close(weight.grad, alone.grad)
            torch.testing.assert_close(inner.grad, its_inner.grad)
            assert not unused.grad.any()

            # Rows of a table: 1 and 3 here, 1 and none there.
            table = torch.nn.Embedding(5, 2, sparse=True)
            with GradientExchange(processes, table.parameters()) as exchange:
                table(torch.tensor([[1, 3], [1]][RANK])).sum().backward()
                exchange.finish(torch.zeros(()))
            counts = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0])
            assert table.weight.grad.is_sparse
            assert torch.equal(table.weight.grad.to_dense(), counts.unsqueeze(1).expand(5, 2))

            # One row for two processes: the second has none.
            rows = torch.full((1 - RANK, 3), 7.0)
            assert torch.equal(processes.gather(rows, 1), torch.full((1, 3), 7.0))
            rows = torch.full((2, 3), float(RANK))
            assert torch.equal(processes.gather(rows, 4)[:, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]))

            mean = processes.part_of_mean(torch.tensor(float(RANK)), 1 + 2 * RANK)
            processes.sum([mean])
            assert mean == 0.75
            assert processes.total(5 + RANK) == 11

            told = {"epoch": 3, "best": math.inf}
            assert processes.agree(told if RANK == 0 else None) == told
            tensors = {"a": torch.tensor(3), "b": torch.ones(2, 2, dtype=torch.bfloat16)} if RANK == 0 else {}
            copies = processes.copy_tensors(tensors)
            assert copies["a"] == 3 and torch.equal(copies["b"], torch.ones(2, 2, dtype=torch.bfloat16))
            model = torch.nn.BatchNorm1d(3)
            model.running_mean += RANK + 1
            processes.copy_model(model)
            assert torch.equal(model.running_mean, torch.ones(3))

            path = FOLDER + "/written"
            with processes.leader_first():
                if processes.leads:
                    open(path, "w").write("whole")
                assert open(path).read() == "whole"
        assert not torch.distributed.is_initialized()
        """)
    )


def test_what_fails_in_rank_0_ends_the_other_process(two_processes):
    (first, told), (second, of_other) = two_processes("""
        from ulmfit.errors import DataError
        from ulmfit.training.distributed import joined

        with joined() as processes, processes.leader_first():
            if processes.leads:
                raise DataError("no text")
        """)
    assert first == second == 1
    assert "DataError: no text" in told
    assert f"{ProcessError.__name__}: rank 0 has failed" in of_other


def test_a_process_that_dies_is_noticed_by_the_others(two_processes):
    (code, told), (dead, _) = two_processes("""
        from ulmfit.training.distributed import joined

        with joined() as processes:
            processes.total(1)
            if RANK == 1:
                os._exit(9)
            processes.total(1)
        """)
    assert (code, dead) == (1, 9)
    last = told.splitlines()[-1]
    assert "another process of this run has ended or cannot be reached (" in last and "--resume" in last
    assert "[/" not in last


def test_an_error_of_another_process_than_rank_0_says_whose_it_is(two_processes):
    _, (code, told) = two_processes("""
        from ulmfit.errors import DataError
        from ulmfit.training.distributed import joined

        with joined() as processes:
            if RANK == 1:
                raise DataError("no corpus here")
            processes.total(1)
        """)
    assert code == 1
    assert told.splitlines()[-1].endswith("DataError: process 1 of 2: no corpus here")


def test_one_gpu_by_number_is_not_for_two_processes(monkeypatch):
    from ulmfit.errors import ConfigError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes cannot share the device 'cuda:0'"):
        Processes(0, 2).device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU, there are 1"):
        Processes(1, 2).device("auto")
