"""What a network learns before it is measured depends on that network alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prune_env.data import DataSplits, Split, from_tensors
from prune_env.pruning import build, find_groups, importance
from prune_env.training import brief
from prune_env.training.brief import BriefDistillation
from prune_env.training.fit import correct


@pytest.fixture(scope="module")
def cut(trained: nn.Module, digits: DataSplits) -> Callable[[float], nn.Module]:
    """The trained network with this fraction of every group's filters."""
    groups = find_groups(trained, digits.example_input)
    ranking = importance.ranking(importance.scores("l1", trained, groups))
    return lambda share: build(trained, groups, ranking, tuple(int(share * group.filters) for group in groups))


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().float() for tensor in network.state_dict().values()])


@pytest.mark.usefixtures("untouched_rngs")
def test_equal_networks_end_equal(trained: nn.Module, digits: DataSplits, cut: Callable[[float], nn.Module]) -> None:
    tuning = BriefDistillation(trained, digits, 3)
    network, teacher = cut(0.5), weights(trained)
    before = weights(network)
    tuned = tuning(network)
    assert all(parameter.grad is None for parameter in tuned.parameters())
    first = weights(tuned)
    tuning(cut(0.4))
    for other in (tuning, pickle.loads(pickle.dumps(tuning)), BriefDistillation(trained, digits, 3)):
        assert torch.equal(weights(other(network)), first)
    assert not torch.equal(first, before)
    assert torch.equal(weights(network), before), "a copy is trained"
    assert torch.equal(weights(trained), teacher)


def test_it_is_sgd_on_the_distillation_loss(
    trained: nn.Module, digits: DataSplits, cut: Callable[[float], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, in float32: Hinton's loss, Nesterov momentum, a learning rate that rises for a fifth and falls."""
    for place in ("brief", "fit"):
        monkeypatch.setattr(f"prune_env.training.{place}.fast_dtype", lambda _: torch.float32)
    tuning = BriefDistillation(trained, digits, 4, seed=5)
    network = copy.deepcopy(cut(0.5)).train().requires_grad_(True)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": 5e-4},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for number, (images, labels) in enumerate(zip(tuning._images, tuning._labels, strict=True), 1):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - number / 5) / 0.8
        logits = network(images)
        with torch.no_grad():
            taught = trained(images)
        soft = F.kl_div((logits / 3).log_softmax(1), (taught / 3).softmax(1), reduction="batchmean")
        optimizer.zero_grad()
        (0.9 * 9 * soft + 0.1 * F.cross_entropy(logits, labels)).backward()
        optimizer.step()
    assert torch.allclose(weights(tuning(cut(0.5))), weights(network), atol=1e-4)


def test_it_brings_accuracy_back(trained: nn.Module, digits: DataSplits, cut: Callable[[float], nn.Module]) -> None:
    network = cut(0.4)
    tuned = BriefDistillation(trained, digits, 10)(network).eval()
    assert correct(tuned, digits, digits.reward) > correct(network, digits, digits.reward) + 20


def test_small_data_are_seen_more_than_once() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    splits = from_tensors(images, torch.arange(50) % 5, images[:10], torch.arange(10) % 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    tuning = BriefDistillation(model, splits, 4)
    assert tuning._images.shape[:2] == (4, len(splits.train))
    assert not torch.equal(weights(tuning(model)), weights(model))


def test_what_it_cannot_learn_from_is_told(trained: nn.Module, digits: DataSplits) -> None:
    targets = Split(digits.train.images, digits.train.labels.float())
    with pytest.raises(ValueError, match=r"give a loss\(logits, images, labels\)"):
        BriefDistillation(trained, replace(digits, classes=(), train=targets), 2)
    tuning = BriefDistillation(trained, digits, 2, loss=lambda logits, images, labels: logits.sum() * torch.inf)
    with pytest.raises(FloatingPointError, match=r"after 2 batches .* set finetune_batches=0"):
        tuning(trained)


def test_its_settings_tell_what_it_depends_on(
    trained: nn.Module, digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        BriefDistillation(trained, digits, batches, seed=seed).settings for batches, seed in ((2, 0), (3, 0), (2, 1))
    ]
    monkeypatch.setattr(brief, "RECIPE", replace(brief.RECIPE, lr=0.01))
    found.append(BriefDistillation(trained, digits, 2).settings)
    assert len(set(map(repr, found))) == 4
