"""The running maximum, sum and last output of many documents over a window, on a GPU in one pass over the outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ulmfit.compute import kernels_can_be_made

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

STEPS = 8
"""read at once"""


def pools_in_one_pass(outputs: Tensor) -> bool:
    """Whether `pool_window` can be used: on a GPU, for outputs that nothing is learnt from."""
    return outputs.is_cuda and not outputs.requires_grad and kernels_can_be_made()


def pool_window(outputs: Tensor, remaining: Tensor | None, maximum: Tensor, total: Tensor, last: Tensor | None) -> None:
    """Take `outputs` (time, rows, size) into the first rows of the others, (documents, size) in float32, in place.

    Of each row the first `remaining` steps count, (rows,) int64, at least one; all of them where it is None. The last
    of those goes to `last`, where it is asked for.
    """
    time, rows, size = outputs.shape
    outputs = outputs.contiguous()
    with torch.cuda.device(outputs.device):
        _kernel[(rows,)](
            outputs,
            outputs if remaining is None else remaining,
            maximum,
            total,
            maximum if last is None else last,
            time,
            rows,
            size,
            COUNTED=remaining is not None,
            WITH_LAST=last is not None,
            STEPS=STEPS,
            BLOCK=triton.next_power_of_2(size),
            num_warps=8,
        )


if triton is not None:
    # Triton reads annotations as its own types, so there are none.

    @triton.jit(do_not_specialize=["time", "rows"])  # type: ignore[untyped-decorator]
    def _kernel(  # type: ignore[no-untyped-def]
        outputs,
        remaining,
        maximum,
        total,
        last,
        time,
        rows,
        size,
        COUNTED: tl.constexpr,
        WITH_LAST: tl.constexpr,
        STEPS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        units, steps = tl.arange(0, BLOCK), tl.arange(0, STEPS)
        own = units < size
        until = time
        if COUNTED:
            until = tl.minimum(tl.load(remaining + row), time).to(tl.int32)
        best = tl.load(maximum + row * size + units, mask=own, other=0.0)
        summed = tl.load(total + row * size + units, mask=own, other=0.0)
        stride = rows.to(tl.int64) * size
        at = outputs + row * size + steps[:, None] * stride + units[None, :]
        for start in range(0, until, STEPS):
            real = (start + steps < until)[:, None] & own[None, :]
            values = tl.load(at, mask=real, other=float("-inf")).to(tl.float32)
            best = tl.maximum(best, tl.max(values, 0))
            summed += tl.sum(tl.where(real, values, 0.0), 0)
            at += STEPS * stride
        tl.store(maximum + row * size + units, best, mask=own)
        tl.store(total + row * size + units, summed, mask=own)
        if WITH_LAST:
            end = tl.load(outputs + row * size + (until - 1) * stride + units, mask=own, other=0.0)
            tl.store(last + row * size + units, end.to(tl.float32), mask=own)
