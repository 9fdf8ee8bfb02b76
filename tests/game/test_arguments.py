"""The problem arguments that all commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from episodes import FAST
from torch import nn

from prune_env import EnvConfig
from prune_env.evaluation.resources import Resources
from prune_env.game.arguments import ProblemArgs
from prune_env.networks import list_networks


@pytest.fixture
def weights(trained: nn.Module, tmp_path: Path) -> Path:
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.mark.parametrize(
    ("settings", "named"), [({"device": "nowhere"}, "device 'nowhere'"), ({"backend": "cloud"}, "backend .*'cloud'")]
)
def test_wrong_values_are_refused_at_once(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ProblemArgs(**settings)


def test_a_command_line_becomes_arguments(tmp_path: Path) -> None:
    line = f"--network resnet20 --data cifar10 --backend processes --workers 3 --cache {tmp_path / 'plans.sqlite'}"
    arguments = tyro.cli(ProblemArgs, args=line.split())
    assert (arguments.network, arguments.data, arguments.weights) == ("resnet20", "cifar10", None)
    expected = Resources(backend="processes", workers=3, cache=tmp_path / "plans.sqlite")
    assert asdict(arguments).items() >= asdict(expected).items()


def test_the_tabulated_problem_takes_the_settings_of_the_game_only() -> None:
    env = ProblemArgs(tabulated=True).make_env(EnvConfig(target_macs=0.2, rounds=2))
    assert (env.config.target_macs, env.config.rounds) == (0.2, 2)
    assert env.evaluator.optimum == max(env.evaluator.accuracies.values())
    for settings in ({"network": "vgg16"}, {"backend": "processes"}, {"device": "cpu:0"}, {"mean": "none"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ProblemArgs(tabulated=True, **settings)
    with pytest.raises(ValueError, match=r"target_macs=0\.4"):
        ProblemArgs(tabulated=True).make_env(EnvConfig(target_macs=0.4))


def test_the_help_lists_every_registered_network(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(ProblemArgs, args=["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in list_networks())


@pytest.mark.parametrize(("flip", "flips"), [(None, False), (True, True), (False, False)])
def test_digits_are_mirrored_only_on_demand(flip: bool | None, flips: bool) -> None:
    assert ProblemArgs(flip=flip).load_data().augmentation.flip is flips


def test_a_folder_is_mirrored_unless_it_must_not_be(image_folder: Callable[..., Path]) -> None:
    path = str(image_folder(train=20))
    normal, unflipped = (ProblemArgs(data=path, flip=flip).load_data() for flip in (None, False))
    assert (normal.augmentation.flip, unflipped.augmentation.flip) == (True, False)
    assert normal.augmentation.pad == unflipped.augmentation.pad
    assert normal.fingerprint != unflipped.fingerprint


def test_images_are_not_read_for_statistics_that_nobody_needs(
    image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise AssertionError("all images were read")

    monkeypatch.setattr("prune_env.data.division.statistics", fails)
    data = ProblemArgs(network="torchvision:resnet18", data=str(image_folder(train=20))).load_data()
    assert data.mean == (0.485, 0.456, 0.406)


def test_readers_are_for_folders() -> None:
    with pytest.raises(ValueError, match="readers=2"):
        ProblemArgs(readers=2)


def test_they_make_the_environment(weights: Path, tmp_path: Path) -> None:
    arguments = ProblemArgs(weights=weights, cache=tmp_path / "plans.sqlite")
    config = EnvConfig(**FAST)
    env = arguments.make_env(config)
    assert env.config == env.problem.config == config
    assert env.problem.data.name == "digits"
    assert arguments.cache is not None
    assert arguments.cache.is_file()
    data = arguments.load_data()
    assert arguments.make_env(config, data).problem.data is data


def test_rules_are_checked_before_a_network_is_loaded(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise AssertionError("something was loaded before the error")

    for name in ("load_data", "load_model"):
        monkeypatch.setattr(ProblemArgs, name, fails)
    with pytest.raises(ValueError, match="target_macs"):
        ProblemArgs(weights=weights).make_env(EnvConfig(target_macs=None))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--mean none", ((0.0,), (1.0,))),
        ("--mean none --std none", ((0.0,), (1.0,))),
        ("--mean 0.3 --std 0.4", ((0.3,), (0.4,))),
    ],
)
def test_the_normalisation_comes_from_the_command_line(line: str, expected: Any) -> None:
    splits = tyro.cli(ProblemArgs, args=line.split()).load_data()
    assert (splits.mean, splits.std) == expected


def test_numbers_per_channel_and_names_of_classes(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\n".join([*"9876543210", "none"]) + "\n\n", encoding="utf-8-sig")  # as editors may write it
    arguments = tyro.cli(ProblemArgs, args=f"--mean 0.1 0.2 0.3 --std 0.4 0.5 0.6 --classes {file}".split())
    assert (arguments.mean, arguments.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    splits = ProblemArgs(classes=file).load_data()
    assert splits.classes == (*"9876543210", "none")
    plain = ProblemArgs().load_data()
    assert torch.equal(splits.test.images[splits.test.labels == 2], plain.test.images[plain.test.labels == 7])
    with pytest.raises(ValueError, match="nowhere"):
        ProblemArgs(classes=tmp_path / "nowhere").load_data()
    with pytest.raises(ValueError, match="std"):
        ProblemArgs(mean=(0.5,))
