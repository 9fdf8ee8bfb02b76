"""Accuracies on disk: found when they are right, and only then."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits, Split
from prune_env.evaluation.evaluator import Evaluator
from prune_env.evaluation.plan_cache import PlanCache
from prune_env.evaluation.resources import Resources
from prune_env.pruning import find_groups, importance

PLAN = (20, 20, 40, 40, 80)


def evaluator(model: nn.Module, data: DataSplits, cache: Path, kind: str = "l1", **settings: int) -> Evaluator:
    groups = find_groups(model, data.example_input)
    ranking = importance.ranking(importance.scores(kind, model, groups))
    return Evaluator(model, data, groups, ranking, cache=cache, **({"reward_images": 100} | settings))


def test_a_later_evaluator_asks_nothing_again(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> None:
    first = evaluator(trained, digits, tmp_path / "new" / "plans.sqlite")
    answers = [first.accuracy(PLAN), first.original_accuracy]
    assert first.cache is not None
    assert (first.cache.hits, first.cache.misses, first.evaluations) == (0, 2, 2)
    second = evaluator(copy.deepcopy(trained), digits, tmp_path / "new" / "plans.sqlite")
    assert [second.accuracy(PLAN), second.original_accuracy] == answers
    assert second.cache is not None
    assert (second.cache.hits, second.cache.misses, second.evaluations) == (2, 0, 0)
    assert second.accuracy(PLAN) == answers[0]
    assert second.cache.hits == 2, "memory is asked first"


def test_another_problem_finds_nothing(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> None:
    file = tmp_path / "plans.sqlite"
    evaluator(trained, digits, file).accuracy(PLAN)
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.classifier.bias[0] += 1e-3
    sigmoid = copy.deepcopy(trained)
    sigmoid.features[2] = nn.Sigmoid()  # the same weights
    for changed in (
        evaluator(other, digits, file),
        evaluator(sigmoid, digits, file),
        evaluator(trained, digits, file, kind="l2"),
        evaluator(trained, digits, file, reward_images=101),
        evaluator(trained, digits, file, calibration_images=101),
        evaluator(trained, digits, file, seed=1),
        evaluator(trained, digits, file, finetune_batches=1),
        evaluator(trained, digits, file, finetune_batches=2),
    ):
        changed.accuracy(PLAN)
        assert changed.cache is not None
        assert changed.cache.hits == 0
    again = evaluator(copy.deepcopy(trained), digits, file, finetune_batches=2)
    assert again.accuracy(PLAN) == changed.accuracy(PLAN)
    assert again.evaluations == 0


@pytest.mark.parametrize("how", ["frozen", "dropping"])
def test_what_is_learned_otherwise_is_another_answer(
    trained: nn.Module, digits: DataSplits, tmp_path: Path, how: str, dropping: Callable[[float], nn.Module]
) -> None:
    """Two networks of equal weights and outputs, one of which learns in another way."""
    other, file = dropping(0.5), tmp_path / "plans.sqlite"
    if how == "frozen":
        other = copy.deepcopy(trained)
        other.features[0].requires_grad_(False)
    for batches, asked in ((0, 0), (2, 1)):
        evaluator(trained, digits, file, finetune_batches=batches).accuracy(PLAN)
        second = evaluator(other, digits, file, finetune_batches=batches)
        second.accuracy(PLAN)
        assert second.evaluations == 2 * asked


def test_environments_share_it_whatever_their_budget(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> None:
    file = tmp_path / "plans.sqlite"
    for target, hits in ((0.5, 0), (0.6, 1)):
        env = FilterPruneEnv.from_model(trained, digits, EnvConfig(target_macs=target), resources=Resources(cache=file))
        env.evaluator.accuracy(PLAN)
        assert env.evaluator.cache is not None
        assert env.evaluator.cache.hits == 2 * hits
        env = pickle.loads(pickle.dumps(env))
        env.evaluator.accuracy((5, 5, 5, 5, 5))


def test_a_metric_is_refused(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> None:
    def metric(model: nn.Module, split: Split) -> float:
        return 1.0

    with pytest.raises(ValueError, match="stale answer"):
        FilterPruneEnv.from_model(trained, digits, metric=metric, resources=Resources(cache=tmp_path / "plans.sqlite"))


def test_a_loss_is_refused_where_accuracies_depend_on_it(
    trained: nn.Module, digits: DataSplits, tmp_path: Path
) -> None:
    def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.square().mean()

    settings = {"loss": loss, "cache": tmp_path / "plans.sqlite"}
    FilterPruneEnv.from_model(trained, digits, EnvConfig(), **settings)
    with pytest.raises(ValueError, match=r"a loss of your own: what .*loss reads cannot be .* finetune_batches=0"):
        FilterPruneEnv.from_model(trained, digits, EnvConfig(finetune_batches=2), **settings)


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be read as one" * 30, None])
def test_what_is_no_database_is_told(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "plans.sqlite"
    file.write_bytes(content) if content else file.mkdir()
    with pytest.raises(ValueError, match=r"plans\.sqlite cannot be used as a cache of accuracies"):
        PlanCache(file, "a")


WRITER = """
import sys
from pathlib import Path
from prune_env.evaluation.cache import PlanCache
cache = PlanCache(Path(sys.argv[1]), "shared")
for number in range(60):
    cache.put((number, 7), number / 60)
    assert cache.get((number, 7)) == number / 60
"""


@pytest.mark.slow
def test_processes_write_at_once(tmp_path: Path) -> None:
    file = tmp_path / "plans.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(file)]) for _ in range(4)]
    assert [writer.wait(100) for writer in writers] == [0] * 4
    cache = PlanCache(file, "shared")
    assert [cache.get((number, 7)) for number in range(60)] == [number / 60 for number in range(60)]
    assert PlanCache(file, "another").get((0, 7)) is None


def test_to_the_bit(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans.sqlite", "a")
    for number in (1 / 3, 0.1 + 0.2, 0.0, 1.0):
        cache.put((1, 2), number)
        assert cache.get((1, 2)) == number
