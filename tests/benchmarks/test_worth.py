"""What networks are worth: whole small runs, the networks of other packages, known answers, and published weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import check_weights
from benchmarks.worth import report, run
from benchmarks.worth.networks import SLACK, candidates
from benchmarks.worth.report import Worth
from benchmarks.worth.rivals import RIVALS, filters, macs_ratio
from prune_env import EnvConfig, FilterPruneEnv, load_pruned, save_pruned
from prune_env.game.arguments import ProblemArgs
from prune_env.scoring.metric import accuracy
from prune_env.training.distillation import DistillationConfig

RECIPE = DistillationConfig(min_steps=0, select_best=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> run.Config:
    """A finished run on the tabulated problem's network."""
    config = run.Config(
        ProblemArgs(tabulated=True),
        EnvConfig(target_macs=0.3),
        random=4,
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
        assert len({(tuple(row["plan"]), *key) for row, key in zip(found, order, strict=True)}) == len(found) == 6 * 4
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
        assert len(found) == 6
        for row in found:
            assert 0.29 <= row["macs_ratio"] <= 0.3
            assert all(0 < row[name] < 1 for name in report.SIGNALS if "accuracy" in name)
        trained = [row["finetuned_cross_entropy"] < row["cross_entropy"] for row in found]
        assert all(trained)

    def test_the_report_shows_every_source_and_length(
        self, config: run.Config, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report.main(report.Config(config.out))
        printed = capsys.readouterr().out
        assert all(name in printed for name in ("| uniform | 1 |", "| drawn | 4 |", "0.1 epochs", "0.5 epochs"))
        assert (config.out / "worth.md").read_text().strip() == printed.strip()
        assert (config.out / "worth-1.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    config = run.Config(ProblemArgs(tabulated=True), EnvConfig(target_macs=0.3), sources=("qmix",), out=tmp_path)
    with pytest.raises(ValueError, match="qmix"):  # --found was not given
        run.main(config)


def test_drawn_plans_differ_and_cost_the_same(make_env: Callable[..., FilterPruneEnv]) -> None:
    env = make_env(target_macs=0.5, round_to=1)
    every = candidates(env, 0.5, random=20)
    plans = [plan for source, plan in every if source == "drawn" and plan is not None]
    assert len(set(plans)) == len(plans) == 20
    assert all(0.5 - SLACK <= env.cost_ratios(plan)[0] <= 0.5 for plan in plans)
    assert plans == [plan for source, plan in candidates(env, 0.5, random=20) if source == "drawn"]


def test_a_plan_that_was_found_twice_is_measured_once(make_env: Callable[..., FilterPruneEnv]) -> None:
    env = make_env(target_macs=0.5)
    uniform = list(env.budgets.of(0.5).uniform())
    found = [{"method": "qmix", "target_macs": target, "plan": uniform} for target in (0.5, 0.3)]
    found += [{"method": "vdn", "target_macs": 0.5, "plan": [other + 1 for other in uniform]}]
    sources = [source for source, _ in candidates(env, 0.5, 0, found)]
    assert "qmix" not in sources
    assert "vdn" in sources


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
def test_rivals_make_networks_within_the_budget(
    name: str, make_env: Callable[..., FilterPruneEnv], untouched_rngs: None
) -> None:
    env = make_env(target_macs=0.5)
    network, evaluations = RIVALS[name](env, 0.5)
    assert 0.2 < macs_ratio(env, network) <= 0.5
    assert sum(filters(network)) < sum(filters(env.problem.model))
    assert (evaluations or 0) > 0 if name == "fastnas" else evaluations == 0
    assert env.evaluator.accuracy_of(network) > 0.3
    assert macs_ratio(env, env.problem.model) == 1  # the original is unchanged


class TestReport:
    @staticmethod
    def worth(results: list[dict[float, list[float]]], **signals: list[float]) -> Worth:
        """Return the worth of networks whose test accuracies are given: epochs -> one for each seed."""
        networks: list[dict[str, Any]] = [
            {"source": "drawn"} | {name: values[number] for name, values in signals.items()}
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
        recipe = dataclasses.asdict(RECIPE) | {"teacher": "itself"}
        return Worth(0.5, recipe, networks, trained)

    def test_rank_correlations_of_known_rankings(self) -> None:
        values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
        worth = self.worth(
            [{1.0: [value]} for value in values], accuracy=values, cross_entropy=values, finetuned_accuracy=values[::-1]
        )
        lines = report.section(worth).splitlines()
        taus = {line.split("|")[1].strip(): line.split("|")[2].split()[0] for line in lines if line.startswith("| ")}
        assert taus["accuracy as cut"] == "1.00"
        assert taus["cross-entropy as cut"] == "-1.00"  # a high one is bad
        assert taus["accuracy after ten batches"] == "-1.00"
        assert taus["reward images after 1 epochs"] == "-1.00"
        assert "accuracy as cut, images of a search" not in taus  # it was not measured

    @pytest.mark.parametrize(("second", "ceiling"), [([1, 2, 3, 4, 5], "1.00"), ([5, 4, 3, 2, 1], "-1.00")])
    def test_the_ceiling_is_the_agreement_of_two_seeds(self, second: list[float], ceiling: str) -> None:
        worth = self.worth([{2.0: [first, other]} for first, other in zip([1, 2, 3, 4, 5], second, strict=True)])
        assert f"| the test with another seed | {ceiling} | |" in report.section(worth)

    def test_few_networks_have_no_correlation(self) -> None:
        text = report.section(self.worth([{1.0: [0.5]}, {1.0: [0.6]}], accuracy=[0.1, 0.2]))
        assert "55.00" in text
        assert "known early" not in text


class TestPublishedWeights:
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
        with pytest.raises(ValueError, match="b"):
            check_weights.main(check_weights.Config("digits", tmp_path))
