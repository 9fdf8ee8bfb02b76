"""Digits, CIFAR and image folders, and every kind of broken folder."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prune_env import data
from prune_env.data import DataError, DataSplits
from prune_env.data.sources import train_and_test_folders

FolderWriter = Callable[..., Path]


def test_folder_and_torchvision_give_the_same_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 in torchvision's own format, and as a folder of images in the order of the data set."""
    from PIL import Image
    from torchvision import datasets

    rng = np.random.default_rng(0)
    names = ("airplane", "automobile", "bird")
    cache = tmp_path / "cache"
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(cache))
    base = cache / "cifar10" / datasets.CIFAR10.base_folder
    base.mkdir(parents=True)
    checksums: dict[str, str] = {}

    def write(name: str, content: object) -> None:
        (base / name).write_bytes(pickle.dumps(content))
        checksums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()

    files = {"train": [name for name, _ in datasets.CIFAR10.train_list], "test": ["test_batch"]}
    for part, batches in files.items():
        for batch, name in enumerate(batches):
            pixels = rng.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
            labels = rng.permutation(np.arange(12) % 3).tolist()
            write(name, {"data": pixels.reshape(12, -1), "labels": labels})
            for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
                folder = tmp_path / "folder" / part / names[label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{12 * batch + index:05d}.png")
    write("batches.meta", {"label_names": list(names)})
    for part, batches in files.items():
        monkeypatch.setattr(datasets.CIFAR10, f"{part}_list", [[name, checksums[name]] for name in batches])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": checksums["batches.meta"]})

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
        patch.setattr("PIL.Image.open", lambda *_: pytest.fail("an image was decoded a second time"))
        assert data.load(path).fingerprint == first.fingerprint
    file = path / "train" / "cat" / "000.png"
    shutil.copy(path / "train" / "dog" / "001.png", file)
    assert data.load(path).fingerprint != first.fingerprint


def test_a_damaged_cache_file_is_written_again(image_folder: FolderWriter, private_cache: Path) -> None:
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


def test_folders_of_images_of_any_size(image_folder: FolderWriter, tmp_path: Path) -> None:
    path = image_folder()
    assert train_and_test_folders(path) == (path / "train", path / "test")
    with pytest.raises(DataError, match="nowhere"):
        train_and_test_folders(tmp_path / "nowhere")


class TestBrokenFolders:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere"):
            data.load(tmp_path / "nowhere")
        with pytest.raises(DataError, match="'cifra10'"):
            data.load("cifra10")

    def test_missing_part(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        shutil.rmtree(path / "test")
        with pytest.raises(DataError, match="'test'"):
            data.load(path)

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_class_missing_in_one_part(self, image_folder: FolderWriter, part: str) -> None:
        path = image_folder(classes=("cat", "dog", "fox"))
        shutil.rmtree(path / part / "dog")
        with pytest.raises(DataError, match="'dog'"):
            data.load(path)

    def test_empty_class(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        for file in (path / "train" / "cat").iterdir():
            file.unlink()
        with pytest.raises(DataError, match=r"train.cat\b"):
            data.load(path)

    def test_one_class(self, image_folder: FolderWriter) -> None:
        with pytest.raises(DataError, match="1 class"):
            data.load(image_folder(classes=("cat",)))

    def test_one_image(self, image_folder: FolderWriter) -> None:
        with pytest.raises(DataError, match="'cat' of 'images'"):
            data.load(image_folder(train=1))

    def test_unreadable_file(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        (path / "train" / "dog" / "005.png").write_bytes(b"not an image")
        with pytest.raises(DataError, match=r"dog.005\.png"):
            data.load(path)

    def test_truncated_file(self, image_folder: FolderWriter) -> None:
        path = image_folder(size=16)
        file = path / "test" / "dog" / "001.png"
        file.write_bytes(file.read_bytes()[:-200])
        with pytest.raises(DataError, match=r"dog.001\.png"):
            data.load(path)

    def test_wrong_size(self, image_folder: FolderWriter) -> None:
        from PIL import Image

        path = image_folder()
        Image.new("RGB", (9, 8)).save(path / "train" / "dog" / "007.png")
        with pytest.raises(DataError, match=r"007\.png.* 9x8 .* 8x8"):
            data.load(path)


def test_digits_are_disjoint_and_balanced(digits: DataSplits) -> None:
    assert digits.image_shape == (1, 8, 8)
    assert torch.bincount(digits.test.labels).tolist() == [36] * 10
    assert torch.bincount(digits.reward.labels).tolist() == [30] * 10
    assert len(digits.train) + len(digits.reward) + len(digits.test) == 1797
    train, calibration, reward, test = (
        {image.numpy().tobytes() for image in split.images}
        for split in (digits.train, digits.calibration, digits.reward, digits.test)
    )
    assert not train & reward
    assert not (train | reward) & test
    assert calibration <= train


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
