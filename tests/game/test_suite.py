"""Many games in one environment: which one an episode plays, who plays in it, and what it pays."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from episodes import EnvMaker, episode_return, play
from pettingzoo.test import parallel_api_test
from torch import nn

from prune_env import DataSplits, FilterPruneEnv, FilterPruneSuite
from prune_env.game.observation import global_names
from qmix_agent import QMIX, QMIXConfig


def tiny_network() -> nn.Module:
    """Return an untrained network of two convolutions; the second is no agent, because the head reads all of it."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


@pytest.fixture
def tiny(digits: DataSplits, make_env: EnvMaker) -> FilterPruneEnv:
    config = make_env(target_macs=(0.4, 0.6)).config
    with torch.random.fork_rng():
        torch.manual_seed(0)  # other weights may classify no image correctly
        model = tiny_network()
    return FilterPruneEnv.from_model(model, digits, config)


@pytest.fixture
def suite(make_env: EnvMaker, tiny: FilterPruneEnv) -> FilterPruneSuite:
    return FilterPruneSuite({"tiny": tiny, "small": make_env(target_macs=(0.4, 0.6))})


def test_it_is_a_parallel_env(suite: FilterPruneSuite) -> None:
    parallel_api_test(suite, num_cycles=50)


def test_games_and_their_targets_are_played_equally_often(suite: FilterPruneSuite) -> None:
    played: Counter[Any] = Counter()
    for seed in range(8):
        suite.reset(seed=seed)
        played[suite.game_name, suite.budget.target] += 1
    assert played == {(name, target): 2 for name in ("tiny", "small") for target in (0.4, 0.6)}


def test_an_episode_has_the_agents_of_its_game(suite: FilterPruneSuite) -> None:
    for name, game in suite.games.items():
        observations, infos = suite.reset(options={"game": name, "target_macs": 0.5})
        assert suite.agents == list(observations) == list(infos) == game.possible_agents
        assert suite.budget.target == 0.5
    assert set(suite.games["tiny"].possible_agents) < set(suite.possible_agents)


def test_the_state_is_padded_with_zeros(suite: FilterPruneSuite) -> None:
    suite.reset(options={"game": "tiny", "target_macs": 0.5})
    state, own, totals = suite.state(), suite.game.state(), len(global_names("macs"))
    assert suite.state_space.contains(state)
    assert np.array_equal(state[: len(own) - totals], own[:-totals])
    assert np.array_equal(state[-totals:], own[-totals:])
    assert not state[len(own) - totals : -totals].any()


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_returns_are_relative_to_the_uniform_plan(suite: FilterPruneSuite, name: str) -> None:
    plain = FilterPruneSuite(suite.games, relative=False)
    options = {"game": name, "target_macs": 0.4}
    returns = [episode_return(play(one, options=options)) for one in (suite, plain)]
    game = suite.games[name]
    uniform = game.evaluator.accuracy(game.budgets.of(0.4).uniform()) / game.evaluator.original_accuracy - 1
    assert returns[1] - returns[0] == pytest.approx(uniform)


def test_every_game_keeps_its_archive(suite: FilterPruneSuite) -> None:
    play(suite, options={"game": "tiny"})
    assert [len(game.archive) for game in suite.games.values()] == [1, 0]
    assert suite.known


def test_an_imagined_episode_measures_nothing_and_deals_no_card(suite: FilterPruneSuite) -> None:
    suite.reset(seed=0)
    left, imagined = list(suite.deck.left), suite.imagine()
    for _ in range(3):
        imagined.reset(options=suite.episode_options)
        assert (imagined.game_name, imagined.budget.target) == (suite.game_name, suite.budget.target)
        while imagined.agents:
            imagined.step(dict.fromkeys(imagined.agents, 1))
    assert suite.deck.left == left
    assert not any(len(game.archive) for game in suite.games.values())


def test_a_resumed_agent_ends_as_the_uninterrupted_one(suite: FilterPruneSuite, tmp_path: Path) -> None:
    config = QMIXConfig(
        mixer="pooled",
        agent_id=False,
        batch_size=4,
        learning_starts=4,
        imagined_episodes=3,
        hidden_size=8,
        eval_every=0,
    )

    def again() -> FilterPruneSuite:
        games = suite.games.items()  # clones would share the archives
        return FilterPruneSuite(
            {name: FilterPruneEnv(game.problem, game.config, evaluator=game.evaluator) for name, game in games}
        )

    whole = QMIX(again(), config).learn(10, progress=False)
    QMIX(again(), config).learn(6, checkpoint_dir=tmp_path, progress=False)
    resumed = QMIX.load(tmp_path, again()).learn(10, progress=False)
    for name, weight in whole.learner.network.state_dict().items():
        assert weight.equal(resumed.learner.network.state_dict()[name])


@pytest.mark.parametrize(
    ("games", "error", "match"),
    [
        ({}, ValueError, "games"),
        ({"a": "small_cnn"}, TypeError, "'a'"),
        (["small_cnn"], TypeError, "games"),
    ],
)
def test_wrong_games_are_refused(games: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        FilterPruneSuite(games)


def test_games_of_other_rates_or_without_a_budget_are_refused(make_env: EnvMaker) -> None:
    with pytest.raises(ValueError, match=r"'b'.*rate_0\.3"):
        FilterPruneSuite({"a": make_env(rates=(0.0, 0.5)), "b": make_env(rates=(0.0, 0.3))})
    free = make_env(target_macs=None, reward="amc")
    with pytest.raises(ValueError, match=r"'free'.*budget"):
        FilterPruneSuite({"free": free})
    FilterPruneSuite({"free": free}, relative=False).reset()


@pytest.mark.parametrize(
    "settings", [{"round_finetune_batches": 1}, {"max_cycles": 2}, {"every_round": True, "reward": "amc"}]
)
def test_games_whose_uniform_return_is_not_known_are_refused(make_env: EnvMaker, settings: dict[str, int]) -> None:
    env = make_env(**settings)
    with pytest.raises(ValueError, match=next(iter(settings))):
        FilterPruneSuite({"game": env})
    FilterPruneSuite({"game": env}, relative=False)


def test_clones_play_at_the_same_time(suite: FilterPruneSuite) -> None:
    config = QMIXConfig(mixer="pooled", agent_id=False, batch_size=4, learning_starts=4, hidden_size=8, eval_every=0)
    QMIX(suite, config).learn(8, n_envs=4, progress=False)
    assert all(len(game.archive) for game in suite.games.values())


def test_a_plan_of_a_policy_meets_the_budget_and_leaves_the_suite_as_it_is(suite: FilterPruneSuite) -> None:
    agent = QMIX(suite, QMIXConfig(mixer="pooled", agent_id=False, hidden_size=8))
    suite.reset(seed=3)
    decks = [list(suite.deck.left), *(list(game.budgets.deck.left) for game in suite.games.values())]
    for imagined in (1, 5):
        plan = agent.policy().plan(suite, imagined_episodes=imagined)
        assert suite.game.cost_ratios(plan)[0] <= (suite.budget.target or 0)
    assert decks == [list(suite.deck.left), *(list(game.budgets.deck.left) for game in suite.games.values())]
    assert not any(len(game.archive) for game in suite.games.values())


def test_an_untrained_policy_with_a_prior_follows_the_least_change_plan(suite: FilterPruneSuite) -> None:
    policy = QMIX(suite, QMIXConfig(mixer="pooled", agent_id=False, prior=True)).policy()
    for name, game in suite.games.items():
        for target in (0.4, 0.6):
            plan = policy.plan(suite, game=name, target_macs=target)
            wanted, full = (np.array(one) for one in (game.least_change.plan(target), game.problem.full_plan))
            assert (np.abs(plan - wanted) <= 1 + 0.15 * full).all(), (plan, wanted)
            assert game.cost_ratios(plan)[0] <= target


@pytest.mark.parametrize("several", [True, False], ids=["suite", "one_game"])
def test_evaluations_play_every_kind_of_episode_and_take_none_from_training(
    suite: FilterPruneSuite, several: bool
) -> None:
    env = suite if several else suite.games["small"]
    agent = QMIX(env, QMIXConfig(mixer="pooled", agent_id=False, hidden_size=8, learning_starts=8, eval_every=0))
    kinds = len(env.all_episode_options)
    one, two = (agent.evaluate(episodes=kinds) for _ in range(2))
    assert one == two
    played = suite.games.values() if several else [suite.games["small"]]
    for game in played:
        ratios = sorted(entry.macs_ratio for entry in game.archive)
        assert ratios[0] <= 0.4 < ratios[-1] <= 0.6
    decks = [game.budgets.deck for game in suite.games.values()] + [suite.deck]
    assert not any(deck.left for deck in decks)


def test_unknown_options_are_named(suite: FilterPruneSuite) -> None:
    for env in (suite, suite.games["tiny"]):
        with pytest.warns(UserWarning, match="target_mac'"):
            env.reset(options={"target_mac": 0.4})


def test_a_refused_reset_changes_nothing(suite: FilterPruneSuite) -> None:
    suite.reset(options={"game": "small"})
    with pytest.raises(ValueError, match="target_macs"):
        suite.reset(options={"game": "tiny", "target_macs": 0.0001})
    assert suite.game_name == "small"
    assert suite.agents == suite.game.agents


def test_an_unknown_game_is_refused(suite: FilterPruneSuite) -> None:
    with pytest.raises(ValueError, match="'large'"):
        suite.reset(options={"game": "large"})


def test_the_state_of_another_suite_is_refused(suite: FilterPruneSuite) -> None:
    other = FilterPruneSuite({"tiny": suite.games["tiny"]})
    plain = FilterPruneSuite(suite.games, relative=False)
    for wrong, name in ((other, "games"), (plain, "relative"), (suite.games["tiny"], "games")):
        with pytest.raises(ValueError, match=name):
            suite.load_state_dict(wrong.state_dict())
    with pytest.raises(ValueError, match="archive"):
        suite.games["tiny"].load_state_dict(suite.state_dict())
