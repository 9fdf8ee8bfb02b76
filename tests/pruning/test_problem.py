"""The pruning problem: what is derived from a network and its data, and which networks and data are refused."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from prune_env import EnvConfig, PruningProblem
from prune_env.data import DataSplits, TensorSplit
from prune_env.networks import create
from prune_env.pruning import find_groups, importance
from prune_env.pruning.problem import ProblemConfig

CONFIG = ProblemConfig(calibration_images=100, prove=False)


@pytest.fixture(scope="module")
def problem(trained: nn.Module, digits: DataSplits) -> PruningProblem:
    return PruningProblem.create(trained, digits, CONFIG)


class TestCreate:
    def test_groups_scores_and_ranking_belong_together(self, problem: PruningProblem, digits: DataSplits) -> None:
        groups = find_groups(problem.model, digits.example_input)
        scores = importance.scores("l1", problem.model, groups)
        assert [group.name for group in problem.groups] == [group.name for group in groups]
        assert problem.full_plan == tuple(group.filters for group in groups)
        for name, expected in scores.items():
            assert torch.equal(problem.scores[name], expected)
            assert torch.equal(problem.ranking[name], expected.argsort(descending=True, stable=True))

    def test_costs_are_those_of_built_networks(self, problem: PruningProblem) -> None:
        plan = tuple(count // 2 for count in problem.full_plan)
        network = problem.build(plan)
        assert problem.cost.params(plan) == sum(parameter.numel() for parameter in network.parameters())
        assert problem.cost.macs(plan) < problem.cost.macs(problem.full_plan)

    def test_the_full_plan_builds_the_original_network(self, problem: PruningProblem, digits: DataSplits) -> None:
        images = digits.normalise(digits.test.images[:8])
        network = problem.build(problem.full_plan)
        assert network is not problem.model
        with torch.inference_mode():
            assert torch.equal(network(images), problem.model(images))

    def test_the_model_is_a_float32_copy_in_eval_mode(self, trained: nn.Module, digits: DataSplits) -> None:
        model = copy.deepcopy(trained).double().train()
        calls: list[int] = []
        model.features[0].register_forward_hook(lambda *_: calls.append(1))
        before = copy.deepcopy(model.state_dict())
        problem = PruningProblem.create(model, digits, CONFIG)
        assert not any(module.training for module in problem.model.modules())
        assert {parameter.dtype for parameter in problem.model.parameters()} == {torch.float32}
        assert calls == [1], "hooks run once, in the check that they change nothing; they are not copied"
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        with torch.no_grad():
            model.classifier.weight.zero_()
        assert problem.model.classifier.weight.abs().sum() > 0, "the copy shares weights with the user's network"

    def test_the_settings_of_an_environment_are_settings_of_a_problem(
        self, trained: nn.Module, digits: DataSplits
    ) -> None:
        config = EnvConfig(prove=False, importance="random", problem_seed=1)
        problem = PruningProblem.create(trained, digits, config)
        assert problem.config is config
        other = PruningProblem.create(trained, digits, replace(config, problem_seed=2))
        assert any(not torch.equal(problem.ranking[name], other.ranking[name]) for name in problem.ranking)

    def test_the_defaults(self, trained: nn.Module, digits: DataSplits) -> None:
        problem = PruningProblem.create(trained, digits)
        assert problem.config == ProblemConfig()
        assert problem.metric is None
        assert problem.loss is None
        assert "conv_0" in str(problem.inspection)

    @pytest.mark.usefixtures("untouched_rngs")
    @pytest.mark.parametrize("importance", ["taylor", "random"])
    def test_it_is_deterministic(self, trained: nn.Module, digits: DataSplits, importance: str) -> None:
        config = replace(CONFIG, importance=importance)
        one, two = (PruningProblem.create(trained, digits, config) for _ in range(2))
        for name, scores in one.scores.items():
            assert torch.equal(scores, two.scores[name])

    def test_taylor_needs_no_gradients_of_the_caller(self, trained: nn.Module, digits: DataSplits) -> None:
        config = replace(CONFIG, importance="taylor")
        usual = PruningProblem.create(trained, digits, config)
        with torch.inference_mode():
            other = PruningProblem.create(trained, digits, config)
        assert all(torch.equal(scores, other.scores[name]) for name, scores in usual.scores.items())


class TestProblem:
    def test_it_is_immutable(self, problem: PruningProblem, digits: DataSplits) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            problem.data = digits  # type: ignore[misc]

    def test_it_pickles(self, problem: PruningProblem) -> None:
        twin = pickle.loads(pickle.dumps(problem))
        assert twin.full_plan == problem.full_plan
        assert twin.config == problem.config
        assert twin.data.fingerprint == problem.data.fingerprint
        assert all(torch.equal(ranking, twin.ranking[name]) for name, ranking in problem.ranking.items())

    def test_its_printed_form_holds_no_tensors(self, problem: PruningProblem) -> None:
        assert len(repr(problem)) < 300

    def test_calibration_crops_are_the_same_at_every_call_and_depend_on_the_seed(
        self, problem: PruningProblem, digits: DataSplits
    ) -> None:
        crops = problem.calibration_crops()
        assert crops.dtype == torch.float32
        assert crops.shape == (100, *digits.image_shape)
        assert torch.equal(crops, problem.calibration_crops())
        other = replace(problem, config=replace(CONFIG, problem_seed=1))
        assert not torch.equal(crops, other.calibration_crops())


class Two(nn.Module):
    """A network with two outputs."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, images


class TestErrors:
    @pytest.mark.parametrize("model", ["small_cnn", nn.ReLU, None])
    def test_the_model_must_be_a_network(self, model: Any, digits: DataSplits) -> None:
        with pytest.raises(TypeError, match=r"model.*nn\.Module.*make_env"):
            PruningProblem.create(model, digits)

    def test_data_must_be_splits(self, trained: nn.Module) -> None:
        with pytest.raises(TypeError, match=r"DataSplits.*str.*load"):
            PruningProblem.create(trained, "digits")  # type: ignore[arg-type]

    @pytest.mark.parametrize("config", [{"importance": "l1"}, 0.5])
    def test_config_must_be_one(self, config: Any, trained: nn.Module, digits: DataSplits) -> None:
        with pytest.raises(TypeError, match=rf"ProblemConfig.*{type(config).__name__}"):
            PruningProblem.create(trained, digits, config)

    def test_a_network_with_fewer_outputs_than_classes(self, digits: DataSplits) -> None:
        with pytest.raises(ValueError, match=r"7.*10 classes"):
            PruningProblem.create(create("small_cnn", 7, 1), digits)

    def test_a_network_with_two_outputs(self, digits: DataSplits) -> None:
        with pytest.raises(ValueError, match="tuple"):
            PruningProblem.create(Two(), digits)

    def test_a_network_for_images_of_another_shape(self, digits: DataSplits) -> None:
        with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
            PruningProblem.create(create("small_cnn", 10, 3), digits)

    def test_taylor_needs_classes(self, trained: nn.Module, digits: DataSplits) -> None:
        targets = TensorSplit(digits.train.images, digits.train.labels.float())
        data = replace(digits, name="targets", classes=(), train=targets)
        with pytest.raises(ValueError, match=r"'taylor'.*'targets'"):
            PruningProblem.create(
                trained, data, replace(CONFIG, importance="taylor"), metric=lambda network, split: 1.0
            )

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"importance": "magic"}, r"'magic'.*l1"),
            ({"calibration_images": 0}, r"calibration_images .*0"),
            ({"calibration_images": 1.5}, r"calibration_images .*1\.5"),
        ],
    )
    def test_wrong_settings_are_named(self, settings: dict[str, Any], named: str) -> None:
        with pytest.raises(ValueError, match=named):
            ProblemConfig(**settings)

    def test_a_plan_must_be_a_sequence_of_counts(self, problem: PruningProblem) -> None:
        with pytest.raises(TypeError, match=r"dict"):
            problem.build({"features.0": 26})  # type: ignore[arg-type]
