"""Masks as labels: conversion, mistakes, splits, joint augmentation, and Datasets whose transforms move both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from prune_env.data import IGNORED, Augmentation, DataError, DataSplits, Reading, from_datasets, from_tensors
from prune_env.data.masks import convert_masks

COUNT, SIZE = 40, 6


def images_and_masks(count: int = COUNT, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose first channel is 50 times the class of the pixel, and the masks."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(3, (count, SIZE, SIZE), generator=generator)
    noise = torch.randint(256, (count, SIZE, SIZE), generator=generator)
    return torch.stack([50 * masks + 10, noise], 1).to(torch.uint8), masks


IMAGES, MASKS = images_and_masks()
TEST_IMAGES, TEST_MASKS = images_and_masks(10, seed=1)
HIGH = MASKS.clone()
HIGH[7, 2, 3] = 3
PART = MASKS.clone()
PART[:, :2] = IGNORED


def load(masks: Any = MASKS, test: Any = TEST_MASKS, **options: Any) -> DataSplits:
    return from_tensors(IMAGES, masks, TEST_IMAGES, test, **options)


def agrees(images: torch.Tensor, masks: torch.Tensor) -> bool:
    """Whether masks belong to images; where masks are ignored, images are padded with black."""
    counted = masks != IGNORED
    return (
        torch.equal(images[:, 0][counted].long(), 50 * masks[counted].long() + 10) and not images[:, 0][~counted].any()
    )


class TestTensors:
    @pytest.mark.parametrize("form", [MASKS, MASKS.to(torch.uint8), MASKS.int()[:, None], MASKS.numpy(), PART])
    def test_all_forms_of_masks_are_taken(self, form: Any) -> None:
        data = load(form)
        assert data.has_masks
        assert data.classes == ("0", "1", "2")
        assert data.train.labels.dtype == torch.uint8
        assert data.train.labels.shape == (36, SIZE, SIZE)
        assert torch.equal(data.reward.labels.long(), torch.as_tensor(form).view(COUNT, SIZE, SIZE)[-4:].long())

    def test_splits_keep_the_order(self) -> None:
        data = load()
        assert torch.equal(torch.cat([data.train.images, data.reward.images]), IMAGES)
        rows = data.train.balanced_rows(5).tolist()
        assert rows == [0, 7, 14, 21, 28]
        assert load().fingerprint == data.fingerprint != load(PART).fingerprint

    def test_nothing_moves_by_default(self) -> None:
        data = load()
        assert not data.augmentation.moves
        images, masks = data.training_batch(IMAGES, data.train.labels, torch.Generator())
        assert torch.equal(masks, data.train.labels.long())
        assert torch.equal(images, data.normalise(IMAGES))

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"masks": MASKS - 1}, "train mask at index 0 .*-1"),
            ({"masks": MASKS + 300}, "train mask at index 0 .*30"),
            ({"masks": HIGH * 2}, "class 1 .*class 6"),
            ({"masks": MASKS * 0}, "train masks"),
            ({"masks": MASKS[:, :, :0]}, r"train masks .*\(40, 6, 0\)"),
            ({"masks": HIGH, "classes": ["a", "b", "c"]}, "train mask at index 7 has class 3"),
            ({"test": TEST_MASKS + 1}, "test mask at index 0 has class 3"),
            ({"test": TEST_MASKS[:, :3]}, r"test labels .*\(3, 6\)"),
            ({"test": torch.zeros(10, dtype=torch.long)}, "test labels"),
            ({"masks": MASKS.bool()}, "train labels .*bool"),
            ({"masks": MASKS[:, :3], "test": TEST_MASKS[:, :3], "augmentation": Augmentation(1)}, r"\(3, 6\)"),
        ],
    )
    def test_mistakes_are_named(self, changes: dict[str, Any], named: str) -> None:
        with pytest.raises(DataError, match=named):
            load(**changes)

    def test_names_may_stand_for_classes_without_pixels(self) -> None:
        assert load(HIGH * 2, classes=list("abcdefgh")).classes == tuple("abcdefgh")


@given(pad=st.integers(0, 3), flip=st.booleans(), fill=st.just(0), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_an_augmentation_moves_masks_with_their_images(pad: int, flip: bool, fill: int, seed: int) -> None:
    augmentation = Augmentation(pad=pad, flip=flip)
    masks = MASKS.to(torch.uint8)
    images, moved = augmentation.with_masks(IMAGES, masks, torch.Generator().manual_seed(seed))
    assert agrees(images, moved)
    assert torch.equal(images, augmentation(IMAGES, torch.Generator().manual_seed(seed)))
    assert torch.equal(moved, masks) or pad or flip


class Scenes(Dataset[Any]):
    """Pairs of PIL images, with transforms that move both if there are any."""

    def __init__(self, images: torch.Tensor, masks: torch.Tensor, transform: Any = None) -> None:
        self.images, self.masks, self.transform = images, masks.to(torch.uint8), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        pair = tv_tensors.Image(self.images[index]), tv_tensors.Mask(self.masks[index])
        return self.transform(*pair) if self.transform else pair


def test_pil_images_are_masks() -> None:
    pairs = [
        (Image.fromarray(image[0].numpy()), Image.fromarray(mask.numpy().astype(np.uint8)).convert("P"))
        for image, mask in zip(IMAGES, MASKS, strict=True)
    ]
    data = from_datasets(pairs, pairs[:5])
    assert data.has_masks
    assert torch.equal(data.train.labels.long(), MASKS[:36])
    halves = [(image, mask.convert("L").point(lambda value: 255 * (value > 0)).convert("1")) for image, mask in pairs]
    assert torch.equal(from_datasets(halves, halves[:5]).train.labels.bool(), MASKS[:36] > 0)
    with pytest.raises(DataError, match=r"item 0 of the train data .*RGB"):
        from_datasets([(image, mask.convert("RGB")) for image, mask in pairs], pairs)


class TestJointTransforms:
    """Random transforms of a Dataset act on images and masks alike."""

    @pytest.fixture
    def data(self) -> DataSplits:
        moved = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomCrop(SIZE, padding=2, fill={tv_tensors.Mask: IGNORED, tv_tensors.Image: 0}),
            ]
        )
        train = Scenes(IMAGES, MASKS, moved)
        held_out = Scenes(TEST_IMAGES, TEST_MASKS)
        return from_datasets(train, held_out, reward=held_out, reading=Reading(workers=0), mean="none")

    def test_every_epoch_moves_both(self, data: DataSplits, untouched_rngs: None) -> None:
        rows = [torch.arange(20), torch.arange(20, 40)]
        epochs = [list(data.train.read(rows, seed)) for seed in (1, 1, 2)]
        for batches in epochs:
            assert all(agrees(images, masks) for images, masks in batches)
        assert torch.equal(epochs[0][0][1], epochs[1][0][1])
        assert not torch.equal(epochs[0][0][1], epochs[2][0][1])

    def test_nothing_else_moves_them(self, data: DataSplits) -> None:
        assert not data.augmentation.moves
        assert data.classes == ("0", "1", "2")
        assert torch.equal(data.reward.labels.long(), TEST_MASKS)

    def test_parts_agree_with_the_whole(self, data: DataSplits) -> None:
        rows = torch.tensor([3, 1])
        kept = data.train.in_memory()
        assert agrees(kept.images, kept.labels)
        part = data.train.select(rows)
        assert len(part) == 2
        assert torch.equal(part.labels, kept.labels[rows])
        assert torch.equal(part.images, kept.images[rows])
        assert data.calibration.balanced(5).labels.shape == (5, SIZE, SIZE)

    def test_workers_change_nothing(self, data: DataSplits) -> None:
        rows = [torch.arange(20), torch.arange(20, 40)]
        other = replace(data.train, reading=Reading(workers=2))
        for one, two in zip(data.train.read(rows, 5), other.read(rows, 5), strict=True):
            assert all(map(torch.equal, one, two))

    @pytest.mark.parametrize(
        "change", [lambda mask: mask[:3], lambda mask: mask.float(), lambda mask: mask.int() + 300, lambda mask: 3]
    )
    def test_a_mask_that_is_unlike_the_others_is_named(self, change: Callable[[torch.Tensor], Any]) -> None:
        class Odd(Scenes):
            def __getitem__(self, index: int) -> Any:
                image, mask = super().__getitem__(index)
                return image, (change(mask) if index == 18 else mask)

        held_out = Scenes(TEST_IMAGES, TEST_MASKS)
        with pytest.raises(DataError, match="18"):
            from_datasets(Odd(IMAGES, MASKS, v2.RandomHorizontalFlip()), held_out, reward=held_out)


@pytest.mark.parametrize("kind", [torch.int8, torch.int16, torch.int64])
def test_masks_of_any_integer_type_are_the_same(kind: torch.dtype) -> None:
    masks = torch.arange(3).repeat(2, 4, 3).to(kind)
    assert torch.equal(convert_masks(masks, "train"), masks.to(torch.uint8))
