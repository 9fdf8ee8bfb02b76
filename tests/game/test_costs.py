"""Budgets of parameters and of latency: every episode meets them, and all parts of the game know them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from episodes import EnvMaker, last_info, play
from pettingzoo.test import parallel_api_test
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv, FilterPruneSuite
from prune_env.data import DataSplits
from prune_env.pruning import Cost, find_groups
from prune_env.scoring.latency_table import LatencyTable, LayerTimes


@pytest.fixture(scope="module")
def latency_table(trained: nn.Module, digits: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a table in which a layer takes as long as it has output channels, whatever it reads."""
    groups = find_groups(trained, digits.example_input)
    cost = Cost(trained, groups, digits.example_input)
    full = tuple(group.filters for group in groups)
    layers = {
        name: LayerTimes((int(ins),), (1, int(outs)), ((1.0, float(outs)),))
        for name, ins, outs in zip(cost.layers, *cost.layer_channels(full), strict=True)
    }
    file = tmp_path_factory.mktemp("tables") / "table.json"
    LatencyTable(layers).save(file)
    return file


@pytest.fixture(params=["params", "latency"])
def cost(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(make_env: EnvMaker, cost: str, latency_table: Path) -> Any:
    table = {"latency_table": latency_table} if cost == "latency" else {}
    return lambda target=0.5, **settings: make_env(**{f"target_{cost}": target}, **table, **{"round_to": 1, **settings})


def ratio(env: FilterPruneEnv, cost: str, plan: tuple[int, ...]) -> float:
    """Return the cost ratio of a plan, computed in another way: 10 output channels belong to the classes."""
    if cost == "params":
        return env.problem.cost.params(plan) / env.problem.cost.params(env.problem.full_plan)
    return (sum(plan) + 10) / (sum(env.problem.full_plan) + 10)


def test_every_episode_meets_the_budget_and_shows_it(make: Any, cost: str) -> None:
    env = make((0.4, 0.7))
    for seed in range(6):
        record = play(env, seed)
        expected = ratio(env, cost, env.plan)
        assert env.budget.target - 0.01 - 1e-9 <= expected <= env.budget.target + 1e-9
        assert last_info(record)[f"{cost}_ratio"] == pytest.approx(expected)
        assert env.budget.ratio(env.plan) == pytest.approx(expected)
    for target in (0.4, 0.7):
        uniform = ratio(env, cost, env.budget.uniform(target))
        least_change = ratio(env, cost, env.least_change.plan(target))
        assert max(uniform, least_change) <= target
        assert min(uniform, least_change) >= target - 0.011


def test_agents_see_the_budget_under_its_name(make: Any, cost: str) -> None:
    env = make(0.5)
    observations, _ = env.reset(seed=0)
    names = list(env.observation_names)
    assert "target_macs" not in names
    first = observations["conv_0"]
    assert first[names.index(f"target_{cost}")] == 0.5
    assert first[names.index(f"{cost}_ratio")] == 1
    assert first[names.index(f"{cost}_left")] == 0.5
    slopes = [observations[agent][names.index(f"{cost}_slope")] for agent in env.agents]
    assert all(0 < slope < 1 for slope in slopes)
    if cost == "latency":  # a filter of any layer costs the same
        assert np.allclose(slopes, np.array(env.problem.full_plan) / (2 * (sum(env.problem.full_plan) + 10)), rtol=1e-4)
    assert env.state_names[-3] == f"target_{cost}"
    assert env.state()[-3] == 0.5


def test_it_is_a_parallel_env(make: Any) -> None:
    parallel_api_test(make(0.5), num_cycles=20)


def test_the_option_of_a_reset_has_the_name_of_the_budget(make: Any, cost: str) -> None:
    env = make((0.4, 0.7))
    assert env.target_name == f"target_{cost}"
    env.reset(options={f"target_{cost}": 0.6})
    assert env.budget.target == 0.6
    assert env.episode_options == {f"target_{cost}": 0.6}
    with pytest.warns(UserWarning, match="target_macs"):
        env.reset(options={"target_macs": 0.6})
    with pytest.raises(ValueError, match=f"target_{cost}"):
        env.reset(options={f"target_{cost}": 1.5})


def test_the_archive_counts_what_the_budget_limits(make: Any, cost: str) -> None:
    env = make((0.4, 0.7))
    for seed in range(8):
        play(env, seed)
    affordable = [entry for entry in env.archive if ratio(env, cost, entry.plan) <= 0.4]
    best = max(affordable, key=lambda entry: entry.accuracy)
    assert 0 < len(affordable) < len(env.archive)
    assert env.archive.best(target=0.4)[0].accuracy == best.accuracy
    assert [entry.latency_ratio is not None for entry in env.archive] == [cost == "latency"] * len(env.archive)
    costs = [ratio(env, cost, entry.plan) for entry in env.archive.front()]
    assert costs == sorted(costs)
    other = make((0.4, 0.7))
    other.load_state_dict(env.state_dict())
    assert list(other.archive) == list(env.archive)


def test_clones_and_imagined_games_have_the_same_budget(make: Any, cost: str) -> None:
    env = make((0.4, 0.7))
    for other in (env.clone(), env.imagine(), env.clone(target=0.6)):
        play(other, 1)
        assert ratio(env, cost, other.plan) <= other.budget.target
    assert env.clone(target=0.6).config.targets == (0.6,)


def test_a_suite_plays_games_of_one_cost(make: Any, make_env: EnvMaker, cost: str) -> None:
    suite = FilterPruneSuite({"one": make((0.4, 0.7)), "other": make(0.5)})
    play(suite, 0)
    assert suite.budget.cost_name == cost
    suite.reset(options={"game": "one", f"target_{cost}": 0.6})
    assert suite.budget.target == 0.6
    with pytest.raises(ValueError, match="other"):
        FilterPruneSuite({"one": make(0.5), "other": make_env()})


def test_an_archive_of_another_table_is_refused(make_env: EnvMaker, latency_table: Path, tmp_path: Path) -> None:
    env = make_env(target_latency=0.5, latency_table=latency_table)
    play(env, 0)
    changed = LatencyTable.load(latency_table)
    LatencyTable(changed.layers, scale=2.0).save(tmp_path / "table.json")
    with pytest.raises(ValueError, match="latency_table"):
        make_env(target_latency=0.5, latency_table=tmp_path / "table.json").load_state_dict(env.state_dict())
    changed.save(tmp_path / "copy.json")
    make_env(target_latency=0.5, latency_table=tmp_path / "copy.json").load_state_dict(env.state_dict())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"target_params": 0.5, "target_latency": 0.5}, "target_params, target_latency"),
        ({"target_macs": 0.4, "target_params": 0.5}, "target_macs, target_params"),
        ({"target_params": 0.0}, "target_params"),
        ({"target_latency": ()}, "target_latency"),
        ({"latency_table": "table.json"}, "target_latency"),
        ({"target_params": 0.5, "reward": "tradeoff"}, "target_params"),
    ],
)
def test_contradictions_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        EnvConfig(**settings)


def test_a_budget_of_latency_needs_a_table(make_env: EnvMaker, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="latency_table"):
        make_env(target_latency=0.5)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        make_env(target_latency=0.5, latency_table=tmp_path / "none.json")


def test_a_target_out_of_reach_is_named(make: Any, cost: str) -> None:
    with pytest.raises(ValueError, match=rf"target_{cost}=0\.001"):
        make(0.001)


def test_a_default_config_has_a_budget_of_macs() -> None:
    assert EnvConfig().cost == "macs"
    assert EnvConfig(target_params=0.5).targets == (0.5,)
    assert EnvConfig(target_params=0.5).target_macs is None
    assert EnvConfig(target_latency=(0.5, 0.6)).with_targets(0.7).targets == (0.7,)
