"""Processes that are stopped end with a word or without one, and with the code of what stopped them.

How errors, bugs and closed pipes end is in `test_cli.py`, and how several processes do in `test_distributed.py`.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ulmfit import endings

# A shell's background job ignores Ctrl-C, and so would all that it starts.
WAITING = """
import signal, time
from ulmfit.endings import explained_end

signal.signal(signal.SIGINT, signal.default_int_handler)
with explained_end(again="the same command"):
    print("ready", flush=True)
    time.sleep(60)
"""


def stopped(signal_number, **environment):
    """Exit code and stderr of a process that waits when the signal comes."""
    source = str(Path(endings.__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        env={**os.environ, "PYTHONPATH": source, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal_number)
    _, told = process.communicate(timeout=30)
    return process.returncode, told


@pytest.mark.parametrize(
    ("rank", "told"), [("0", "\nulmfit: stopped; go on with the same command\n"), ("1", "")], ids=["first", "other"]
)
def test_ctrl_c_says_how_to_go_on_once(rank, told):
    assert stopped(signal.SIGINT, RANK=rank) == (130, told)


def test_the_first_process_says_that_torchrun_ends_it_and_no_other_does():
    code, told = stopped(signal.SIGTERM, TORCHELASTIC_RUN_ID="run", RANK="0")
    assert code == 143
    assert told.startswith("ulmfit: error: ended from outside, or because another process of the run ended")
    assert told.count("\n") == 1
    assert stopped(signal.SIGTERM, TORCHELASTIC_RUN_ID="run", RANK="1") == (-signal.SIGTERM, "")


def test_without_torchrun_an_end_from_outside_is_as_python_has_it():
    assert stopped(signal.SIGTERM) == (-signal.SIGTERM, "")
