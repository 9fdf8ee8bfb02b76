"""Accuracies, and scores by a user's metric."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from prune_env.data import DataSplits, Split, TensorSplit
from prune_env.scoring.metric import accuracy, apply_metric, count_correct, default_metric, eval_mode


def mean_logit(network: nn.Module, split: Split) -> float:
    return float(network(split.images).mean())


def test_accuracy_is_the_fraction_of_correct_images(trained: nn.Module, digits: DataSplits) -> None:
    split = digits.reward
    with torch.inference_mode():
        correct = trained(digits.normalise(split.images)).argmax(1) == split.labels
    assert accuracy(trained, digits, split) == pytest.approx(float(correct.float().mean()), abs=0.004)
    assert accuracy(trained, digits, split) > 0.9


def test_correct_images_are_counted_over_all_batches() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    assert count_correct(nn.Identity(), [(logits[:2], labels[:2]), (logits[2:], labels[2:])]) == 2
    assert count_correct(nn.Identity(), []) == 0


def test_a_metric_gets_normalised_inputs_in_the_networks_precision(trained: nn.Module, digits: DataSplits) -> None:
    """It sees float32 outputs, in eval mode and without gradients."""
    seen: list[tuple[Any, ...]] = []

    def metric(network: nn.Module, split: Split) -> float:
        logits = network(split.images)
        modes = any(module.training for module in network.modules()), torch.is_inference_mode_enabled()
        seen.append((split.images.dtype, logits.dtype, *modes))
        assert torch.equal(split.labels, digits.reward.labels)
        return len(split)

    network = copy.deepcopy(trained).bfloat16().train()
    assert accuracy(network, digits, digits.reward, metric) == 300
    assert seen == [(torch.bfloat16, torch.float32, False, True)]


def test_modes_and_hooks_are_restored_after_an_error(trained: nn.Module, digits: DataSplits) -> None:
    network = copy.deepcopy(trained).train().bfloat16()
    next(network.children()).eval()
    modes = [module.training for module in network.modules()]

    def fails(network: nn.Module, split: Split) -> float:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        accuracy(network, digits, digits.reward, fails)
    assert [module.training for module in network.modules()] == modes
    assert network(digits.example_input.bfloat16()).dtype == torch.bfloat16, "the hook to float32 is removed"


def test_the_device_is_restored_after_an_error(trained: nn.Module, digits: DataSplits) -> None:
    moves: list[torch.device] = []

    class Recorded(nn.Sequential):
        def to(self, device: Any) -> Any:
            moves.append(torch.device(device))
            return self

    def fails(network: nn.Module, split: Split) -> float:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        accuracy(Recorded(trained), digits, digits.reward, fails, device="cpu:0")
    assert moves == [torch.device("cpu:0"), torch.device("cpu")]


@pytest.mark.parametrize(("size", "masks"), [(600, False), (1500, False), (3000, False), (600, True)])
def test_large_images_come_in_small_batches(size: int, masks: bool) -> None:
    """They are one image in memory, so that only the largest batch matters."""
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(20, 1, size, size)
    labels = torch.zeros(1, 1, 1, dtype=torch.int64).expand(20, size, size) if masks else torch.arange(20) % 2
    seen = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return torch.zeros(len(batch), 2, *batch.shape[2:]) if masks else torch.zeros(len(batch), 2)

    default_metric(network, TensorSplit(images, labels))
    assert sum(seen) == 20
    assert max(seen) == max(1, min(20, (2**20 if masks else 2**22) // size**2))


def test_eval_mode_ends_with_the_block() -> None:
    network = nn.Sequential(nn.ReLU(), nn.Dropout()).train()
    network[0].eval()
    with eval_mode(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, False, True]


@pytest.mark.parametrize("value", [None, torch.ones(2), float("nan"), float("inf"), "high"])
def test_a_metric_must_return_a_finite_number(value: Any) -> None:
    def fixed(network: nn.Module, split: Split) -> Any:
        return value

    with pytest.raises(ValueError, match="fixed"):
        apply_metric(fixed, nn.Identity(), TensorSplit(torch.zeros(1), torch.zeros(1)))


def test_targets_need_a_metric(trained: nn.Module, digits: DataSplits) -> None:
    targets = TensorSplit(digits.reward.images, digits.reward.labels.float())
    splits = DataSplits("targets", (), targets, targets, targets, targets, digits.mean, digits.std)
    with pytest.raises(ValueError, match="targets"):
        accuracy(trained, splits, splits.reward)
    assert isinstance(accuracy(trained, splits, splits.reward, mean_logit), float)
