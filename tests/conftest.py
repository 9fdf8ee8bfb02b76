"""Shared fixtures: a private cache, unchanged random states, and a small trained network with its environment."""

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
from episodes import FAST

from prune_env import EnvConfig, FilterPruneEnv, data
from prune_env.game.reward import REWARDS
from prune_env.game.tabulated import Table
from prune_env.networks.registry import ENTRIES
from prune_env.pruning.importance import IMPORTANCES
from prune_env.pruning.rules.registry import RULES


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests away from the user's cache. The whole session shares one, so networks are trained once."""
    directory = tmp_path_factory.mktemp("cache")
    before = os.environ.get("PRUNE_ENV_CACHE")
    os.environ["PRUNE_ENV_CACHE"] = str(directory)
    yield directory
    os.environ.pop("PRUNE_ENV_CACHE")
    if before is not None:
        os.environ["PRUNE_ENV_CACHE"] = before


@pytest.fixture(autouse=True)
def restored_registries() -> Iterator[None]:
    """Forget what a test registers: networks, rules, importances and rewards."""
    registries: list[dict[Any, Any]] = [ENTRIES, RULES, IMPORTANCES, REWARDS]
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        if registry != entries:
            registry.clear()
            registry.update(entries)


@pytest.fixture
def untouched_rngs() -> Iterator[None]:
    """Fail the test if it changes the global random state of Python, NumPy or torch."""
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state()  # noqa: NPY002
    yield
    assert random.getstate() == states[0], "Python's global random state changed"
    assert np.random.get_state()[1].tobytes() == states[1], "NumPy's global random state changed"  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), states[2]), "torch's global random state changed"


@pytest.fixture
def untouched_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if it calls `torch.manual_seed`, which reseeds all GPUs."""

    def reseed(seed: int) -> None:
        raise AssertionError(f"torch.manual_seed({seed}) reseeds GPUs, which torch.random.fork_rng does not restore")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseed)


@pytest.fixture(scope="session")
def digits() -> data.DataSplits:
    return data.load("digits")


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes PATH/{train,test}/<class>/*.png with distinct pixels and returns the path."""
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
    """Share the processors among the processes of pytest-xdist; otherwise each would wait for the others."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, (os.cpu_count() or 1) // int(workers))
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of programs that tests start


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that cannot run here: without a GPU, without the real CIFAR-10, or without SuperSuit's wheels."""
    deselected = set()
    for item in items:
        marker = item.get_closest_marker("cifar")
        if marker and not {"PRUNE_ENV_DATA", *marker.args} <= os.environ.keys():
            deselected.add(item)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            deselected.add(item)
        if item.get_closest_marker("supersuit") and sys.version_info >= (3, 13):
            deselected.add(item)
    if deselected:
        config.hook.pytest_deselected(items=list(deselected))
        items[:] = [item for item in items if item not in deselected]


@pytest.fixture(scope="session")
def trained() -> torch.nn.Module:
    """A small network that classifies digits well: that of the tabulated problem, which needs no training."""
    return Table.load().network()


@pytest.fixture
def dropping(trained: torch.nn.Module) -> Callable[[float], torch.nn.Module]:
    """Return a function that makes the trained network with dropout on its logits, which acts only in training."""

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
    """Return a function that makes an environment of the trained network on digits.

    Its keywords are fields of `EnvConfig`, and `render_mode`, `metric`, `loss` and `resources`.
    """

    def make(**settings: Any) -> FilterPruneEnv:
        others = {name: settings.pop(name, None) for name in ("render_mode", "metric", "loss", "resources")}
        return FilterPruneEnv.from_model(trained, digits, EnvConfig(**(FAST | settings)), **others)

    return make
