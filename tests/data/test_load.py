"""Making the four splits: from a source, from tensors, and from torch Datasets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from prune_env import data
from prune_env.data import (
    Augmentation,
    DataError,
    DataSplits,
    TensorSplit,
    as_splits,
    check_data,
    from_datasets,
    from_folder,
    from_tensors,
    make_splits,
    sources,
)
from prune_env.data.sources import Source

PARTS = ("train", "calibration", "reward", "test")


def pixels(count: int, seed: int = 0, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 6, 5), generator=generator, dtype=torch.uint8)


def labelled(count: int = 60, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return pixels(count, seed), torch.arange(count) % classes


def floats(count: int, outputs: int | None, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (count,) if outputs is None else (count, outputs)
    return torch.randn(count, 3, 6, 5, generator=generator), torch.rand(shape, generator=generator)


def same(one: DataSplits, two: DataSplits) -> bool:
    return all(
        torch.equal(getattr(getattr(one, part), name), getattr(getattr(two, part), name))
        for part in PARTS
        for name in ("images", "labels")
    )


class Pairs(Dataset[Any]):
    """A map-style Dataset of any items."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(IterableDataset[Any]):
    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(*self.tensors, strict=True))


class TestSources:
    @settings(max_examples=30, deadline=None)
    @given(counts=st.lists(st.integers(2, 60), min_size=2, max_size=5), seed=st.integers(0, 99))
    def test_any_source_is_split_disjointly(self, counts: list[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
        images = torch.randint(0, 256, (len(labels), 3, 6, 6), generator=generator, dtype=torch.uint8)
        images[:, 0, 0, 0] = torch.arange(len(labels)) % 256  # makes all images different
        images[:, 0, 0, 1] = torch.arange(len(labels)) // 256
        names = tuple(f"class{label}" for label in range(len(counts)))
        splits = make_splits(Source("made", names, TensorSplit(images, labels), TensorSplit(images[:2], labels[:2])))
        train, calibration, reward = (
            {image.numpy().tobytes() for image in split.images}
            for split in (splits.train, splits.calibration, splits.reward)
        )
        assert len(train) + len(reward) == len(labels)
        assert not train & reward
        assert calibration <= train
        for label, count in enumerate(counts):
            held_out = splits.reward.images[splits.reward.labels == label]
            assert torch.equal(held_out, images[labels == label][-max(1, count // 10) :])

    def test_numbers_of_images_can_be_given(self) -> None:
        train, test = TensorSplit(*labelled()), TensorSplit(*labelled(3))
        source = Source("made", ("a", "b", "c"), sources.sort_by_class(train), test)
        splits = make_splits(source, reward=5, calibration=4)
        assert torch.bincount(splits.reward.labels).tolist() == [5] * 3
        assert torch.bincount(splits.train.labels).tolist() == [15] * 3
        assert torch.bincount(splits.calibration.labels).tolist() == [4] * 3

    def test_constant_images_have_no_normalisation(self) -> None:
        images, labels = torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8) // 4
        source = Source("flat", ("a", "b"), TensorSplit(images, labels), TensorSplit(images, labels))
        with pytest.raises(DataError, match="channel 0"):
            make_splits(source)
        assert make_splits(source, normalisation=((0.5,), (0.2,))).std == (0.2,)


class TestNames:
    def test_splits_are_returned_and_names_are_loaded(self, digits: DataSplits) -> None:
        assert as_splits(digits) is digits
        assert as_splits("digits").fingerprint == digits.fingerprint

    def test_other_types_are_refused(self, digits: DataSplits) -> None:
        check_data(digits)
        for check in (check_data, as_splits):
            with pytest.raises(TypeError, match="Tensor"):
                check(digits.train.images)  # type: ignore[operator]


class TestTensors:
    def test_splits_are_those_of_the_same_source(self) -> None:
        source = sources.digits()
        generator = torch.Generator().manual_seed(0)
        labels = source.train.labels[torch.randperm(len(source.train), generator=generator)]
        mixed = torch.empty_like(labels)  # rows with the classes in random order, and each class in its own order
        for label in range(10):
            mixed[labels == label] = (source.train.labels == label).nonzero()[:, 0]
        splits = from_tensors(
            source.train.images[mixed], source.train.labels[mixed], source.test.images, source.test.labels
        )
        expected = make_splits(source)
        assert same(splits, expected)
        assert splits.mean == expected.mean
        assert splits.fingerprint == expected.fingerprint
        assert splits.classes == tuple("0123456789")

    def test_images_of_one_class_keep_their_order(self) -> None:
        images, labels = labelled()
        splits = from_tensors(images, labels, images, labels)
        for label in range(3):
            mine = images[labels == label]
            assert torch.equal(splits.reward.images[splits.reward.labels == label], mine[-2:])
            assert torch.equal(splits.train.images[splits.train.labels == label], mine[:-2])

    def test_given_splits_are_used_completely(self) -> None:
        images, labels = labelled()
        reward, calibration = labelled(9, seed=1), labelled(12, seed=2)
        splits = from_tensors(images, labels, *labelled(6, seed=3), reward=reward, calibration=calibration)
        assert len(splits.train) == 60
        assert len(splits.reward) == 9
        assert len(splits.calibration) == 12
        assert torch.equal(splits.reward.images[splits.reward.labels == 1], reward[0][reward[1] == 1])
        only = from_tensors(images, labels, images, labels, calibration=calibration)
        assert (len(only.train), len(only.reward)) == (54, 6)

    def test_normalisation(self) -> None:
        images, labels = labelled()
        own = from_tensors(images, labels, images, labels, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))
        assert (own.mean, own.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.4))
        value = own.normalise(images)[0, 2, 1, 1]
        assert float(value) == pytest.approx((int(images[0, 2, 1, 1]) / 255 - 0.3) / 0.4, abs=1e-6)

    def test_floating_point_images_are_the_networks_input(self) -> None:
        images, _ = floats(60, None)
        images *= 1000  # far outside the range of uint8
        splits = from_tensors(images.double(), torch.arange(60) % 3, images[:6].double(), torch.arange(6) % 3)
        assert splits.train.images.dtype == torch.float32
        assert (splits.mean, splits.std) == ((0.0,) * 3, (1.0,) * 3)
        assert torch.equal(splits.example_input, splits.train.images[:2])
        assert splits.image_shape == (3, 6, 5)
        assert splits.augmentation == Augmentation(pad=0, flip=False)
        batch = splits.train.images[:8]
        assert torch.equal(splits.augmented(batch, torch.Generator().manual_seed(0)), batch)
        shifted = from_tensors(images, torch.arange(60) % 3, images, torch.arange(60) % 3, mean=[1] * 3, std=[2] * 3)
        assert torch.allclose(shifted.normalise(batch), (batch - 1) / 2)

    @pytest.mark.parametrize("outputs", [None, 4])
    def test_targets_without_classes(self, outputs: int | None) -> None:
        images, labels = floats(400, outputs)
        splits = from_tensors(images, labels.double(), images[:5], labels[:5].double())
        assert splits.classes == ()
        assert torch.equal(splits.reward.images, images[-40:])
        assert torch.equal(splits.train.labels, labels[:-40])
        assert splits.train.labels.dtype == torch.float32
        spaced = torch.arange(200) * 360 // 200
        assert torch.equal(splits.calibration.labels, labels[spaced])

    def test_arrays_lists_and_other_integers_are_converted(self) -> None:
        images, labels = labelled()
        splits = from_tensors(images.numpy(), labels.tolist(), images, labels.to(torch.uint8), classes=list("abc"))  # type: ignore[arg-type]
        assert splits.classes == ("a", "b", "c")
        assert same(splits, from_tensors(images, labels, images, labels))

    @pytest.mark.usefixtures("untouched_rngs")
    def test_the_users_tensors_are_not_changed(self) -> None:
        images, labels = labelled()
        before = images.clone(), labels.clone()
        splits = from_tensors(images, labels, images, labels)
        splits.augmented(splits.train.images, torch.Generator().manual_seed(0))
        assert torch.equal(images, before[0])
        assert torch.equal(labels, before[1])

    def test_options(self) -> None:
        images, labels = labelled()
        shift = Augmentation(pad=1, flip=False)
        splits = from_tensors(images, labels, images, labels, name="mine", augmentation=shift, classes=("x", "y", "z"))
        assert (splits.name, splits.augmentation, splits.classes) == ("mine", shift, ("x", "y", "z"))
        assert from_tensors(images, labels, images, labels).name == "tensors"

    def test_unknown_options_are_named(self) -> None:
        images, labels = labelled()
        with pytest.raises(TypeError, match=r"'means'.*'mean'"):
            from_tensors(images, labels, images, labels, means=(0.5,) * 3)
        with pytest.raises(TypeError, match="'normalise'"):
            from_datasets(TensorDataset(images, labels), TensorDataset(images, labels), normalise=True)


class TestDatasets:
    def test_parts_with_other_classes_are_refused(self) -> None:
        """Of two image folders one lacks a class, so the same label numbers mean other classes."""
        items = [(pixels(1)[0], label) for label in (0, 1) for _ in range(30)]
        train, test_set = Pairs(items), Pairs(items)
        train.classes, test_set.classes = ["cat", "dog"], ["cat", "bird"]  # type: ignore[attr-defined]
        with pytest.raises(DataError, match=r"test.*'bird'.*train.*'dog'"):
            from_datasets(train, test_set)
        with pytest.raises(DataError, match=r"reward.*'bird'.*train.*'dog'"):
            from_datasets(train, train, reward=test_set)

    def test_every_form_gives_the_same_splits(self) -> None:
        images, labels = labelled()
        test = labelled(6, seed=1)
        expected = from_tensors(images, labels, *test)
        train_set, test_set = TensorDataset(images, labels), TensorDataset(*test)
        for train in (
            train_set,
            Pairs([(image, int(label)) for image, label in zip(images, labels, strict=True)]),
            DataLoader(train_set, batch_size=7, shuffle=True, drop_last=True),
            DataLoader(Stream(images, labels), batch_size=7),
            DataLoader(Stream(images, labels), batch_size=None),
            Stream(images, labels),
        ):
            splits = from_datasets(train, test_set)
            assert same(splits, expected)
            assert splits.fingerprint == expected.fingerprint

    def test_a_loader_of_a_part_gives_that_part(self) -> None:
        """Training and validation often share a Dataset and differ in their samplers."""
        images, labels = labelled(90)
        dataset = TensorDataset(images, labels)
        train = DataLoader(dataset, sampler=SubsetRandomSampler(range(59, -1, -1)))
        reward = DataLoader(dataset, sampler=SubsetRandomSampler(torch.arange(60, 90)))  # type: ignore[arg-type]
        splits = from_datasets(train, dataset, reward=reward, calibration=Subset(dataset, range(30)))
        assert same(
            splits,
            from_tensors(
                images[:60],
                labels[:60],
                images,
                labels,
                reward=(images[60:], labels[60:]),
                calibration=(images[:30], labels[:30]),
            ),
        )

    def test_pil_images_become_tensors(self) -> None:
        from PIL import Image

        images, labels = labelled()
        colour = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        grey = [image.convert("L") for image in colour]
        splits = from_datasets(*[Pairs(list(zip(colour, labels.tolist(), strict=True)))] * 2)
        assert same(splits, from_tensors(images, labels, images, labels))
        splits = from_datasets(*[Pairs(list(zip(grey, labels.tolist(), strict=True)))] * 2)
        assert splits.image_shape == (1, 6, 5)
        assert torch.equal(splits.train.images[0, 0], torch.from_numpy(np.array(grey[0])))

    def test_a_torchvision_folder_has_the_splits_of_our_folder(self, image_folder: Callable[..., Path]) -> None:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        path = image_folder(train=24)
        train, test = (ImageFolder(str(path / part), v2.PILToTensor()) for part in ("train", "test"))
        splits = from_datasets(train, test)
        assert splits.classes == ("cat", "dog")
        assert splits.fingerprint == from_folder(path).fingerprint == data.load(path).fingerprint
        assert from_folder(str(path), augmentation=Augmentation(0, False)).augmentation == Augmentation(0, False)

    def test_class_names_are_those_of_the_dataset_where_they_fit(self) -> None:
        images, labels = labelled()
        dataset = TensorDataset(images, labels)
        dataset.classes = ["x", "y", "z"]
        assert from_datasets(DataLoader(Subset(dataset, range(30))), dataset).classes == ("x", "y", "z")
        assert from_datasets(dataset, dataset, classes=("a", "b", "c")).classes == ("a", "b", "c")
        dataset.classes = ["x", "y"]
        assert from_datasets(dataset, dataset).classes == ("0", "1", "2")

    def test_targets_of_items(self) -> None:
        images, labels = floats(40, 3)
        dataset = Pairs([(image, label.tolist()) for image, label in zip(images, labels, strict=True)])
        splits = from_datasets(dataset, dataset, name="own")
        assert same(splits, from_tensors(images, labels, images, labels))
        assert splits.name == "own"
        assert from_datasets(dataset, dataset).name == "pairs"


class TestBadSettings:
    IMAGES, LABELS = labelled()
    FLOATS = IMAGES.float()

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"mean": (0.5,), "std": (0.2,)}, "mean=(0.5,)"),
            ({"mean": (0.5,) * 3, "std": (0.2, 0.0, 0.2)}, "std=(0.2, 0.0, 0.2)"),
            ({"mean": (0.5,) * 3}, "std=None"),
            ({"std": (0.5,) * 3}, "mean=None"),
            ({"classes": ("a", "b")}, "2 class names"),
        ],
    )
    def test_normalisation_and_class_names(self, options: dict[str, Any], named: str) -> None:
        with pytest.raises(DataError, match=re.escape(named)):
            from_tensors(self.IMAGES, self.LABELS, self.IMAGES, self.LABELS, **options)

    def test_a_mean_that_is_not_finite(self) -> None:
        with pytest.raises(ValueError, match=r"mean .*nan"):
            from_tensors(self.IMAGES, self.LABELS, self.IMAGES, self.LABELS, mean=(float("nan"),) * 3, std=(0.2,) * 3)

    def test_class_names_for_targets(self) -> None:
        targets = self.LABELS.float()
        with pytest.raises(DataError, match="2 classes"):
            from_tensors(self.FLOATS, targets, self.FLOATS, targets, classes=("a", "b"))

    def test_too_few_images_for_a_reward_split(self) -> None:
        with pytest.raises(DataError, match="'tensors' has 1 "):
            from_tensors(self.FLOATS[:1], self.LABELS[:1].float(), self.FLOATS, self.LABELS.float())
        with pytest.raises(DataError, match="class '0' of 'tensors' has 1 "):
            from_tensors(self.IMAGES[:2], self.LABELS[:2], self.IMAGES[:2], self.LABELS[:2])


def test_a_split_has_the_number_of_its_labels() -> None:
    assert len(TensorSplit(*labelled(7))) == 7
