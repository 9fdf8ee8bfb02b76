"""Mean intersection over union of masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from prune_env.data import IGNORED, TensorSplit, from_tensors
from prune_env.scoring.metric import accuracy, mean_iou


class Drawn(nn.Module):
    """Predicts the classes that its input shows: one channel with the class of every pixel."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.weight * F.one_hot(images[:, 0].long(), self.classes).permute(0, 3, 1, 2).float()


def score(predicted: Any, true: Any, classes: int = 3, **options: Any) -> float:
    images, masks = (torch.tensor(values, dtype=torch.uint8) for values in (predicted, true))
    return mean_iou(Drawn(classes), TensorSplit(images[:, None], masks), **options)


def test_by_hand() -> None:
    predicted = [[[0, 0, 1], [1, 2, 2]], [[0, 0, 0], [1, 1, 1]]]
    true = [[[0, 0, 0], [1, 1, 1]], [[0, 0, 0], [1, 1, 1]]]
    # class 0: 5 common, 6 true, 5 predicted; class 1: 4 common, 6 true, 5 predicted; class 2 has no true pixel
    assert score(predicted, true) == pytest.approx((5 / 6 + 4 / 7) / 2)
    true[0][1] = [1, IGNORED, IGNORED]  # type: ignore[call-overload]
    assert score(predicted, true) == pytest.approx((5 / 6 + 4 / 5) / 2)


pixels = st.lists(
    st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=3, max_size=3), min_size=1, max_size=5
)


@given(true=pixels, seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_it_is_that_of_the_sets_of_pixels(true: Any, seed: int) -> None:
    masks = torch.tensor(true)
    predicted = torch.randint(3, masks.shape, generator=torch.Generator().manual_seed(seed))
    ratios = []
    for label in masks.unique():
        one, two = masks == label, predicted == label
        ratios.append(float((one & two).sum()) / float((one | two).sum()))
    assert score(predicted.tolist(), true) == pytest.approx(sum(ratios) / len(ratios))
    assert score(predicted.tolist(), true, batch_size=2) == score(predicted.tolist(), true)
    assert score(true, true) == 1.0


@pytest.mark.parametrize(
    ("true", "classes", "named"),
    [
        ([[[0, 1, 0]]], 3, r"\(1, 3, 1, 2\).* 1x3"),
        ([[[0, 3]]], 3, "class 3.* 3 classes"),
        ([[[IGNORED, IGNORED]]], 3, "255"),
    ],
)
def test_what_cannot_be_compared_is_named(true: Any, classes: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        score([[[0, 1]]], true, classes)


def test_it_is_the_accuracy_where_labels_are_masks() -> None:
    masks = torch.randint(3, (20, 4, 4), generator=torch.Generator().manual_seed(0))
    drawn = masks.clone()
    drawn[:, 0] = 0
    data = from_tensors(drawn[:, None].float(), masks, drawn[:, None].float(), masks)
    assert accuracy(Drawn(), data, data.test) == mean_iou(Drawn(), data.test) < 1
