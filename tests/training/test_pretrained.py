"""Registered networks with trained weights: training, the cache, and weight files."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from prune_env.data import DataSplits, TensorSplit, load
from prune_env.networks import create
from prune_env.networks.resnet import IMAGENET_NORMALISATION
from prune_env.scoring.metric import accuracy
from prune_env.training.fit import FitConfig
from prune_env.training.pretrained import load_weights, pretrained, with_network_normalisation

RECIPE = FitConfig(epochs=1, batch_size=64, lr=0.05)


class Forbidden(TensorSplit):
    """A split that must not be read."""

    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"{name} of a held-out split was read")


def test_a_network_is_trained_once_and_then_cached(digits: DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pretrained("small_cnn", digits, recipe=RECIPE, progress=False)
    module = sys.modules[pretrained.__module__]
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained although it is cached"))
    second = pretrained("small_cnn", digits, recipe=RECIPE, progress=False)
    assert all(torch.equal(a, second.state_dict()[name]) for name, a in first.state_dict().items())
    assert not second.training


def test_other_data_and_recipes_are_cached_separately(digits: DataSplits, private_cache: Path) -> None:
    def cached() -> int:
        return len(list((private_cache / "pretrained").glob("*.safetensors")))

    pretrained("small_cnn", digits, recipe=RECIPE, progress=False)
    before = cached()
    pretrained("small_cnn", digits.with_normalisation((0.3,), (0.4,)), recipe=RECIPE, progress=False)
    assert cached() == before + 1
    pretrained("small_cnn", digits, recipe=dataclasses.replace(RECIPE, seed=7), progress=False)
    assert cached() == before + 2
    pretrained("small_cnn", digits, recipe=dataclasses.replace(RECIPE, select_best=True), progress=False)
    assert cached() == before + 3


def test_resnets_on_colour_images_use_the_normalisation_of_the_public_weights(digits: DataSplits) -> None:
    assert with_network_normalisation("resnet20", digits) is digits  # one channel
    colour = TensorSplit(digits.train.images.expand(-1, 3, -1, -1), digits.train.labels)
    three = DataSplits("three", digits.classes, colour, colour, colour, colour, (0.5,) * 3, (0.2,) * 3)
    changed = with_network_normalisation("resnet20", three)
    assert (changed.mean, changed.std) == IMAGENET_NORMALISATION
    assert with_network_normalisation("vgg16", three) is three


def test_training_reads_only_the_training_split(digits: DataSplits) -> None:
    forbidden = Forbidden.__new__(Forbidden)
    blind = dataclasses.replace(digits, reward=forbidden, test=forbidden)
    object.__setattr__(blind, "fingerprint", digits.fingerprint)  # it reads all splits, which training must not
    pretrained("small_cnn", blind, recipe=FitConfig(epochs=0.5, batch_size=64, seed=99), progress=False)


def test_public_files_with_a_state_dict_and_a_prefix_are_loaded(tmp_path: Path) -> None:
    """They are torch pickles with a 'state_dict' whose names begin with 'module.'."""
    source = create("resnet20", seed=5)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    assert "module.layer3.2.conv2.weight" in state
    torch.save({"state_dict": state, "best_prec1": 91.73}, tmp_path / "resnet20.th")
    target = create("resnet20")
    load_weights(target, tmp_path / "resnet20.th")
    assert torch.equal(target.layer3[2].conv2.weight, source.layer3[2].conv2.weight)


def test_wrappers_do_not_count_in_names(tmp_path: Path) -> None:
    class Child(nn.Module):
        """Has an ordinary child with the name of a wrapper's."""

        def __init__(self) -> None:
            super().__init__()
            self.module, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    makers: list[Callable[[], nn.Module]] = [
        Child,
        lambda: nn.DataParallel(Child()),
        lambda: torch.compile(Child()),
        lambda: nn.DataParallel(torch.compile(Child())),
    ]
    for number, saved in enumerate(makers):
        source = saved()
        torch.save(source.state_dict(), tmp_path / f"{number}.pt")
        for loaded in makers:
            target = loaded()
            load_weights(target, tmp_path / f"{number}.pt")
            assert all(map(torch.equal, target.state_dict().values(), source.state_dict().values()))
    torch.save({}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="weight is missing"):
        load_weights(nn.Linear(2, 2), tmp_path / "empty.pt")
    mixed = {"module.weight": torch.ones(2, 2), "weight": torch.ones(2, 2), "bias": torch.ones(2)}
    torch.save(mixed, tmp_path / "mixed.pt")
    with pytest.raises(ValueError, match="weight"):
        load_weights(nn.Linear(2, 2), tmp_path / "mixed.pt")


class TestErrors:
    def test_unknown_network(self, digits: DataSplits) -> None:
        with pytest.raises(ValueError, match="'vgg19'"):
            pretrained("vgg19", digits)

    def test_images_of_another_size(self, digits: DataSplits) -> None:
        with pytest.raises(ValueError, match=r"32x32.* 8x8"):
            pretrained("vgg16", digits)

    def test_files_that_are_no_weights(self, digits: DataSplits, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
            pretrained("small_cnn", digits, tmp_path / "nothing.pt")
        with pytest.raises(IsADirectoryError, match=tmp_path.name):
            pretrained("small_cnn", digits, tmp_path)
        (tmp_path / "broken.pt").write_bytes(b"broken")
        with pytest.raises(ValueError, match=r"broken\.pt") as caught:
            pretrained("small_cnn", digits, tmp_path / "broken.pt")
        assert "weights_only" not in str(caught.value), "torch's advice to load files that run code is left out"
        torch.save([1, 2], tmp_path / "list.pt")
        with pytest.raises(ValueError, match=r"list\.pt"):
            pretrained("small_cnn", digits, tmp_path / "list.pt")

    def test_weights_of_another_network(self, digits: DataSplits, tmp_path: Path) -> None:
        """The first tensor that does not fit is named, and how many more there are."""
        torch.save(create("small_cnn", 7, 1).state_dict(), tmp_path / "seven.pt")
        with pytest.raises(ValueError, match=r"seven\.pt .*classifier.weight .*\(7, 128\) .*\(10, 128\) .*1 more"):
            pretrained("small_cnn", digits, tmp_path / "seven.pt")
        state = {f"model.{name}": tensor for name, tensor in create("small_cnn", 10, 1).state_dict().items()}
        torch.save(state, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=rf"features.0.weight .*{2 * len(state) - 1} more"):
            pretrained("small_cnn", digits, tmp_path / "other.pt")


@pytest.mark.cifar("PRUNE_ENV_WEIGHTS")
@pytest.mark.parametrize(
    ("network", "file", "correct"),
    [("resnet20", "resnet20-12fca82f.th", 9173), ("resnet56", "resnet56-4bfd9763.th", 9339)],
)
def test_public_weights_have_their_known_accuracy(network: str, file: str, correct: int) -> None:
    data = with_network_normalisation(network, load(os.environ["PRUNE_ENV_DATA"]))
    model = pretrained(network, data, Path(os.environ["PRUNE_ENV_WEIGHTS"]) / file)
    assert accuracy(model, data, data.test) == correct / 10_000
