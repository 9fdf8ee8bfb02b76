"""The four splits, the sources, the augmentation, and every kind of bad input."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env import data
from prune_env.data import Augmentation, DataError, DataSplits, Split, sources
from prune_env.data.sources import Source

FolderWriter = Callable[..., Path]


def rows(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def test_digits_splits_are_disjoint_and_balanced(digits: DataSplits) -> None:
    assert digits.image_shape == (1, 8, 8)
    assert torch.bincount(digits.test.labels).tolist() == [36] * 10
    assert torch.bincount(digits.reward.labels).tolist() == [30] * 10
    assert len(digits.train) + len(digits.reward) + len(digits.test) == 1797
    assert not rows(digits.train) & rows(digits.reward)
    assert not (rows(digits.train) | rows(digits.reward)) & rows(digits.test)
    assert rows(digits.calibration) <= rows(digits.train)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(2, 60), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_any_source_is_split_disjointly(counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    images = torch.randint(0, 256, (len(labels), 3, 6, 6), generator=generator, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels)) % 256  # no two alike
    images[:, 0, 0, 1] = torch.arange(len(labels)) // 256
    names = tuple(f"class{label}" for label in range(len(counts)))
    splits = data.split(Source("made", names, images, labels, images[:2], labels[:2]))
    assert len(rows(splits.train)) + len(rows(splits.reward)) == len(labels)
    assert not rows(splits.train) & rows(splits.reward)
    assert rows(splits.calibration) <= rows(splits.train)
    for label, count in enumerate(counts):
        held_out = splits.reward.images[splits.reward.labels == label]
        assert torch.equal(held_out, images[labels == label][-max(1, count // 10) :])


def test_statistics_are_those_of_the_training_split(digits: DataSplits) -> None:
    scaled = digits.train.images.double() / 255
    assert digits.mean[0] == pytest.approx(float(scaled.mean()), abs=1e-9)
    assert digits.std[0] == pytest.approx(float(scaled.std(unbiased=False)), abs=1e-9)
    normalised = digits.normalise(digits.train.images)
    assert float(normalised.mean()) == pytest.approx(0, abs=1e-5)
    assert normalised.is_contiguous(memory_format=torch.channels_last)


def test_balanced_takes_the_first_of_every_class(digits: DataSplits) -> None:
    part = digits.reward.balanced(105)
    assert torch.bincount(part.labels).tolist() == [11] * 5 + [10] * 5
    assert torch.equal(part.images[:11], digits.reward.images[:11])
    assert digits.reward.balanced(10_000) is digits.reward
    with pytest.raises(ValueError, match="at least one image"):
        digits.reward.balanced(0)


@settings(max_examples=40, deadline=None)
@given(pad=st.integers(0, 4), flip=st.booleans(), seed=st.integers(0, 999), height=st.integers(1, 9))
def test_augmentation_is_a_black_padded_crop(pad: int, flip: bool, seed: int, height: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (5, 2, height, 7), generator=generator, dtype=torch.uint8)
    result = Augmentation(pad, flip)(images, generator)
    assert result.shape == images.shape
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    for image, source in zip(result, padded, strict=True):
        crops = [source[:, y : y + height, x : x + 7] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
        allowed = crops + [crop.flip(2) for crop in crops] if flip else crops
        assert any(torch.equal(image, crop) for crop in allowed)


def test_given_flips_are_followed() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    result = Augmentation(0, True)(images, torch.Generator(), torch.tensor([True, False]))
    assert torch.equal(result[0], images[0].flip(2))
    assert torch.equal(result[1], images[1])


@pytest.mark.usefixtures("untouched_rngs")
def test_augmentation_repeats_under_one_seed_and_leaves_the_global_state(digits: DataSplits) -> None:
    one, two = (digits.augmented(digits.train.images[:50], torch.Generator().manual_seed(3)) for _ in range(2))
    other = digits.augmented(digits.train.images[:50], torch.Generator().manual_seed(4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_folder_and_torchvision_give_the_same_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 written in torchvision's own format, and as a folder of images in data set order."""
    from PIL import Image
    from torchvision import datasets

    rng = np.random.default_rng(0)
    names = ("airplane", "automobile", "bird")
    cache = tmp_path / "cache"
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(cache))
    base = cache / "cifar10" / datasets.CIFAR10.base_folder
    base.mkdir(parents=True)
    files = {"train": [name for name, _ in datasets.CIFAR10.train_list], "test": ["test_batch"]}
    for part, batches in files.items():
        for batch, name in enumerate(batches):
            pixels = rng.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
            labels = rng.permutation(np.arange(12) % 3).tolist()
            (base / name).write_bytes(pickle.dumps({"data": pixels.reshape(12, -1), "labels": labels}))
            for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
                folder = tmp_path / "folder" / part / names[label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{12 * batch + index:05d}.png")
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list(names)}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)

    one, two = data.load("cifar10"), data.load(tmp_path / "folder")
    assert one.classes == two.classes
    for part in ("train", "calibration", "reward", "test"):
        assert torch.equal(getattr(one, part).images, getattr(two, part).images)
        assert torch.equal(getattr(one, part).labels, getattr(two, part).labels)
    assert one.fingerprint == two.fingerprint


def test_decoded_images_are_cached_and_follow_the_files(
    image_folder: FolderWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image_folder()
    first = data.load(path)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_decode", lambda *_: pytest.fail("decoded again"))
        assert data.load(path).fingerprint == first.fingerprint
    file = path / "train" / "cat" / "000.png"
    shutil.copy(path / "train" / "dog" / "001.png", file)
    assert data.load(path).fingerprint != first.fingerprint


def test_a_damaged_cache_file_is_written_anew(image_folder: FolderWriter, private_cache: Path) -> None:
    path = image_folder(classes=("one", "two"))
    first = data.load(path)
    newest = max((private_cache / "decoded").iterdir(), key=os.path.getmtime)
    newest.write_bytes(newest.read_bytes()[:100])
    assert data.load(path).fingerprint == first.fingerprint


def test_grey_folders_have_one_channel(image_folder: FolderWriter) -> None:
    from PIL import Image

    path = image_folder()
    for file in path.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    assert data.load(path).image_shape == (1, 8, 8)


class TestBadInput:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            data.load(tmp_path / "nowhere")
        with pytest.raises(DataError, match="'cifra10' is neither 'digits'"):
            data.load("cifra10")

    def test_missing_part(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        shutil.rmtree(path / "test")
        with pytest.raises(DataError, match="no 'test' folder"):
            data.load(path)

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_class_missing_in_one_part(self, image_folder: FolderWriter, part: str) -> None:
        path = image_folder(classes=("cat", "dog", "fox"))
        shutil.rmtree(path / part / "dog")
        with pytest.raises(DataError, match="class 'dog'"):
            data.load(path)

    def test_empty_class(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        for file in (path / "train" / "cat").iterdir():
            file.unlink()
        with pytest.raises(DataError, match=r"cat holds no images"):
            data.load(path)

    def test_one_class(self, image_folder: FolderWriter) -> None:
        with pytest.raises(DataError, match="at least two"):
            data.load(image_folder(classes=("cat",)))

    def test_one_image(self, image_folder: FolderWriter) -> None:
        with pytest.raises(DataError, match="class 'cat' of 'images' has 1 training images"):
            data.load(image_folder(train=1))

    def test_unreadable_file(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        (path / "train" / "dog" / "005.png").write_bytes(b"not an image")
        with pytest.raises(DataError, match=r"dog.005\.png cannot be read"):
            data.load(path)

    def test_truncated_file(self, image_folder: FolderWriter) -> None:
        path = image_folder(size=16)
        file = path / "test" / "dog" / "001.png"
        file.write_bytes(file.read_bytes()[:-200])
        with pytest.raises(DataError, match=r"dog.001\.png cannot be read"):
            data.load(path)

    def test_wrong_size(self, image_folder: FolderWriter) -> None:
        from PIL import Image

        path = image_folder()
        Image.new("RGB", (9, 8)).save(path / "train" / "dog" / "007.png")
        with pytest.raises(DataError, match=r"007\.png is 9x8 pixels, .* is 8x8"):
            data.load(path)

    def test_constant_images(self) -> None:
        images, labels = torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8) // 4
        with pytest.raises(DataError, match=r"channel 0 .* constant"):
            data.split(Source("flat", ("a", "b"), images, labels, images, labels))

    def test_wrong_normalisation(self, digits: DataSplits) -> None:
        with pytest.raises(ValueError, match="needs 1 finite means"):
            digits.with_normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.mark.cifar
def test_real_cifar10_has_the_known_splits_and_starts_fast() -> None:
    path = Path(os.environ["PRUNE_ENV_DATA"])
    data.load(path)
    begin = time.perf_counter()
    splits = data.load(path)
    assert time.perf_counter() - begin < 2
    assert torch.bincount(splits.reward.labels).tolist() == [500] * 10
    assert torch.bincount(splits.train.labels).tolist() == [4500] * 10
    assert torch.bincount(splits.test.labels).tolist() == [1000] * 10
