"""The live evaluator: accuracies are right, remembered, and a pure function of the plan."""

from __future__ import annotations

import copy
import logging
import pickle
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from episodes import FAST, EnvMaker
from torch import nn

from prune_env import PruningProblem
from prune_env.data import DataSplits, Split, TensorSplit
from prune_env.evaluation.config import EvaluationConfig
from prune_env.evaluation.live import LiveEvaluator
from prune_env.pruning.problem import ProblemConfig
from prune_env.scoring.metric import accuracy

PLAN = (16, 16, 32, 32, 64)
PLANS = [(20, 20, 40, 40, 80), (32, 10, 64, 20, 128)]


@pytest.fixture(scope="module")
def problem(trained: nn.Module, digits: DataSplits) -> PruningProblem:
    return PruningProblem.create(trained, digits, ProblemConfig(prove=False))


def test_the_original_accuracy_is_that_of_the_network(problem: PruningProblem) -> None:
    expected = accuracy(problem.model, problem.data, problem.data.reward)
    evaluator = LiveEvaluator(problem)
    assert evaluator.original_accuracy == pytest.approx(expected, abs=0.015)
    assert evaluator.original_accuracy == evaluator.accuracy(problem.full_plan)


def test_accuracies_are_remembered_and_pure(problem: PruningProblem) -> None:
    first, second = LiveEvaluator(problem), LiveEvaluator(problem)
    accuracies = [first.accuracy(plan) for plan in PLANS]
    evaluations, hits = first.evaluations, first.hits
    assert [first.accuracy(plan) for plan in PLANS] == accuracies
    assert (first.evaluations, first.hits) == (evaluations, hits + len(PLANS))
    assert [second.accuracy(plan) for plan in reversed(PLANS)] == accuracies[::-1]


@pytest.mark.usefixtures("untouched_rngs")
def test_global_random_states_do_not_change(problem: PruningProblem) -> None:
    LiveEvaluator(problem, EvaluationConfig(finetune_batches=1, prove=False)).accuracy(PLAN)


def test_fast_and_exact_precision_agree(problem: PruningProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluators = []
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("prune_env.evaluation.live.fast_dtype", lambda _, dtype=dtype: dtype)
        evaluators.append(LiveEvaluator(problem))
    fast, exact = evaluators
    for plan in PLANS:
        assert fast.accuracy(plan) == pytest.approx(exact.accuracy(plan), abs=0.015)


def test_recalibration_raises_accuracies(problem: PruningProblem) -> None:
    """The stored statistics of a cut network describe inputs that no longer exist."""
    stored = accuracy(problem.build(PLAN), problem.data, problem.data.reward)
    assert LiveEvaluator(problem).accuracy(PLAN) > stored + 0.05


@pytest.mark.parametrize("batches", [0, 2])
def test_an_impossible_plan_is_refused(problem: PruningProblem, batches: int) -> None:
    evaluator = LiveEvaluator(problem, EvaluationConfig(finetune_batches=batches))
    for wrong in (0, 129, 16.5, -1):
        with pytest.raises(ValueError, match=rf"128.*{wrong}"):
            evaluator.accuracy((16, 16, 32, 32, wrong))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"5.*2"):
        evaluator.accuracy((16, 16))


@pytest.mark.parametrize("batches", [0, 3])
def test_network_is_the_one_that_is_measured(problem: PruningProblem, batches: int) -> None:
    evaluator = LiveEvaluator(problem, EvaluationConfig(finetune_batches=batches))
    network = evaluator.network(PLAN)
    assert not any(module.training for module in network.modules())
    found = accuracy(network, problem.data, problem.data.reward.balanced(1000))
    assert found == pytest.approx(evaluator.accuracy(PLAN), abs=0.02)  # bfloat16 against float32
    twin = evaluator.network(PLAN)
    assert twin is not network
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name


def test_accuracy_of_a_network_is_that_of_its_plan_and_the_network_is_not_modified(problem: PruningProblem) -> None:
    evaluator = LiveEvaluator(problem)
    network = problem.build(PLAN)
    before = pickle.dumps(network)
    evaluations = evaluator.evaluations
    assert evaluator.accuracy_of(network) == pytest.approx(evaluator.accuracy(PLAN), abs=0.02)
    assert evaluator.evaluations == evaluations + 2
    assert pickle.dumps(network) == before


def test_recalibrate_changes_statistics_only(problem: PruningProblem) -> None:
    network = problem.build(PLAN)
    before = copy.deepcopy(network.state_dict())
    LiveEvaluator(problem).recalibrate(network)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("running_" in name or "num_batches" in name for name in changed)


def test_an_accuracy_of_an_earlier_run_is_not_measured_again(problem: PruningProblem) -> None:
    evaluator = LiveEvaluator(problem)
    evaluations = evaluator.evaluations
    evaluator.remember(PLAN, 0.25)
    evaluator.submit(PLAN)
    assert evaluator.accuracy(PLAN) == 0.25
    assert evaluator.evaluations == evaluations


def test_close_logs_evaluations_and_hits(problem: PruningProblem, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = LiveEvaluator(problem)
    caplog.set_level(logging.INFO)
    evaluator.close()
    assert f"{evaluator.evaluations} plans" in caplog.text


def test_the_problem_must_be_one(trained: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"PruningProblem.*SmallCNN"):
        LiveEvaluator(trained)  # type: ignore[arg-type]


class TestWarningAboutRecalibration:
    def test_wrong_calibration_images_are_reported_in_points(self, trained: nn.Module, digits: DataSplits) -> None:
        """The stored statistics are right, and the calibration images are black."""
        black = TensorSplit(torch.zeros_like(digits.calibration.images), digits.calibration.labels)
        config = EvaluationConfig(**FAST)
        wrong = PruningProblem.create(trained, replace(digits, calibration=black), config)
        with pytest.warns(UserWarning, match=r"\d+\.\d+ points"):
            LiveEvaluator(wrong, config)

    @pytest.mark.parametrize("normalisation", [("none", None), ((0.3,), (1.0,)), ((-1.0,), (0.1,))])
    def test_images_that_are_not_normalised_as_in_training_are_reported(
        self, trained: nn.Module, digits: DataSplits, normalisation: Any
    ) -> None:
        config = EvaluationConfig(**FAST)
        wrong = PruningProblem.create(trained, digits.with_normalisation(*normalisation), config)
        with pytest.warns(UserWarning, match=r"\d+\.\d+ points.*mean=.*std="):
            LiveEvaluator(wrong, config)

    def test_right_ones_are_not(self, problem: PruningProblem) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            LiveEvaluator(problem)

    def test_a_metric_is_reported_in_its_own_scale(self, make_env: EnvMaker) -> None:
        values = iter([40.0, 30.0])

        def falling(network: nn.Module, split: Split) -> Any:
            return next(values)

        with pytest.warns(UserWarning, match=r" 10 .*falling.*40 .*30 "):
            make_env(metric=falling)
        values = iter([30.0, 40.0])
        with pytest.warns(UserWarning, match=r" 10 .*falling.*30 .*40 .*mean="):
            make_env(metric=falling)


def test_the_original_of_a_final_table_is_what_its_user_measures(trained: nn.Module, digits: DataSplits) -> None:
    """Its own stored statistics count, also where the evaluator's re-estimated ones are far better."""
    data, config = digits.with_normalisation("none"), EvaluationConfig(**FAST)
    trained = trained.eval()
    with torch.inference_mode():
        right = trained(data.test.images / 255).argmax(1) == data.test.labels
    problem = PruningProblem.create(trained, data, config)
    with pytest.warns(UserWarning, match="mean="):
        evaluator = LiveEvaluator(problem, config)
    assert accuracy(problem.model, data, data.test) == pytest.approx(float(right.float().mean()), abs=0.006)
    assert evaluator.original_accuracy > accuracy(problem.model, data, data.test) + 0.2
