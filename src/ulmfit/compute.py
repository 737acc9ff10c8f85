"""Where and in which numbers to compute: chosen by asking the machine, never by faith."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import torch

from ulmfit.config import Precision
from ulmfit.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one. Raises ConfigError where the one asked for is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = re.fullmatch(r"cpu|cuda(?::(0|[1-9]\d*))?", name)
    if known is None:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N.")
    if name != "cpu" and int(known[1] or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} is not there; CUDA devices found: {torch.cuda.device_count()}. Use auto or cpu."
        )
    return torch.device(name)


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it natively, float32 elsewhere."""
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = _cpu_multiplies_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    """AMX or AVX-512 BF16; PyTorch's checks are private, so a release without them means no."""
    return any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )


def hardware(device: torch.device) -> dict[str, Any]:
    """What made a result: device, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    """The processor's own name where the system tells it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
