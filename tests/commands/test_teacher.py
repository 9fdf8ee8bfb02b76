"""The network that teaches: chosen by name, checked, and used by a whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from prune_env import FilterPruneEnv, load_pruned
from prune_env.__main__ import main
from prune_env.commands.teacher import TeacherArgs
from prune_env.networks import create, register_network
from prune_env.training.distillation import Teacher

RUN = [
    "small_cnn",
    "--data=digits",
    "--weights=w.pt",
    "--episodes=0",
    "--no-prove",
    "--reward-images=60",
    "--latency.timing.seconds=0",
    "--latency.timing.min-runs=1",
    "--short-epochs=0.2",
    "--distillation.epochs=0.4",
    "--distillation.min-steps=8",
]


@pytest.fixture
def weights(trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights of the network, and of an untrained teacher, in the current folder."""
    monkeypatch.chdir(tmp_path)
    torch.save(trained.state_dict(), "w.pt")
    torch.save(create("small_cnn", 10, 1, seed=3).state_dict(), "teacher.pt")
    return tmp_path


def test_by_default_the_original_network_teaches(make_env: Callable[..., FilterPruneEnv]) -> None:
    problem = make_env().problem
    assert TeacherArgs().load(problem).fingerprint == Teacher(problem.model).fingerprint


def test_a_network_by_name_teaches(weights: Path, make_env: Callable[..., FilterPruneEnv]) -> None:
    problem = make_env().problem
    teacher = TeacherArgs("small_cnn", weights / "teacher.pt").load(problem)
    untrained, images = create("small_cnn", 10, 1, seed=3).eval(), problem.data.example_input
    assert torch.allclose(teacher(images), untrained(images), atol=0.1)


def test_a_teacher_of_other_constants_is_refused(weights: Path, make_env: Callable[..., FilterPruneEnv]) -> None:
    """It would see images that are normalised in another way than those that it learned from."""
    register_network("other", image_size=(8, 8), normalisation=([0.5], [0.25]))(
        lambda classes, channels: create("small_cnn", classes, channels)
    )
    problem, teacher = make_env().problem, TeacherArgs("other", weights / "w.pt")
    with pytest.raises(ValueError, match=r"other.*0\.25"):
        teacher.load(problem)
    teacher.load(replace(problem, data=problem.data.with_normalisation([0.5], [0.25])))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"network": "nonet"}, "nonet"),
        ({"weights": "w.pt"}, "teacher.network"),
        ({"network": "small_cnn", "weights": "nofile"}, "nofile"),
    ],
)
def test_mistakes_are_named(values: dict[str, str], named: str, weights: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        TeacherArgs(**values)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_teacher_chosen_after_the_search_teaches(weights: Path) -> None:
    assert main(["prune", *RUN, "--name=own"]) == 0
    assert main(["search", *RUN, "--name=taught"]) == 0
    other = ["--resume", "--teacher.network=small_cnn", "--teacher.weights=teacher.pt"]
    assert main(["prune", *RUN, "--name=taught", *other]) == 0
    own, taught = (next(load_pruned(f"runs/{name}").parameters()) for name in ("own", "taught"))
    assert own.shape == taught.shape
    assert not torch.equal(own, taught)
    config = json.loads(Path("runs/taught/config.json").read_text())
    assert config["teacher"] == {"network": "small_cnn", "weights": "teacher.pt"}
