"""The registry and the pretrained networks."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from prune_env.data import DataSplits, load
from prune_env.networks import NETWORKS, create
from prune_env.networks.registry import image_size
from prune_env.networks.resnet import ZeroPadShortcut
from prune_env.scoring.metric import correct
from prune_env.training.fit import FitConfig
from prune_env.training.pretrained import IMAGENET_NORMALISATION, load_weights, pretrained, with_network_normalisation


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_runs_and_repeats_under_one_seed(name: str) -> None:
    one, two, other = create(name, 7, 2, seed=1), create(name, 7, 2, seed=1), create(name, 7, 2, seed=2)
    images = torch.zeros(2, 2, *image_size(name))
    assert one.eval()(images).shape == (2, 7)
    for first, second in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(first, second)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.usefixtures("untouched_rngs")
def test_creating_leaves_the_global_random_state() -> None:
    create("small_cnn", 10, 1, seed=3)


@pytest.mark.parametrize(
    ("name", "convolutions", "head"),
    [("vgg16", 313_196_544, 5_120), ("resnet20", 40_550_400, 640)],
)
def test_macs_by_hand_count(name: str, convolutions: int, head: int) -> None:
    """VGG-16: 3x3 taps of 3-64-64 at 32x32, 64-128-128 at 16x16, ... ; ResNet-20 is 40,551,040 in all."""
    model = create(name).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    by_kind: dict[str, int] = {}
    for operation, flops in counter.get_flop_counts()["Global"].items():
        kind = "convolution" if "convolution" in str(operation) else "linear"
        by_kind[kind] = by_kind.get(kind, 0) + flops // 2
    assert by_kind == {"convolution": convolutions, "linear": head}


def test_vgg_has_torchvisions_names() -> None:
    from torchvision.models import vgg16_bn

    ours, theirs = create("vgg16"), vgg16_bn(weights=None)
    shapes = {name: tensor.shape for name, tensor in theirs.features.state_dict(prefix="features.").items()}
    assert {name: t.shape for name, t in ours.state_dict().items() if name.startswith("features.")} == shapes
    assert isinstance(ours.classifier, nn.Linear)
    assert ours.classifier.in_features == 512


def test_option_a_shortcut_equals_slice_and_pad() -> None:
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    assert torch.equal(ZeroPadShortcut(16, 32)(x), expected)


def test_resnet_loads_public_names(tmp_path: Path) -> None:
    """The public files hold a torch pickle with 'state_dict', every name under 'module.'."""
    source = create("resnet20", seed=5)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    assert "module.layer3.2.conv2.weight" in state
    torch.save({"state_dict": state, "best_prec1": 91.73}, tmp_path / "resnet20.th")
    target = create("resnet20")
    load_weights(target, tmp_path / "resnet20.th")
    assert torch.equal(target.layer3[2].conv2.weight, source.layer3[2].conv2.weight)


class Forbidden:
    """A split that must not be looked at."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"{name} of a held-out split was read")


class TestPretrained:
    RECIPE = FitConfig(epochs=1, batch_size=64, lr=0.05)

    def test_trains_once_and_then_asks_the_cache(self, digits: DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
        first = pretrained("small_cnn", digits, recipe=self.RECIPE, progress=False)
        module = sys.modules["prune_env.training.pretrained"]  # the package has a function of that name
        monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained although it is cached"))
        second = pretrained("small_cnn", digits, recipe=self.RECIPE, progress=False)
        assert all(torch.equal(a, second.state_dict()[name]) for name, a in first.state_dict().items())
        assert not second.training

    def test_other_data_or_recipe_are_other_networks(self, digits: DataSplits, private_cache: Path) -> None:
        pretrained("small_cnn", digits, recipe=self.RECIPE, progress=False)
        before = len(list((private_cache / "pretrained").glob("*.safetensors")))
        shifted = digits.with_normalisation((0.3,), (0.4,))
        pretrained("small_cnn", shifted, recipe=self.RECIPE, progress=False)
        assert len(list((private_cache / "pretrained").glob("*.safetensors"))) == before + 1

    def test_resnets_take_the_normalisation_of_the_public_weights(self, digits: DataSplits) -> None:
        assert with_network_normalisation("resnet20", digits) is digits  # one channel
        colour = digits.train.images.expand(-1, 3, -1, -1)
        three = DataSplits(
            "three", digits.classes, *(type(digits.train)(colour, digits.train.labels),) * 4, (0.5,) * 3, (0.2,) * 3
        )
        assert (
            with_network_normalisation("resnet20", three).mean,
            with_network_normalisation("resnet20", three).std,
        ) == IMAGENET_NORMALISATION
        assert with_network_normalisation("vgg16", three) is three

    def test_only_the_training_split_is_learned_from(self, digits: DataSplits) -> None:
        blind = dataclasses.replace(digits, reward=Forbidden(), test=Forbidden())  # type: ignore[arg-type]
        object.__setattr__(
            blind, "fingerprint", digits.fingerprint
        )  # the fingerprint reads all splits, learning must not
        pretrained("small_cnn", blind, recipe=FitConfig(epochs=0.5, batch_size=64, seed=99), progress=False)

    def test_errors(self, digits: DataSplits, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="network 'vgg19' is not registered"):
            pretrained("vgg19", digits)
        with pytest.raises(ValueError, match="takes images of 32x32 pixels, data 'digits' has 8x8"):
            pretrained("vgg16", digits)
        with pytest.raises(FileNotFoundError, match=r"nothing\.pt does not exist"):
            pretrained("small_cnn", digits, tmp_path / "nothing.pt")
        (tmp_path / "broken.pt").write_bytes(b"broken")
        with pytest.raises(IsADirectoryError, match="are a folder; give the file in it"):
            pretrained("small_cnn", digits, tmp_path)
        with pytest.raises(ValueError, match=r"broken\.pt cannot be read") as told:
            pretrained("small_cnn", digits, tmp_path / "broken.pt")
        assert "weights_only" not in str(told.value), "torch's advice is to run what the file says"
        torch.save(create("small_cnn", 7, 1).state_dict(), tmp_path / "seven.pt")
        with pytest.raises(
            ValueError, match=r"seven\.pt does not fit the network: classifier.weight is \(7, 128\) .*\(and 1 more\)"
        ):
            pretrained("small_cnn", digits, tmp_path / "seven.pt")
        torch.save({"model." + k: v for k, v in create("small_cnn", 10, 1).state_dict().items()}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"features.0.weight is missing \(and \d+ more\)$"):
            pretrained("small_cnn", digits, tmp_path / "other.pt")
        torch.save([1, 2], tmp_path / "list.pt")
        with pytest.raises(ValueError, match="holds no state dict"):
            pretrained("small_cnn", digits, tmp_path / "list.pt")


@pytest.mark.cifar("PRUNE_ENV_WEIGHTS")
@pytest.mark.parametrize(
    ("network", "file", "right"),
    [("resnet20", "resnet20-12fca82f.th", 9173), ("resnet56", "resnet56-4bfd9763.th", 9339)],
)
def test_public_weights_score_what_is_known(network: str, file: str, right: int) -> None:
    data = with_network_normalisation(network, load(os.environ["PRUNE_ENV_DATA"]))
    model = pretrained(network, data, Path(os.environ["PRUNE_ENV_WEIGHTS"]) / file)
    assert correct(model, data, data.test) == right
