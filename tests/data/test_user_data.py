"""Data of one's own: tensors, data sets, loaders, folders, and one clear error for everything that does not fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from prune_env import data
from prune_env.data import Augmentation, DataError, DataSplits, from_datasets, from_folder, from_tensors, sources

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
    """A map-style data set of any items."""

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


class TestTensors:
    def test_the_splits_are_those_of_the_same_source(self, digits: DataSplits) -> None:
        source = sources.digits()
        generator = torch.Generator().manual_seed(0)
        labels = source.train_labels[torch.randperm(len(source.train_labels), generator=generator)]
        mixed = torch.empty_like(labels)  # rows: classes in random order, each class in its own
        for label in range(10):
            mixed[labels == label] = (source.train_labels == label).nonzero()[:, 0]
        splits = from_tensors(
            source.train_images[mixed], source.train_labels[mixed], source.test_images, source.test_labels
        )
        expected = data.split(source)
        assert same(splits, expected)
        assert splits.mean == expected.mean
        assert splits.fingerprint == expected.fingerprint
        assert splits.classes == tuple("0123456789")

    def test_classes_in_any_order_keep_their_own_order(self) -> None:
        images, labels = labelled()
        splits = from_tensors(images, labels, images, labels)
        for label in range(3):
            mine = images[labels == label]
            assert torch.equal(splits.reward.images[splits.reward.labels == label], mine[-2:])
            assert torch.equal(splits.train.images[splits.train.labels == label], mine[:-2])

    def test_given_splits_are_taken_as_they_are(self) -> None:
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
        images *= 1000  # far outside of what uint8 holds
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

    def test_floating_point_images_are_augmented_with_the_fill(self) -> None:
        images, labels = floats(20, None)
        splits = from_tensors(images, labels, images, labels, augmentation=Augmentation(pad=6, flip=False, fill=-7.0))
        result = splits.augmented(images, torch.Generator().manual_seed(0))
        assert result.shape == images.shape
        kept = torch.isin(result, images)
        assert bool((result[~kept] == -7.0).all())
        assert bool((~kept).any())
        assert bool(kept.any())

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
        few = splits.train.balanced(3)
        assert torch.equal(few.images, images[[0, 120, 240]])
        assert splits.train.balanced(360) is splits.train

    @pytest.mark.parametrize("what", ["images", "labels", "fill"])
    def test_the_digest_tells_data_apart(self, what: str) -> None:
        images, labels = floats(30, 2)
        first = from_tensors(images, labels, images, labels)
        assert first.fingerprint == from_tensors(images.clone(), labels.clone(), images, labels).fingerprint
        other_images, other_labels, augmentation = images.clone(), labels.clone(), None
        if what == "images":
            other_images[3, 0, 0, 0] += 1e-3
        elif what == "labels":
            other_labels[3, 1] += 1e-3
        else:
            augmentation = Augmentation(pad=0, flip=False, fill=0.5)
        other = from_tensors(other_images, other_labels, images, labels, augmentation=augmentation)
        assert other.fingerprint != first.fingerprint

    def test_the_digest_of_integer_images_knows_the_fill(self) -> None:
        images, labels = labelled()
        one, two = (
            from_tensors(images, labels, images, labels, augmentation=Augmentation(fill=fill)) for fill in (0.0, 9.0)
        )
        assert one.fingerprint != two.fingerprint

    def test_arrays_lists_and_shared_storage_are_taken(self) -> None:
        images, labels = labelled()
        splits = from_tensors(images.numpy(), labels.tolist(), images, labels.to(torch.uint8), classes=list("abc"))  # type: ignore[arg-type]
        assert splits.classes == ("a", "b", "c")
        assert same(splits, from_tensors(images, labels, images, labels))

    @pytest.mark.usefixtures("untouched_rngs")
    def test_the_users_tensors_stay(self) -> None:
        images, labels = labelled()
        before = images.clone(), labels.clone()
        splits = from_tensors(images, labels, images, labels)
        splits.augmented(splits.train.images, torch.Generator().manual_seed(0))
        assert torch.equal(images, before[0])
        assert torch.equal(labels, before[1])
        with pytest.raises(dataclasses.FrozenInstanceError):
            splits.name = "other"  # type: ignore[misc]


class TestDatasets:
    def test_parts_with_other_classes_are_refused(self) -> None:
        """Two image folders, one of which lacks a class: its label numbers mean other classes."""
        items = [(pixels(1)[0], label) for label in (0, 1) for _ in range(30)]
        train, test_set = Pairs(items), Pairs(items)
        train.classes, test_set.classes = ["cat", "dog"], ["cat", "bird"]  # type: ignore[attr-defined]
        with pytest.raises(DataError, match=r"the test data have classes .*'bird'.*, the train data .*'dog'"):
            from_datasets(train, test_set)
        with pytest.raises(DataError, match="the reward data have classes"):
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
        """Training and validation often share a data set, told apart by samplers."""
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

    def test_a_torchvision_folder_is_our_folder(self, image_folder: Callable[..., Path]) -> None:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        path = image_folder(train=24)
        train, test = (ImageFolder(str(path / part), v2.PILToTensor()) for part in ("train", "test"))
        splits = from_datasets(train, test)
        assert splits.classes == ("cat", "dog")
        assert splits.fingerprint == from_folder(path).fingerprint == data.load(path).fingerprint
        assert from_folder(str(path), augmentation=Augmentation(0, False)).augmentation == Augmentation(0, False)

    def test_class_names_come_from_the_data_set_where_they_fit(self) -> None:
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


IMAGES, LABELS = labelled()
FLOATS = IMAGES.float()
broken = FLOATS.clone()
broken[41, 1, 2, 2] = float("nan")
endless = FLOATS.clone()
endless[7, 0, 0, 0] = float("inf")


class TestBadTensors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"train_labels": LABELS[:-1]}, "the train split has 60 images and 59 labels"),
            ({"test_labels": LABELS[:-1]}, "the test split has 60 images and 59 labels"),
            ({"train_images": IMAGES[:, 0]}, r"train images have shape \(60, 6, 5\); .*images\[:, None\]"),
            ({"test_images": IMAGES[None]}, r"test images have shape .*expected \[N, C, H, W\]"),
            ({"train_images": IMAGES[:, :, :0]}, r"train images have shape"),
            ({"train_images": broken}, "train images hold NaN or infinity, first at index 41"),
            ({"test_images": endless}, "test images hold NaN or infinity, first at index 7"),
            ({"train_images": IMAGES.int()}, r"train images are torch.int32; convert them to uint8 .* or to float32"),
            ({"train_images": IMAGES.bool()}, r"train images are torch.bool; convert"),
            ({"train_images": "photos"}, "train images are a str"),
            ({"train_images": IMAGES[:0], "train_labels": LABELS[:0]}, "the train split is empty"),
            ({"test_images": IMAGES[:0], "test_labels": LABELS[:0]}, "the test split is empty"),
            ({"train_labels": LABELS - 1}, "train label -1 at index 0 is negative"),
            ({"train_labels": LABELS * 2}, "class 1 has no train images, class 4 has"),
            ({"train_labels": LABELS + 1}, "class 0 has no train images, class 3 has"),
            ({"train_labels": LABELS * 0}, "one class"),
            ({"test_labels": LABELS + 1}, "test label 3 at index 2 is no class of the train split, which has 0 to 2"),
            ({"test_labels": LABELS - 1}, "test label -1 at index 0 is no class"),
            ({"train_labels": LABELS.bool()}, "train labels are torch.bool; convert"),
            ({"train_labels": LABELS[:, None]}, r"train labels have shape \(60, 1\)"),
            ({"train_labels": FLOATS[:, :, 0]}, r"train labels have shape \(60, 3, 5\)"),
            ({"train_labels": broken[:, 1, 2, 2]}, "train labels hold NaN or infinity, first at index 41"),
            ({"train_labels": broken[:, 1, 2]}, "train labels hold NaN or infinity, first at index 41"),
            ({"train_labels": ["cat"] * 60}, "train labels are a list"),
            ({"test_labels": LABELS.float()}, "test labels is of .*float32, one of the train labels of .*int64"),
            ({"test_images": FLOATS}, "test images is of .*float32, one of the train images of .*uint8"),
            ({"test_images": IMAGES[..., :4]}, r"test images is of shape \(3, 6, 4\)"),
            ({"reward": (IMAGES[:, :1], LABELS)}, r"reward images is of shape \(1, 6, 5\)"),
            ({"reward": (IMAGES, LABELS + 1)}, "reward label 3 at index 2"),
            ({"calibration": (IMAGES[:0], LABELS[:0])}, "the calibration split is empty"),
            ({"calibration": IMAGES}, r"the calibration split is a Tensor; expected a pair"),
            ({"reward": (IMAGES, LABELS, LABELS)}, r"the reward split is a tuple of 3; expected a pair"),
            ({"mean": (0.5,), "std": (0.2,)}, "needs 3 finite means"),
            ({"mean": (0.5,) * 3, "std": (0.2, 0.0, 0.2)}, "positive standard deviations"),
            ({"mean": (float("nan"),) * 3, "std": (0.2,) * 3}, "needs 3 finite means"),
            ({"mean": (0.5,) * 3}, "mean and std belong together"),
            ({"classes": ("a", "b")}, "2 class names are given for 3 classes"),
        ],
    )
    def test_it_is_named(self, changes: dict[str, Any], message: str) -> None:
        arguments = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES, "test_labels": LABELS}
        from_tensors(**arguments)
        with pytest.raises(DataError, match=message):
            from_tensors(**(arguments | changes))

    def test_names_without_classes(self) -> None:
        with pytest.raises(DataError, match="2 classes are named"):
            from_tensors(FLOATS, LABELS.float(), FLOATS, LABELS.float(), classes=("a", "b"))

    def test_too_few_for_a_reward_split(self) -> None:
        with pytest.raises(DataError, match="data 'tensors' has 1 training images; at least 2"):
            from_tensors(FLOATS[:1], LABELS[:1].float(), FLOATS, LABELS.float())
        with pytest.raises(DataError, match="class '0' of 'tensors' has 1 training images"):
            from_tensors(IMAGES[:2], LABELS[:2], IMAGES[:2], LABELS[:2])


class TestBadDatasets:
    GOOD = TensorDataset(IMAGES, LABELS)

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            ({"image": IMAGES[0], "label": 0}, "item 5 of the train data is a dict; expected a pair"),
            (IMAGES[0], "item 5 of the train data is a Tensor; expected a pair"),
            ((IMAGES[0], 0, 5), "item 5 of the train data is a tuple of 3; expected a pair"),
            ((IMAGES[0, :, :4], 0), r"item 5 .* image of shape \(3, 4, 5\) .* item 0 .* shape \(3, 6, 5\)"),
            ((FLOATS[0], 0), r"item 5 .* torch.float32, item 0 .* torch.uint8"),
            ((IMAGES[0, 0], 0), r"item 5 .* image of shape \(6, 5\); expected \[C, H, W\]"),
            ((IMAGES[0].numpy(), 0), "item 5 of the train data has a ndarray as image"),
            ((IMAGES[0], "cat"), "item 5 of the train data has the label 'cat'"),
            ((IMAGES[0], 0.5), r"item 5 .* label of .*float32, item 0 .*int64"),
            ((IMAGES[0], [0, 1]), r"item 5 .* label of shape \(2,\)"),
        ],
    )
    def test_the_item_is_named(self, item: Any, message: str) -> None:
        items: list[Any] = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
        items[5] = item
        with pytest.raises(DataError, match=message):
            from_datasets(Pairs(items), self.GOOD)

    def test_deep_pil_images(self) -> None:
        from PIL import Image

        with pytest.raises(DataError, match=r"item 0 of the test data is a PIL image of mode 'I;16'"):
            from_datasets(self.GOOD, Pairs([(Image.new("I;16", (5, 6)), 0)]))

    def test_an_item_that_cannot_be_read(self) -> None:
        class Torn(Pairs):
            def __getitem__(self, index: int) -> Any:
                if index == 3:
                    raise OSError("file is truncated")
                return super().__getitem__(index)

        with pytest.raises(DataError, match="item 3 of the reward data cannot be read: OSError: file is truncated"):
            from_datasets(self.GOOD, self.GOOD, reward=Torn([(IMAGES[0], 0)] * 5))

    def test_nothing_in_it(self) -> None:
        with pytest.raises(DataError, match="the test split is empty"):
            from_datasets(self.GOOD, Pairs([]))

    def test_no_data_set(self) -> None:
        with pytest.raises(DataError, match="train data are a int; expected a Dataset or a DataLoader"):
            from_datasets(3, self.GOOD)

    @pytest.mark.parametrize(
        "loader",
        [
            DataLoader(GOOD, sampler=WeightedRandomSampler([1.0] * 60, 60)),
            DataLoader(GOOD, batch_sampler=[[0, 1], [2, 3]]),
        ],
    )
    def test_a_sampler_that_does_not_say_what_is_meant(self, loader: DataLoader[Any]) -> None:
        with pytest.raises(DataError, match=re.escape("the train DataLoader draws with a sampler of its own")):
            from_datasets(loader, self.GOOD)

    def test_torn_batches(self) -> None:
        loader = DataLoader(Stream(IMAGES, LABELS), batch_size=8, collate_fn=lambda items: (IMAGES[:8], LABELS[:7]))
        with pytest.raises(DataError, match="batch 0 of the train data has 8 images and 7 labels"):
            from_datasets(loader, self.GOOD)
