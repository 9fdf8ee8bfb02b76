"""Masks: the class of every pixel of an image, as labels of semantic segmentation.

Letters: N images, B images in a batch, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from .errors import DataError

IGNORED = 255
"""Value of the pixels of a mask that no loss and no metric counts."""
FORM = (
    f"masks are integers [N, H, W]: the class of every pixel, from 0 to {IGNORED - 1}, or {IGNORED} where it is ignored"
)


def convert_masks(masks: torch.Tensor, part: str, first: int = 0) -> torch.Tensor:
    """Return masks as uint8 [N, H, W].

    Args:
        masks: Integers [N, H, W], or [N, 1, H, W].
        part: The split: train, test, reward or calibration.
        first: Index of the first mask, for messages.

    Raises:
        DataError: A mask has no pixels, or a number that is no class; the message names its index.
    """
    if masks.ndim == 4:
        masks = masks[:, 0]
    if 0 in masks.shape:
        raise DataError(f"{part} masks have shape {tuple(masks.shape)}, which has no pixels; {FORM}")
    masks = masks.long()
    wrong = ((masks < 0) | (masks > IGNORED)).flatten(1)
    if bool(wrong.any()):
        index = int(wrong.any(1).nonzero()[0])
        value = int(masks[index].flatten()[wrong[index]][0])
        raise DataError(f"the {part} mask at index {first + index} has the value {value}; {FORM}")
    return masks.to(torch.uint8)


def present(batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return which values every mask has, bool [N, 256].

    Args:
        batches: Masks uint8 [B, H, W] each.
    """
    counts = [torch.bincount(mask.flatten(), minlength=IGNORED + 1) for masks in batches for mask in masks]
    return torch.stack(counts) > 0


def check_masks(parts: Mapping[str, torch.Tensor], names: Sequence[str] | None) -> tuple[str, ...]:
    """Check the classes of all masks.

    Args:
        parts: Name of a split -> which values each of its masks has, bool [N, 256].
        names: Names of the classes; by default their numbers.

    Returns:
        The names of the classes.

    Raises:
        DataError: The classes of the train masks do not count from 0 without gaps, or another split has others.
    """
    train = parts["train"].any(0)[:IGNORED].nonzero()[:, 0].tolist()
    if len(train) < 2:
        raise DataError(f"the pixels of the train masks have {len(train)} classes; segmentation needs at least two")
    if names is None and train[-1] >= len(train):
        gap = next(number for number in range(len(train)) if number not in train)
        raise DataError(
            f"classes of masks must count from 0 without gaps: class {gap} has no train pixels, class {train[-1]} has; "
            f"renumber the classes, write {IGNORED} where pixels do not count, or name all outputs of the network, in "
            "their order, with classes=[...]"
        )
    count = len(train) if names is None else len(names)
    for part, values in parts.items():
        wrong = values[:, count:IGNORED]
        if bool(wrong.any()):
            index = int(wrong.any(1).nonzero()[0])
            source = "the train masks, which have" if names is None else f"the {count} class names that are given,"
            raise DataError(
                f"the {part} mask at index {index} has class {count + int(wrong[index].nonzero()[0])}, which is not "
                f"one of {source} 0 to {count - 1}; {IGNORED} stands for pixels that do not count"
            )
    return tuple(names) if names is not None else tuple(map(str, range(count)))
