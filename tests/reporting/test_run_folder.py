"""The folder of a run: it is new or resumed with the same settings, and holds the measured networks and plots."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from episodes import EnvMaker, play

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.deploy.export import ExportError
from prune_env.deploy.layer_times import LayerTiming
from prune_env.finalise import recalibrated
from prune_env.game.config import DEFAULT_RATES
from prune_env.reporting.result import Contestant, network_rows, save_plots
from prune_env.reporting.run_folder import open_folder
from prune_env.scoring.latency import TimingConfig
from prune_env.scoring.metric import onnx_accuracy

PLANS = [(20, 20, 40, 40, 80), (32, 10, 64, 20, 128)]
QUICK = LayerTiming(timing=TimingConfig(warmup=0, seconds=0, min_runs=1))


class TestOpenFolder:
    def test_numbers_rise_and_resuming_takes_the_latest(self, tmp_path: Path) -> None:
        settings = {"episodes": 3, "path": tmp_path}
        one, two = (open_folder(tmp_path, None, "vgg16-cifar[10]", settings, resume=False) for _ in range(2))
        assert (one.name, two.name) == ("vgg16-cifar[10]-1", "vgg16-cifar[10]-2")
        assert open_folder(tmp_path, None, "vgg16-cifar[10]", settings, resume=True) == two

    def test_other_folders_do_not_count(self, tmp_path: Path) -> None:
        for name in ("stem-9", "stem-x", "other-5", "stem-2b"):
            (tmp_path / name).mkdir()
        assert open_folder(tmp_path, None, "stem", {}, resume=False).name == "stem-10"

    def test_an_existing_folder_is_not_overwritten(self, tmp_path: Path) -> None:
        open_folder(tmp_path, "mine", "stem", {"episodes": 3}, resume=False)
        with pytest.raises(FileExistsError, match=r"mine.*--resume"):
            open_folder(tmp_path, "mine", "stem", {"episodes": 3}, resume=False)

    def test_there_must_be_a_run_to_resume(self, tmp_path: Path) -> None:
        for name in ("typo", None):
            with pytest.raises(FileNotFoundError, match=name or "stem-0"):
                open_folder(tmp_path, name, "stem", {"episodes": 3}, resume=True)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["../mine", "a/b", "..", "/mine"])
    def test_the_name_is_not_a_path(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match=re.escape(repr(name))):
            open_folder(tmp_path / "runs", name, "stem", {}, resume=False)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"env": EnvConfig(target_macs=0.4)}, ["env.target_macs: 0.5 .*0.4"]),
            (
                {"env": EnvConfig(target_macs=None, reward="amc")},
                ["env.target_macs: 0.5 .*None", "env.reward: 'budget' .*'amc'"],
            ),
            ({"env": EnvConfig(rates=(0, 0.5))}, [rf"env.rates: {re.escape(str(list(DEFAULT_RATES)))} .*\[0, 0.5\]"]),
            ({"seed": 1, "weights": Path("a")}, ["weights: None .*'a'", "seed: 0 .*1"]),
            ({"added": True}, ["added: not set .*True"]),
            ({"added": None}, ["added: not set .*None"]),
            ({"seed": ...}, ["seed: 0 .*not set"]),
        ],
    )
    def test_resuming_with_other_settings_names_each_of_them(
        self, change: dict[str, Any], named: list[str], tmp_path: Path
    ) -> None:
        before: dict[str, Any] = {"env": EnvConfig(), "weights": None, "seed": 0}
        now = {name: value for name, value in (before | change).items() if value is not ...}
        before, now = ({k: vars(v) if k == "env" else v for k, v in one.items()} for one in (before, now))
        open_folder(tmp_path, "mine", "stem", before, resume=False)
        with pytest.raises(ValueError, match="mine") as caught:
            open_folder(tmp_path, "mine", "stem", now, resume=True)
        for pattern in named:
            assert re.search(pattern, str(caught.value)), pattern
        assert "env.rounds" not in str(caught.value), "a setting that did not change is named as well"
        assert open_folder(tmp_path, "mine", "stem", before, resume=True) == tmp_path / "mine"


def contestants(env: FilterPruneEnv) -> list[Contestant]:
    plans = {
        "original": env.problem.full_plan,
        "uniform L1": PLANS[0],
        "QMIX": PLANS[0],
        "other": PLANS[1],
        "whole": env.problem.full_plan,
    }
    accuracies = {"original": 0.9, "QMIX": 0.5}
    return [Contestant(name, recalibrated(env, plan), plan, accuracies.get(name)) for name, plan in plans.items()]


@pytest.mark.slow
class TestNetworkRows:
    @pytest.mark.parametrize("error", [ExportError("no such operator"), ImportError("onnx is missing")])
    def test_networks_with_equal_plans_share_their_names_and_onnx_may_be_missing(
        self,
        make_env: EnvMaker,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        error: Exception,
    ) -> None:
        def fails(*_: Any) -> None:
            raise error

        monkeypatch.setattr("prune_env.reporting.result.to_onnx", fails)
        env = make_env()
        rows = network_rows(env, contestants(env), {"QMIX": tmp_path}, QUICK)
        names = ["original", "uniform L1", "QMIX = uniform L1", "other", "whole = original"]
        assert [row.name for row in rows] == names
        assert [row.accuracy for row in rows] == [0.9, None, 0.5, None, None]
        assert rows[1].macs == rows[2].macs == env.problem.cost.macs(PLANS[0])
        assert all(row.onnx_bytes is None for row in rows)
        assert str(error) in capsys.readouterr().out
        assert not list(tmp_path.iterdir())

    def test_onnx_files_are_measured_and_kept(self, make_env: EnvMaker, tmp_path: Path) -> None:
        env = make_env()
        data = env.problem.data
        original, other = contestants(env)[0], contestants(env)[3]
        folders = {name: tmp_path / name for name in ("original", "other")}
        rows = network_rows(env, [original, other], folders, QUICK, quantise=True)
        for row, folder in zip(rows, folders.values(), strict=True):
            sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
            assert sizes == {"pruned.onnx": row.onnx_bytes, "pruned-int8.onnx": row.int8_bytes}
            assert sizes["pruned-int8.onnx"] < 0.5 * sizes["pruned.onnx"]
            assert row.onnx_latency_1_ms
            assert row.onnx_latency_batch_ms
            assert row.int8_latency_1_ms
            assert row.int8_latency_batch_ms
        assert rows[1].onnx_bytes < rows[0].onnx_bytes
        assert rows[0].int8_accuracy == onnx_accuracy(folders["original"] / "pruned-int8.onnx", data, data.test)
        assert rows[1].int8_accuracy is None, "that of the network is not known, either"

    @pytest.mark.parametrize(
        ("pixels", "batch_size", "expected"), [(64, 1, 100), (10**5, 1, 16), (10**7, 1, 1), (64, 7, 7)]
    )
    def test_the_larger_batch_fits_into_memory(
        self,
        make_env: EnvMaker,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        pixels: int,
        batch_size: int,
        expected: int,
    ) -> None:
        """Images of the tests are small, so the limit is made as much smaller."""
        monkeypatch.setattr("prune_env.reporting.result.PIXELS", 2**21 * 64 // pixels)
        env = make_env()
        row = network_rows(env, contestants(env)[:1], {}, replace(QUICK, batch_size=batch_size))[0]
        assert row.batch_size == expected
        assert row.latency_batch_ms > 0

    def test_a_network_that_cannot_be_quantised_keeps_its_float_file(
        self, make_env: EnvMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fails(*_: Any) -> None:
            raise ExportError("no such operator")

        monkeypatch.setattr("prune_env.reporting.result.quantise_onnx", fails)
        env = make_env()
        rows = network_rows(env, contestants(env)[:1], {"original": tmp_path}, QUICK, quantise=True)
        assert [file.name for file in tmp_path.iterdir()] == ["pruned.onnx"]
        assert (rows[0].onnx_bytes is None, rows[0].int8_bytes) == (False, None)
        assert "no such operator" in capsys.readouterr().out


class TestPlots:
    @pytest.fixture
    def searched(self, make_env: EnvMaker) -> FilterPruneEnv:
        """An environment in which a search has ended."""
        env = make_env()
        for seed in range(3):
            play(env, seed)
        return env

    def test_every_plot_is_written(self, searched: FilterPruneEnv, tmp_path: Path) -> None:
        episodes = [{"episode": number, "return": -0.1 * number} for number in range(3)]
        uniform, winner = searched.budget.uniform(), searched.archive.best()[0].plan
        save_plots(tmp_path, searched, episodes, list(searched.archive), uniform, winner)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["layers.png", "learning.png", "tradeoff.png"]

    def test_they_show_the_search(
        self, searched: FilterPruneEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        for name in ("plot_learning", "plot_tradeoff", "plot_layers"):

            def record(_: Path, *args: Any, name: str = name, **keywords: Any) -> None:
                shown[name] = args, keywords

            monkeypatch.setattr(f"prune_env.reporting.result.{name}", record)
        original, uniform = searched.evaluator.original_accuracy, searched.budget.uniform()
        winner = searched.archive.best()[0]
        episodes = [
            {"episode": 0, "return": -0.5, "info/accuracy": 0.4},
            {"episode": 1, "return": -0.6, "info/accuracy": 0.3},
            {"episode": 1, "eval/return": -0.25},  # the return of reward budget is accuracy / original - 1
        ]
        save_plots(tmp_path, searched, episodes, list(searched.archive), uniform, winner.plan)

        (rows,), learning = shown["plot_learning"]
        assert [row["best_accuracy"] for row in rows] == pytest.approx([0.4, 0.4, 0.75 * original])
        assert list(learning["references"].values()) == [searched.evaluator.accuracy(uniform)]
        (points, marked), tradeoff = shown["plot_tradeoff"]
        assert points == [(entry.macs_ratio, entry.accuracy) for entry in searched.archive]
        assert marked["original"] == (1.0, original)
        assert marked["winner"] == (winner.macs_ratio, winner.accuracy)
        assert tradeoff["budget"] == searched.config.target_macs
        ((layers,), _) = shown["plot_layers"]
        assert tuple(layer.filters_after for layer in layers) == winner.plan
        assert tuple(layer.filters_before for layer in layers) == searched.problem.full_plan
        assert [layer.agent for layer in layers] == searched.possible_agents


class TestLock:
    def test_a_run_in_use_is_refused_with_its_process(self, tmp_path: Path) -> None:
        folder = open_folder(tmp_path, "run", "run", {}, resume=False)
        code = f"""
from pathlib import Path
from prune_env.reporting.run_folder import open_folder
try:
    open_folder(Path({str(tmp_path)!r}), "run", "run", {{}}, resume=True)
except BlockingIOError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert str(os.getpid()) in done.stdout
        assert str(folder) in done.stdout

    def test_a_damaged_record_is_named(self, tmp_path: Path) -> None:
        folder = open_folder(tmp_path, "run", "run", {"a": 1}, resume=False)
        for damage in ("", "{", "[1]", "\x00" * 9):
            (folder / "config.json").write_text(damage)
            with pytest.raises(ValueError, match=r"config\.json"):
                open_folder(tmp_path, "run", "run", {"a": 1}, resume=True)

    @pytest.mark.parametrize(("before", "now"), [(1.0, {"*": 0.7}), ({"*": 0.7}, 1.0), ({"a": 1, "b": 2}, {"a": 1})])
    def test_limits_by_pattern_are_compared_as_a_whole(self, tmp_path: Path, before: Any, now: Any) -> None:
        open_folder(tmp_path, "run", "run", {"env": {"max_rate": before}}, resume=False)
        with pytest.raises(ValueError, match=r"env\.max_rate: ") as caught:
            open_folder(tmp_path, "run", "run", {"env": {"max_rate": now}}, resume=True)
        assert "older" not in str(caught.value)

    def test_settings_that_a_run_lacks_are_those_of_an_older_version(self, tmp_path: Path) -> None:
        open_folder(tmp_path, "run", "run", {"a": 1}, resume=False)
        with pytest.raises(ValueError, match="older version"):
            open_folder(tmp_path, "run", "run", {"a": 1, "b": 2}, resume=True)
