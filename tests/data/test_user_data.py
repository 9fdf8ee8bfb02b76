"""Images and labels that cannot be used: every error names the split and the index."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from prune_env.data import Augmentation, DataError, from_datasets, from_tensors

IMAGES = torch.randint(0, 256, (60, 3, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(60) % 3
FLOATS = IMAGES.float()
WITH_NAN = FLOATS.clone()
WITH_NAN[41, 1, 2, 2] = float("nan")
WITH_INFINITY = FLOATS.clone()
WITH_INFINITY[7, 0, 0, 0] = float("inf")


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


class TestTensors:
    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"train_labels": LABELS[:-1]}, "train split .*60 .* 59 "),
            ({"test_labels": LABELS[:-1]}, "test split .*60 .* 59 "),
            ({"train_images": IMAGES[:, 0]}, r"train images .*\(60, 6, 5\).*images\[:, None\]"),
            ({"test_images": IMAGES[None]}, r"test images .*\(1, 60, 3, 6, 5\)"),
            ({"train_images": IMAGES[:, :, :0]}, r"train images .*\(60, 3, 0, 5\)"),
            ({"train_images": WITH_NAN}, "train images .*index 41"),
            ({"test_images": WITH_INFINITY}, "test images .*index 7"),
            ({"train_images": IMAGES.int()}, r"train images .*torch.int32"),
            ({"train_images": IMAGES.bool()}, r"train images .*torch.bool"),
            ({"train_images": "photos"}, "train images .*str"),
            ({"train_images": IMAGES[:0], "train_labels": LABELS[:0]}, "train split"),
            ({"test_images": IMAGES[:0], "test_labels": LABELS[:0]}, "test split"),
            ({"train_labels": LABELS - 1}, "train label -1 at index 0"),
            ({"train_labels": LABELS * 2}, "class 1 .*class 4"),
            ({"train_labels": LABELS + 1}, "class 0 .*class 3"),
            ({"train_labels": LABELS * 0}, "train split"),
            ({"test_labels": LABELS + 1}, "test label 3 at index 2 .* 0 to 2"),
            ({"test_labels": LABELS - 1}, "test label -1 at index 0"),
            ({"train_labels": LABELS.bool()}, "train labels .*torch.bool"),
            ({"train_labels": LABELS[:, None]}, r"train labels .*\(60, 1\)"),
            ({"train_labels": LABELS.expand(3, -1).T}, r"train labels .*\(60, 3\)"),
            ({"train_labels": FLOATS[..., :0]}, r"train labels .*\(60, 3, 6, 0\)"),
            ({"train_labels": WITH_NAN[:, 1, 2, 2]}, "train labels .*index 41"),
            ({"train_labels": WITH_NAN[:, 1, 2]}, "train labels .*index 41"),
            ({"train_labels": ["cat"] * 60}, "train labels .*list"),
            ({"test_labels": LABELS.float()}, "test labels .*float32.*train labels .*int64"),
            ({"test_images": FLOATS}, "test images .*float32.*train images .*uint8"),
            ({"test_images": IMAGES[..., :4]}, r"test images .*\(3, 6, 4\)"),
            ({"reward": (IMAGES[:, :1], LABELS)}, r"reward images .*\(1, 6, 5\)"),
            ({"reward": (IMAGES, LABELS + 1)}, "reward label 3 at index 2"),
            ({"calibration": (IMAGES[:0], LABELS[:0])}, "calibration split"),
            ({"calibration": IMAGES}, r"calibration split .*Tensor"),
            ({"reward": (IMAGES, LABELS, LABELS)}, r"reward split .*tuple of 3"),
        ],
    )
    def test_mistakes_are_named(self, changes: dict[str, Any], named: str) -> None:
        arguments = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES, "test_labels": LABELS}
        from_tensors(**arguments)
        with pytest.raises(DataError, match=named):
            from_tensors(**(arguments | changes))


ONE_HOT = torch.eye(3)[LABELS]
STANDARDISED = (FLOATS - FLOATS.mean()) / FLOATS.std()


class TestUnusualData:
    """A warning names what is probably meant otherwise; ordinary data give none."""

    @staticmethod
    def load(images: torch.Tensor, labels: torch.Tensor, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*equal training images")
            from_tensors(images, labels, images[:9], labels[:9], **options)

    @pytest.mark.parametrize(
        ("images", "labels", "options", "named"),
        [
            (FLOATS, LABELS, {}, "0 to 255"),
            (FLOATS, LABELS, {"mean": "imagenet"}, "0 to 255"),
            (FLOATS[:, :1] / 4, LABELS, {}, "0 to 63"),
            (IMAGES.permute(0, 2, 3, 1), LABELS, {}, r"\(60, 6, 5, 3\)"),
            (STANDARDISED[:, :1, :5].permute(0, 2, 3, 1), LABELS, {}, r"\(60, 5, 5, 1\)"),
            (IMAGES, ONE_HOT, {}, r"\(60, 3\)"),
        ],
    )
    def test_it_is_named(self, images: torch.Tensor, labels: torch.Tensor, options: dict[str, Any], named: str) -> None:
        with pytest.raises(UserWarning, match=named):
            self.load(images, labels, **options)

    @pytest.mark.parametrize(
        ("images", "labels", "options"),
        [
            (IMAGES, LABELS, {}),
            (FLOATS / 255, LABELS, {}),
            (FLOATS / 255, LABELS, {"mean": "imagenet"}),
            (STANDARDISED, LABELS, {}),
            (STANDARDISED * 50, LABELS, {}),
            (FLOATS - 128, LABELS, {}),
            (FLOATS, LABELS, {"mean": "none"}),
            (FLOATS, LABELS, {"mean": (128.0,) * 3, "std": (70.0,) * 3}),
            (STANDARDISED.repeat(1, 3, 1, 1)[:, :, :, :1], LABELS, {}),
            (STANDARDISED[:, :, :3, :3].repeat(1, 3, 1, 1), LABELS, {}),
            (IMAGES, (ONE_HOT + ONE_HOT.roll(1, 1)), {}),
            (IMAGES, ONE_HOT[:, :1], {}),
            (IMAGES, ONE_HOT / 2, {}),
            (IMAGES, ONE_HOT.repeat(1, 30_000), {}),  # a check of columns x columns would need 32 GB
        ],
    )
    def test_ordinary_data(self, images: torch.Tensor, labels: torch.Tensor, options: dict[str, Any]) -> None:
        self.load(images, labels, **options)


class TestDatasets:
    GOOD = TensorDataset(IMAGES, LABELS)

    @pytest.mark.parametrize(
        ("item", "named"),
        [
            ({"image": IMAGES[0], "label": 0}, "item 5 of the train data .*dict"),
            (IMAGES[0], "item 5 of the train data .*Tensor"),
            ((IMAGES[0], 0, 5), "item 5 of the train data .*tuple of 3"),
            ((IMAGES[0, :, :4], 0), r"item 5 .*\(3, 4, 5\) .*item 0 .*\(3, 6, 5\)"),
            ((FLOATS[0], 0), r"item 5 .*torch.float32.* item 0 .*torch.uint8"),
            ((IMAGES[0, 0], 0), r"item 5 .*\(6, 5\)"),
            ((IMAGES[0].numpy(), 0), "item 5 of the train data .*ndarray"),
            ((IMAGES[0], "cat"), "item 5 of the train data .*'cat'"),
            ((IMAGES[0], 0.5), r"item 5 .*float32.* item 0 .*int64"),
            ((IMAGES[0], [0, 1]), r"item 5 .*\(2,\)"),
        ],
    )
    def test_the_item_is_named(self, item: Any, named: str) -> None:
        items: list[Any] = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
        items[5] = item
        with pytest.raises(DataError, match=named):
            from_datasets(Pairs(items), self.GOOD)

    def test_pil_images_of_more_than_8_bits(self) -> None:
        from PIL import Image

        with pytest.raises(DataError, match=r"item 0 of the test data .*'I;16'"):
            from_datasets(self.GOOD, Pairs([(Image.new("I;16", (5, 6)), 0)]))

    def test_colours_of_16_bits_are_not_read_as_8(self) -> None:
        """Pillow opens them as images of the mode RGB."""
        from PIL import Image

        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        pixels = zlib.compress(6 * (b"\0" + 5 * 3 * struct.pack(">H", 300)))
        header = struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0)
        file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        image = Image.open(io.BytesIO(file))
        assert image.mode == "RGB"
        plain = Image.open(io.BytesIO(b"P6 5 6 65535\n" + bytes(6 * 5 * 6)))
        for deep in (image, plain):
            with pytest.raises(DataError, match=r"item 0 of the test data .*8 bits"):
                from_datasets(self.GOOD, Pairs([(deep, 0)]))

    @pytest.mark.parametrize("width", [5, 54, 72, 16])
    @pytest.mark.parametrize("kind", ["BMP", "PNG", "PPM", "TIFF", "PCX", "DDS"])
    def test_colours_of_8_bits_are_read(self, width: int, kind: str) -> None:
        """Whatever numbers their files hold."""
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (40, 16, width, 3), dtype=np.uint8)
        files = [io.BytesIO() for _ in pixels]
        for image, file in zip(pixels, files, strict=True):
            Image.fromarray(image).save(file, kind)
        items = [(Image.open(file), number % 2) for number, file in enumerate(files)]
        data = from_datasets(Pairs(items), Pairs(items[:1]))
        assert torch.equal(data.test.images[0], torch.from_numpy(pixels[0]).permute(2, 0, 1))

    def test_an_item_that_cannot_be_read(self) -> None:
        class Broken(Pairs):
            def __getitem__(self, index: int) -> Any:
                if index == 3:
                    raise OSError("file is truncated")
                return super().__getitem__(index)

        with pytest.raises(DataError, match=r"item 3 of the reward data .*OSError: file is truncated"):
            from_datasets(self.GOOD, self.GOOD, reward=Broken([(IMAGES[0], 0)] * 5))

    def test_an_empty_dataset(self) -> None:
        with pytest.raises(DataError, match="test split"):
            from_datasets(self.GOOD, Pairs([]))

    def test_something_else_than_a_dataset(self) -> None:
        with pytest.raises(DataError, match=r"train data .*int"):
            from_datasets(3, self.GOOD)

    @pytest.mark.parametrize(
        ("loader", "sampler"),
        [
            (DataLoader(GOOD, sampler=WeightedRandomSampler([1.0] * 60, 60)), "WeightedRandomSampler"),
            (DataLoader(GOOD, batch_sampler=[[0, 1], [2, 3]]), "list"),
        ],
    )
    def test_a_sampler_that_does_not_determine_the_split(self, loader: DataLoader[Any], sampler: str) -> None:
        with pytest.raises(DataError, match=f"train DataLoader .*{sampler}"):
            from_datasets(loader, self.GOOD)

    def test_batches_with_too_few_labels(self) -> None:
        loader = DataLoader(Stream(IMAGES, LABELS), batch_size=8, collate_fn=lambda items: (IMAGES[:8], LABELS[:7]))
        with pytest.raises(DataError, match=r"batch 0 of the train data .*8 .* 7 "):
            from_datasets(loader, self.GOOD)


class TestRandomTransforms:
    """Items are kept as they are read first, so they must be the same whenever they are read."""

    class Random(Pairs):
        def __init__(self, items: list[Any], change: str) -> None:
            super().__init__(items)
            self.change, self.generator = change, torch.Generator().manual_seed(0)

        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            if float(torch.rand((), generator=self.generator)) < 0.5:
                return image, label
            return (image.flip(2), label) if self.change == "image" else (image, (label + 1) % 3)

    ITEMS: ClassVar[list[Any]] = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]

    @pytest.mark.parametrize("change", ["image", "label"])
    @pytest.mark.parametrize("part", ["train", "test", "reward", "calibration"])
    def test_the_split_is_named(self, part: str, change: str) -> None:
        parts = {"train": Pairs(self.ITEMS), "test": Pairs(self.ITEMS), part: self.Random(self.ITEMS, change)}
        with pytest.raises(DataError, match=f"item .* {part} data .*{change}"):
            from_datasets(**parts)

    def test_loaders_and_parts_are_looked_into(self) -> None:
        for data in (
            DataLoader(self.Random(self.ITEMS, "image"), batch_size=7, shuffle=True),
            Subset(self.Random(self.ITEMS, "image"), range(59)),
        ):
            with pytest.raises(DataError, match="train data"):
                from_datasets(data, Pairs(self.ITEMS))

    def test_transforms_of_torchvision(self) -> None:
        from torchvision.transforms import v2

        class Transformed(Pairs):
            def __getitem__(self, index: int) -> Any:
                image, label = super().__getitem__(index)
                return v2.RandomCrop((6, 5), padding=2)(image), label

        with pytest.raises(DataError, match="train data"):
            from_datasets(Transformed(self.ITEMS), Pairs(self.ITEMS))

    def test_fixed_items_are_taken(self) -> None:
        nan = [(torch.full((3, 4, 4), float("nan")), 0), (torch.zeros(3, 4, 4), 1)] * 10
        with pytest.raises(DataError, match="NaN"):  # not: random
            from_datasets(Pairs(nan), Pairs(nan))
        assert len(from_datasets(Pairs(self.ITEMS), Pairs(self.ITEMS)).classes) == 3


@pytest.mark.parametrize("form", ["boxes", "one number", "masks", "several labels"])
def test_targets_that_would_not_move_with_the_image_get_no_augmentation(form: str) -> None:
    shape = {"boxes": (60, 4), "one number": (60,), "masks": (60, 30), "several labels": (60, 2)}[form]
    targets = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    splits = from_tensors(IMAGES, targets, IMAGES, targets)
    batch = splits.train.images[:20]
    assert torch.equal(splits.augmentation(batch, torch.Generator().manual_seed(0)), batch)
    chosen = Augmentation(pad=1, flip=False)
    assert from_tensors(IMAGES, targets, IMAGES, targets, augmentation=chosen).augmentation == chosen
    assert from_tensors(IMAGES, LABELS, IMAGES, LABELS).augmentation == Augmentation()
