"""Excluded layers and limits of a game: no agents, masks, plans, records, fingerprints and resumed runs."""

from __future__ import annotations

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from episodes import EnvMaker, play
from torch import nn

from benchmarks.compare.methods import METHODS
from prune_env import EnvConfig, FilterPruneEnv, FilterPruneSuite, load_pruned, make_tabulated_env, save_pruned
from prune_env.game.arguments import ProblemArgs
from prune_env.pruning import PruningGroup

LIMITS: dict[str, Any] = {"min_filters": {"features.0": 24}, "max_rate": {"features.1?": 0.25, "*.14": 0.75}}
"""Of the groups with 32, 32, 64, 64 and 128 filters, the first keeps 24, the fourth 48 and the last 32."""
FEWEST = np.array([24, 2, 2, 48, 32])


def scores(model: nn.Module, groups: list[PruningGroup], batches: Any, seed: int, sign: int = 1) -> Any:
    """Importance: the first filters matter most."""
    return {group.name: -sign * torch.arange(group.filters) for group in groups}


def test_excluded_layers_are_no_agents_and_keep_their_filters(make_env: EnvMaker) -> None:
    whole, env = make_env(), make_env(exclude=("features.3", "*.10"))
    assert len(env.possible_agents) == 3
    assert [group.layers for group in env.groups] == [("features.0",), ("features.7",), ("features.14",)]
    assert "excluded by exclude='*.10'" in str(env.inspection)
    play(env)
    (entry,) = env.archive
    assert 0.49 <= entry.macs_ratio <= 0.5
    first, third, last = entry.plan
    assert env.problem.cost.macs(entry.plan) == whole.problem.cost.macs((first, 32, third, 64, last))
    small = env.pruned_model()
    assert small.get_submodule("features.3").out_channels == 32
    assert small.get_submodule("features.10").out_channels == 64


def test_a_plan_has_the_same_accuracy_with_and_without_excluded_layers(make_env: EnvMaker) -> None:
    """In equal networks; the accuracy then comes from the same evaluation."""
    whole, env = make_env(), make_env(only=("features.7", "features.14"))
    assert env.evaluator.accuracy((32, 64)) == whole.evaluator.accuracy((32, 32, 32, 64, 64))
    assert env.fingerprint != whole.fingerprint


def test_limits_hold_in_masks_plans_and_inspection() -> None:
    env = make_tabulated_env(target_macs=0.5, **LIMITS)
    for seed in range(20):
        play(env, seed, policy="wild")
    assert len(env.archive) > 10
    for plan in (*(entry.plan for entry in env.archive), env.budget.uniform()):
        assert (np.array(plan) >= FEWEST).all()
        assert env.budget.meets(plan)
    rows = [line.split() for line in str(env.inspection).splitlines()[1:6]]
    assert [(row[1], row[3].rstrip(",")) for row in rows] == [
        (group.layers[0], str(-(-least // 4) * 4)) for group, least in zip(env.groups, FEWEST, strict=True)
    ]
    fewest = tuple(env.budget.limits.fewest(env.problem.full_plan).tolist())
    assert env.inspection.removable == pytest.approx(1 - env.cost_ratios(fewest)[0])


@pytest.mark.parametrize("method", ["uniform", "magnitude", "sensitivity", "random", "evolution", "tpe", "amc"])
def test_baselines_keep_the_limits(method: str) -> None:
    env = make_tabulated_env(target_macs=0.5, **LIMITS)
    found = METHODS[method](env, 30 if method == "sensitivity" else 6, 0)
    assert found.entries
    for entry in found.entries:
        assert (np.array(entry.plan) >= FEWEST).all()


def test_a_target_that_the_constraints_put_out_of_reach_is_named(make_env: EnvMaker) -> None:
    with pytest.raises(ValueError, match=r"target_macs=0.2 .*0\.\d{4}"):
        make_env(target_macs=0.2, exclude=("features.?",))
    with pytest.raises(ValueError, match=r"target_macs=0.2 .*max_rate=0.3"):
        make_env(target_macs=0.2, max_rate=0.3)


@pytest.mark.parametrize("setting", ["exclude", "only", "min_filters", "max_rate", "round_to"])
def test_a_pattern_that_matches_no_layer_is_named_with_the_layers(make_env: EnvMaker, setting: str) -> None:
    value = ("conv9",) if setting in ("exclude", "only") else {"conv9": 1}
    with pytest.raises(ValueError, match=rf"{setting} .*'conv9'.* features\.0, features\.3"):
        make_env(**{setting: value})


@pytest.mark.parametrize("settings", [{"exclude": ("features.0",)}, {"only": ("features.*",)}])
def test_the_tabulated_problem_has_all_groups(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        make_tabulated_env(**settings)


def test_games_with_other_constraints_play_in_one_suite(make_env: EnvMaker) -> None:
    suite = FilterPruneSuite({"whole": make_env(), "part": make_env(exclude=("features.0",), max_rate={"*.14": 0.5})})
    for seed in range(4):
        play(suite, seed)
    assert [len(next(iter(game.archive)).plan) for game in suite.games.values()] == [5, 4]
    assert all(entry.plan[3] >= 64 for entry in suite.games["part"].archive)


def test_a_network_with_excluded_layers_is_saved_and_loaded(make_env: EnvMaker, tmp_path: Path) -> None:
    env = make_env(exclude=("features.0",))
    plan = env.budget.uniform()
    network = env.problem.build(plan)
    save_pruned(tmp_path, network, plan, env.problem, base="small_cnn")
    images = env.problem.data.example_input
    with torch.inference_mode():
        torch.testing.assert_close(load_pruned(tmp_path)(images), network.eval()(images))


CHANGES: list[dict[str, Any]] = [
    {"exclude": ("features.0",)},
    {"only": ("features.[037]",)},
    {"min_filters": {"*": 2}},
    {"max_rate": 0.9},
    {"round_to": {"features.0": 2}},
    {"importance": scores},
    {"importance": functools.partial(scores, sign=-1)},
]


def test_every_constraint_changes_the_fingerprint_and_is_named_when_a_run_resumes(make_env: EnvMaker) -> None:
    plain = make_env()
    state = plain.state_dict()
    games = [make_env(**change) for change in CHANGES]
    assert len({game.fingerprint for game in (plain, *games)}) == len(games) + 1
    for game, change in zip(games, CHANGES, strict=True):
        with pytest.raises(ValueError, match=next(iter(change))):
            game.load_state_dict(state)
        again = make_env(**copy.deepcopy(change))
        assert again.fingerprint == game.fingerprint
        again.load_state_dict(game.state_dict())


def test_the_order_of_patterns_matters_when_a_run_resumes(make_env: EnvMaker) -> None:
    first, last = ({"*": 8, "features.0": 4}, {"features.0": 4, "*": 8})
    with pytest.raises(ValueError, match="min_filters"):
        make_env(min_filters=last).load_state_dict(make_env(min_filters=first).state_dict())


def test_a_function_ranks_filters_and_workers_do_not_need_it(make_env: EnvMaker) -> None:
    def local(model: nn.Module, groups: list[PruningGroup], batches: Any, seed: int) -> Any:
        """A function that cannot be sent to another process; only its ranking needs to be."""
        assert sum(len(images) for images, _ in batches) == 200
        return scores(model, groups, batches, seed)

    env = make_env(importance=local)
    assert all(order.tolist() == list(range(len(order))) for order in env.problem.ranking.values())
    assert pickle.dumps(env.evaluator.task)
    assert FilterPruneEnv(env.problem).fingerprint == env.fingerprint  # the settings of the problem


def test_a_function_whose_scores_do_not_fit_is_named(make_env: EnvMaker) -> None:
    with pytest.raises(ValueError, match=r"lambda.*conv_0"):
        make_env(importance=lambda model, groups, batches, seed: {})


def test_commands_take_constraints() -> None:
    words = "--exclude features.0 *.3 --min-filters * 4 features.7 8 --max-rate 0.5 --round-to 4 --importance l2"
    config = tyro.cli(EnvConfig, args=words.split())
    assert config == EnvConfig(
        exclude=("features.0", "*.3"), min_filters={"*": 4, "features.7": 8}, max_rate=0.5, round_to=4, importance="l2"
    )
    assert ProblemArgs(tabulated=True).make_env(EnvConfig(max_rate={"features.0": 0.5})).budget.uniform()[0] >= 16
