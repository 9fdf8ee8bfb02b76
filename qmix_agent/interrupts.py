"""Ctrl-C, but not in the middle of something that does not survive it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """A Ctrl-C within the block takes effect at its end.

    TensorBoard hands events to a thread through a queue; an interrupt in that queue's own locking leaves the thread
    waiting for ever, and closing the writer then never returns. Outside the main thread there is nothing to defer.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            before(*received[0])


@contextmanager
def inherited_deafness() -> Iterator[None]:
    """A process that is started within the block leaves Ctrl-C to its parent, from its first instruction on.

    A terminal sends it to all processes; one that is still importing would die, with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # the first process would start it, and it ends with Ctrl-C allowed again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
