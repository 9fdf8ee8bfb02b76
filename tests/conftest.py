"""Shared fixtures: a private cache, a clean check of the global random states, small data and networks."""

from __future__ import annotations

import copy
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prune_env import EnvConfig, FilterPruneEnv, data
from prune_env.training.fit import FitConfig
from prune_env.training.pretrained import pretrained


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's cache; the session shares one, so that networks are trained once."""
    directory = tmp_path_factory.mktemp("cache")
    before = os.environ.get("PRUNE_ENV_CACHE")
    os.environ["PRUNE_ENV_CACHE"] = str(directory)
    yield directory
    os.environ.pop("PRUNE_ENV_CACHE")
    if before is not None:
        os.environ["PRUNE_ENV_CACHE"] = before


@pytest.fixture
def untouched_rngs() -> Iterator[None]:
    """Fails the test if it moves the random state of Python, NumPy or torch."""
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state()  # noqa: NPY002
    yield
    assert random.getstate() == states[0], "Python's global random state was moved"
    assert np.random.get_state()[1].tobytes() == states[1], "NumPy's global random state was moved"  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), states[2]), "torch's global random state was moved"


@pytest.fixture(scope="session")
def digits() -> data.DataSplits:
    return data.load("digits")


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes PATH/{train,test}/<class>/*.png with distinct pixels; keywords change counts and sizes."""
    from PIL import Image

    def write(classes: tuple[str, ...] = ("cat", "dog"), train: int = 12, test: int = 3, size: int = 8) -> Path:
        rng = np.random.default_rng(0)
        for part, count in (("train", train), ("test", test)):
            for name in classes:
                folder = tmp_path / "images" / part / name
                folder.mkdir(parents=True)
                for index in range(count):
                    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{index:03d}.png")
        return tmp_path / "images"

    return write


def pytest_configure() -> None:
    """Processes of pytest-xdist share the processor: if each took all of it, they would wait for each other."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, (os.cpu_count() or 1) // int(workers))
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of programs that tests start


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what cannot run: tests on a GPU, on the real CIFAR-10, and SuperSuit's where it has no wheels."""
    away = set()
    for item in items:
        marker = item.get_closest_marker("cifar")
        if marker and not {"PRUNE_ENV_DATA", *marker.args} <= os.environ.keys():
            away.add(item)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            away.add(item)
        if item.get_closest_marker("supersuit") and sys.version_info >= (3, 13):
            away.add(item)
    if away:
        config.hook.pytest_deselected(items=list(away))
        items[:] = [item for item in items if item not in away]


@pytest.fixture(scope="session")
def trained(digits: data.DataSplits) -> torch.nn.Module:
    """A small network that reads digits well, trained in a few seconds."""
    recipe = FitConfig(epochs=20, batch_size=64, lr=0.1)
    return pretrained("small_cnn", digits, recipe=recipe, progress=False)


@pytest.fixture
def dropping(trained: torch.nn.Module) -> Callable[[float], torch.nn.Module]:
    """The trained network, its weights and outputs the same, that drops this share of its logits while it learns."""

    class Dropping(type(trained)):  # type: ignore[misc]
        share: float

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(super().forward(x), self.share, self.training)

    def make(share: float) -> torch.nn.Module:
        network = copy.deepcopy(trained)
        network.__class__, network.share = Dropping, share  # type: ignore[assignment]
        return network

    return make


@pytest.fixture
def make_env(trained: torch.nn.Module, digits: data.DataSplits) -> Callable[..., FilterPruneEnv]:
    """A FilterPruneEnv on digits; keywords are EnvConfig's, and `render_mode`."""

    def make(render_mode: str | None = None, **settings: Any) -> FilterPruneEnv:
        fast = {"reward_images": 100, "calibration_images": 200, "prove": False} | settings
        return FilterPruneEnv.from_model(trained, digits, EnvConfig(**fast), render_mode=render_mode)

    return make
