"""Ray actors: they measure as worker processes do, and may be killed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from episodes import play_together
from spy import Spy
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits
from prune_env.evaluation.ray_workers import RayActors
from prune_env.evaluation.resources import Resources

CONFIG = EnvConfig(reward_images=100, calibration_images=100, prove=False)

pytestmark = pytest.mark.slow


@pytest.fixture
def ray() -> Iterator[Any]:
    import ray

    ray.init(num_cpus=2, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_there_are_as_many_actors_as_processors(ray: Any) -> None:
    backend = Resources(backend="ray").make_backend()
    assert backend is not None
    assert backend.count == 2


def test_a_killed_actor_does_not_change_the_results(
    ray: Any, trained: nn.Module, digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy, killed = Spy(RayActors, monkeypatch), []
    env = FilterPruneEnv.from_model(trained, digits, CONFIG, resources=Resources(backend="ray"))

    def between(turn: int) -> None:
        if turn == 2 and not killed and spy.busy:
            ray.kill(spy.busy[0])
            killed.append(spy.busy[0])

    disturbed = play_together(env, 20, together=4, between=between)
    assert killed
    env.close()
    processes = Resources(backend="processes", workers=1)
    other = FilterPruneEnv.from_model(trained, digits, CONFIG, resources=processes)
    assert disturbed == play_together(other, 20, together=4)
    other.close()
