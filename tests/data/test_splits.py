"""One split, and the four splits of a data set."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prune_env.data import Augmentation, DataError, DataSplits, TensorSplit


def test_balanced_takes_the_first_images_of_every_class(digits: DataSplits) -> None:
    part = digits.reward.balanced(105)
    assert torch.bincount(part.labels).tolist() == [11] * 5 + [10] * 5
    assert torch.equal(part.images[:11], digits.reward.images[:11])
    assert digits.reward.balanced(10_000) is digits.reward
    with pytest.raises(ValueError, match="count=0"):
        digits.reward.balanced(0)


def test_balanced_takes_evenly_spaced_images_where_there_are_no_classes() -> None:
    images = torch.arange(360.0).view(360, 1, 1, 1)
    split = TensorSplit(images, torch.rand(360))
    assert torch.equal(split.balanced(3).images, images[[0, 120, 240]])
    assert split.balanced(360) is split


def test_the_normalisation_is_that_of_the_training_split(digits: DataSplits) -> None:
    scaled = digits.train.images.double() / 255
    assert digits.mean[0] == pytest.approx(float(scaled.mean()), abs=1e-9)
    assert digits.std[0] == pytest.approx(float(scaled.std(unbiased=False)), abs=1e-9)
    normalised = digits.normalise(digits.train.images)
    assert float(normalised.mean()) == pytest.approx(0, abs=1e-5)
    assert normalised.is_contiguous()


def test_another_normalisation(digits: DataSplits) -> None:
    other = digits.with_normalisation([0.5], [0.2])
    assert (other.mean, other.std) == ((0.5,), (0.2,))
    assert other.train is digits.train
    for mean, std in (((0.5,) * 3, (0.2,) * 3), ((0.5,), (0.0,)), ((float("nan"),), (0.2,))):
        with pytest.raises(DataError, match="mean="):
            digits.with_normalisation(mean, std)


@pytest.mark.parametrize("change", ["image", "label", "fill", "normalisation"])
def test_the_fingerprint_distinguishes_data(change: str) -> None:
    def make(change: str = "") -> DataSplits:
        generator = torch.Generator().manual_seed(0)
        images, labels = torch.randn(30, 3, 6, 5, generator=generator), torch.rand(30, 2, generator=generator)
        images[3, 0, 0, 0] += 1e-3 * (change == "image")
        labels[3, 1] += 1e-3 * (change == "label")
        split = TensorSplit(images, labels)
        augmentation = Augmentation(pad=0, flip=False, fill=0.5 * (change == "fill"))
        std = 2.0 if change == "normalisation" else 1.0
        return DataSplits("made", (), split, split, split, split, (0.0,) * 3, (std,) * 3, augmentation)

    assert make().fingerprint == make().fingerprint
    assert make(change).fingerprint != make().fingerprint


def test_the_fingerprint_of_integer_images_depends_on_the_fill(digits: DataSplits) -> None:
    one, two = (dataclasses.replace(digits, augmentation=Augmentation(fill=fill)) for fill in (0.0, 9.0))
    assert one.fingerprint != two.fingerprint


def test_splits_cannot_be_changed(digits: DataSplits) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.name = "other"  # type: ignore[misc]
