"""Deferral of Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from qmix_agent.interrupts import deferred_interrupt


@pytest.fixture(autouse=True)
def _default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_block(reached: list[str]) -> None:
    with deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        reached.append("end of the block")
    reached.append("after the block")


def test_an_interrupt_takes_effect_at_the_end_of_the_block() -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted_block(reached)
    assert reached == ["end of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_happens() -> None:
    with deferred_interrupt():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_block_runs_in_other_threads() -> None:
    reached: list[str] = []

    def work() -> None:
        with deferred_interrupt():
            reached.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reached == ["done"]
