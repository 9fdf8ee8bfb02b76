"""Data augmentation: random crops and flips of whole batches.

Letters: B images in a batch, C channels, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from ..common.settings import Settings, Whole
from .masks import IGNORED

Part = tuple[int, slice]
"""Size of a batch, and the part of it that a process trains on."""


@dataclass(frozen=True)
class Augmentation(Settings):
    """Random crop of the padded image, and a horizontal flip of half of the images."""

    pad: Whole = 4
    """Pixels of padding on each side before the crop."""
    flip: bool = True
    """Whether to flip images."""
    # Not in the repr, from which data fingerprints are made, so that existing fingerprints stay valid.
    fill: float = field(default=0.0, repr=False)
    """Value of the padding: 0 is black for uint8 images, and the mean for normalised images."""

    def __call__(
        self,
        images: torch.Tensor,
        generator: torch.Generator,
        flipped: torch.Tensor | None = None,
        part: Part | None = None,
    ) -> torch.Tensor:
        """Augment a batch.

        Args:
            images: Images [B, C, H, W], not normalised.
            generator: Source of the random numbers.
            flipped: bool [B], which images to flip if `flip` is set; random by default.
            part: Size of a larger batch, and which part of it the images are: random numbers are drawn for all of it.

        Returns:
            Images of the same shape and type, in channels_last memory.
        """
        return _crops(images, *self._positions(images, generator, flipped, part), self.pad, self.fill)

    def with_masks(
        self,
        images: torch.Tensor,
        masks: torch.Tensor,
        generator: torch.Generator,
        flipped: torch.Tensor | None = None,
        part: Part | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment a batch together with the class of every pixel.

        Args:
            images: Images [B, C, H, W], not normalised.
            masks: uint8 [B, H, W]; where the padding comes in, pixels do not count (255). If nothing moves, masks may
                have another size than the images.
            generator: Source of the random numbers.
            flipped: bool [B], which images to flip if `flip` is set; random by default.
            part: As for `__call__`.

        Returns:
            Images as `__call__` returns them, and their masks uint8 [B, H, W].
        """
        positions = self._positions(images, generator, flipped, part)
        if self.moves:
            masks = _crops(masks[:, None], *positions, self.pad, IGNORED)[:, 0]
        return _crops(images, *positions, self.pad, self.fill), masks

    @property
    def moves(self) -> bool:
        """Whether it does anything."""
        return self.flip or self.pad > 0

    def _positions(
        self, images: torch.Tensor, generator: torch.Generator, flipped: torch.Tensor | None, part: Part | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the rows [B, H] and the columns [B, W] of the padded images that become those of the result."""
        batch, _, height, width = images.shape
        device, shifts = images.device, 2 * self.pad + 1
        size, own = part or (batch, slice(None))
        rows, columns = torch.randint(shifts, (2, size, 1), generator=generator)[:, own].to(device)  # [B, 1] each
        rows = rows + torch.arange(height, device=device)  # [B, H]
        across = torch.arange(width, device=device).expand(batch, width)
        if self.flip:
            if flipped is None:
                flipped = torch.rand(size, generator=generator)[own] < 0.5
            across = torch.where(flipped.to(device)[:, None], across.flip(1), across)
        return rows, columns + across


def _crops(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, pad: int, fill: float) -> torch.Tensor:
    """Pad images [B, C, H, W], and return the pixels at some rows [B, H] and columns [B, W]."""
    padded = F.pad(images, (pad,) * 4, value=fill)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
