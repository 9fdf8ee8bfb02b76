"""Finetuning: the result depends on the network alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prune_env.data import Augmentation, DataSplits, TensorSplit, from_tensors
from prune_env.pruning.problem import ProblemConfig, PruningProblem
from prune_env.scoring.batchnorm import recalibrate
from prune_env.scoring.metric import accuracy
from prune_env.training import finetune
from prune_env.training.finetune import Finetuner
from prune_env.training.step import Step


@pytest.fixture(scope="module")
def problem(trained: nn.Module, digits: DataSplits) -> PruningProblem:
    return PruningProblem.create(trained, digits, ProblemConfig(prove=False))


@pytest.fixture(scope="module")
def cut(problem: PruningProblem) -> Callable[[float], nn.Module]:
    """The trained network with this fraction of every group's filters."""
    return lambda share: problem.build(tuple(int(share * filters) for filters in problem.full_plan))


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().float() for tensor in network.state_dict().values()])


def test_settings_are_everything_that_the_result_depends_on(
    problem: PruningProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finetuner(problem, batches, seed=seed).settings for batches, seed in ((2, 0), (3, 0), (2, 1))]
    monkeypatch.setattr(finetune, "RECIPE", replace(finetune.RECIPE, lr=0.01))
    found.append(Finetuner(problem, 2).settings)
    assert len(set(map(repr, found))) == 4


@pytest.mark.usefixtures("untouched_rngs")
def test_equal_networks_get_equal_weights(problem: PruningProblem, cut: Callable[[float], nn.Module]) -> None:
    tuning = Finetuner(problem, 3)
    network, teacher = cut(0.5), weights(problem.model)
    before = weights(network)
    tuned = tuning(network)
    assert all(parameter.grad is None for parameter in tuned.parameters())
    first = weights(tuned)
    tuning(cut(0.4))
    for other in (tuning, pickle.loads(pickle.dumps(tuning)), Finetuner(problem, 3)):
        assert torch.equal(weights(other(network)), first)
    assert not torch.equal(first, before)
    assert torch.equal(weights(network), before), "a copy is trained"
    assert torch.equal(weights(problem.model), teacher)


def test_it_is_sgd_on_the_distillation_loss(
    problem: PruningProblem, cut: Callable[[float], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out in float32: Hinton's loss, Nesterov momentum, a learning rate that rises for a fifth and falls."""
    for place in ("distillation", "trainable"):
        monkeypatch.setattr(f"prune_env.training.{place}.fast_dtype", lambda _: torch.float32)
    tuning = Finetuner(problem, 4, seed=5)
    network = copy.deepcopy(cut(0.5)).train().requires_grad_(True)
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for number, (images, _, labels) in enumerate(tuning.batches, 1):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - number / 5) / 0.8
        logits = network(images)
        with torch.no_grad():
            taught = problem.model(images)
        soft = F.kl_div((logits / 3).log_softmax(1), (taught / 3).softmax(1), reduction="batchmean")
        optimizer.zero_grad()
        (0.9 * 9 * soft + 0.1 * F.cross_entropy(logits, labels)).backward()
        optimizer.step()
    assert torch.allclose(weights(tuning(cut(0.5))), weights(network), atol=1e-4)


def test_it_recovers_accuracy(problem: PruningProblem, cut: Callable[[float], nn.Module]) -> None:
    network, data = cut(0.4), problem.data
    tuned = Finetuner(problem, 10)(network)
    for one in (network, tuned):
        recalibrate(one, (data.normalise(data.calibration.images),))
    assert accuracy(tuned, data, data.reward) > accuracy(network, data, data.reward) + 0.06


def test_small_data_are_used_more_than_once(problem: PruningProblem) -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    splits = from_tensors(images, torch.arange(50) % 5, images[:10], torch.arange(10) % 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    tuning = Finetuner(replace(problem, model=model, data=splits), 4)
    assert [len(batch.images) for batch in tuning.batches] == [len(splits.train)] * 4
    assert not torch.equal(weights(tuning(model)), weights(model))


def test_targets_need_a_loss(problem: PruningProblem) -> None:
    data = problem.data
    targets = TensorSplit(data.train.images, data.train.labels.float())
    with pytest.raises(ValueError, match="loss"):
        Finetuner(replace(problem, data=replace(data, classes=(), train=targets)), 2)


def test_a_loss_that_is_not_finite(problem: PruningProblem) -> None:
    tuning = Finetuner(replace(problem, loss=lambda logits, images, labels: logits.sum() * torch.inf), 2)
    with pytest.raises(FloatingPointError, match="finetune_batches=0"):
        tuning(problem.model)


def test_weights_that_are_not_finite_after_the_last_step(problem: PruningProblem) -> None:
    def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (logits - logits.detach()).abs().sqrt().mean()  # 0, with a gradient of infinity times 0

    with pytest.raises(FloatingPointError, match=r"\.weight"):
        Finetuner(replace(problem, loss=loss), 1)(problem.model)


def test_buffers_may_be_infinite(problem: PruningProblem) -> None:
    """A network may have infinite bounds or masks, and state that is no tensor."""

    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(problem.model)
            self.register_buffer("floor", torch.tensor(-torch.inf))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.maximum(self.inner(x), self.floor)  # type: ignore[arg-type]

        def get_extra_state(self) -> dict[str, int]:
            return {"version": 2}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    tuned = Finetuner(problem, 2)(Bounded())
    assert torch.isfinite(next(tuned.parameters())).all()


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_it_learns_where_the_caller_disabled_gradients(
    problem: PruningProblem, cut: Callable[[float], nn.Module], without: Callable[[], Any]
) -> None:
    expected = weights(Finetuner(problem, 2)(cut(0.5)))
    with without():
        assert torch.equal(weights(Finetuner(problem, 2)(cut(0.5))), expected)


def test_frozen_layers_are_kept(problem: PruningProblem, cut: Callable[[float], nn.Module]) -> None:
    """A network that is frozen completely, as for inference, is trained completely."""
    tuning, part, whole = Finetuner(problem, 2), cut(0.5), cut(0.5)
    first = next(name for name, module in part.named_modules() if isinstance(module, nn.Conv2d))
    part.get_submodule(first).requires_grad_(False)
    whole.requires_grad_(False)
    for network, kept in ((part, True), (whole, False)):
        tuned = tuning(network)
        same = torch.equal(tuned.get_submodule(first).weight, network.get_submodule(first).weight)  # type: ignore[arg-type]
        assert same == kept
        flags = [[p.requires_grad for p in one.parameters()] for one in (tuned, network)]
        assert flags[0] == flags[1]


def test_dropout_depends_only_on_the_seed(problem: PruningProblem) -> None:
    drop = nn.Dropout(0.5)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), drop, nn.Flatten(), nn.Linear(288, 10)).eval()
    dropping = replace(problem, model=model)
    state = torch.random.get_rng_state()
    first, again = (weights(Finetuner(dropping, 2)(model)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, again)
    other = Finetuner(dropping, 2, seed=1)
    other.batches = Finetuner(dropping, 2).batches
    assert not torch.equal(weights(other(model)), first), "another seed drops other units"
    drop.p = 0.0
    assert not torch.equal(weights(Finetuner(dropping, 2)(model)), first)


def test_batches_are_augmented_training_images(problem: PruningProblem) -> None:
    """They have their own labels, and no image comes a second time before all others."""
    data = problem.data
    plain = replace(problem, data=replace(data, augmentation=Augmentation(pad=0, flip=False)))
    count = len(data.train) // finetune.BATCH_SIZE
    found = Finetuner(plain, count).batches
    images = torch.cat([batch.images for batch in found]).float()
    labels = torch.cat([batch.labels for batch in found])
    known = data.normalise(data.train.images).to(found[0].images.dtype).float().flatten(1)
    places = torch.cdist(images.flatten(1), known).argmin(1)
    assert torch.equal(known[places], images.flatten(1))
    assert torch.equal(data.train.labels[places], labels)
    assert len(places.unique()) >= len(known.unique(dim=0)) - finetune.BATCH_SIZE
    augmented = torch.cat([batch.images for batch in Finetuner(problem, count).batches])
    assert torch.cdist(augmented.float().flatten(1), known).min(1).values.gt(0).float().mean() > 0.5


class Strided(nn.Module):
    """Maps of one pixel before a convolution with a stride of 2 need float32 gradients; a stride of 1 does not."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 8), nn.Conv2d(8, 8, 3, stride=stride, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize(("stride", "dtype"), [(1, torch.bfloat16), (2, torch.float32)])
def test_float32_is_used_where_bfloat16_gradients_are_wrong(
    problem: PruningProblem, monkeypatch: pytest.MonkeyPatch, stride: int, dtype: torch.dtype
) -> None:
    used = []

    class Observed(Step):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            used.append(self.dtype)

    monkeypatch.setattr(finetune, "Step", Observed)
    for place in ("distillation", "trainable"):
        monkeypatch.setattr(f"prune_env.training.{place}.fast_dtype", lambda _: torch.bfloat16)
    model = Strided(stride).eval()
    tuning = Finetuner(replace(problem, model=model), 1)
    tuning(model)
    assert tuning.batches[0].images.dtype == dtype
    assert used == [dtype]


def test_outputs_for_targets_are_compared_by_squared_distance(problem: PruningProblem) -> None:
    """Where labels are not classes, teacher and user's loss act on the outputs themselves."""
    data, trained = problem.data, problem.model
    generator = torch.Generator().manual_seed(0)
    splits = replace(data, classes=(), train=TensorSplit(data.train.images, data.train.labels.float()))
    worse = copy.deepcopy(trained)
    with torch.no_grad():
        for parameter in worse.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))

    def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert labels.dtype == torch.float32
        return logits.sum() * 0

    images = data.normalise(data.reward.images)
    tuned = Finetuner(replace(problem, data=splits, loss=loss), 20)(worse).eval()
    with torch.no_grad():
        before, after = (F.mse_loss(one(images), trained(images)) for one in (worse, tuned))
    assert after < before / 2
