"""Worker processes: they measure as this process does, may be killed, and report errors."""

from __future__ import annotations

import os
import pickle
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
from episodes import play_together
from spy import Spy
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits, Split
from prune_env.evaluation.pool import WorkerError
from prune_env.evaluation.process_workers import Processes
from prune_env.evaluation.resources import Resources

CONFIG = EnvConfig(reward_images=100, calibration_images=100, prove=False)
ONE = Resources(backend="processes", workers=1)

pytestmark = pytest.mark.slow


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(Processes, monkeypatch)


def half(network: nn.Module, split: Split) -> float:
    return 0.5


def failing(network: nn.Module, split: Split) -> float:
    if os.environ.get("PRUNE_ENV_TEST_FAILS"):
        raise ArithmeticError("this metric fails in workers")
    return 0.5


def zero(network: nn.Module, split: Split) -> float:
    return 0.0


def test_killed_workers_do_not_change_the_results(trained: nn.Module, digits: DataSplits, spy: Spy) -> None:
    def search(kill: bool, count: int) -> Any:
        spy.started.clear(), spy.busy.clear()
        env = FilterPruneEnv.from_model(
            trained, digits, CONFIG, resources=Resources(backend="processes", workers=count)
        )
        killed = []

        def between(turn: int) -> None:
            if kill and turn in (1, 3) and len(killed) < 2 and spy.busy:
                os.kill(spy.busy[0].process.pid, signal.SIGKILL)
                killed.append(spy.busy[0])

        result = play_together(env, 20, together=4, between=between)
        assert len(killed) == (2 if kill else 0)
        env.close()
        assert not any(worker.process.is_alive() for worker in spy.started)
        return result

    undisturbed = search(kill=False, count=1)
    assert search(kill=True, count=2) == undisturbed


def test_idle_workers_end_by_themselves(
    trained: nn.Module, digits: DataSplits, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If they were killed, they would leave semaphores, and the interpreter would warn when it ends."""
    monkeypatch.setattr("prune_env.evaluation.process_workers.GRACE", 60)
    env = FilterPruneEnv.from_model(trained, digits, CONFIG, resources=ONE)
    env.close()
    (worker,) = spy.started
    assert worker.process.exitcode == 0


@pytest.mark.parametrize("batches", [0, 3])
def test_workers_measure_as_this_process_does(trained: nn.Module, digits: DataSplits, batches: int) -> None:
    config = replace(CONFIG, finetune_batches=batches)
    env = FilterPruneEnv.from_model(trained, digits, config, resources=ONE)
    plan = tuple(group.filters // 2 for group in env.groups)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        here = FilterPruneEnv.from_model(trained, digits, config).evaluator.accuracy(plan)
    finally:
        torch.set_num_threads(threads)
    twin = pickle.loads(pickle.dumps(env))  # starts workers of its own
    assert env.evaluator.accuracy(plan) == here
    assert twin.evaluator.accuracy(plan) == here
    env.close()
    twin.close()


def test_a_metric_is_sent_to_the_workers(trained: nn.Module, digits: DataSplits) -> None:
    env = FilterPruneEnv.from_model(trained, digits, CONFIG, metric=half, resources=ONE)
    assert env.evaluator.accuracy((2,) * len(env.groups)) == 0.5
    env.close()


def test_functions_that_cannot_be_sent_are_named(trained: nn.Module, digits: DataSplits) -> None:
    with pytest.raises(WorkerError, match=r"metric .*lambda"):
        FilterPruneEnv.from_model(trained, digits, CONFIG, metric=lambda network, split: 0.5, resources=ONE)
    tuned = replace(CONFIG, finetune_batches=1)
    with pytest.raises(WorkerError, match=r"loss .*lambda"):
        FilterPruneEnv.from_model(trained, digits, tuned, loss=lambda logits, *_: logits.mean(), resources=ONE)


def test_an_exception_in_a_worker_is_raised_here(
    trained: nn.Module, digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = FilterPruneEnv.from_model(trained, digits, CONFIG, metric=failing, resources=ONE)
    env.close()
    monkeypatch.setenv("PRUNE_ENV_TEST_FAILS", "1")
    with pytest.raises(WorkerError, match="ArithmeticError: this metric fails in workers"):
        env.evaluator.accuracy((2,) * len(env.groups))
    env.close()


def test_an_environment_that_cannot_be_made_leaves_no_workers(trained: nn.Module, digits: DataSplits, spy: Spy) -> None:
    with pytest.raises(ValueError, match=r"zero"):
        FilterPruneEnv.from_model(trained, digits, CONFIG, metric=zero, resources=ONE)
    (worker,) = spy.started
    assert not worker.process.is_alive()


def test_clones_keep_all_workers_busy(trained: nn.Module, digits: DataSplits, spy: Spy) -> None:
    env = FilterPruneEnv.from_model(trained, digits, CONFIG, resources=Resources(backend="processes", workers=2))
    most = 0

    def between(turn: int) -> None:
        nonlocal most
        most = max(most, len(spy.busy))

    play_together(env, 8, together=4, between=between)
    env.close()
    assert most == 2
