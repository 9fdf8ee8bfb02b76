"""Images that are read when they are used: the same results as in memory, bounded memory, and clear errors."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prune_env import EnvConfig, PruningProblem
from prune_env.common.device import seeded
from prune_env.data import DataError, DataSplits, Reading, Split, TensorSplit, from_folder, load
from prune_env.data.streaming import StreamedSplit
from prune_env.evaluation.live import LiveEvaluator
from prune_env.scoring.metric import accuracy
from prune_env.training.distillation import DistillationConfig, distil
from prune_env.training.fit import FitConfig, RunOptions, fit

PARTS = ("train", "calibration", "reward", "test")
ALONE, WORKERS = Reading(stream=True, workers=0), Reading(stream=True, workers=2)
SIZE = 12
QUIET = RunOptions(progress=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder PATH/{train,val}/<class>/* of photos of several sizes and formats, in classes of other brightness."""
    from PIL import Image

    path, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 10)):
        for label, name in enumerate(("dark", "light")):
            folder = path / part / name / "nested"
            folder.mkdir(parents=True)
            for index in range(count):
                height, width = rng.integers(10, 30, 2)
                pixels = rng.integers(90 * label, 90 * label + 150, (height, width, 3), dtype=np.uint8)
                image, suffix = Image.fromarray(pixels), ("png", "jpg", "bmp", "webp")[index % 4]
                mode = "L" if index % 5 == 0 else "RGB"
                image.convert(mode).save(folder / f"{index:03d}.{suffix}")
    return path


def network() -> nn.Module:
    with seeded("cpu", 0):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
        ).eval()


def weights(model: nn.Module) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def streams(data: DataSplits) -> bool:
    return not any(isinstance(getattr(data, part), TensorSplit) for part in PARTS)


class TestFolder:
    @pytest.mark.parametrize("reading", [ALONE, WORKERS])
    def test_splits_are_those_in_memory(self, photos: Path, reading: Reading) -> None:
        kept, streamed = from_folder(photos, size=SIZE), from_folder(photos, size=SIZE, reading=reading)
        assert streams(streamed)
        assert streamed.image_shape == kept.image_shape == (3, SIZE, SIZE)
        assert (streamed.mean, streamed.std, streamed.classes) == (kept.mean, kept.std, kept.classes)
        for part in PARTS:
            one, two = getattr(kept, part), getattr(streamed, part)
            assert isinstance(one, TensorSplit)
            assert torch.equal(one.labels, two.labels)
            assert torch.equal(one.images, two.images)
            assert torch.equal(one.balanced(5).images, two.balanced(5).images)
            rows = torch.tensor([3, 1, 1])
            assert torch.equal(one.batch(rows), two.batch(rows))

    @pytest.mark.slow
    @pytest.mark.usefixtures("untouched_rngs")
    def test_training_search_and_test_have_the_results_in_memory(self, photos: Path) -> None:
        found = []
        for reading in (Reading(), WORKERS):
            data = from_folder(photos, size=SIZE, reading=reading)
            model = fit(network(), data, FitConfig(epochs=5, batch_size=12, cutout=2, ema_decay=0.5), run=QUIET)
            settings = EnvConfig(target_macs=0.5, reward_images=8, finetune_batches=1)
            problem = PruningProblem.create(model, data, settings)
            evaluator = LiveEvaluator(problem, settings)
            small = distil(problem.build((3,)), model, data, DistillationConfig(epochs=1, min_steps=5), run=QUIET)
            scores = [evaluator.original_accuracy, *(evaluator.accuracy((kept,)) for kept in (2, 5))]
            found.append((weights(model), scores, weights(small), accuracy(small, data, data.test)))
        assert found[0] == found[1]
        assert found[0][3] > 0.5

    def test_small_data_are_kept_and_large_ones_streamed(self, photos: Path) -> None:
        assert not streams(load(photos, size=SIZE))
        assert streams(load(photos, size=SIZE, reading=Reading(memory=0)))
        assert not streams(load(photos, size=SIZE, reading=Reading(memory=0, stream=False)))

    def test_images_are_those_of_torchvision(self, photos: Path) -> None:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        for sizes, resize in (({"size": 14}, 16), ({"size": 14, "resize": 20}, 20)):
            transform = v2.Compose([v2.Resize(resize), v2.CenterCrop(14), v2.PILToTensor()])
            expected = [image for image, _ in ImageFolder(str(photos / "val"), transform)]
            assert torch.equal(from_folder(photos, **sizes).test.images, torch.stack(expected))

    def test_mixed_sizes_need_a_size(self, photos: Path) -> None:
        for reading in (Reading(), ALONE):
            with pytest.raises(DataError, match=r"\.(png|jpg|bmp|webp) is .*size"):
                from_folder(photos, reading=reading)
        with pytest.raises(ValueError, match="resize=8"):
            from_folder(photos, size=12, resize=8)

    def test_grey_folders_have_one_channel(self, image_folder: Callable[..., Path]) -> None:
        from PIL import Image

        path = image_folder()
        for file in path.rglob("*.png"):
            Image.open(file).convert("L").save(file)
        data = from_folder(path, reading=ALONE)
        assert data.image_shape == (1, 8, 8)
        assert torch.equal(data.test.images, from_folder(path).test.images)

    def test_names_of_the_parts(self, image_folder: Callable[..., Path]) -> None:
        path = image_folder()
        plain = from_folder(path)
        (path / "test").rename(path / "valid")
        assert from_folder(path).fingerprint == plain.fingerprint
        (path / "valid").rename(path / "test")
        (path / "test").joinpath("../val").resolve().mkdir()
        for name in ("cat", "dog"):
            (path / "val" / name).mkdir()
            (path / "train" / name / "000.png").rename(path / "val" / name / "000.png")
        data = from_folder(path)
        assert [len(getattr(data, part)) for part in PARTS] == [22, 22, 2, 6]
        (path / "validation").mkdir()
        with pytest.raises(DataError, match=r"'val'.*'validation'"):
            from_folder(path)

    def test_classes_of_the_network(self, photos: Path) -> None:
        names = ("light", "medium", "dark")
        one, two = (from_folder(photos, size=SIZE, classes=names, reading=reading) for reading in (Reading(), ALONE))
        assert two.test.labels.tolist() == [0] * 10 + [2] * 10
        assert torch.equal(one.reward.images, two.reward.images)
        assert torch.equal(one.reward.labels, two.reward.labels)

    def test_the_fingerprint_follows_files_labels_and_sizes(self, image_folder: Callable[..., Path]) -> None:
        path = image_folder()
        first = from_folder(path, reading=ALONE).fingerprint
        assert from_folder(path, reading=WORKERS).fingerprint == first
        assert from_folder(path, reading=ALONE, classes=("dog", "cat")).fingerprint != first
        assert from_folder(path, reading=ALONE, size=6).fingerprint != first
        file = path / "train" / "cat" / "003.png"
        os.utime(file, ns=(0, 0))
        assert from_folder(path, reading=ALONE).fingerprint != first

    @pytest.mark.parametrize("reading", [ALONE, WORKERS])
    def test_an_unreadable_file_is_named(self, image_folder: Callable[..., Path], reading: Reading) -> None:
        path = image_folder(size=16)
        data = from_folder(path, reading=reading, mean="none")
        file = path / "train" / "dog" / "005.png"
        file.write_bytes(file.read_bytes()[:-300])
        with pytest.raises(DataError, match=r"^\S*dog.005\.png cannot be read") as caught:
            fit(network(), data, FitConfig(epochs=1, batch_size=4), run=QUIET)
        assert "Traceback" not in str(caught.value)

    @pytest.mark.slow
    def test_a_metric_reads_batches(self, photos: Path) -> None:
        sizes = []

        def metric(model: nn.Module, split: Split) -> float:
            right = 0
            for images, labels in split.batches(7):
                sizes.append(len(images))
                right += int((model(images).argmax(1) == labels).sum())
            return right / len(split) + 1

        def whole(model: nn.Module, split: Split) -> float:
            return float((model(split.images).argmax(1) == split.labels).float().mean()) + 1

        model = network()
        kept, streamed = (from_folder(photos, size=SIZE, reading=reading) for reading in (Reading(), WORKERS))
        expected = accuracy(model, kept, kept.test, metric)
        assert accuracy(model, streamed, streamed.test, metric) == expected == 1 + accuracy(model, kept, kept.test)
        assert accuracy(model, streamed, streamed.test, whole) == pytest.approx(expected)
        assert max(sizes) == 7


def test_a_file_that_has_changed_is_not_read(tmp_path: Path, photos: Path) -> None:
    from PIL import Image

    shutil.copytree(photos, tmp_path / "photos")
    data = from_folder(tmp_path / "photos", size=SIZE, reading=ALONE)
    file = data.train.items.path(0)
    Image.new("RGB", (40, 40)).save(file)
    with pytest.raises(DataError, match=re.escape(file.name)):
        data.train.first(1)


class Broken:
    """Items of which one cannot be read, with an error of another type in `Programmed`."""

    shape, dtype = (1, 2, 2), torch.uint8

    def read(self, row: int, seed: int) -> torch.Tensor:
        if row == 3:
            raise DataError("row 3")
        return torch.zeros(self.shape, dtype=self.dtype)

    def describe(self, digest: Any, rows: torch.Tensor) -> None:
        digest.update(b"")


class Programmed(Broken):
    def read(self, row: int, seed: int) -> torch.Tensor:
        return super().read(row, seed) if row != 3 else torch.zeros(2).view(3)


def test_an_error_ends_the_workers_while_it_is_kept() -> None:
    split = StreamedSplit(Broken(), torch.arange(8), torch.zeros(8), WORKERS)
    before = set(multiprocessing.active_children())
    with pytest.raises(DataError, match="row 3") as kept:
        list(split.batches(1))
    assert set(multiprocessing.active_children()) <= before
    assert kept.value.__traceback__ is not None


def test_a_mistake_of_the_program_is_no_dead_worker() -> None:
    split = StreamedSplit(Programmed(), torch.arange(8), torch.zeros(8), WORKERS)
    with pytest.raises(RuntimeError, match="shape"):
        list(split.batches(1))


class Counted:
    """Images made of their row number; counts those that are alive."""

    shape, dtype = (3, 8, 8), torch.uint8

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most = self.reads = 0

    def read(self, row: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(row)
        image = torch.randint(256, self.shape, generator=generator, dtype=torch.uint8)
        self.alive.add(image)
        self.most, self.reads = max(self.most, len(self.alive)), self.reads + 1
        return image

    def describe(self, digest: Any, rows: torch.Tensor) -> None:
        digest.update(rows.numpy().data)


class Watched(StreamedSplit):
    """Records how many batches are alive while they are read."""

    largest, most = 0, 0

    def read(self, order: Sequence[torch.Tensor], seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        for images, labels in super().read(order, seed):
            alive.add(images)
            Watched.largest, Watched.most = max(Watched.largest, len(images)), max(Watched.most, len(alive))
            yield images, labels
            del images


class TestMemory:
    def test_few_images_are_alive_at_once(self) -> None:
        items, labels = Counted(), torch.arange(640) % 2
        watched = Watched(items, torch.arange(640), labels, ALONE)
        held_out = watched.select(torch.arange(20))
        data = DataSplits("many", ("0", "1"), watched, held_out, held_out, watched, (0.5,) * 3, (0.5,) * 3)
        model = fit(network(), data, FitConfig(epochs=1, batch_size=32), run=QUIET)
        accuracy(model, data, data.test)
        assert items.reads >= 640
        assert items.most <= 2
        assert Watched.largest <= 500
        assert Watched.most <= 2

    def test_only_what_is_needed_is_read(self) -> None:
        items, labels = Counted(), torch.arange(640) % 2
        split = StreamedSplit(items, torch.arange(640), labels, ALONE)
        assert split.balanced(12).images.shape == (12, 3, 8, 8)
        assert items.reads == 12
        few = split.select(torch.arange(8))
        data = DataSplits("many", ("0", "1"), split, few, split, split, (0.5,) * 3, (0.5,) * 3)
        PruningProblem.create(network(), data, EnvConfig(target_macs=0.5)).calibration_crops()
        assert items.reads < 40

    def test_a_worker_that_dies_is_one_clear_error(self) -> None:
        class Deadly(Counted):
            parent = os.getpid()

            def read(self, row: int, seed: int) -> torch.Tensor:
                if row == 5 and os.getpid() != self.parent:
                    os._exit(1)
                return super().read(row, seed)

        split = StreamedSplit(Deadly(), torch.arange(64), torch.arange(64) % 2, WORKERS)
        with pytest.raises(DataError, match="workers=0"):
            list(split.batches(4))

    def test_settings_of_reading_are_checked(self, photos: Path) -> None:
        with pytest.raises(TypeError, match="reading"):
            from_folder(photos, size=SIZE, reading=2)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="workers"):
            Reading(workers=-1)
