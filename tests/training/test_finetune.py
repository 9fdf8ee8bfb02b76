"""What a network learns before it is measured depends on that network alone."""

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

from prune_env.data import Augmentation, DataSplits, Split, from_tensors
from prune_env.pruning import build, find_groups, importance
from prune_env.scoring.batchnorm import recalibrate
from prune_env.scoring.metric import correct
from prune_env.training import finetune as brief
from prune_env.training.finetune import Finetuner
from prune_env.training.fit import FitConfig, fit, learning_fingerprint
from prune_env.training.step import Step


@pytest.fixture(scope="module")
def cut(trained: nn.Module, digits: DataSplits) -> Callable[[float], nn.Module]:
    """The trained network with this fraction of every group's filters."""
    groups = find_groups(trained, digits.example_input)
    ranking = importance.ranking(importance.scores("l1", trained, groups))
    return lambda share: build(trained, groups, ranking, tuple(int(share * group.filters) for group in groups))


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().float() for tensor in network.state_dict().values()])


def test_how_a_network_learns_has_a_fingerprint(
    trained: nn.Module, digits: DataSplits, dropping: Callable[[float], nn.Module]
) -> None:
    """The same whatever number of threads works; another one where layers are frozen or units are dropped."""
    part, whole = copy.deepcopy(trained), copy.deepcopy(trained)
    part.get_submodule("features.0").requires_grad_(False)
    whole.requires_grad_(False)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            models = (trained, whole, dropping(0.0), part, dropping(0.5))
            found.append([learning_fingerprint(model, digits.example_input) for model in models])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    assert len(set(found[0][:3])) == 1, "where all is frozen, all is trained"
    assert len(set(found[0][2:])) == 3


def test_its_settings_tell_what_it_depends_on(
    trained: nn.Module, digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finetuner(trained, digits, batches, seed=seed).settings for batches, seed in ((2, 0), (3, 0), (2, 1))]
    monkeypatch.setattr(brief, "RECIPE", replace(brief.RECIPE, lr=0.01))
    found.append(Finetuner(trained, digits, 2).settings)
    assert len(set(map(repr, found))) == 4


@pytest.mark.usefixtures("untouched_rngs")
def test_equal_networks_end_equal(trained: nn.Module, digits: DataSplits, cut: Callable[[float], nn.Module]) -> None:
    tuning = Finetuner(trained, digits, 3)
    network, teacher = cut(0.5), weights(trained)
    before = weights(network)
    tuned = tuning(network)
    assert all(parameter.grad is None for parameter in tuned.parameters())
    first = weights(tuned)
    tuning(cut(0.4))
    for other in (tuning, pickle.loads(pickle.dumps(tuning)), Finetuner(trained, digits, 3)):
        assert torch.equal(weights(other(network)), first)
    assert not torch.equal(first, before)
    assert torch.equal(weights(network), before), "a copy is trained"
    assert torch.equal(weights(trained), teacher)


def test_it_is_sgd_on_the_distillation_loss(
    trained: nn.Module, digits: DataSplits, cut: Callable[[float], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, in float32: Hinton's loss, Nesterov momentum, a learning rate that rises for a fifth and falls."""
    for place in ("distillation", "fit"):
        monkeypatch.setattr(f"prune_env.training.{place}.fast_dtype", lambda _: torch.float32)
    tuning = Finetuner(trained, digits, 4, seed=5)
    network = copy.deepcopy(cut(0.5)).train().requires_grad_(True)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": 5e-4},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for number, (images, _, labels) in enumerate(tuning._batches, 1):
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
    tuned = Finetuner(trained, digits, 10)(network)
    for one in (network, tuned):
        recalibrate(one, (digits.normalise(digits.calibration.images),))
    assert correct(tuned, digits, digits.reward) > correct(network, digits, digits.reward) + 20


def test_small_data_are_seen_more_than_once() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    splits = from_tensors(images, torch.arange(50) % 5, images[:10], torch.arange(10) % 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    tuning = Finetuner(model, splits, 4)
    assert [len(batch) for batch, _, _ in tuning._batches] == [len(splits.train)] * 4
    assert not torch.equal(weights(tuning(model)), weights(model))


def test_what_it_cannot_learn_from_is_told(trained: nn.Module, digits: DataSplits) -> None:
    targets = Split(digits.train.images, digits.train.labels.float())
    with pytest.raises(ValueError, match=r"give a loss\(logits, images, labels\)"):
        Finetuner(trained, replace(digits, classes=(), train=targets), 2)
    tuning = Finetuner(trained, digits, 2, loss=lambda logits, images, labels: logits.sum() * torch.inf)
    with pytest.raises(FloatingPointError, match=r"after 2 batches .* set finetune_batches=0"):
        tuning(trained)


def test_weights_that_are_lost_in_the_last_step_are_told(trained: nn.Module, digits: DataSplits) -> None:
    def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (logits - logits.detach()).abs().sqrt().mean()  # 0, with a gradient of infinity times 0

    with pytest.raises(FloatingPointError, match=r"\.weight is not finite after 1 batches"):
        Finetuner(trained, digits, 1, loss=loss)(trained)


def test_what_learns_nothing_may_be_infinite(trained: nn.Module, digits: DataSplits) -> None:
    """A bound, a mask, or what a module keeps besides tensors."""

    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(trained)
            self.register_buffer("floor", torch.tensor(-torch.inf))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.maximum(self.inner(x), self.floor)  # type: ignore[arg-type]

        def get_extra_state(self) -> dict[str, int]:
            return {"version": 2}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    tuned = Finetuner(trained, digits, 2)(Bounded())
    assert torch.isfinite(next(tuned.parameters())).all()


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_it_learns_where_the_caller_needs_no_gradients(
    trained: nn.Module, digits: DataSplits, cut: Callable[[float], nn.Module], without: Callable[[], Any]
) -> None:
    expected = weights(Finetuner(trained, digits, 2)(cut(0.5)))
    with without():
        assert torch.equal(weights(Finetuner(trained, digits, 2)(cut(0.5))), expected)
        assert not torch.equal(weights(fit(cut(0.5), digits, FitConfig(epochs=0.1), progress=False)), weights(cut(0.5)))


def test_frozen_layers_stay_as_they_are(
    trained: nn.Module, digits: DataSplits, cut: Callable[[float], nn.Module]
) -> None:
    tuning, part, whole = Finetuner(trained, digits, 2), cut(0.5), cut(0.5)
    first = next(name for name, module in part.named_modules() if isinstance(module, nn.Conv2d))
    part.get_submodule(first).requires_grad_(False)
    whole.requires_grad_(False)  # as for inference
    for network, kept in ((part, True), (whole, False)):
        tuned = tuning(network)
        same = torch.equal(tuned.get_submodule(first).weight, network.get_submodule(first).weight)  # type: ignore[arg-type]
        assert same == kept
        flags = [[p.requires_grad for p in one.parameters()] for one in (tuned, network)]
        assert flags[0] == flags[1]


def test_dropout_follows_from_the_seed(digits: DataSplits) -> None:
    drop = nn.Dropout(0.5)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), drop, nn.Flatten(), nn.Linear(288, 10)).eval()
    state = torch.random.get_rng_state()
    first, again = (weights(Finetuner(model, digits, 2)(model)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, again)
    other, same = Finetuner(model, digits, 2, seed=1), Finetuner(model, digits, 2)
    other._batches = same._batches
    assert not torch.equal(weights(other(model)), first), "another seed drops others"
    drop.p = 0.0
    assert not torch.equal(weights(Finetuner(model, digits, 2)(model)), first)


def test_images_are_those_of_training(trained: nn.Module, digits: DataSplits) -> None:
    """Of the training split, with their labels, none twice before all were seen; and augmented."""
    plain = replace(digits, augmentation=Augmentation(pad=0, flip=False))
    batches = len(digits.train) // brief.BATCH
    found = Finetuner(trained, plain, batches)._batches
    images, labels = (torch.cat([batch[part] for batch in found]).float() for part in (0, 2))
    known = digits.normalise(digits.train.images).to(found[0][0].dtype).float().flatten(1)
    places = torch.cdist(images.flatten(1), known).argmin(1)
    assert torch.equal(known[places], images.flatten(1))
    assert torch.equal(digits.train.labels[places].float(), labels)
    assert len(places.unique()) >= len(known.unique(dim=0)) - brief.BATCH
    augmented = torch.cat([batch for batch, _, _ in Finetuner(trained, digits, batches)._batches])
    assert torch.cdist(augmented.float().flatten(1), known).min(1).values.gt(0).float().mean() > 0.5


def test_float32_where_gradients_need_it(
    trained: nn.Module, digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    class Noting(Step):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            taken.append(self._dtype)

    monkeypatch.setattr(brief, "Step", Noting)
    for place in ("distillation", "fit"):
        monkeypatch.setattr(f"prune_env.training.{place}.fast_dtype", lambda _: torch.bfloat16)
    for broken, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        monkeypatch.setattr("prune_env.training.fit._bf16_is_broken", lambda *_, broken=broken: broken)
        tuning = Finetuner(trained, digits, 1)
        tuning(trained)
        assert tuning._batches[0][0].dtype == taken.pop() == dtype


def test_targets_are_learned_by_squared_distance(trained: nn.Module, digits: DataSplits) -> None:
    """Where labels are no classes, teacher and loss of one's own pull at the outputs themselves."""
    generator = torch.Generator().manual_seed(0)
    splits = replace(digits, classes=(), train=Split(digits.train.images, digits.train.labels.float()))
    worse = copy.deepcopy(trained)
    with torch.no_grad():
        for parameter in worse.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))

    def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert labels.dtype == torch.float32
        return logits.sum() * 0

    images = digits.normalise(digits.reward.images)
    tuned = Finetuner(trained, splits, 20, loss=loss)(worse).eval()
    with torch.no_grad():
        before, after = (F.mse_loss(one(images), trained(images)) for one in (worse, tuned))
    assert after < before / 2
