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
