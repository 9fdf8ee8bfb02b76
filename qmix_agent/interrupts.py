"""Deferral of Ctrl-C while code runs that must not be interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Delay a Ctrl-C that arrives within the block until its end.

    TensorBoard passes events to a thread through a queue. An interrupt while the queue holds its lock leaves the thread
    waiting forever, and closing the writer then never returns. Outside the main thread this does nothing, because only
    the main thread receives signals.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])
