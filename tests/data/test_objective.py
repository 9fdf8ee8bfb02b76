"""A custom metric and a custom loss, from the environment to the distilled network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from episodes import FAST, EnvMaker, last_info, play
from torch import nn
from torch.nn import functional as F

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits, Split, TensorSplit, from_tensors
from prune_env.data.objective import check_loss, check_metric
from prune_env.finalise import Finaliser, accuracy
from prune_env.training.config import FitConfig, RunOptions
from prune_env.training.distillation import DistillationConfig
from prune_env.training.fit import fit

SHORT = DistillationConfig(epochs=2, min_steps=20, batch_size=64)


def all_labels(network: nn.Module, split: Split) -> float:
    """Return the fraction of images with every label right."""
    return float(((network(split.images) > 0) == (split.labels > 0.5)).all(1).float().mean())


def explained_variance(network: nn.Module, split: Split) -> float:
    """Return R^2 of a regression, which is below 0 if the predictions are worse than the mean."""
    outputs = network(split.images)[:, 0]
    return float(1 - (outputs - split.labels).square().mean() / split.labels.var(unbiased=False))


def label_loss(logits: torch.Tensor, _images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels)


def squared_error(logits: torch.Tensor, _images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(logits[:, 0], labels)


def with_targets(digits: DataSplits, targets: Callable[[torch.Tensor], torch.Tensor]) -> DataSplits:
    """Return the digits with floating-point targets that are computed from the classes."""
    splits = {part: getattr(digits, part) for part in ("train", "reward", "test")}
    parts = {part: (digits.normalise(split.images), targets(split.labels)) for part, split in splits.items()}
    return from_tensors(*parts["train"], *parts["test"], reward=parts["reward"], name="targets")


@pytest.fixture(scope="module")
def several_labels(digits: DataSplits) -> DataSplits:
    """Two labels per image: whether the digit is even, and whether it is at least five."""
    return with_targets(digits, lambda labels: torch.stack([labels % 2 == 0, labels >= 5], 1).float())


@pytest.fixture(scope="module")
def values(digits: DataSplits) -> DataSplits:
    """A regression to the digit's value."""
    return with_targets(digits, lambda labels: labels.float() / 9)


def with_head(trained: nn.Module, outputs: int, data: DataSplits, loss: Any) -> nn.Module:
    model = copy.deepcopy(trained)
    model.classifier = nn.Linear(128, outputs)
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    settings = FitConfig(epochs=6, batch_size=64, lr=0.02, ema_decay=0.9)
    return fit(model, data, settings, loss=loss, run=RunOptions(progress=False))


@pytest.fixture(scope="module")
def labeller(trained: nn.Module, several_labels: DataSplits) -> nn.Module:
    return with_head(trained, 2, several_labels, label_loss)


@pytest.fixture(scope="module")
def regressor(trained: nn.Module, values: DataSplits) -> nn.Module:
    return with_head(trained, 1, values, squared_error)


class TestFromSearchToNetwork:
    def test_several_labels_per_image(self, labeller: nn.Module, several_labels: DataSplits) -> None:
        data, config = several_labels, EnvConfig(**FAST, target_macs=0.15)
        env = FilterPruneEnv.from_model(labeller, data, config, metric=all_labels, loss=label_loss)
        assert env.evaluator.original_accuracy > 0.8
        assert accuracy(labeller, data, data.reward, all_labels) > 0.8
        reported = last_info(play(env))["accuracy"]
        best = env.archive.best()[0]
        assert reported == best.accuracy == env.evaluator.accuracy(best.plan)

        finaliser = Finaliser(env, SHORT, progress=False)
        (finalist,) = finaliser.rank([best.plan])
        assert finalist.distilled_accuracy > finalist.recalibrated_accuracy + 0.1
        network = finaliser.distil(best.plan)
        final = accuracy(network, data, data.reward, metric=env.problem.metric)
        assert final >= finalist.distilled_accuracy - 0.03
        with torch.inference_mode():
            found = all_labels(network, TensorSplit(data.normalise(data.reward.images), data.reward.labels))
        assert final == pytest.approx(found)

    def test_a_regression_whose_weights_are_carried(self, regressor: nn.Module, values: DataSplits) -> None:
        config = EnvConfig(**FAST, round_finetune_batches=3, every_round=True)
        env = FilterPruneEnv.from_model(regressor, values, config, metric=explained_variance, loss=squared_error)
        assert 0.6 < env.evaluator.original_accuracy < 1
        _, infos = env.reset()
        assert infos["conv_0"]["accuracy"] == env.evaluator.original_accuracy
        _, rewards, _, _, infos = env.step(dict.fromkeys(env.agents, 9))
        change = infos["conv_0"]["accuracy"] / env.evaluator.original_accuracy - 1
        assert rewards["conv_0"] == pytest.approx(change)

    def test_a_regression_that_is_finetuned_before_it_is_measured(
        self, regressor: nn.Module, values: DataSplits
    ) -> None:
        accuracies = []
        for batches in (0, 8):
            config = EnvConfig(**FAST, finetune_batches=batches)
            env = FilterPruneEnv.from_model(regressor, values, config, metric=explained_variance, loss=squared_error)
            play(env, policy="3")
            accuracies.append(env.archive.best()[0].accuracy)
            network = env.pruned_model()
        assert accuracies[1] > accuracies[0]
        split = values.reward.balanced(env.config.reward_images)
        with torch.no_grad():
            found = explained_variance(network, TensorSplit(values.normalise(split.images), split.labels))
        assert found == pytest.approx(accuracies[1], abs=0.02)

    def test_another_metric_of_a_classifier(self, make_env: EnvMaker) -> None:
        def top2(network: nn.Module, split: Split) -> torch.Tensor:
            return (network(split.images).topk(2).indices == split.labels[:, None]).any(1).float().mean()

        top1, other = make_env(), make_env(metric=top2)
        play(top1), play(other)
        assert other.archive.best()[0].accuracy > top1.archive.best()[0].accuracy


class TestMetric:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_it_is_given_a_network_in_eval_mode_and_its_inputs(
        self, dtype: torch.dtype, make_env: EnvMaker, digits: DataSplits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("prune_env.evaluation.live.fast_dtype", lambda _: dtype)
        seen: list[tuple[nn.Module, Split]] = []

        def metric(network: nn.Module, split: Split) -> float:
            assert not network.training
            assert torch.is_inference_mode_enabled()
            assert split.images.dtype == next(network.parameters()).dtype == dtype
            assert network(split.images[:7]).dtype == torch.float32
            seen.append((network, split))
            return 0.5

        assert make_env(metric=metric).evaluator.original_accuracy == 0.5
        network, split = seen[-1]
        expected = digits.reward.balanced(100)
        assert torch.equal(split.labels, expected.labels)
        assert torch.equal(split.images, digits.normalise(expected.images).to(dtype))
        with torch.inference_mode():
            assert network(split.images[:7]).dtype == dtype, "a hook was left on the network"

    def test_it_may_use_the_network_in_any_way(self, make_env: EnvMaker) -> None:
        """It may count parameters, call parts, differentiate, and even ruin the network: the next one is new."""
        parameters: list[int] = []

        def curious(network: nn.Module, split: Split) -> float:
            with torch.inference_mode(False), torch.enable_grad():
                images = split.images[:2].clone().requires_grad_()
                network(images).sum().backward()
                assert images.grad is not None
            network.features(split.images[:2])
            parameters.append(sum(parameter.numel() for parameter in network.parameters()))
            found = float((network(split.images).argmax(1) == split.labels).float().mean())
            with torch.no_grad():
                for parameter in network.train().parameters():
                    parameter.zero_()
            return found

        env = make_env(metric=curious)
        original = env.evaluator.original_accuracy
        assert original > 0.8
        assert env.evaluator.accuracy(tuple(count // 2 for count in env.problem.full_plan)) > 0.3
        assert parameters[-1] < 0.4 * parameters[0]
        assert make_env(metric=curious).evaluator.original_accuracy == original

    @pytest.mark.parametrize("value", [None, torch.ones(2), float("nan"), float("inf")])
    def test_it_must_return_a_finite_number(self, value: Any, make_env: EnvMaker) -> None:
        def wrong_metric(network: nn.Module, split: Split) -> Any:
            return value

        with pytest.raises(ValueError, match=r"wrong_metric"):
            make_env(metric=wrong_metric)

    def test_targets_need_one(self, labeller: nn.Module, several_labels: DataSplits) -> None:
        with pytest.raises(ValueError, match=r"'targets'.*metric"):
            check_metric(None, several_labels)
        with pytest.raises(ValueError, match=r"'targets'.*metric"):
            FilterPruneEnv.from_model(labeller, several_labels, EnvConfig(**FAST))
        check_metric(all_labels, several_labels)

    def test_classes_need_none(self, digits: DataSplits) -> None:
        check_metric(None, digits)


class TestLoss:
    def test_targets_need_one_as_soon_as_something_is_trained(
        self, labeller: nn.Module, several_labels: DataSplits
    ) -> None:
        with pytest.raises(ValueError, match=r"'targets'.*loss\(logits, images, labels\)"):
            check_loss(None, several_labels)
        for batches in ("finetune_batches", "round_finetune_batches"):
            config = EnvConfig(**FAST, **{batches: 1})
            with pytest.raises(ValueError, match=r"'targets'.*loss\(logits, images, labels\)"):
                FilterPruneEnv.from_model(labeller, several_labels, config, metric=all_labels)
        FilterPruneEnv.from_model(labeller, several_labels, EnvConfig(**FAST), metric=all_labels)
        check_loss(label_loss, several_labels)

    def test_classes_need_none(self, digits: DataSplits) -> None:
        check_loss(None, digits)
