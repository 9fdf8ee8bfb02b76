"""Resources: wrong values are named, and the right backend is made."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from prune_env.evaluation.process_workers import Processes
from prune_env.evaluation.resources import Resources


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"workers": 2}, r"workers=2.*backend"),
        ({"backend": "processes", "workers": 0}, r"workers .*0"),
        ({"backend": "processes", "workers": 1.5}, r"workers .*1\.5"),
        ({"backend": "processes", "workers": True}, r"workers .*True"),
        ({"backend": "cloud"}, r"backend .*local.*'cloud'"),
        ({"device": "nowhere"}, r"device 'nowhere'"),
    ],
)
def test_wrong_values_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Resources(**settings)


def test_a_missing_ray_is_reported_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="ray"):
        Resources(backend="ray")


def test_there_is_one_worker_per_available_processor() -> None:
    backend = Resources(backend="processes").make_backend()
    assert isinstance(backend, Processes)
    assert backend.count == len(os.sched_getaffinity(0))
    assert backend.threads == 1


def test_the_number_of_workers_can_be_set() -> None:
    backend = Resources(backend="processes", workers=3).make_backend()
    assert backend is not None
    assert backend.count == 3


def test_the_local_backend_has_no_workers() -> None:
    assert Resources().make_backend() is None
