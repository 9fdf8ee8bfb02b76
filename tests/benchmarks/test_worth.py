"""What networks are worth: whole small runs, the networks of other packages, known answers, and published weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from episodes import FAST
from scipy.stats import kendalltau

from benchmarks import check_weights
from benchmarks.worth import networks, report, run, tabulate
from benchmarks.worth.networks import SLACK, candidates
from benchmarks.worth.rivals import RIVALS, filters, macs_ratio
from benchmarks.worth.signals import SIGNALS
from benchmarks.worth.worths import Worth
from prune_env import EnvConfig, FilterPruneEnv, TrainedPlans, load_pruned, save_pruned
from prune_env.commands.teacher import TeacherArgs
from prune_env.common.fingerprints import weights_fingerprint
from prune_env.data import DataSplits
from prune_env.data.load import from_tensors
from prune_env.deploy.record import read_record
from prune_env.game.arguments import ProblemArgs
from prune_env.networks import create
from prune_env.scoring.metric import accuracy
from prune_env.training.distillation import DistillationConfig

RECIPE = DistillationConfig(min_steps=0, select_best=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> run.Config:
    """A finished run on the tabulated problem's network."""
    config = run.Config(
        ProblemArgs(tabulated=True),
        EnvConfig(target_macs=0.3),
        random=8,
        sources=("uniform", "least_change", "drawn"),
        epochs=(0.5, 0.1),
        seeds=2,
        distillation=RECIPE,
        keep=True,
        out=tmp_path_factory.mktemp("worth"),
    )
    run.main(config)
    return config


class TestRuns:
    def test_every_network_is_trained_once_for_each_length_and_seed(self, config: run.Config) -> None:
        text = (config.out / "rows.jsonl").read_text()
        found = [json.loads(line) for line in text.splitlines()]
        order = [(row["epochs"], row["seed"]) for row in found]
        assert order == sorted(order)
        assert len({(tuple(row["plan"]), *key) for row, key in zip(found, order, strict=True)}) == len(found) == 10 * 4
        run.main(config)
        assert (config.out / "rows.jsonl").read_text() == text
        run.main(dataclasses.replace(config, sources=("uniform",), seeds=3))  # another seed adds its rows alone
        added = (config.out / "rows.jsonl").read_text().removeprefix(text).splitlines()
        assert [json.loads(line)["seed"] for line in added] == [2, 2]

    def test_kept_networks_have_the_accuracy_of_their_row(self, config: run.Config) -> None:
        row = json.loads((config.out / "rows.jsonl").read_text().splitlines()[-1])
        data = config.problem.make_env(config.env).problem.data
        assert accuracy(load_pruned(config.out / "networks" / row["network"]), data, data.test) == row["test_accuracy"]

    def test_a_network_has_signals_and_the_macs_of_the_budget(self, config: run.Config) -> None:
        found = [json.loads(line) for line in (config.out / "signals.jsonl").read_text().splitlines()]
        assert len(found) == 10
        for row in found:
            assert 0.29 <= row["macs_ratio"] <= 0.3
            assert all(0 < row[name] < 1 for name in SIGNALS if "accuracy" in name)
        trained = [row["finetuned_cross_entropy"] < row["cross_entropy"] for row in found]
        assert all(trained)

    def test_older_rows_that_lack_entries_are_measured_again(self, config: run.Config, tmp_path: Path) -> None:
        for name in ("rows.jsonl", "signals.jsonl"):
            (tmp_path / name).write_bytes((config.out / name).read_bytes())
        lines = (tmp_path / "signals.jsonl").read_text().splitlines()
        older = [{name: value for name, value in json.loads(lines[0]).items() if name != "filters"}]
        (tmp_path / "signals.jsonl").write_text(
            "\n".join(map(json.dumps, [*older, *map(json.loads, lines[1:])])) + "\n"
        )
        run.main(dataclasses.replace(config, out=tmp_path))
        again = (tmp_path / "signals.jsonl").read_text().splitlines()
        assert len(again) == len(lines) + 1
        assert json.loads(again[-1])["filters"] == json.loads(lines[0])["filters"]

    def test_the_report_shows_every_source_and_length(
        self, config: run.Config, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report.main(report.Config(config.out))
        printed = capsys.readouterr().out
        assert all(name in printed for name in ("| uniform | 1 |", "| drawn | 8 |", "0.1 epochs", "0.5 epochs"))
        assert (config.out / "worth.md").read_text().strip() == printed.strip()
        for name in ("worth-1.png", "signals-1.png"):
            assert (config.out / name).read_bytes().startswith(b"\x89PNG")


class TestTables:
    def test_a_table_of_trained_plans_holds_the_rows(self, config: run.Config, tmp_path: Path) -> None:
        found = [json.loads(line) for line in (config.out / "rows.jsonl").read_text().splitlines()]
        found = [row for row in found if row["epochs"] == 0.1 or row["seed"]]  # the longer one has its second seed only
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        (tmp_path / "signals.jsonl").write_bytes((config.out / "signals.jsonl").read_bytes())
        tabulate.main(tabulate.Config(tmp_path, "mine", out=tmp_path))
        table = TrainedPlans.load(tmp_path / "mine.npz")
        assert np.isfinite(table.test_accuracy).sum() == len(found)
        place = {tuple(plan): number for number, plan in enumerate(table.plans.tolist())}
        for row in found:
            index = place[tuple(row["plan"])], table.epochs.tolist().index(row["epochs"]), row["seed"]
            for name in ("test_accuracy", "reward_accuracy"):
                assert getattr(table, name)[index] == row[name]
        for row in (json.loads(line) for line in (config.out / "signals.jsonl").read_text().splitlines()):
            assert {name: values[place[tuple(row["plan"])]] for name, values in table.signals.items()} == {
                name: row[name] for name in SIGNALS
            }
        env = config.problem.make_env(config.env)
        assert tuple(table.full_plan) == env.problem.full_plan
        assert tuple(table.groups) == tuple(group.name for group in env.problem.groups)
        assert table.settings["weights_fingerprint"] == weights_fingerprint(env.problem.model)

    def test_a_section_that_is_not_there_is_an_error(self, config: run.Config, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="section"):
            tabulate.main(tabulate.Config(config.out, "mine", section=2, out=tmp_path))

    @pytest.mark.parametrize("entry", ["plan", "full_plan", "output_change"])
    def test_rows_without_what_a_table_needs_are_errors(self, entry: str, config: run.Config, tmp_path: Path) -> None:
        lacking = {"plan": None} if entry == "plan" else {}
        for name in ("rows.jsonl", "signals.jsonl"):
            lines = [json.loads(line) for line in (config.out / name).read_text().splitlines()]
            changed = [{key: value for key, value in line.items() if key != entry} | lacking for line in lines]
            (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in changed))
        with pytest.raises(ValueError, match="no plans" if entry == "plan" else entry):
            tabulate.main(tabulate.Config(tmp_path, "mine", out=tmp_path))


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    config = run.Config(ProblemArgs(tabulated=True), EnvConfig(target_macs=0.3), sources=("qmix",), out=tmp_path)
    with pytest.raises(ValueError, match="qmix"):  # --found was not given
        run.main(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 3}, "epochs"),
        ({"seed": 3}, "seed"),
        ({"min_steps": 9}, "min_steps"),
        ({"select_best": True}, "select_best"),
    ],
)
def test_settings_of_the_recipe_that_would_have_no_effect_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        run.Config(distillation=dataclasses.replace(RECIPE, **change))


def test_other_teachers_have_other_rows(config: run.Config, trained: torch.nn.Module, tmp_path: Path) -> None:
    weights = [tmp_path / "a.pt", tmp_path / "b.pt"]
    torch.save(trained.state_dict(), weights[0])
    torch.save(create("small_cnn", 10, 1, seed=1).state_dict(), weights[1])
    small = dataclasses.replace(config, sources=("uniform",), epochs=(0.1,), seeds=1, out=tmp_path)
    for file in (*weights, *weights):
        run.main(dataclasses.replace(small, teacher=TeacherArgs("small_cnn", file)))
    found = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len({row["recipe"]["teacher_fingerprint"] for row in found}) == len(found) == 2


def test_drawn_plans_differ_and_cost_the_same(make_env: Callable[..., FilterPruneEnv]) -> None:
    env = make_env(target_macs=0.5, round_to=1)
    plans = [one.plan for one in candidates(env, 0.5, random=20) if "drawn" in one.sources and one.plan is not None]
    assert len(set(plans)) == len(plans) == 20
    assert all(0.5 - SLACK <= env.cost_ratios(plan)[0] <= 0.5 for plan in plans)
    assert plans == [one.plan for one in candidates(env, 0.5, random=20) if "drawn" in one.sources]


def test_more_plans_than_there_are_is_an_error(
    make_env: Callable[..., FilterPruneEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "DRAWS", 10)
    with pytest.raises(ValueError, match="round-to"):
        candidates(make_env(target_macs=0.5, round_to=16), 0.5, random=30)


class TestFound:
    @staticmethod
    def row(env: FilterPruneEnv, **change: Any) -> dict[str, Any]:
        """Return a row of benchmarks.compare whose winner is the uniform plan."""
        plan, full = list(env.budgets.of(0.5).uniform()), list(env.problem.full_plan)
        row = {"method": "qmix", "seed": 0, "target_macs": 0.5, "plan": plan, "full_plan": full, "evaluations": 9}
        return row | {"problem": {"network": "small_cnn"}} | change

    def test_a_plan_that_several_sources_found_counts_for_each(self, make_env: Callable[..., FilterPruneEnv]) -> None:
        env = make_env(target_macs=0.5)
        found = [self.row(env), self.row(env, seed=1), self.row(env, method="vdn"), self.row(env, target_macs=0.3)]
        every = candidates(env, 0.5, 0, found)
        assert [one.sources for one in every if "qmix" in one.sources] == [
            ("uniform", "insides", "magnitude", "qmix", "qmix", "vdn")  # in a plain network, the rules agree
        ]
        assert len({one.plan for one in every if one.plan}) == len([one for one in every if one.plan])

    @pytest.mark.parametrize(
        "change",
        [
            {"plan": [8, 8, 8, 8, 8]},
            {"full_plan": [8, 8, 8, 8, 8]},
            {"weights_fingerprint": "other"},
            {"problem": {"network": "small_cnn", "finetune_batches": 10}},
        ],
    )
    def test_rows_of_another_problem_are_refused(
        self, change: dict[str, Any], make_env: Callable[..., FilterPruneEnv]
    ) -> None:
        env = make_env(target_macs=0.5)
        with pytest.raises(ValueError, match="'qmix', seed 0"):
            candidates(env, 0.5, 0, [self.row(env, **change)])


class TestRivals:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", RIVALS)
    def test_networks_are_within_the_budget(
        self, name: str, make_env: Callable[..., FilterPruneEnv], untouched_rngs: None
    ) -> None:
        env = make_env(target_macs=0.5)
        (network, evaluations), again = RIVALS[name](env, 0.5), RIVALS[name](env, 0.5)
        assert (0.2 if name == "fastnas" else 0.45) < macs_ratio(env, network) <= 0.5
        assert filters(network) == filters(again.network)
        assert sum(filters(network)) < sum(filters(env.problem.model))
        assert evaluations > 0 if name == "fastnas" else evaluations == 0
        assert env.evaluator.accuracy_of(network) > 0.3
        assert macs_ratio(env, env.problem.model) == 1  # the original is unchanged

    @pytest.mark.slow
    @pytest.mark.parametrize("name", RIVALS)
    def test_streams_with_padded_shortcuts_stay_whole(
        self, name: str, digits: DataSplits, untouched_gpus: None
    ) -> None:
        images = torch.nn.functional.interpolate(digits.train.images[::4], 32)
        data = from_tensors(images, digits.train.labels[::4], images[:50], digits.train.labels[:200:4])
        env = FilterPruneEnv.from_model(create("resnet20", 10, 1), data, EnvConfig(target_macs=0.5, **FAST))
        network = RIVALS[name](env, 0.5).network
        assert filters(network)[::2] == filters(env.problem.model)[::2]
        assert all(
            one < whole for one, whole in zip(filters(network)[1::2], filters(env.problem.model)[1::2], strict=True)
        )

    def test_an_impossible_budget_is_an_error(self, make_env: Callable[..., FilterPruneEnv]) -> None:
        pytest.importorskip("torch_pruning")
        with pytest.raises(ValueError, match="target-macs"):
            RIVALS["torch_pruning_uniform"](make_env(target_macs=0.5), 0.0001)


class TestReport:
    @staticmethod
    def worth(results: list[dict[float, list[float]]], **signals: list[float]) -> Worth:
        """Return the worth of networks whose test accuracies are given: epochs -> one for each seed."""
        measured: list[dict[str, Any]] = [
            {"sources": ["drawn"], "evaluations": 0} | {name: values[number] for name, values in signals.items()}
            for number in range(len(results))
        ]
        trained = [
            {
                (epochs, seed): {"test_accuracy": value, "reward_accuracy": -value}
                for epochs, values in one.items()
                for seed, value in enumerate(values)
            }
            for one in results
        ]
        recipe = dataclasses.asdict(RECIPE) | {"teacher": "itself", "lr": 0.07}
        return Worth({"network": "net", "data": "digits"}, 0.5, recipe, measured, trained)

    @staticmethod
    def taus(worth: Worth) -> dict[str, list[str]]:
        """Return the rank correlations of the report, without intervals, by what is known early."""
        lines = [line.split("|")[1:-1] for line in report.section(worth).splitlines() if line.startswith("| ")]
        start = next(number for number, line in enumerate(lines) if line[0].strip() == "known early")
        return {line[0].strip(): [cell.strip().partition(" ")[0] for cell in line[1:]] for line in lines[start + 1 :]}

    def test_rank_correlations_of_known_rankings(self) -> None:
        values = list(np.arange(1, 21) / 20)
        worth = self.worth(
            [{1.0: [value]} for value in values], accuracy=values, cross_entropy=values, finetuned_accuracy=values[::-1]
        )
        assert self.taus(worth) == {
            "accuracy as cut": ["1.00", "1.00"],
            "cross-entropy as cut": ["-1.00", "-1.00"],  # a high one is bad
            "accuracy after ten batches": ["-1.00", "-1.00"],
        }  # the rest was not measured, and a training is not its own signal

    def test_the_better_half_is_that_of_the_signal(self) -> None:
        rng = np.random.default_rng(0)
        signal, test = rng.random(40), rng.random(40)
        cells = self.taus(self.worth([{1.0: [value]} for value in test], accuracy=list(signal)))["accuracy as cut"]
        half = signal >= np.median(signal)
        expected = kendalltau(signal, test).statistic, kendalltau(signal[half], test[half]).statistic
        assert list(map(float, cells)) == pytest.approx(expected, abs=0.005)

    def test_a_seed_of_some_networks_adds_no_other_networks_to_the_signals(self) -> None:
        rng = np.random.default_rng(0)
        signal, test = rng.random(40), rng.random((40, 2))
        results = [{1.0: list(row[: 1 + (number < 20)])} for number, row in enumerate(test)]
        cells = self.taus(self.worth(results, accuracy=list(signal)))
        assert float(cells["accuracy as cut"][0]) == pytest.approx(kendalltau(signal, test[:, 0]).statistic, abs=0.005)
        again = cells["test images after another training of this length"][0]
        assert float(again) == pytest.approx(kendalltau(*test[:20].T).statistic, abs=0.005)

    def test_a_short_training_is_a_signal_of_a_longer_one_only(self) -> None:
        worth = self.worth([{1.0: [value], 2.0: [1 - value]} for value in np.arange(12) / 12])
        assert self.taus(worth)["reward images after 1 epochs"] == ["", "1.00", ""]
        assert "reward images after 2 epochs" not in self.taus(worth)

    def test_every_signal_is_compared_with_the_same_noise(self) -> None:
        """The truth must not look worse than another noisy training."""
        rng = np.random.default_rng(0)
        truth = rng.normal(size=60)
        noisy = truth[:, None] + rng.normal(size=(60, 3))
        taus = self.taus(self.worth([{1.0: list(row)} for row in noisy], accuracy=list(truth)))
        assert (
            float(taus["accuracy as cut"][0])
            > float(taus["test images after another training of this length"][0]) + 0.1
        )

    def test_few_networks_have_no_correlation(self) -> None:
        text = report.section(self.worth([{1.0: [0.5]}, {1.0: [0.6]}], accuracy=[0.1, 0.2]))
        assert "55.00" in text
        assert "known early" not in text

    def test_the_title_says_what_differs_from_the_default_recipe(self) -> None:
        title = report.section(self.worth([{1.0: [0.5]}])).splitlines()[0]
        assert title == "## net on digits, 50 % of the MACs (lr 0.07)"


class TestPublishedWeights:
    @pytest.mark.parametrize("folder", sorted(check_weights.WEIGHTS.glob("*/")), ids=lambda folder: folder.name)
    def test_the_published_networks_can_be_loaded(self, folder: Path) -> None:
        network, metrics = load_pruned(folder), read_record(folder)["metrics"]
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        assert 0.8 < metrics["test_accuracy"] < 1

    def test_a_folder_without_a_test_accuracy_is_named(
        self, make_env: Callable[..., FilterPruneEnv], tmp_path: Path
    ) -> None:
        env = make_env(target_macs=0.5)
        plan = env.budget.uniform()
        save_pruned(tmp_path / "mine", env.problem.build(plan), plan, env.problem, base="small_cnn")
        with pytest.raises(ValueError, match="mine"):
            check_weights.main(check_weights.Config("digits", tmp_path))

    def test_the_accuracies_are_read_again(
        self, make_env: Callable[..., FilterPruneEnv], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        env = make_env(target_macs=0.5)
        plan, data = env.budget.uniform(), env.problem.data
        network = env.problem.build(plan)
        right = accuracy(network, data, data.test)
        save_pruned(tmp_path / "a", network, plan, env.problem, base="small_cnn", metrics={"test_accuracy": right})
        check_weights.main(check_weights.Config("digits", tmp_path))
        assert f"a: {100 * right:.2f} %" in capsys.readouterr().out
        save_pruned(
            tmp_path / "b", network, plan, env.problem, base="small_cnn", metrics={"test_accuracy": right + 0.01}
        )
        with pytest.raises(ValueError, match=": b;"):
            check_weights.main(check_weights.Config("digits", tmp_path))
