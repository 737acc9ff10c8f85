"""Pooling a window in one pass over it on a GPU, against PyTorch's operations."""

import pytest
import torch

from ulmfit.models import classifier as module
from ulmfit.models.classifier import ConcatPool
from ulmfit.models.pool_kernel import pools_in_one_pass

SIZE = 40


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the Triton kernel runs on CUDA alone")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_pooled_in_one_pass_are_what_they_are_in_several(monkeypatch, dtype):
    lengths = torch.tensor([39, 30, 20, 19, 18, 7, 1], device="cuda")
    generator = torch.Generator().manual_seed(0)
    windows = [torch.randn(20, 7, SIZE, generator=generator), torch.randn(19, 2, SIZE, generator=generator)]
    pooled = []
    for by_kernel in (True, False):
        monkeypatch.setattr(module, "pools_in_one_pass", pools_in_one_pass if by_kernel else lambda outputs: False)
        pool = ConcatPool(lengths, size=SIZE)
        pool.add(windows[0][:9].to("cuda", dtype)[:, :5], None)
        pool.add(windows[0].to("cuda", dtype), lengths)
        pool.add(windows[1].to("cuda", dtype), lengths[:2] - 20)
        pooled.append(pool.result())
    torch.testing.assert_close(pooled[0], pooled[1], rtol=1e-5, atol=1e-5)


def test_outputs_that_are_learnt_from_and_those_on_a_cpu_are_pooled_by_pytorch():
    assert not pools_in_one_pass(torch.zeros(2, 3, 4))
