"""The device and the numbers are those that PyTorch itself says are there."""

import json
import platform
import re
import sys
import threading
from types import ModuleType

import pytest
import torch

from ulmfit.compute import (
    choose_device,
    choose_dtype,
    choose_prediction_dtype,
    cpu_products,
    hardware,
    in_threads,
    kernels_can_be_made,
)
from ulmfit.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["tpu", "gpu", "", "CPU", "cpu:0", "meta", "mps", "cuda:", "cuda:x", "cuda:-1", "cuda:01"]
)
def test_an_unknown_device_is_an_error_that_lists_the_known(name):
    with pytest.raises(ConfigError, match=r"expected auto, cpu, cuda or cuda:N") as caught:
        choose_device(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("index", [0, 1, 300, 10**12])
def test_a_device_that_is_not_there_is_an_error_that_counts_those_that_are(index):
    name = f"cuda:{torch.cuda.device_count() + index}"
    with pytest.raises(ConfigError, match=f"'{name}' is not there; CUDA devices found: {torch.cuda.device_count()}"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_an_error():
    with pytest.raises(ConfigError, match="CUDA devices found: 0"):
        choose_device("cuda")


def test_auto_is_the_gpu_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")], ids=str)
def test_a_forced_precision_is_taken_on_any_device(device):
    assert choose_dtype("float32", device) == torch.float32
    assert choose_dtype("bfloat16", device) == torch.bfloat16


def cpu_flags():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
        return next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])


@pytest.mark.skipif(sys.platform != "linux", reason="the processor's flags are read from /proc")
def test_auto_on_a_cpu_is_bfloat16_where_the_processor_multiplies_it():
    native = bool({"avx512_bf16", "amx_bf16"} & set(cpu_flags()))
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if native else torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="the processor's flags are read from /proc")
def test_auto_predicts_on_a_cpu_in_int8_where_the_processor_multiplies_it():
    native = bool({"avx512_vnni", "amx_int8", "avx_vnni", "avx2"} & set(cpu_flags()))
    assert choose_prediction_dtype("auto", CPU) == (torch.int8 if native else choose_dtype("auto", CPU))


@pytest.mark.parametrize(
    ("features", "allowed", "wanted"),
    [
        ({"amx-int8", "avx512vnni", "avx2"}, True, "amx"),
        ({"amx-int8", "avx512vnni", "avx2"}, False, None),
        ({"avx512vnni", "avxvnni", "avx2"}, True, "avx512_vnni"),
        ({"avxvnni", "avx2"}, True, "avx_vnni"),
        ({"avx2"}, True, "avx2"),
        ({"sse4.2"}, True, None),
    ],
)
def test_kernels_multiply_by_the_fastest_that_a_processor_has(monkeypatch, features, allowed, wanted):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr("ulmfit.compute.cpu_kernels_can_be_made", lambda: True)
    monkeypatch.setattr("ulmfit.compute.cpu_has", lambda feature: feature in features)
    monkeypatch.setattr("ulmfit.compute._may_use_amx", lambda: allowed)
    assert cpu_products.__wrapped__() == wanted


@pytest.mark.parametrize(("machine", "numba"), [("aarch64", True), ("x86_64", False)])
def test_elsewhere_or_without_numba_there_are_no_kernels(monkeypatch, machine, numba):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr("ulmfit.compute.cpu_kernels_can_be_made", lambda: numba)
    assert cpu_products.__wrapped__() is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_forced_precision_is_predicted_in(precision):
    assert choose_prediction_dtype(precision, CPU) == choose_dtype(precision, CPU)


@pytest.mark.parametrize(
    ("capability", "triton", "right"), [((9, 0), True, True), ((9, 0), False, False), ((8, 0), True, False)]
)
def test_a_gpu_predicts_in_int8_where_its_kernel_runs(monkeypatch, capability, triton, right):
    """By what the GPU and the installation say of themselves; there need not be one here."""
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr("ulmfit.compute.kernels_can_be_made", lambda: triton)
    assert choose_prediction_dtype("auto", device) == (torch.int8 if right else torch.bfloat16)
    if right:
        assert choose_prediction_dtype("int8", device) == torch.int8
    else:
        with pytest.raises(ConfigError, match=r"Hopper generation .* needs Triton, .* Leave the precision to auto"):
            choose_prediction_dtype("int8", device)


@pytest.fixture
def asked_anew():
    kernels_can_be_made.cache_clear()
    yield
    kernels_can_be_made.cache_clear()


@pytest.mark.parametrize(
    ("triton", "compiler", "headers", "said"),
    [
        (True, "gcc", True, None),
        (False, None, False, None),
        (True, None, True, "lacks a C compiler"),
        (True, "gcc", False, r"lacks Python's headers, .*Python\.h"),
    ],
)
def test_kernels_are_made_where_triton_has_all_it_needs_and_what_it_lacks_is_said(
    monkeypatch, tmp_path, recwarn, asked_anew, triton, compiler, headers, said
):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton") if triton else None)
    monkeypatch.setattr("shutil.which", lambda name: compiler if name == "gcc" else None)
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(tmp_path)})
    if headers:
        (tmp_path / "Python.h").touch()
    assert kernels_can_be_made() == (triton and said is None)
    assert kernels_can_be_made() == (triton and said is None)  # said once
    messages = [str(warning.message) for warning in recwarn]
    assert len(messages) == (said is not None)
    assert said is None or re.search(said, messages[0])


def absent(monkeypatch):
    monkeypatch.delattr(torch, "_int_mm")


def raising(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", lambda *_, **__: torch.addmm(torch.zeros(1), torch.zeros(1), torch.zeros(1)))


def saturating(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", lambda left, right, **_: (left.int() @ right.int()).clamp(-(2**15), 2**15))


@pytest.mark.parametrize("broken", [absent, raising, saturating])
def test_a_pytorch_whose_int8_product_is_not_right_is_passed_over_and_named(monkeypatch, broken):
    monkeypatch.setattr("ulmfit.compute.cpu_products", lambda: None)
    broken(monkeypatch)
    assert choose_prediction_dtype("auto", CPU) == choose_dtype("auto", CPU)
    with pytest.raises(ConfigError, match="no int8 product that computes right"):
        choose_prediction_dtype("int8", CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_auto_on_a_gpu_is_bfloat16_from_ampere_on():
    device = torch.device("cuda")
    native = torch.cuda.get_device_capability(device) >= (8, 0)
    assert choose_dtype("auto", device) == (torch.bfloat16 if native else torch.float32)


def test_the_hardware_is_told_in_plain_json():
    told = hardware(CPU)
    assert told["threads"] == torch.get_num_threads()
    assert told["torch"] == torch.__version__
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["device"] and "\n" not in told["device"]
    assert json.loads(json.dumps(told)) == told


def test_work_in_threads_is_done_in_each_alone_and_leaves_the_count_as_it_was(threads):
    seen = {}
    together = threading.Barrier(2, timeout=60)

    def work(item):
        together.wait()
        seen[item] = torch.get_num_threads()

    with threads(2):
        in_threads(work, ["a", "b"])
        assert seen == {"a": 1, "b": 1}
        in_threads(lambda item: seen.update({item: torch.get_num_threads()}), ["alone"])
        assert seen["alone"] == torch.get_num_threads() == 2


def test_what_is_raised_in_a_thread_is_raised_here(threads):
    def work(item):
        if item == 2:
            raise ValueError(f"item {item}")

    with threads(2):
        with pytest.raises(ValueError, match="item 2"):
            in_threads(work, [1, 2])
        assert torch.get_num_threads() == 2
