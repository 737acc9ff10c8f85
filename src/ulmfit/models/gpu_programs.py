"""What kernels share whose programs are all on a GPU at once and wait for each other."""

from __future__ import annotations

import functools

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

REGISTERS = 2**16
"""of a processor, on every GPU that has bfloat16 products"""
MOST_REGISTERS = 255
"""of a thread"""


@functools.cache
def programs_at_once(device: torch.device, *, shared_memory: int, warps: int, registers: int = MOST_REGISTERS) -> int:
    """How many programs with so many bytes, and registers a thread, are on the GPU at the same time."""
    properties = torch.cuda.get_device_properties(device)
    by_memory = properties.shared_memory_per_multiprocessor // (shared_memory + 1024)
    by_registers = REGISTERS // (32 * warps * registers)
    return int(properties.multi_processor_count * min(by_memory, by_registers))


if triton is not None:
    # Triton reads annotations as its own types, so there are none.

    @triton.jit
    def tanh(values):  # type: ignore[no-untyped-def]
        return 2 * tl.sigmoid(2 * values) - 1

    @triton.jit
    def seen(counter):  # type: ignore[no-untyped-def]
        """What a counter stands at; what was written before it came there can be read from the L2 cache."""
        address = counter.to(tl.int64)
        return tl.inline_asm_elementwise(
            "ld.acquire.gpu.global.u32 $0, [$1];", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
        )
