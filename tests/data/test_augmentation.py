"""Random crops and flips."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env.data import Augmentation, DataSplits


@settings(max_examples=40, deadline=None)
@given(pad=st.integers(0, 4), flip=st.booleans(), seed=st.integers(0, 999), height=st.integers(1, 9))
def test_every_image_is_a_crop_of_the_padded_image(pad: int, flip: bool, seed: int, height: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (5, 2, height, 7), generator=generator, dtype=torch.uint8)
    result = Augmentation(pad, flip)(images, generator)
    assert result.shape == images.shape
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    for image, source in zip(result, padded, strict=True):
        crops = [source[:, y : y + height, x : x + 7] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
        allowed = crops + [crop.flip(2) for crop in crops] if flip else crops
        assert any(torch.equal(image, crop) for crop in allowed)


@pytest.mark.parametrize("part", [slice(0, 3), slice(3, 6)])
def test_a_part_of_a_batch_is_augmented_like_the_whole(part: slice) -> None:
    images = torch.randn(6, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    whole, own = (torch.Generator().manual_seed(1) for _ in range(2))
    expected = Augmentation(2, True)(images, whole)
    assert torch.equal(Augmentation(2, True)(images[part], own, part=(6, part)), expected[part])
    assert torch.equal(whole.get_state(), own.get_state()), "the next batch gets the same random numbers"


def test_given_flips_are_used() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    result = Augmentation(0, True)(images, torch.Generator(), torch.tensor([True, False]))
    assert torch.equal(result[0], images[0].flip(2))
    assert torch.equal(result[1], images[1])


def test_the_fill_is_the_value_of_the_padding() -> None:
    images = torch.randn(20, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    result = Augmentation(pad=6, flip=False, fill=-7.0)(images, torch.Generator().manual_seed(0))
    assert result.shape == images.shape
    kept = torch.isin(result, images)
    assert bool((result[~kept] == -7.0).all())
    assert bool((~kept).any())
    assert bool(kept.any())


@pytest.mark.usefixtures("untouched_rngs")
def test_the_result_depends_only_on_the_generator(digits: DataSplits) -> None:
    one, two = (digits.augmented(digits.train.images[:50], torch.Generator().manual_seed(3)) for _ in range(2))
    other = digits.augmented(digits.train.images[:50], torch.Generator().manual_seed(4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
