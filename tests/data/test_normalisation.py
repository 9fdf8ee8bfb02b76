"""Mean and standard deviation by numbers or by name, for every way that data come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from prune_env import data
from prune_env.data import DataError, DataSplits, from_datasets, from_folder, from_tensors
from prune_env.training.pretrained import with_network_normalisation

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUMBERS = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
Maker = Callable[..., DataSplits]


@pytest.fixture(params=["folder", "load", "tensors", "datasets", "splits"])
def make(request: pytest.FixtureRequest, image_folder: Callable[..., Path]) -> Maker:
    """Return a function that makes colour images from one of the sources, with a normalisation."""

    def tensors() -> tuple[torch.Tensor, ...]:
        train, test = (
            torch.randint(256, (count, 3, 6, 6), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)
            for count in (60, 9)
        )
        return train, torch.arange(60) % 3, test, torch.arange(9) % 3

    def splits(**options: Any) -> DataSplits:
        plain = from_tensors(*tensors())
        return plain.with_normalisation(options["mean"], options.get("std")) if "mean" in options else plain

    def datasets(**options: Any) -> DataSplits:
        images, labels, test_images, test_labels = tensors()
        return from_datasets(TensorDataset(images, labels), TensorDataset(test_images, test_labels), **options)

    makers: dict[str, Maker] = {
        "folder": lambda **options: from_folder(image_folder(), **options),
        "load": lambda **options: data.load(image_folder(), **options),
        "tensors": lambda **options: from_tensors(*tensors(), **options),
        "datasets": datasets,
        "splits": splits,
    }
    return makers[request.param]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mean": NUMBERS[0], "std": NUMBERS[1]}, NUMBERS),
        ({"mean": "imagenet"}, IMAGENET),
        ({"mean": "imagenet", "std": "imagenet"}, IMAGENET),
        ({"mean": "none"}, ((0.0,) * 3, (1.0,) * 3)),
        ({"mean": "cifar10"}, ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    ],
)
def test_it_is_used_kept_and_described(make: Maker, options: dict[str, Any], expected: Any) -> None:
    splits = make(**options)
    assert (splits.mean, splits.std) == expected
    assert all(f"{value:.4g}" in splits.summary for values in expected for value in values)
    assert with_network_normalisation("resnet20", splits) is splits, "what is given wins over a network's own"
    pixel = splits.normalise(splits.train.images)[0, 1, 2, 3]
    assert float(pixel) == pytest.approx(
        (int(splits.train.images[0, 1, 2, 3]) / 255 - expected[0][1]) / expected[1][1], abs=1e-5
    )


def test_computed_ones_give_way_to_those_of_a_registered_network(make: Maker) -> None:
    changed = with_network_normalisation("resnet20", make())
    assert (changed.mean, changed.std) == IMAGENET


def test_floating_point_images_are_not_normalised_twice() -> None:
    images, labels = torch.randn(60, 3, 6, 6), torch.arange(60) % 3
    splits = from_tensors(images, labels, torch.randn(6, 3, 6, 6), torch.arange(6) % 3)
    assert with_network_normalisation("resnet20", splits) is splits


@pytest.mark.parametrize(
    "options",
    [
        {"mean": (0.5,), "std": (0.2,)},
        {"mean": (0.5,) * 3, "std": (0.2, 0.0, 0.2)},
        {"mean": (0.5,) * 3},
        {"mean": "imagenet", "std": "cifar10"},
        {"mean": "imagenet", "std": (0.2,) * 3},
        {"mean": "mnist"},
        {"mean": 0.5, "std": 0.5},
    ],
    ids=str,
)
def test_mistakes_are_named(make: Maker, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="mean"):
        make(**options)


def test_a_mean_of_pixels_up_to_255_is_refused_for_uint8_images(make: Maker) -> None:
    with pytest.raises(DataError, match=r"mean=.*125"):
        make(mean=(125.0, 0.5, 0.5), std=(60.0, 0.2, 0.2))


def test_names_fit_colour_images_only() -> None:
    with pytest.raises(DataError, match=r"imagenet|1 finite"):
        data.load("digits", mean="imagenet")
    assert data.load("digits", mean="none").mean == (0.0,)
