"""Digits, CIFAR and image folders, and every kind of broken folder."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prune_env import PruningProblem, data
from prune_env.data import DataError, DataSplits

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


def test_images_are_read_where_the_cache_cannot_be_written(
    image_folder: FolderWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image_folder()
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match=r"cache.decoded"):
        found = data.load(path)
    assert found.fingerprint == data.load(path, cache=False).fingerprint


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


class TestKindsOfImages:
    """Every image has the pixels that torchvision's ImageFolder reads, or its file is named in an error."""

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
    def test_8_bits_have_the_right_pixels(self, image_folder: FolderWriter, mode: str) -> None:
        from PIL import Image
        from torchvision.datasets.folder import pil_loader

        path = image_folder()
        files = []
        for file in path.rglob("*.png"):
            image = Image.open(file).convert(mode)
            file.unlink()
            files.append(file.with_suffix(".jpg" if mode == "YCbCr" else ".tif"))
            image.save(files[-1])
        splits = data.load(path)
        grey = mode in ("1", "L", "LA")
        assert splits.image_shape == (1 if grey else 3, 8, 8)
        expected = torch.from_numpy(
            np.array(pil_loader(str(path / "test" / "cat" / files[0].name[:3]) + files[0].suffix))
        )
        index = int(files[0].name[:3])
        assert torch.equal(splits.test.images[index].expand(3, -1, -1), expected.permute(2, 0, 1))

    @pytest.mark.parametrize("kind", ["16 bits", "32 bits", "float", "16-bit pgm"])
    def test_more_than_8_bits_are_named(self, image_folder: FolderWriter, kind: str) -> None:
        from PIL import Image

        path = image_folder()
        pixels = np.random.default_rng(0).integers(0, 2**16, (8, 8))
        types = {"16 bits": (np.uint16, "png"), "32 bits": (np.int32, "tif"), "float": (np.float32, "tif")}
        dtype, suffix = types.get(kind, (np.uint16, "pgm"))
        file = path / "train" / "dog" / f"deep.{suffix}"
        Image.fromarray(pixels.astype(dtype)).save(file)
        with pytest.raises(DataError, match=r"dog.deep\."):
            data.load(path)

    def test_of_several_frames_the_first_counts(self, image_folder: FolderWriter) -> None:
        from PIL import Image

        path = image_folder()
        first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
        first.save(path / "test" / "cat" / "zoo.gif", save_all=True, append_images=[second])
        assert data.load(path).test.images[3, :, 0, 0].tolist() == [255, 0, 0]

    @staticmethod
    def fault(path: Path) -> str:
        try:
            data.load(path, cache=False)
        except DataError as error:
            return str(error)
        return ""

    def test_damaged_files_are_named(self, image_folder: FolderWriter) -> None:
        from PIL import Image

        rng = np.random.default_rng(0)
        path = image_folder()
        for suffix in ("png", "jpg", "gif", "tif", "webp", "bmp", "ppm"):
            file = path / "test" / "dog" / f"damaged.{suffix}"
            Image.new("RGB", (8, 8), "red").save(file)
            whole = file.read_bytes()
            for _ in range(15):
                damaged = bytearray(whole)
                damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
                file.write_bytes(damaged[: rng.integers(1, len(damaged))])
                fault = self.fault(path)
                assert not fault or file.name in fault
            file.unlink()


class TestSubfolders:
    def test_they_are_read_as_torchvision_reads_them(self, image_folder: FolderWriter) -> None:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        path = image_folder(train=20)
        for part in ("train", "test"):
            inner, deeper = path / part / "cat" / "0", path / part / "cat" / "Ünder" / "more"
            inner.mkdir()
            deeper.mkdir(parents=True)
            for number, folder in ((1, inner), (2, deeper)):
                file = path / part / "cat" / f"{number:03d}.png"
                file.rename(folder / file.name)
        sets = [ImageFolder(str(path / part), v2.PILToTensor()) for part in ("train", "test")]
        expected = data.from_datasets(*sets)
        assert len(data.load(path).train) == 36
        assert data.load(path).fingerprint == data.load(path, cache=False).fingerprint == expected.fingerprint

    def test_hidden_ones_are_left_out(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        before = data.load(path).fingerprint
        shutil.copytree(path / "train" / "cat", path / "train" / "cat" / ".thumbnails")
        assert data.load(path).fingerprint == before

    def test_a_link_to_itself_is_named(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        (path / "train" / "cat" / "again").symlink_to(path / "train" / "cat")
        with pytest.raises(DataError, match=r"cat.again"):
            data.load(path)


class TestCommonImages:
    def test_images_in_train_and_test_are_named(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        shutil.copy(path / "train" / "dog" / "004.png", path / "test" / "cat" / "copy.png")
        for _ in range(2):  # also when the images come from the cache
            with pytest.warns(UserWarning, match=r"test.cat.copy\.png = train.dog.004\.png"):
                data.load(path)

    def test_so_are_those_of_tensors(self, digits: DataSplits) -> None:
        images, labels = digits.train.images, digits.train.labels
        test, test_labels = digits.test.images.clone(), digits.test.labels
        test[7] = images[5]
        with pytest.warns(UserWarning, match="test image 7 = train image 5"):
            data.from_tensors(images, labels, test, test_labels)
        reward = digits.reward.images.clone()
        reward[2] = images[9]
        with pytest.warns(UserWarning, match="reward image 2 = train image 9"):
            data.from_tensors(images, labels, digits.test.images, test_labels, reward=(reward, digits.reward.labels))

    def test_disjoint_ones_are_not(self, image_folder: FolderWriter, digits: DataSplits) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data.load(image_folder())
            train, test = digits.train, digits.test
            data.from_tensors(train.images, train.labels, test.images, test.labels)


class TestClassesOfTheNetwork:
    NAMES = ("ape", "dog", "cow", "cat", "eel")

    def test_a_folder_of_some_classes_has_the_labels_of_the_network(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        plain, splits = data.load(path), data.load(path, classes=self.NAMES)
        assert splits.classes == self.NAMES
        for part in ("train", "calibration", "reward", "test"):
            before, after = getattr(plain, part), getattr(splits, part)
            assert after.labels.unique().tolist() == [1, 3]
            for old, new in ((0, 3), (1, 1)):
                assert torch.equal(before.images[before.labels == old], after.images[after.labels == new])

    def test_the_folder_of_a_dataset_too(self, image_folder: FolderWriter) -> None:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        path = image_folder()
        sets = [ImageFolder(str(path / part), v2.PILToTensor()) for part in ("train", "test")]
        splits = data.from_datasets(*sets, classes=self.NAMES)
        assert splits.fingerprint == data.load(path, classes=self.NAMES).fingerprint
        with pytest.raises(DataError, match="'dog'"):
            data.from_datasets(*sets, classes=("ape", "cat", "eel"))

    @pytest.mark.parametrize(("names", "named"), [(("dog", "ape"), "'cat'"), (("cat", "dog", "cat"), "'cat'")])
    def test_names_that_do_not_fit(self, image_folder: FolderWriter, names: tuple[str, ...], named: str) -> None:
        with pytest.raises(DataError, match=named):
            data.load(image_folder(), classes=names)

    def test_labels_with_gaps_are_those_of_named_classes(self, digits: DataSplits) -> None:
        few = torch.isin(digits.train.labels, torch.tensor([2, 7]))
        some = torch.isin(digits.test.labels, torch.tensor([2, 7]))
        images, labels = digits.train.images[few], digits.train.labels[few]
        test = digits.test.images[some], digits.test.labels[some]
        splits = data.from_tensors(images, labels, *test, classes=digits.classes)
        assert (splits.classes, splits.train.labels.unique().tolist()) == (digits.classes, [2, 7])
        with pytest.raises(DataError, match=r"class 0 .*class 7"):
            data.from_tensors(images, labels, *test)

    def test_a_network_with_more_outputs_is_refused_unless_all_are_named(self, image_folder: FolderWriter) -> None:
        from torch import nn

        path = image_folder()
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        with pytest.raises(ValueError, match=r"5\).*2 classes"):
            PruningProblem.create(network, data.load(path))
        PruningProblem.create(network, data.load(path, classes=self.NAMES))


class TestOddFolders:
    def test_other_files_names_links_and_rights_do_no_harm(self, image_folder: FolderWriter, tmp_path: Path) -> None:
        path = image_folder(classes=("猫", "dög 1"))
        before = data.load(path)
        (path / "train" / "readme.txt").write_text("photos")
        (path / "train" / "猫" / "notes.txt").write_text("photos")
        (path / "train" / "猫" / ".DS_Store").write_bytes(b"0")
        (path / "train" / "猫" / "._000.png").write_bytes(b"not an image")
        (path / "train" / ".ipynb_checkpoints").mkdir()
        linked = path / "train" / "猫" / "000.png"
        linked.rename(tmp_path / "elsewhere.png")
        linked.symlink_to(tmp_path / "elsewhere.png")
        for folder in (path, *path.rglob("*")):
            if folder.is_dir():
                folder.chmod(0o555)
        try:
            assert data.load(path, cache=False).fingerprint == before.fingerprint
        finally:
            for folder in (path, *path.rglob("*")):
                if folder.is_dir():
                    folder.chmod(0o755)

    def test_a_dead_link_is_named(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        (path / "train" / "cat" / "gone.png").symlink_to(path / "nowhere.png")
        with pytest.raises(DataError, match=r"cat.gone\.png"):
            data.load(path)

    def test_a_folder_with_the_name_of_an_image(self, image_folder: FolderWriter) -> None:
        path = image_folder()
        before = data.load(path).fingerprint
        (path / "train" / "cat" / "album.png").mkdir()
        assert data.load(path).fingerprint == before
