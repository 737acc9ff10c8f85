"""The dropouts of AWD-LSTM as functions of a tensor and a rate (Merity et al. 2017, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ulmfit.models.shared_table import SharedTable


def keep_mask(like: Tensor, shape: tuple[int, ...], rate: float) -> Tensor:
    """0 with probability `rate`, else 1 / (1 - rate), in the dtype and on the device of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - rate).div_(1 - rate)


def _large_mask(like: Tensor, rate: float) -> Tensor:
    """The same in the shape of a tensor of millions of entries on a CPU, in a quarter of the time.

    A draw gives 64 random bits, and 16 decide on an entry: the rate is met to 8 millionths.
    """
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    entries = draws.view(torch.int16)[: like.numel()].view(like.shape)
    return torch.ge(entries, round(rate * 2**16) - 2**15, out=torch.empty_like(like)).div_(1 - rate)


def locked_mask(
    like: Tensor, shape: tuple[int, int, int], rate: float, *, training: bool, window: int | None = None
) -> Tensor | None:
    """What locked dropout multiplies (time, batch, size) by: a mask for all steps, (1, batch, size).

    With `window`, one for each window of so many steps, (windows, batch, size). None where nothing is dropped.
    """
    if not training or rate == 0:
        return None
    time, batch, size = shape
    windows = 1 if window is None or window >= time else -(-time // window)
    return keep_mask(like, (windows, batch, size), rate)


def locked_dropout(inputs: Tensor, rate: float, *, training: bool, window: int | None = None) -> Tensor:
    """Dropout with one mask for all time steps: (time, batch, size) -> the same shape.

    With `window`, one mask for each window of so many steps.
    """
    time, batch, size = inputs.shape
    mask = locked_mask(inputs, (time, batch, size), rate, training=training, window=window)
    if mask is None:
        return inputs
    if len(mask) > 1:
        assert window is not None
        mask = mask.repeat_interleave(window, dim=0)[:time]
    return inputs * mask


def embed(
    tokens: Tensor,
    weight: Tensor,
    row_dropout: float,
    *,
    training: bool,
    window: int | None = None,
    table: SharedTable | None = None,
) -> Tensor:
    """Look up tokens with whole rows of the table dropped: (time, batch) and (vocabulary, size) -> (..., size).

    A dropped token is absent at each of its places in the window of `window` steps, or in all of them where it is
    None; the rest are scaled up. The mask is applied to the looked-up rows, so the table itself is never copied. Of
    `table`, this weight as the windows of a step share it, nor is the gradient: it holds the rows looked up alone.
    """
    if table is not None:
        embedded = table.rows(tokens)
    elif weight.is_cuda:
        # The same values; but in the backward pass a frequent word's many gradients are not added up one by one.
        embedded = weight.index_select(0, tokens.flatten()).view(*tokens.shape, -1)
    else:
        embedded = functional.embedding(tokens, weight)
    if not training or row_dropout == 0:
        return embedded
    rows, time = weight.shape[0], tokens.shape[0]
    if window is None or window >= time:
        return embedded * keep_mask(weight, (rows, 1), row_dropout)[tokens]
    masks = keep_mask(weight, (-(-time // window) * rows, 1), row_dropout)
    first = torch.arange(time, device=tokens.device).div(window, rounding_mode="floor").mul(rows).unsqueeze(1)
    return embedded * masks[tokens + first]


def weight_dropout(weight: Tensor, rate: float, *, training: bool) -> Tensor:
    """DropConnect: single entries of a weight matrix dropped, one mask for the whole step."""
    if not training or rate == 0:
        return weight
    if weight.device.type == "cpu":
        return weight * _large_mask(weight.detach(), rate)
    return functional.dropout(weight, rate, training=True)
