"""Loss of each row of logits and its gradient in one go: one kernel, by Triton or by Numba, or plain PyTorch.

Read twice and written once, the logits cost 3 passes over memory instead of the 7 of log_softmax and its backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ulmfit.compute import cpu_kernels_can_be_made, kernels_can_be_made
from ulmfit.models.cpu_products import as_integers

IGNORED = -100

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


def losses_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of each row, (rows,) in float32, and its gradient: softmax(logits) - onehot(targets).

    The logits (rows, classes) are used up: the gradient may take their place. Rows whose target is -100 get loss 0 and
    gradient 0. The gradient is rounded to the logits' dtype once; in bfloat16 PyTorch's path takes a row's loss from a
    rounded probability, which is good to .002 and unbiased over many.
    """
    if logits.is_cuda and kernels_can_be_made():
        return _by_triton(logits, targets), logits
    if one_pass_serves(logits):
        return _by_numba(logits, targets), logits
    return _by_torch(logits, targets)


def one_pass_serves(logits: Tensor) -> bool:
    """Whether a kernel goes over these rows on a CPU; its losses are exact to float32."""
    return not logits.is_cuda and logits.dtype == torch.bfloat16 and cpu_kernels_can_be_made()


def _by_torch(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    kept = targets != IGNORED
    safe = targets.where(kept, 0).unsqueeze(1)
    # The loss is read off the likeliest class, whose probability never underflows: log p_t = x_t - x_top + log p_top.
    gap = _row_maxima(logits).float() - logits.gather(1, safe).squeeze(1).float()
    # One pass in place of log_softmax in float32, exp and a cast back.
    gradient = torch.softmax(logits, dim=1, out=logits)
    losses = (gap - _row_maxima(gradient).float().log()) * kept
    # What scatters along a dimension copies the whole of it on a CPU.
    gradient[torch.arange(len(gradient), device=gradient.device), safe.squeeze(1)] -= 1
    if not bool(kept.all()):
        gradient *= kept.unsqueeze(1)
    return losses, gradient


def _row_maxima(values: Tensor) -> Tensor:
    """The greatest of each row, (rows,).

    A CPU finds the greatest integer ten times as fast as the greatest bfloat16. Among floats that are not negative it
    has the same bits; among negative ones the least integer has.
    """
    if values.device.type != "cpu" or values.dtype != torch.bfloat16:
        return values.amax(1)
    integers = values.view(torch.int16)
    greatest = integers.amax(1)
    if bool((greatest < 0).any()):
        greatest = torch.where(greatest < 0, integers.amin(1), greatest)
    return greatest.view(torch.bfloat16)


def _by_numba(logits: Tensor, targets: Tensor) -> Tensor:
    from ulmfit.models.softmax_rows import softmax_rows  # Numba is for those who need it

    losses = torch.empty(len(logits))
    softmax_rows(as_integers(logits), targets.numpy(), losses.numpy())
    return losses


def _by_triton(logits: Tensor, targets: Tensor) -> Tensor:
    rows, classes = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    with torch.cuda.device(logits.device):
        _kernel[(rows,)](logits, targets, losses, logits.stride(0), classes, BLOCK=8192, num_warps=16)
    return losses


if triton is not None:
    # Triton reads annotations as its own types, so there are none.
    @triton.jit  # type: ignore[untyped-decorator]
    def _kernel(logits, targets, losses, stride, classes, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0).to(tl.int64)
        logits += row * stride
        target = tl.load(targets + row)
        columns = tl.arange(0, BLOCK)
        # One pass for the running maximum and the sum of exponentials relative to it, lane by lane.
        peak = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, classes, BLOCK):
            inside = start + columns < classes
            values = tl.load(logits + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(peak, values)
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(peak - shift) + tl.exp(values - shift)
            peak = higher
        top = tl.max(peak, 0)
        denominator = tl.sum(total * tl.exp(peak - top), 0)
        kept = target >= 0
        wanted = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
        tl.store(losses + row, tl.where(kept, tl.log(denominator) + top - wanted, 0.0))
        scale = tl.where(kept, 1.0 / denominator, 0.0)
        hit = tl.where(kept, 1.0, 0.0)
        tl.debug_barrier()
        for start in range(0, classes, BLOCK):
            inside = start + columns < classes
            values = tl.load(logits + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(values - top) * scale - tl.where(start + columns == target, hit, 0.0)
            tl.store(logits + start + columns, gradient.to(logits.dtype.element_ty), mask=inside)
