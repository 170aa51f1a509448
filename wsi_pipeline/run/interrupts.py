"""Handling of Ctrl-C and SIGTERM: a command ends within a few seconds.

The signal raises `KeyboardInterrupt` in the main thread, so that scratch files are removed. That
can take too long if the main thread is inside a long call of a library, or waits for a read that
does not return (a hanging network drive): schedulers send SIGKILL after some seconds. So a watcher
thread ends the process and its children after a few seconds. Nothing is lost: unfinished outputs
are never marked as finished, and scratch files of dead processes are removed by the next command.
"""

import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
GRACE_S = 3.5  # to clean up
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def watch_signals(*, grace_s: float = GRACE_S) -> Callable[[], None]:
    """Treat SIGTERM like Ctrl-C, and end the process if it is still running some seconds later.

    Parameters
    ----------
    grace_s : float
        Seconds to clean up.

    Returns
    -------
    undo : function
        Restores the earlier handlers and stops watching.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None  # only the main thread may handle signals
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The interpreter writes the signal's number at once, also while a library has the main thread.
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_watch, args=(reader, grace_s), daemon=True).start()

    def undo() -> None:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, handler)
        os.close(writer)

    return undo


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _watch(reader: int, grace_s: float) -> None:
    """Wait for a signal, then end the process after `grace_s` unless the pipe is closed."""
    deadline: float | None = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            _end()
        numbers = os.read(reader, 64)
        if not numbers:
            os.close(reader)
            return
        if deadline is None and any(number in numbers for number in SIGNALS):
            deadline = time.monotonic() + grace_s


def end_now() -> NoReturn:
    """End an interrupted process at once: freeing memory takes libraries seconds."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)


def _end() -> NoReturn:
    for child in multiprocessing.active_children():
        child.kill()
    # Not by sys.stderr, which the main thread may be writing to.
    os.write(2, b"interrupted: ended without waiting for what was being read or computed\n")
    os._exit(EXIT_INTERRUPTED)
