"""Accuracies on disk: they are found when they are right, and only then."""

from __future__ import annotations

import copy
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem
from prune_env.data import DataSplits, Split, TensorSplit
from prune_env.evaluation.config import EvaluationConfig
from prune_env.evaluation.live import LiveEvaluator
from prune_env.evaluation.plan_cache import PlanCache
from prune_env.evaluation.resources import Resources

PLAN = (20, 20, 40, 40, 80)


def make_evaluator(model: nn.Module, data: DataSplits, cache: Path, **settings: Any) -> LiveEvaluator:
    config = EvaluationConfig(**({"reward_images": 100, "prove": False} | settings))
    return LiveEvaluator(PruningProblem.create(model, data, config), config, Resources(cache=cache))


def test_a_later_evaluator_measures_nothing_again(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "plans.sqlite"
    first = make_evaluator(trained, digits, cache)
    accuracies = [first.accuracy(PLAN), first.original_accuracy]
    assert (first.hits, first.evaluations) == (0, 2)
    second = make_evaluator(copy.deepcopy(trained), digits, cache)
    assert [second.accuracy(PLAN), second.original_accuracy] == accuracies
    assert (second.hits, second.evaluations) == (2, 0)
    cache.unlink()
    assert second.accuracy(PLAN) == accuracies[0], "the accuracy is in memory, and the file is not read again"


class TestOfAnotherProblem:
    """Nothing is found."""

    @pytest.fixture
    def cache(self, trained: nn.Module, digits: DataSplits, tmp_path: Path) -> Path:
        """A cache that holds the accuracy of the plan for the usual problem."""
        make_evaluator(trained, digits, tmp_path / "plans.sqlite").accuracy(PLAN)
        return tmp_path / "plans.sqlite"

    def assert_nothing_is_found(self, evaluator: LiveEvaluator) -> None:
        evaluator.accuracy(PLAN)
        assert (evaluator.hits, evaluator.evaluations) == (0, 2)

    @pytest.mark.parametrize(
        "settings",
        [
            {"importance": "l2"},
            {"reward_images": 101},
            {"calibration_images": 101},
            {"problem_seed": 1},
            {"finetune_batches": 1},
        ],
    )
    def test_with_other_settings(
        self, trained: nn.Module, digits: DataSplits, cache: Path, settings: dict[str, Any]
    ) -> None:
        self.assert_nothing_is_found(make_evaluator(trained, digits, cache, **settings))

    def test_with_other_weights(self, trained: nn.Module, digits: DataSplits, cache: Path) -> None:
        other = copy.deepcopy(trained)
        with torch.no_grad():
            other.classifier.bias[0] += 1e-3
        self.assert_nothing_is_found(make_evaluator(other, digits, cache))

    def test_with_equal_weights_and_another_function(self, trained: nn.Module, digits: DataSplits, cache: Path) -> None:
        sigmoid = copy.deepcopy(trained)
        sigmoid.features[2] = nn.Sigmoid()
        self.assert_nothing_is_found(make_evaluator(sigmoid, digits, cache))

    def test_with_other_images(self, trained: nn.Module, digits: DataSplits, cache: Path) -> None:
        images = digits.reward.images.clone()
        images[0] = 0
        other = replace(digits, reward=TensorSplit(images, digits.reward.labels))
        self.assert_nothing_is_found(make_evaluator(trained, other, cache))


def test_accuracies_after_finetuning_are_found_again(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> None:
    cache = tmp_path / "plans.sqlite"
    one, two = (make_evaluator(trained, digits, cache, finetune_batches=batches) for batches in (1, 2))
    one.accuracy(PLAN), two.accuracy(PLAN)
    assert two.hits == 0
    again = make_evaluator(copy.deepcopy(trained), digits, cache, finetune_batches=2)
    assert again.accuracy(PLAN) == two.accuracy(PLAN)
    assert again.evaluations == 0


@pytest.mark.parametrize("how", ["frozen", "dropping"])
@pytest.mark.parametrize("batches", [0, 2])
def test_how_a_network_learns_matters_if_it_is_finetuned(
    trained: nn.Module,
    digits: DataSplits,
    tmp_path: Path,
    how: str,
    batches: int,
    dropping: Callable[[float], nn.Module],
) -> None:
    """Two networks with equal weights and outputs, one of which learns differently."""
    other, cache = dropping(0.5), tmp_path / "plans.sqlite"
    if how == "frozen":
        other = copy.deepcopy(trained)
        other.features[0].requires_grad_(False)
    make_evaluator(trained, digits, cache, finetune_batches=batches).accuracy(PLAN)
    second = make_evaluator(other, digits, cache, finetune_batches=batches)
    second.accuracy(PLAN)
    assert second.evaluations == (2 if batches else 0)


def test_environments_with_different_budgets_share_a_cache(
    trained: nn.Module, digits: DataSplits, tmp_path: Path
) -> None:
    resources = Resources(cache=tmp_path / "plans.sqlite")
    for target, hits in ((0.5, 0), (0.6, 2)):
        env = FilterPruneEnv.from_model(trained, digits, EnvConfig(target_macs=target), resources=resources)
        env.evaluator.accuracy(PLAN)
        assert env.evaluator.hits == hits


def test_a_pickled_environment_uses_the_cache(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> None:
    resources = Resources(cache=tmp_path / "plans.sqlite")
    env = FilterPruneEnv.from_model(trained, digits, EnvConfig(prove=False), resources=resources)
    twin = pickle.loads(pickle.dumps(env))
    accuracy = env.evaluator.accuracy(PLAN)
    evaluations = twin.evaluator.evaluations
    assert twin.evaluator.accuracy(PLAN) == accuracy
    assert twin.evaluator.evaluations == evaluations


class TestCustomFunctions:
    """No fingerprint covers everything that they may read."""

    def test_a_metric_is_refused(self, trained: nn.Module, digits: DataSplits, tmp_path: Path) -> None:
        def my_metric(network: nn.Module, split: Split) -> float:
            return 1.0

        resources = Resources(cache=tmp_path / "plans.sqlite")
        with pytest.raises(ValueError, match=r"plans\.sqlite.*my_metric"):
            FilterPruneEnv.from_model(trained, digits, metric=my_metric, resources=resources)

    def test_a_loss_is_refused_if_accuracies_depend_on_it(
        self, trained: nn.Module, digits: DataSplits, tmp_path: Path
    ) -> None:
        def my_loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return logits.square().mean()

        settings: dict[str, Any] = {"loss": my_loss, "resources": Resources(cache=tmp_path / "plans.sqlite")}
        FilterPruneEnv.from_model(trained, digits, EnvConfig(prove=False), **settings)
        with pytest.raises(ValueError, match=r"plans\.sqlite.*my_loss.*finetune_batches"):
            FilterPruneEnv.from_model(trained, digits, EnvConfig(prove=False, finetune_batches=2), **settings)


class TestFile:
    @pytest.mark.parametrize(
        ("content", "error"), [(b"not a database, but long enough to be read as one" * 30, ValueError), (None, OSError)]
    )
    def test_a_file_that_is_not_a_database_is_named(
        self, tmp_path: Path, content: bytes | None, error: type[Exception]
    ) -> None:
        file = tmp_path / "plans.sqlite"
        file.write_bytes(content) if content else file.mkdir()
        with pytest.raises(error, match=r"plans\.sqlite"):
            PlanCache(file, "a")

    def test_a_full_disk_is_an_error_that_names_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "plans.sqlite"
        code = f"""
import resource, signal
from pathlib import Path
from prune_env.evaluation.plan_cache import PlanCache
cache = PlanCache(Path({str(file)!r}), "a")
cache.put((1, 2), 0.5)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    cache.put((1, 3), 0.25)
except OSError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert str(file) in done.stdout
        assert done.stdout.count("\n") == 1
        cache = PlanCache(file, "a")
        assert (cache.get((1, 2)), cache.get((1, 3))) == (0.5, None)

    def test_accuracies_are_exact_to_the_bit(self, tmp_path: Path) -> None:
        cache = PlanCache(tmp_path / "plans.sqlite", "a")
        for number in (1 / 3, 0.1 + 0.2, 0.0, 1.0):
            cache.put((1, 2), number)
            assert cache.get((1, 2)) == number

    def test_problems_are_kept_apart(self, tmp_path: Path) -> None:
        one, other = (PlanCache(tmp_path / "plans.sqlite", name) for name in ("one", "other"))
        one.put((1, 2), 0.5)
        assert other.get((1, 2)) is None
        assert one.get((2, 1)) is None

    @pytest.mark.parametrize("stored", [5.0, -0.1, 9e999, -9e999, "high", b"blob"])
    def test_values_that_are_no_accuracy_are_named_and_measured_again(
        self, trained: nn.Module, digits: DataSplits, tmp_path: Path, stored: object
    ) -> None:
        file = tmp_path / "plans.sqlite"
        right = make_evaluator(trained, digits, file).accuracy(PLAN)
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE accuracies SET accuracy = ?", (stored,))
        connection.close()
        with pytest.warns(UserWarning, match=r"plans\.sqlite"):
            second = make_evaluator(trained, digits, file)  # reads the original network's accuracy
        with pytest.warns(UserWarning, match=r"plans\.sqlite"):
            assert second.accuracy(PLAN) == right
        assert (second.hits, second.evaluations) == (0, 2)
        assert make_evaluator(trained, digits, file).hits == 1, "the right value was stored"

    @pytest.mark.parametrize(
        "schema",
        [
            "CREATE TABLE bookmarks (url TEXT)",
            "CREATE TABLE accuracies (problem TEXT, plan TEXT, accuracy REAL)",
            "CREATE VIEW accuracies AS SELECT 'a' AS problem, '[1,2]' AS plan, 1.0 AS accuracy",
        ],
    )
    def test_databases_of_something_else_are_refused_and_not_changed(self, tmp_path: Path, schema: str) -> None:
        file = tmp_path / "other.sqlite"
        with sqlite3.connect(file) as connection:
            connection.execute(schema)
        connection.close()
        before = file.read_bytes()
        with pytest.raises(ValueError, match=r"other\.sqlite"):
            PlanCache(file, "a")
        assert file.read_bytes() == before

    @pytest.mark.slow
    def test_processes_may_write_at_the_same_time(self, tmp_path: Path) -> None:
        file = tmp_path / "plans.sqlite"
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(file)]) for _ in range(8)]
        assert [writer.wait(100) for writer in writers] == [0] * 8
        cache = PlanCache(file, "shared")
        assert [cache.get((number, 7)) for number in range(60)] == [number / 60 for number in range(60)]


WRITER = """
import sys
from pathlib import Path
from prune_env.evaluation.plan_cache import PlanCache
cache = PlanCache(Path(sys.argv[1]), "shared")
for number in range(60):
    cache.put((number, 7), number / 60)
    assert cache.get((number, 7)) == number / 60
"""
