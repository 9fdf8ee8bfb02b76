"""Folders of large images, made from small ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import trange

from prune_env.data import DataSplits

NOISE = 6
"""Largest change of a pixel that makes enlarged images different."""


def write_images(data: DataSplits, path: Path, count: int, size: int) -> None:
    """Write a folder of `count` training images and a tenth as many test images, all different.

    Args:
        data: The images that are enlarged; they are used several times if there are too few.
        path: The folder.
        count: Number of training images.
        size: Height and width in pixels.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, split, wanted in (("train", data.train, count), ("test", data.test, max(1, count // 10))):
        ranks = np.concatenate([np.arange(images) for images in np.bincount(split.labels.numpy())])
        order = np.argsort(ranks, kind="stable")  # the classes in turn, as splits are sorted by class
        for name in data.classes:
            (path / part / name).mkdir(parents=True)
        for number in trange(wanted, desc=f"writing {part}", mininterval=5):
            row = int(order[number % len(order)])
            image = F.interpolate(split.batch(torch.tensor([row])).float(), size, mode="bilinear")[0]  # [C, H, W]
            pixels = np.broadcast_to(image.permute(1, 2, 0).numpy(), (size, size, 3))
            noisy = (pixels + rng.integers(-NOISE, NOISE + 1, (size, size, 3))).clip(0, 255).astype(np.uint8)
            label = data.classes[int(split.labels[row])]
            Image.fromarray(noisy).save(path / part / label / f"{number:07d}.jpg", quality=90)
