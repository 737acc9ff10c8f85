"""How a process of the command line ends, where not as planned: one line on stderr that says why, and an exit code.

- A user's error: code 2. Of several processes that torchrun started, one says it for all.
- Ctrl-C: code 130, and how to go on.
- torchrun ends it because another of its processes has died: code 143, and how to go on.
- Whoever read the output has closed it: code 141, without a word.

Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from cyclopts import CycloptsError

from ulmfit.errors import ProcessError, UlmfitError
from ulmfit.flags import follows

_RANK_0_SECONDS = 2.0
"""after which a process that failed would have been ended, if rank 0 had failed as well"""


@contextmanager
def explained_end(*, again: str) -> Iterator[None]:
    """End the process as this module says when what is done inside fails or is stopped; `again` is how to go on."""
    try:
        with _explained_sigterm():
            yield
    except UlmfitError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            _leave_closed_pipe()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _fail_among_others(error)
        _fail(str(error))
    except CycloptsError as error:
        _fail(f"{' '.join(str(error).split())} See ulmfit --help.")
    except KeyboardInterrupt:
        if not follows():
            print(f"\nulmfit: stopped; go on with {again}", file=sys.stderr)
        sys.exit(130)


@contextmanager
def _explained_sigterm() -> Iterator[None]:
    """Say a word when torchrun ends this process because another one died, even while it waits for a GPU.

    The signal's number is written to a pipe as it comes in; Python's own handlers run when the wait is over, if ever.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or follows():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while number := os.read(reader, 1):
            if number[0] == signal.SIGTERM:
                message = "ended from outside, or because another process of the run ended; go on with --resume"
                os.write(2, f"ulmfit: error: {message}\n".encode())
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=listen, name="ulmfit-end", daemon=True).start()
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, before)


def _fail_among_others(error: UlmfitError) -> NoReturn:
    """As `_fail`, but once for all: what fails in every process fails in rank 0 too, and that ends the others.

    It leaves at once, as threads of a connection that has lost its other end can trip over the interpreter's end.
    """
    lost = isinstance(error, ProcessError)
    if follows() and not lost:
        time.sleep(_RANK_0_SECONDS)
    if not (follows() and lost):
        _tell(str(error))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _leave_closed_pipe() -> NoReturn:
    """Whoever read our output has seen enough, as `head` does; end as other programs do then, without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush would complain
    sys.exit(128 + signal.SIGPIPE)


def _fail(message: str) -> NoReturn:
    _tell(message)
    sys.exit(2)


def _tell(message: str) -> None:
    print(f"ulmfit: error: {' '.join(message.splitlines())}", file=sys.stderr)
