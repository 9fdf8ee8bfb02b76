"""A user's Datasets that are streamed: their transforms act, and batches depend on a seed only."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from prune_env.common.device import seeded
from prune_env.data import Augmentation, DataError, DataSplits, Reading, TensorSplit, from_datasets
from prune_env.training.fit import FitConfig, RunOptions, fit

PARTS = ("train", "calibration", "reward", "test")
STREAM = Reading(stream=True, workers=0)
FIXED = v2.Compose([v2.Resize(9), v2.CenterCrop(8), v2.PILToTensor()])
RANDOM = v2.Compose([v2.RandomResizedCrop(8), v2.RandomHorizontalFlip(), v2.PILToTensor()])


class Noisy(Dataset[Any]):
    """Images of noise from one of the global random states, or from the Dataset's own generator."""

    def __init__(self, source: str, count: int = 40) -> None:
        self.source, self.count, self.own = source, count, torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        noise = {
            "torch": lambda: torch.rand(3, 6, 6),
            "numpy": lambda: torch.from_numpy(np.random.rand(3, 6, 6)),  # noqa: NPY002
            "python": lambda: torch.full((3, 6, 6), random.random()),
            "own": lambda: torch.rand(3, 6, 6, generator=self.own),
            "label": lambda: torch.zeros(3, 6, 6),
            "none": lambda: torch.full((3, 6, 6), index / self.count),
        }[self.source]()
        return noise.float(), index % 2 if self.source != "label" else random.randrange(100)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter((torch.rand(3, 6, 6), index % 2) for index in range(40))


@pytest.fixture
def folders(image_folder: Callable[..., Path]) -> Callable[..., list[ImageFolder]]:
    """Return a function that opens train and test of an image folder with a transform each."""
    path = image_folder(train=30, test=6, size=12)

    def make(train: Any = FIXED, test: Any = FIXED) -> list[ImageFolder]:
        return [ImageFolder(str(path / "train"), train), ImageFolder(str(path / "test"), test)]

    return make


def streams(data: DataSplits) -> bool:
    return not any(isinstance(getattr(data, part), TensorSplit) for part in PARTS)


def trained(data: DataSplits, checkpoint: Path | None = None) -> dict[str, list[float]]:
    with seeded("cpu", 0):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        )
    run = RunOptions(progress=False, checkpoint=checkpoint)
    state = fit(model, data, FitConfig(epochs=2, batch_size=8), run=run).state_dict()
    return {name: tensor.tolist() for name, tensor in state.items()}


class TestFixedItems:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_splits_and_training_are_those_in_memory(self, folders: Callable[..., Any], workers: int) -> None:
        kept = from_datasets(*folders())
        streamed = from_datasets(*folders(), reading=Reading(stream=True, workers=workers))
        assert streams(streamed)
        assert not streams(kept)
        assert (kept.mean, kept.std, kept.classes) == (streamed.mean, streamed.std, streamed.classes)
        assert kept.augmentation == streamed.augmentation == Augmentation()
        for part in PARTS:
            one, two = getattr(kept, part), getattr(streamed, part)
            assert torch.equal(one.labels, two.labels)
            assert torch.equal(one.images, two.images)
        assert trained(kept) == trained(streamed)

    def test_labels_are_those_of_the_items(self, folders: Callable[..., Any]) -> None:
        train, test = folders()
        train.target_transform = test.target_transform = lambda label: 1 - label
        for data in (train, Subset(train, range(3, 50))):
            one, two = (from_datasets(data, test, reading=reading) for reading in (None, STREAM))
            assert torch.equal(one.train.labels, two.train.labels)
            assert torch.equal(one.train.images, two.train.images)

    def test_large_ones_are_streamed(self, folders: Callable[..., Any]) -> None:
        assert streams(from_datasets(*folders(), reading=Reading(memory=0)))

    def test_a_data_loader_says_how_to_read(self, folders: Callable[..., Any]) -> None:
        train, test = folders(RANDOM)
        loader = DataLoader(train, batch_size=4, shuffle=True, num_workers=2, prefetch_factor=3)
        split: Any = from_datasets(loader, test).train
        assert (split.reading.workers, split.reading.prefetch) == (2, 3)

    def test_classes_of_the_network(self, folders: Callable[..., Any]) -> None:
        names = ("dog", "fox", "cat")
        one, two = (from_datasets(*folders(), classes=names, reading=reading) for reading in (None, STREAM))
        assert two.test.labels.unique().tolist() == [0, 2]
        assert torch.equal(one.test.images, two.test.images)

    def test_the_fingerprint_follows_files_and_transforms(self, folders: Callable[..., Any]) -> None:
        first = from_datasets(*folders(), reading=STREAM).fingerprint
        assert from_datasets(*folders(), reading=Reading(stream=True, workers=2)).fingerprint == first
        other = v2.Compose([v2.Resize(8), v2.CenterCrop(8), v2.PILToTensor()])
        assert from_datasets(*folders(other, other), reading=STREAM).fingerprint != first
        file = Path(folders()[0].samples[7][0])
        file.write_bytes(file.read_bytes() + b"\0")
        assert from_datasets(*folders(), reading=STREAM).fingerprint != first

    def test_an_item_that_cannot_be_read_is_named(self, folders: Callable[..., Any]) -> None:
        data = from_datasets(*folders(), mean="none", reading=Reading(stream=True, workers=2))
        file = Path(folders()[1].samples[7][0])
        file.write_bytes(b"not an image")
        with pytest.raises(DataError, match=r"^item 7 of the test data"):
            list(data.test.batches(4))

    @pytest.mark.slow
    def test_what_cannot_be_streamed_is_named(self) -> None:
        with pytest.raises(DataError, match="train data"):
            from_datasets(Endless(), Noisy("none"), reading=STREAM)
        with pytest.raises(DataError, match="test split"):
            from_datasets(Noisy("none"), Noisy("none", 0), reading=STREAM)


class TestRandomItems:
    @pytest.mark.usefixtures("untouched_rngs")
    @pytest.mark.parametrize("source", ["torch", "numpy", "python"])
    def test_a_seed_determines_them(self, source: str) -> None:
        data = from_datasets(Noisy(source), Noisy("none"), reward=Noisy("none"))
        rows = torch.tensor([5, 2, 2])
        first = data.train.batch(rows, 7)
        assert torch.equal(first, data.train.batch(rows, 7))
        assert torch.equal(first[1], first[2])
        assert torch.equal(data.train.batch(rows[1:], 7), first[1:])
        assert not torch.equal(first, data.train.batch(rows, 8))

    @pytest.mark.usefixtures("untouched_rngs")
    def test_training_does_not_depend_on_workers_or_interruptions(
        self, folders: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = (from_datasets(*folders(RANDOM), reading=Reading(workers=workers)) for workers in (0, 2))
        expected = trained(one)
        assert trained(two) == expected
        file = tmp_path / "run.pt"
        replace = os.replace

        def replace_and_interrupt(*arguments: str) -> None:
            replace(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_and_interrupt)
            with pytest.raises(KeyboardInterrupt):
                trained(two, file)
        assert trained(two, file) == expected

    def test_the_reward_split_has_the_transforms_of_the_test_data(self, folders: Callable[..., Any]) -> None:
        plain = from_datasets(*folders())
        for train in (folders(RANDOM)[0], Subset(folders(RANDOM)[0], range(60))):
            data = from_datasets(train, folders()[1])
            assert streams(data)
            assert torch.equal(data.reward.images, plain.reward.images)
            assert torch.equal(data.test.images, plain.test.images)
            assert torch.equal(data.train.labels, plain.train.labels)
            assert not torch.equal(data.train.batch(torch.arange(9)), plain.train.batch(torch.arange(9)))
        assert data.augmentation == Augmentation(pad=0, flip=False)

    def test_random_ones_that_cannot_be_used_are_named(self, folders: Callable[..., Any]) -> None:
        train, test = folders(RANDOM, RANDOM)
        fixed = folders()[1]
        with pytest.raises(DataError, match="test data"):
            from_datasets(train, test)
        with pytest.raises(DataError, match="reward data"):
            from_datasets(train, fixed, reward=test)
        with pytest.raises(DataError, match="reward="):
            from_datasets(Noisy("torch"), Noisy("none"))
        with pytest.raises(DataError, match="train data"):
            from_datasets(train, fixed, reading=Reading(stream=False))
        with pytest.raises(DataError, match="train data"):
            from_datasets(Noisy("own"), Noisy("none"), reading=STREAM)
        with pytest.raises(DataError, match=r"train data .*label"):
            from_datasets(Noisy("label"), Noisy("none"), reading=STREAM)
