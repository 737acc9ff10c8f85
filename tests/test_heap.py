"""What the process's memory is told, by what it does then."""

import platform
import resource
import subprocess
import sys

import numpy as np
import pytest

from ulmfit.heap import memory_kept, share_heap

HEAPS = """
import ctypes, threading
from ulmfit.heap import share_heap

library, asked = ctypes.CDLL(None), ctypes.c_int(1000)
library.malloc.restype = library.fopen.restype = ctypes.c_void_p
if {shared}:
    share_heap()
barrier = threading.Barrier(3)

def take():
    barrier.wait()
    library.malloc(asked)
    barrier.wait()

threads = [threading.Thread(target=take) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = ctypes.c_void_p(library.fopen(b"/dev/stdout", b"w"))
library.malloc_info(0, file)
library.fclose(file)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")


@glibc
@pytest.mark.parametrize(("shared", "heaps"), [(True, 1), (False, 4)])
def test_threads_have_one_heap_once_it_is_shared(shared, heaps):
    command = [sys.executable, "-c", HEAPS.format(shared=shared)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.count("<heap nr=") == heaps


@glibc
def test_memory_that_is_kept_is_not_asked_for_again_and_given_back_in_the_end():
    def pages_touched():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        # By numpy, which asks for just so much: PyTorch wants it aligned, and may find the hole too small.
        np.ones(2**27, dtype=np.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with memory_kept():
        first, second = pages_touched(), pages_touched()
    afterwards = pages_touched()
    assert 8 * second < min(first, afterwards)


def test_without_glibc_memory_is_left_alone(monkeypatch):
    monkeypatch.setattr("ulmfit.heap.ctypes.CDLL", lambda name: object())
    share_heap()
    with memory_kept():
        pass
