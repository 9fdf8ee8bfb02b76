"""A spy on the workers of a backend."""

from __future__ import annotations

from typing import Any

import pytest


class Spy:
    """Records the workers that a backend starts, and those that have a plan now."""

    def __init__(self, backend: type, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[Any] = []
        self.busy: list[Any] = []
        start, send, receive = backend.start, backend.send, backend.receive

        def spied_start(backend: Any, task: Any) -> Any:
            worker = start(backend, task)
            self.started.append(worker)
            return worker

        def spied_send(backend: Any, worker: Any, plan: Any) -> None:
            self.busy.append(worker)
            send(backend, worker, plan)

        def spied_receive(backend: Any, workers: Any) -> Any:
            results = receive(backend, workers)
            for worker, _ in results:
                self.busy.remove(worker)
            return results

        for name, spied in (("start", spied_start), ("send", spied_send), ("receive", spied_receive)):
            monkeypatch.setattr(backend, name, spied)
