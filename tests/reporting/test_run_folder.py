"""The folder of a run: names, settings, and the rows of the final summary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.finalise import recalibrated
from prune_env.game.config import DEFAULT_RATES
from prune_env.reporting.run_folder import Contestant, network_rows, open_folder

PLANS = [(20, 20, 40, 40, 80), (32, 10, 64, 20, 128)]


@pytest.mark.slow
def test_a_row_names_an_equal_plan(make_env: Callable[..., FilterPruneEnv], tmp_path: Path) -> None:
    env = make_env()
    full = env.problem.full_plan
    plans = {"original": full, "uniform L1": PLANS[0], "QMIX": PLANS[0], "other": PLANS[1], "whole": full}
    contestants = [
        Contestant(name, recalibrated(env, plan), plan, 0.5 if name == "QMIX" else None) for name, plan in plans.items()
    ]
    rows = network_rows(tmp_path, env, contestants, winner="QMIX")
    assert [row.name for row in rows] == ["original", "uniform L1", "QMIX = uniform L1", "other", "whole = original"]
    assert [row.accuracy for row in rows] == [None, None, 0.5, None, None]
    assert [row.macs for row in rows] == [env.problem.cost.macs(plan) for plan in plans.values()]
    assert (tmp_path / "pruned.onnx").stat().st_size == rows[2].onnx_bytes


class TestOpenFolder:
    def test_numbers_rise_and_resume_takes_the_latest(self, tmp_path: Path) -> None:
        settings = {"episodes": 3, "path": tmp_path}
        one, two = (open_folder(tmp_path, None, "vgg16-cifar[10]", settings, False) for _ in range(2))
        assert (one.name, two.name) == ("vgg16-cifar[10]-1", "vgg16-cifar[10]-2")
        assert open_folder(tmp_path, None, "vgg16-cifar[10]", settings, True) == two

    def test_an_existing_folder_needs_resume(self, tmp_path: Path) -> None:
        open_folder(tmp_path, "mine", "stem", {"episodes": 3}, False)
        with pytest.raises(FileExistsError, match="--resume"):
            open_folder(tmp_path, "mine", "stem", {"episodes": 3}, False)

    def test_a_missing_run_cannot_be_resumed(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="typo"):
            open_folder(tmp_path, "typo", "stem", {"episodes": 3}, True)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["../mine", "a/b", "..", "/mine"])
    def test_a_name_is_not_a_path(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"'{name}'"):
            open_folder(tmp_path / "runs", name, "stem", {"episodes": 3}, False)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"env": EnvConfig(target_macs=0.4)}, ["env.target_macs: 0.5 in the run, 0.4 now"]),
            (
                {"env": EnvConfig(target_macs=None, reward="amc")},
                ["env.target_macs: 0.5 in the run, None now", "env.reward: 'budget' in the run, 'amc' now"],
            ),
            ({"env": EnvConfig(rates=(0, 0.5))}, [f"env.rates: {list(DEFAULT_RATES)} in the run, [0, 0.5] now"]),
            ({"seed": 1, "weights": Path("a")}, ["weights: None in the run, 'a' now", "seed: 0 in the run, 1 now"]),
            ({"added": True}, ["added: not set in the run, True now"]),
            ({"added": None}, ["added: not set in the run, None now"]),
            ({"seed": ...}, ["seed: 0 in the run, not set now"]),
        ],
    )
    def test_a_resumed_run_names_every_changed_setting(
        self, change: dict[str, Any], named: list[str], tmp_path: Path
    ) -> None:
        before: dict[str, Any] = {"env": EnvConfig(), "weights": None, "seed": 0}
        now = {name: value for name, value in (before | change).items() if value is not ...}
        before, now = ({k: vars(v) if k == "env" else v for k, v in one.items()} for one in (before, now))
        open_folder(tmp_path, "mine", "stem", before, False)
        with pytest.raises(ValueError, match="settings") as caught:
            open_folder(tmp_path, "mine", "stem", now, True)
        for text in named:
            assert text in str(caught.value)
        assert open_folder(tmp_path, "mine", "stem", before, True) == tmp_path / "mine"
