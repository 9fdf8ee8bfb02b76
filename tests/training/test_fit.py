"""The training loop: determinism, checkpoints, selection of the best epoch, and its errors."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prune_env.data import DataSplits, Split, TensorSplit
from prune_env.networks import create
from prune_env.scoring.metric import accuracy
from prune_env.training.distillation import DistillationConfig, distil
from prune_env.training.fit import FitConfig, RunOptions, fit

SHORT = FitConfig(epochs=2, batch_size=128, lr=0.05, ema_decay=0.9, seed=3)
QUIET = RunOptions(progress=False)


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


@contextmanager
def killed_after_a_checkpoint() -> Iterator[None]:
    """Interrupt the block as soon as the first file has been replaced."""
    replace = os.replace

    def replace_and_interrupt(*arguments: str) -> None:
        replace(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(os, "replace", replace_and_interrupt)
        yield


@pytest.mark.usefixtures("untouched_rngs")
def test_the_same_seed_gives_the_same_weights(digits: DataSplits) -> None:
    model = create("small_cnn", 10, 1)
    before = copy.deepcopy(model)
    first, second = (fit(model, digits, SHORT, run=QUIET) for _ in range(2))
    assert same(first, second)
    assert same(model, before), "the given model is not changed"
    assert not same(first, fit(model, digits, FitConfig(epochs=2, batch_size=128, seed=4), run=QUIET))
    assert not first.training


def test_a_network_learns(digits: DataSplits) -> None:
    model = create("small_cnn", 10, 1)
    trained = fit(model, digits, FitConfig(epochs=6, batch_size=64), run=QUIET)
    assert accuracy(model.eval(), digits, digits.reward) < 0.33
    assert accuracy(trained, digits, digits.reward) > 0.77  # differs a little between machines


@pytest.mark.slow
@pytest.mark.parametrize("muon_lr", [0.0, 0.1])
@pytest.mark.parametrize("select_best", [False, True])
def test_a_killed_run_ends_like_an_uninterrupted_one(
    digits: DataSplits, tmp_path: Path, select_best: bool, muon_lr: float
) -> None:
    model, run = create("small_cnn", 10, 1), dataclasses.replace(QUIET, checkpoint=tmp_path / "run.pt")
    config = dataclasses.replace(SHORT, muon_lr=muon_lr, select_best=select_best)
    expected = fit(model, digits, config, run=QUIET)
    with killed_after_a_checkpoint():
        fit(model, digits, config, run=run)
    assert same(expected, fit(model, digits, config, run=run)), "resumed after the first epoch"
    assert same(expected, fit(model, digits, config, run=run)), "resumed after the last epoch"


@pytest.mark.usefixtures("untouched_rngs")
def test_dropout_depends_only_on_seed_and_epoch(digits: DataSplits, tmp_path: Path) -> None:
    """Neither the global random state nor an interruption changes what is dropped."""
    model = nn.Sequential(create("small_cnn", 10, 1), nn.Dropout(0.3))
    run = dataclasses.replace(QUIET, checkpoint=tmp_path / "run.pt")
    expected = fit(model, digits, SHORT, run=QUIET)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(123)
        assert same(expected, fit(model, digits, SHORT, run=QUIET))
    with killed_after_a_checkpoint():
        fit(model, digits, SHORT, run=run)
    assert same(expected, fit(model, digits, SHORT, run=run))


def test_the_epoch_with_the_best_metric_is_returned(digits: DataSplits) -> None:
    """The metric falls, and is negative: the first epoch is the best."""
    states = []

    def falling(model: nn.Module, split: Split) -> float:
        assert len(split) == len(digits.reward)
        states.append(copy.deepcopy(model.state_dict()))
        return -5.0 - len(states)

    config = FitConfig(epochs=3, batch_size=256, lr=0.01, select_best=True)
    result = fit(create("small_cnn", 10, 1), digits, config, metric=falling, run=QUIET).state_dict()
    assert len(states) == 3
    assert all(torch.equal(result[name], tensor) for name, tensor in states[0].items())
    assert not torch.equal(result["classifier.weight"], states[1]["classifier.weight"])


def test_the_last_of_equally_good_epochs_is_returned(digits: DataSplits) -> None:
    """A small reward split is soon classified without an error, while training still improves the network."""
    model = create("small_cnn", 10, 1)
    last = fit(model, digits, SHORT, run=QUIET)
    config = dataclasses.replace(SHORT, select_best=True)
    assert same(last, fit(model, digits, config, metric=lambda *_: 0.5, run=QUIET))


@pytest.mark.parametrize("train", ["fit", "distil"])
def test_the_warning_of_a_damaged_checkpoint_points_at_the_caller(
    digits: DataSplits, tmp_path: Path, train: str
) -> None:
    model, run = create("small_cnn", 10, 1), dataclasses.replace(QUIET, checkpoint=tmp_path / "run.pt")
    (tmp_path / "run.pt").write_text("damaged")
    calls = {
        "fit": lambda: fit(model, digits, FitConfig(epochs=0.01), run=run),
        "distil": lambda: distil(model, model, digits, DistillationConfig(epochs=0.01, min_steps=1), run=run),
    }
    with pytest.warns(UserWarning, match=r"run\.pt") as caught:
        calls[train]()
    assert [one.filename for one in caught] == [__file__]


def test_a_checkpoint_of_another_run_is_refused(digits: DataSplits, tmp_path: Path) -> None:
    model, run = create("small_cnn", 10, 1), dataclasses.replace(QUIET, checkpoint=tmp_path / "run.pt")
    fit(model, digits, SHORT, run=run)
    for config in (
        dataclasses.replace(SHORT, epochs=3),
        dataclasses.replace(SHORT, seed=4),
        dataclasses.replace(SHORT, select_best=True),
    ):
        with pytest.raises(ValueError, match=r"run\.pt"):
            fit(model, digits, config, run=run)
    with pytest.raises(ValueError, match=r"run\.pt"):
        fit(create("small_cnn", 10, 1, seed=8), digits, SHORT, run=run)
    with pytest.raises(ValueError, match=r"run\.pt"):
        fit(model, digits.with_normalisation((0.5,), (0.2,)), SHORT, run=run)
    with pytest.raises(ValueError, match=r"run\.pt"):
        fit(model, digits, SHORT, loss=lambda logits, images, labels: F.cross_entropy(logits, labels), run=run)


def test_a_checkpoint_of_another_metric_is_refused(digits: DataSplits, tmp_path: Path) -> None:
    """The metric counts only where it selects the epoch."""
    model, run = create("small_cnn", 10, 1), dataclasses.replace(QUIET, checkpoint=tmp_path / "run.pt")
    config = FitConfig(epochs=1, batch_size=256, select_best=True)
    fit(model, digits, config, run=run)
    with pytest.raises(ValueError, match=r"run\.pt"):
        fit(model, digits, config, metric=lambda *_: 0.5, run=run)
    run = dataclasses.replace(QUIET, checkpoint=tmp_path / "other.pt")
    config = dataclasses.replace(config, select_best=False)
    assert same(fit(model, digits, config, run=run), fit(model, digits, config, metric=lambda *_: 0.5, run=run))


def test_a_fraction_of_an_epoch(digits: DataSplits) -> None:
    steps = 0

    def count(logits: torch.Tensor, _images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return F.cross_entropy(logits.float(), labels)

    per_epoch = len(digits.train) // 64
    fit(create("small_cnn", 10, 1), digits, FitConfig(epochs=3 / per_epoch, batch_size=64), loss=count, run=QUIET)
    assert steps == 3


def test_statistics_are_those_of_the_averaged_weights(digits: DataSplits) -> None:
    """An average over the statistics of changing weights would not be that of any network."""
    trained = fit(create("small_cnn", 10, 1), digits, SHORT, run=QUIET)
    probe = copy.deepcopy(trained)
    seen: list[torch.Tensor] = []
    probe.features[0].register_forward_hook(lambda *args: seen.append(args[2]))
    images = digits.augmented(digits.train.images, torch.Generator().manual_seed(9))
    probe(images)
    means = seen[0].mean((0, 2, 3))
    assert torch.allclose(means, trained.features[1].running_mean, atol=0.05)


def test_frozen_layers_are_kept_and_a_frozen_network_is_trained(digits: DataSplits) -> None:
    model = create("small_cnn", 10, 1)
    first = model.features[0]
    first.requires_grad_(False)
    trained = fit(model, digits, SHORT, run=QUIET)
    assert torch.equal(trained.features[0].weight, first.weight)
    assert not torch.equal(trained.classifier.weight, model.classifier.weight)
    whole = fit(model.requires_grad_(False), digits, SHORT, run=QUIET)
    assert not torch.equal(whole.features[0].weight, first.weight)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_network_learns_where_the_caller_disabled_gradients(digits: DataSplits, without: type) -> None:
    model = create("small_cnn", 10, 1)
    with without():
        trained = fit(model, digits, FitConfig(epochs=0.1), run=QUIET)
    assert not same(model, trained)


class TestErrors:
    def test_a_loss_that_is_not_finite(self, digits: DataSplits) -> None:
        def broken(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return logits.sum() * float("nan")

        run = dataclasses.replace(QUIET, title="my network")
        with pytest.raises(FloatingPointError, match=r"my network.*nan.*step 0"):
            fit(create("small_cnn", 10, 1), digits, SHORT, loss=broken, run=run)

    @pytest.mark.parametrize(
        "bad", [{"epochs": 0}, {"batch_size": 1}, {"lr": 0}, {"muon_lr": -1}, {"warmup": 1.0}, {"ema_decay": -0.1}]
    )
    def test_bad_settings(self, bad: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=next(iter(bad))):
            FitConfig(**bad)  # type: ignore[arg-type]

    def test_targets_need_a_loss_and_a_metric_to_select_by(self, digits: DataSplits) -> None:
        targets = TensorSplit(digits.train.images, digits.train.labels.float())
        splits = dataclasses.replace(digits, classes=(), train=targets)
        model, loss = create("small_cnn", 10, 1), lambda logits, images, labels: logits.square().mean()
        with pytest.raises(ValueError, match="loss"):
            fit(model, splits, SHORT, run=QUIET)
        with pytest.raises(ValueError, match="metric"):
            fit(model, splits, dataclasses.replace(SHORT, select_best=True), loss=loss, run=QUIET)

    def test_wrong_types(self, digits: DataSplits) -> None:
        model = create("small_cnn", 10, 1)
        with pytest.raises(TypeError, match="str"):
            fit("small_cnn", digits)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="Tensor"):
            fit(model, digits.train.images)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="FitConfig, got dict"):
            fit(model, digits, {"epochs": 1})  # type: ignore[arg-type]


def test_selecting_the_best_is_not_in_the_repr() -> None:
    """File names of cached networks are made from the repr; they must stay valid."""
    assert repr(FitConfig(select_best=True)) == repr(FitConfig())
    assert FitConfig(select_best=True) != FitConfig()
