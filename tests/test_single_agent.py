"""The single-agent views: they pass the checks of Gymnasium and Stable-Baselines3, and play on the game itself."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from episodes import FAST, EnvMaker, equal
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env import EnvConfig, FilterPruneEnv, single_agent
from prune_env.data import DataSplits
from prune_env.single_agent import Joint, LayerByLayer

View = LayerByLayer | Joint
VIEWS = pytest.mark.parametrize("view", [LayerByLayer, Joint])
GROUPS = 5
ratios = st.lists(st.floats(0, 1, width=32), min_size=GROUPS, max_size=GROUPS)


def play(env: View, actions: Iterable[np.ndarray]) -> list[Any]:
    """Play one episode and return everything that reset and the steps returned."""
    record: list[Any] = [env.reset(seed=0)]
    for action in actions:
        record.append(env.step(action))
        if record[-1][2] or record[-1][3]:
            break
    return record


def keep(*wanted: float) -> list[np.ndarray]:
    """Return the actions that keep these fractions of one group after another."""
    return [np.array([ratio], np.float32) for ratio in wanted]


def random_actions(env: View, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield random actions without end."""
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    while True:
        yield space.sample()


@pytest.fixture(scope="module")
def shared(trained: torch.nn.Module, digits: DataSplits) -> FilterPruneEnv:
    """One game for all examples of a property, so that known plans are not evaluated again."""
    return FilterPruneEnv.from_model(trained, digits, EnvConfig(**FAST))


@VIEWS
class TestBothViews:
    def test_gymnasiums_checker_accepts_it(self, make_env: EnvMaker, view: type[View]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*not having a spec")  # registered environments have one
            check_env(view(make_env(every_round=True)))

    def test_stable_baselines_checker_accepts_it(self, make_env: EnvMaker, view: type[View]) -> None:
        from stable_baselines3.common.env_checker import check_env as check

        env: gymnasium.Env[Any, Any] = view(make_env())
        if view is LayerByLayer:
            env = gymnasium.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check(env)

    @pytest.mark.usefixtures("untouched_rngs")
    def test_episodes_repeat_and_returned_arrays_may_be_changed(self, make_env: EnvMaker, view: type[View]) -> None:
        first, second = view(make_env(every_round=True)), view(make_env(every_round=True))
        for seed in range(3):
            one, two = (play(env, random_actions(env, seed)) for env in (first, second))
            assert equal(one, two)
            assert all(first.observation_space.contains(result[0]) for result in one)
            for observation, *_, info in one:
                observation.fill(7)
                for value in info.values():
                    if isinstance(value, np.ndarray):
                        value.fill(0)
            assert equal(play(first, random_actions(first, seed)), two), "a returned array is still in use"

    def test_infos_always_have_the_same_keys_and_types(self, make_env: EnvMaker, view: type[View]) -> None:
        env = view(make_env())
        kinds = [{key: type(value) for key, value in result[-1].items()} for result in play(env, random_actions(env))]
        assert all(kind == kinds[0] for kind in kinds)
        assert {"accuracy", "macs_ratio", "params_ratio"} <= kinds[0].keys()
        assert set(kinds[0].values()) == {float, np.ndarray}

    @pytest.mark.parametrize("batches", [0, 2])
    def test_it_plays_on_the_game_itself(self, make_env: EnvMaker, view: type[View], batches: int) -> None:
        """Archive, plan and network of the game follow the view; afterwards the game can be played as before."""
        game = make_env(render_mode="ansi", finetune_batches=batches)
        env = view(game)
        total = sum(result[1] for result in play(env, random_actions(env))[1:])
        (entry,) = game.archive
        assert entry.plan == game.plan
        assert entry.episode_return == pytest.approx(total)
        assert entry.accuracy == game.evaluator.accuracy(game.plan)
        assert total == pytest.approx(entry.accuracy / game.evaluator.original_accuracy - 1)
        convs = [module for module in game.pruned_model().modules() if isinstance(module, torch.nn.Conv2d)]
        assert tuple(conv.out_channels for conv in convs) == entry.plan
        assert (f"round {GROUPS} of {GROUPS}" if view is LayerByLayer else "round 3 of 3") in str(env.render())
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            game.step(dict.fromkeys(game.possible_agents, 0))
        game.reset()
        assert game.agents == game.possible_agents

    def test_an_episode_starts_with_a_reset(self, make_env: EnvMaker, view: type[View]) -> None:
        env = view(make_env())
        action = next(random_actions(env))
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            env.step(action)
        play(env, random_actions(env))
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            env.step(action)

    def test_it_pickles_in_the_middle_of_an_episode(self, make_env: EnvMaker, view: type[View]) -> None:
        env = view(make_env())
        env.reset()
        actions = random_actions(env, 3)
        env.step(next(actions))
        twin, action = pickle.loads(pickle.dumps(env)), next(actions)
        assert equal(env.step(action), twin.step(action))

    def test_it_is_registered(self, trained: torch.nn.Module, tmp_path: Any, view: type[View]) -> None:
        torch.save(trained.state_dict(), tmp_path / "weights.pt")
        env = gymnasium.make(
            f"prune_env.single_agent:prune_env/{view.__name__}-v0", weights=tmp_path / "weights.pt", **FAST
        )
        assert isinstance(env.unwrapped, view)
        check_env(env.unwrapped)  # renders, too
        env.reset(seed=0)
        while not env.step(env.action_space.sample())[2]:
            pass
        assert len(env.unwrapped.game.archive) >= 1


class TestLayerByLayer:
    @settings(max_examples=150, deadline=None)
    @given(wanted=ratios)
    def test_every_finished_plan_meets_the_budget(self, shared: FilterPruneEnv, wanted: list[float]) -> None:
        *steps, last = play(LayerByLayer(shared), keep(*wanted))
        info = last[-1]
        assert 0.49 <= info["macs_ratio"] <= 0.5
        assert tuple(info["plan"]) == shared.plan
        assert shared.plan in {entry.plan for entry in shared.archive}
        assert all(kept >= 2 for kept in shared.plan)
        assert not any(result[2] for result in steps[1:])

    @settings(max_examples=100, deadline=None)
    @given(wanted=ratios, target=st.sampled_from([0.05, 0.3, 0.8]), round_to=st.sampled_from([1, 8]))
    def test_the_bound_is_tight(
        self, shared: FilterPruneEnv, wanted: list[float], target: float, round_to: int
    ) -> None:
        """With the bound the target is met if later groups keep their minimum; with one step more it is not."""
        budget = replace(shared.budget, target=target, limits=replace(shared.budget.limits, round_to=round_to))
        least = [budget.kept(group, 0.0) for group in range(GROUPS)]
        plan = list(budget.full_plan)
        for group, ratio in enumerate(wanted):
            most = budget.most_kept(plan, group)
            assert least[group] <= most <= budget.full_plan[group]
            tail = least[group + 1 :]
            assert shared.cost_ratios((*plan[:group], most, *tail))[0] <= target
            if most < budget.full_plan[group]:
                more = min(most + round_to, budget.full_plan[group])
                assert shared.cost_ratios((*plan[:group], more, *tail))[0] > target
            plan[group] = min(budget.kept(group, ratio), most)
        assert shared.cost_ratios(tuple(plan))[0] <= target

    def test_an_action_keeps_its_fraction_up_to_the_bound(self, make_env: EnvMaker) -> None:
        env = LayerByLayer(make_env(round_to=1))
        _, start = env.reset()
        assert start["most_kept"] == 1.0
        _, _, _, _, info = env.step(*keep(0.3))
        assert info["plan"].tolist() == [10, 32, 64, 64, 128]  # 0.3 * 32 = 9.6, rounded up
        assert info["keep_ratio"] == 10 / 32
        env.step(*keep(1))
        env.step(*keep(1))
        _, _, _, _, info = env.step(*keep(1))
        bound = info["most_kept"]
        assert bound < 1
        observation, _, ended, _, info = env.step(*keep(1))
        assert ended
        assert info["keep_ratio"] == bound, "limited by the bound, and no filter was given back"
        assert observation[-1] == np.float32(bound)

    def test_filters_that_are_given_back_are_reported(self, make_env: EnvMaker) -> None:
        env = LayerByLayer(make_env(round_to=1))
        *_, last = play(env, keep(0.1, 0.1, 0.1, 0.1, 0.1))
        assert last[-1]["keep_ratio"] > 0.2
        assert last[-1]["plan"].tolist() == list(env.game.plan)
        assert env.game.plan == env.game.budget.project(env.game.problem.full_plan, (4, 4, 7, 7, 13), last=True)

    def test_it_observes_the_group_that_it_decides_next(self, make_env: EnvMaker) -> None:
        env = LayerByLayer(make_env())
        record = play(env, keep(0.9, 0.8, 0.7, 0.6, 0.5))
        column = {
            name: [float(result[0][index]) for result in record] for index, name in enumerate(env.observation_names)
        }
        assert column["depth"] == [0, 0.25, 0.5, 0.75, 1, 1]
        assert column["rounds_left"] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
        assert column["kept_ratio"][:5] == [1] * 5
        assert column["previous_kept"] == pytest.approx([1.0, *(result[-1]["keep_ratio"] for result in record[1:])])
        assert column["most_kept"] == pytest.approx([result[-1]["most_kept"] for result in record])
        assert column["macs_ratio"] == sorted(column["macs_ratio"], reverse=True)

    @pytest.mark.parametrize("action", [[1.1], [-0.1], [float("nan")], [0.5, 0.5], 0.5, []])
    def test_actions_outside_the_space_are_refused(self, make_env: EnvMaker, action: Any) -> None:
        env = LayerByLayer(make_env())
        env.reset()
        with pytest.raises(ValueError, match=r"action .*Box\(0, 1, \(1,\)\)"):
            env.step(np.array(action))

    def test_another_player_on_the_same_game_is_noticed(self, make_env: EnvMaker) -> None:
        env = LayerByLayer(make_env())
        env.reset()
        env.step(*keep(0.5))
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            env.game.step(dict.fromkeys(env.game.possible_agents, 0))
        env.game.reset()
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            env.step(*keep(0.5))

    def test_carried_weights_are_refused(self, make_env: EnvMaker) -> None:
        with pytest.raises(ValueError, match="round_finetune_batches=2"):
            LayerByLayer(make_env(round_finetune_batches=2))

    def test_a_bound_that_does_not_exist_is_an_error(self, make_env: EnvMaker) -> None:
        game = make_env(target_macs=0.1)
        with pytest.raises(ValueError, match=r"\(32, 32, 64, 64\).*4"):
            game.budget.most_kept(game.problem.full_plan, 4)

    def test_there_is_no_bound_without_a_budget(self, make_env: EnvMaker) -> None:
        env = LayerByLayer(make_env(target_macs=None, reward="amc"))
        record = play(env, keep(1, 0.5, 1, 0.5, 1))
        assert [result[-1]["most_kept"] for result in record] == [1.0] * 6
        assert env.game.plan == (32, 16, 64, 32, 128)
        assert [result[1] for result in record[1:5]] == [0] * 4
        assert record[-1][1] < 0

    def test_tradeoff_ends_the_episode_of_a_useless_network(self, make_env: EnvMaker) -> None:
        env = LayerByLayer(make_env(target_macs=None, reward="tradeoff", every_round=True))
        record = play(env, keep(0, 0, 0, 0, 0))
        assert record[-1][2]
        assert len(record) < 6


class TestJoint:
    def test_it_returns_what_the_agents_get_for_the_same_actions(self, make_env: EnvMaker) -> None:
        env, game = Joint(make_env(every_round=True)), make_env(every_round=True)
        rng = np.random.default_rng(0)
        env.reset()
        _, infos = game.reset()
        ended = False
        while not ended:
            action = rng.integers(10, size=GROUPS)
            assert np.array_equal(env.action_masks().reshape(GROUPS, 10), [i["action_mask"] for i in infos.values()])
            state, reward, ended, truncated, info = env.step(action)
            _, rewards, terminated, _, infos = game.step(dict(zip(game.possible_agents, action, strict=True)))
            assert np.array_equal(state, game.state())
            assert (reward, ended, truncated) == (rewards["conv_0"], terminated["conv_0"], False)
            assert np.array_equal(info["action_mask"], [i["action_mask"] for i in infos.values()])
            assert info["applied_rate"].tolist() == [i["applied_rate"] for i in infos.values()]
        assert list(env.game.archive) == list(game.archive)

    def test_legal_actions_can_be_sampled(self, make_env: EnvMaker) -> None:
        env = Joint(make_env(target_macs=0.9))
        _, info = env.reset()
        env.action_space.seed(0)
        for _ in range(20):
            action = env.action_space.sample(mask=tuple(info["action_mask"]))
            assert all(mask[choice] for mask, choice in zip(info["action_mask"], action, strict=True))

    def test_max_cycles_truncates_an_episode(self, make_env: EnvMaker) -> None:
        env = Joint(make_env(max_cycles=2))
        record = play(env, [np.zeros(GROUPS, int)] * 3)
        assert [result[2:4] for result in record[1:]] == [(False, False), (False, True)]

    def test_actions_outside_the_space_are_refused(self, make_env: EnvMaker) -> None:
        env = Joint(make_env())
        env.reset()
        with pytest.raises(ValueError, match=r"5 groups.*\(4,\)"):
            env.step(np.zeros(4, int))
        with pytest.raises(ValueError, match=r"action .*10.* of agent 'conv_0'"):
            env.step(np.full(GROUPS, 10))
        with pytest.raises(ValueError, match=r"action .*0.5.* of agent 'conv_0'"):
            env.step(np.full(GROUPS, 0.5))


def test_the_module_is_public() -> None:
    import prune_env

    assert prune_env.single_agent is single_agent
