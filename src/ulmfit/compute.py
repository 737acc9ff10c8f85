"""Where and in which numbers to compute: chosen by asking the machine, never by faith."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import platform
import re
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import torch

from ulmfit.config import Precision, PredictionPrecision, TrainingPrecision
from ulmfit.errors import ConfigError

Item = TypeVar("Item")

HOPPER = 9
"""compute capability of these GPUs"""
_AMX, _VNNI, _AVX512_BF16 = "_is_amx_tile_supported", "_is_vnni_supported", "_is_avx512_bf16_supported"
"""what torch.cpu is asked of a processor"""
CpuProducts: TypeAlias = Literal["amx", "avx512_vnni", "avx_vnni", "avx2"]
"""instructions that kernels multiply int8 by"""
_FEATURES: dict[CpuProducts, str] = {
    "amx": "amx-int8",
    "avx512_vnni": "avx512vnni",
    "avx_vnni": "avxvnni",
    "avx2": "avx2",
}
"""what LLVM calls a processor's having them, the fastest first"""
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
"""of Linux on x86-64, by which a process asks once before it uses AMX's tiles"""


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


def choose_dtype(precision: Precision | TrainingPrecision, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it natively, float32 elsewhere; so is what goes with int8."""
    if precision not in ("auto", "int8"):
        return torch.float32 if precision == "float32" else torch.bfloat16
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = _cpu_multiplies_bfloat16()
    return torch.bfloat16 if native else torch.float32


def choose_prediction_dtype(precision: PredictionPrecision, device: torch.device) -> torch.dtype:
    """What to predict in: `auto` is int8 where there are kernels or products for it, else what training would choose.

    Raises ConfigError where int8 is asked for and cannot be computed in.
    """
    if precision == "int8":
        _check_int8(device)
        return torch.int8
    if precision == "auto" and (_gpu_multiplies_int8(device) if device.type == "cuda" else _cpu_multiplies_int8()):
        return torch.int8
    return choose_dtype(precision, device)


def _check_int8(device: torch.device) -> None:
    """Raise ConfigError where it cannot be computed in."""
    if device.type == "cuda" and not _gpu_multiplies_int8(device):
        lacks = "its kernel is for GPUs of the Hopper generation (H100, H200) and needs Triton, with a C compiler"
    elif device.type == "cpu" and cpu_products() is None and not _int8_product_is_right():
        lacks = f"PyTorch {torch.__version__} has no int8 product that computes right on this CPU"
    else:
        return
    raise ConfigError(f"precision 'int8': {lacks}. Leave the precision to auto.")


def _gpu_multiplies_int8(device: torch.device) -> bool:
    """Whether it is of the generation that the kernel was made and measured on, and kernels can be made."""
    return torch.cuda.get_device_capability(device)[0] == HOPPER and kernels_can_be_made()


@functools.cache
def kernels_can_be_made() -> bool:
    """Whether Triton is there, and what it makes a kernel's launcher with: a C compiler and Python's own headers.

    PyTorch for CUDA brings Triton, but slim images lack the rest; then there is a warning, once, and the slower way.
    """
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    # As Triton looks for them; Debian's Python says another place, for what is installed locally.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    headers = Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"
    if compiler and headers.exists():
        return True
    lacks = f"Python's headers, {headers}" if compiler else "a C compiler"
    warnings.warn(f"Triton lacks {lacks}: GPU kernels are not made, and all is slower on a GPU", stacklevel=2)
    return False


def _cpu_multiplies_int8() -> bool:
    """By kernels; or without, AMX or AVX-512 VNNI and a product of PyTorch's that is right, which is private to it."""
    return cpu_products() is not None or (_int8_product_is_right() and _torch_finds(_AMX, _VNNI))


def _int8_product_is_right() -> bool:
    """Sums at the edge of what saturates a kernel that adds pairs in int16, in the two shapes prediction asks for."""
    product = getattr(torch, "_int_mm", None)
    if product is None:
        return False
    weight = torch.full((16, 64), -127, dtype=torch.int8)
    for rows in (1, 32):
        factor = torch.full((rows, 64), 127, dtype=torch.int8)
        try:
            found = product(factor, weight.t())
        except RuntimeError:
            return False
        if not bool((found == -64 * 127 * 127).all()):
            return False
    return True


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    """AMX or AVX-512 BF16."""
    return _torch_finds(_AMX, _AVX512_BF16)


def _torch_finds(*names: str) -> bool:
    """Any of these of the processor; PyTorch's checks are private, so a release without them means no."""
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


@functools.cache
def cpu_kernels_can_be_made() -> bool:
    """Whether Numba can be imported: where a Python or NumPy is too new for it, all goes on without."""
    try:
        importlib.import_module("numba")
    except ImportError:
        return False
    return True


@functools.cache
def cpu_products() -> CpuProducts | None:
    """The fastest that this processor has; None where it has none, or kernels cannot be made.

    None as well where it has AMX and may not use it, as what is compiled and kept for such a processor is for AMX.
    """
    if platform.machine() not in {"x86_64", "AMD64"} or not cpu_kernels_can_be_made():
        return None
    found = next((products for products, feature in _FEATURES.items() if cpu_has(feature)), None)
    return None if found == "amx" and not _may_use_amx() else found


@functools.cache
def _may_use_amx() -> bool:
    """Whether the system lets this process: asked once for all of it, as it wants programs that use AMX to ask."""
    if sys.platform != "linux":
        return False
    return int(ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)) == 0


def cpu_has(feature: str) -> bool:
    """Whether the processor that kernels are made for has what LLVM calls so."""
    return _cpu_features().get(feature, False)


@functools.cache
def _cpu_features() -> dict[str, bool]:
    from llvmlite import binding  # for who needs it

    return dict(binding.get_host_cpu_features())


def in_threads(work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Do the work of each item in a thread of its own, which has its part of PyTorch's threads for its operations.

    For work that is independent: threads that share one small operation wait for each other at its end. PyTorch keeps
    the count of each thread by itself, and one for the threads to come, which is put back. An exception is raised here.
    """
    if len(items) == 1:
        work(items[0])
        return
    before = torch.get_num_threads()
    each = max(1, before // len(items))
    try:
        with ThreadPoolExecutor(len(items), initializer=torch.set_num_threads, initargs=(each,)) as pool:
            list(pool.map(work, items))
    finally:
        torch.set_num_threads(before)


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
