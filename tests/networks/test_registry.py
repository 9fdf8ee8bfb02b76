"""The registry of networks, and networks that users register."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prune_env import load_pruned, make_env, save_pruned
from prune_env.data import DataSplits
from prune_env.networks import create, list_networks, network_entry, register_network
from prune_env.networks.registry import image_size
from prune_env.training.fit import FitConfig
from prune_env.training.pretrained import with_network_normalisation


@pytest.mark.parametrize("name", list_networks())
def test_every_network_runs_and_repeats_under_one_seed(name: str) -> None:
    one, two, other = create(name, 7, 2, seed=1), create(name, 7, 2, seed=1), create(name, 7, 2, seed=2)
    images = torch.zeros(2, 2, *image_size(name))
    assert one.eval()(images).shape == (2, 7)
    for first, second in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(first, second)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", list_networks())
def test_every_recipe_consists_of_training_settings(name: str) -> None:
    FitConfig(**network_entry(name).recipe)


@pytest.mark.usefixtures("untouched_rngs", "untouched_gpus")
def test_creating_a_network_does_not_change_the_global_random_state() -> None:
    create("small_cnn", 10, 1, seed=3)


@pytest.mark.parametrize(
    ("name", "convolutions", "head"),
    [("vgg16", 313_196_544, 5_120), ("resnet20", 40_550_400, 640)],
)
def test_macs_equal_those_counted_by_hand(name: str, convolutions: int, head: int) -> None:
    """VGG-16: 3x3 kernels of 3-64-64 channels at 32x32, 64-128-128 at 16x16, ...; ResNet-20: 40,551,040 in total."""
    model = create(name).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    by_kind: dict[str, int] = {}
    for operation, flops in counter.get_flop_counts()["Global"].items():
        kind = "convolution" if "convolution" in str(operation) else "linear"
        by_kind[kind] = by_kind.get(kind, 0) + flops // 2
    assert by_kind == {"convolution": convolutions, "linear": head}


def test_names_match_a_pattern() -> None:
    assert list_networks() == sorted(list_networks())
    assert {"alexnet", "resnet20", "resnet56", "small_cnn", "vgg16"} <= set(list_networks())
    assert list_networks("resnet*") == ["resnet20", "resnet56"]
    assert list_networks("?gg16") == ["vgg16"]
    assert list_networks("none") == []


@pytest.mark.parametrize("function", [create, image_size, network_entry], ids=lambda function: function.__name__)
def test_an_unknown_name_is_refused(function: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=r"'vgg19'.*vgg16"):
        function("vgg19")


@pytest.mark.parametrize(
    ("classes", "channels", "named"), [(1, 3, r"num_classes .*\b1$"), (10, 0, r"in_channels .*\b0$")]
)
def test_impossible_sizes_are_refused(classes: int, channels: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        create("small_cnn", classes, channels)


class Tiny(nn.Module):
    """A network of a user."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3)))


CONSTANTS = ((0.3,), (0.4,))
RECIPE = {"epochs": 1, "batch_size": 64, "lr": 0.05}


@pytest.fixture
def tiny() -> str:
    """Name of a network of a user."""
    assert register_network("tiny", image_size=(8, 8), recipe=RECIPE, normalisation=CONSTANTS)(Tiny) is Tiny
    return "tiny"


def test_the_entry_of_a_network_of_the_user(tiny: str) -> None:
    entry = network_entry(tiny)
    assert tiny in list_networks("t*")
    assert (entry.constructor, entry.image_size, entry.recipe, entry.normalisation) == (Tiny, (8, 8), RECIPE, CONSTANTS)
    assert isinstance(create(tiny, 4, 2), Tiny)


def test_a_network_of_the_user_in_an_environment_and_on_disk(tiny: str, tmp_path: Path) -> None:
    env = make_env(tiny, "digits", target_macs=0.6, reward_images=100, calibration_images=100, progress=False)
    assert isinstance(env.problem.model, Tiny)
    assert (env.problem.data.mean, env.problem.data.std) == CONSTANTS
    assert [group.layers for group in env.groups] == [("first",), ("second",)]
    assert "conv_1" in str(env.inspection)
    plan = (4, 3)
    small = env.problem.build(plan).eval()
    save_pruned(tmp_path, small, plan, env.problem, base=tiny)
    loaded = load_pruned(tmp_path)
    images = env.problem.data.example_input
    with torch.inference_mode():
        assert torch.equal(loaded(images), small(images))
    env.close()


def test_a_normalisation_applies_to_images_with_as_many_channels(tiny: str, digits: DataSplits) -> None:
    normalised = with_network_normalisation(tiny, digits)
    assert (normalised.mean, normalised.std) == CONSTANTS
    register_network("colour", normalisation=((0.3,) * 3, (0.4,) * 3))(Tiny)
    assert with_network_normalisation("colour", digits) is digits


def test_a_name_belongs_to_one_network(tiny: str) -> None:
    register_network(tiny, image_size=(16, 16))(Tiny)  # again, as a notebook cell does
    assert image_size(tiny) == (16, 16)
    for name in (tiny, "resnet20"):
        with pytest.raises(ValueError, match=name):
            register_network(name)(lambda num_classes, in_channels: Tiny(num_classes, in_channels))


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("", {}, "''"),
        ("other", {"image_size": (0, 8)}, r"\(0, 8\)"),
        ("other", {"normalisation": ((0.5,), (0.2, 0.2))}, "other"),
        ("other", {"normalisation": ((0.5,), (0.0,))}, "other"),
    ],
)
def test_impossible_settings_are_refused(name: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        register_network(name, **settings)
    assert "other" not in list_networks()
