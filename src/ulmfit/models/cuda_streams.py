"""CUDA streams on which the layers of a stack work side by side, each a window ahead of the one above.

Where a document is read window by window, the lowest layer need not wait for the others before it reads the next one.
The backward pass runs each operation on the stream of its forward pass, so it is spread out in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


@functools.cache
def _streams(device: torch.device, count: int) -> tuple[torch.cuda.Stream, ...]:
    # PyTorch warns of gradients that are made on one stream and summed on another, which is what is wanted here.
    quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if quiet is not None:
        quiet(False)
    return tuple(torch.cuda.Stream(device) for _ in range(count))  # type: ignore[no-untyped-call]


class LayerStreams:
    """One stream a layer; the top layer's is the caller's own, where its outputs can be used like any others.

    On a CPU, and for a single layer, there is but that one, and nothing here does anything.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        self._lower = _streams(device, layers - 1) if device.type == "cuda" else ()
        self._left: tuple[int, tuple[Tensor, ...], torch.cuda.Stream] | None = None
        if self._lower:
            self._wait_for_caller()

    def at(self, layer: int) -> AbstractContextManager[object]:
        """Inside, work is launched on the stream of that layer."""
        return torch.cuda.stream(self._lower[layer]) if layer < len(self._lower) else nullcontext()

    def enter(self, tokens: Tensor, state: tuple[Tensor, ...] | None) -> None:
        """Before a window: the lower streams wait for the caller, unless all comes from where the last window ended."""
        if not self._lower or (self._left is not None and self._goes_on(self._left, tokens, state)):
            return
        self._wait_for_caller()
        tokens.record_stream(self._lower[0])
        for tensor in state or ():
            for stream in self._lower:
                tensor.record_stream(stream)

    def lift(self, outputs: Tensor, layer: int) -> Tensor:
        """Inside `at(layer)`: the outputs of the layer below, to be used here."""
        if self._lower:
            here = torch.cuda.current_stream(outputs.device)
            here.wait_stream(self._lower[layer - 1])
            outputs.record_stream(here)
        return outputs

    def leave(self, tokens: Tensor, state: tuple[Tensor, ...]) -> None:
        """After a window: the caller may use its state."""
        if self._lower:
            here = torch.cuda.current_stream(tokens.device)
            for tensor in state:
                tensor.record_stream(here)
            self._left = (tokens.untyped_storage().data_ptr(), state, here)

    def join(self, tensors: Iterable[Tensor]) -> None:
        """What was made on the lower streams can be used on the caller's stream from here on."""
        if self._lower:
            here = torch.cuda.current_stream(self._lower[0].device)
            for stream in self._lower:
                here.wait_stream(stream)
            for tensor in tensors:
                tensor.record_stream(here)

    @staticmethod
    def _goes_on(
        left: tuple[int, tuple[Tensor, ...], torch.cuda.Stream], tokens: Tensor, state: tuple[Tensor, ...] | None
    ) -> bool:
        storage, state_then, stream = left
        here = torch.cuda.current_stream(tokens.device)
        return state is state_then and tokens.untyped_storage().data_ptr() == storage and here == stream

    def _wait_for_caller(self) -> None:
        here = torch.cuda.current_stream(self._lower[0].device)
        for stream in self._lower:
            stream.wait_stream(here)
