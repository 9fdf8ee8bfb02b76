"""The environment: PettingZoo's conformance tests, stricter ones of ours, and the game's own rules."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pettingzoo
import pytest
import torch
from pettingzoo.test import api_test, max_cycles_test, parallel_api_test, parallel_seed_test, seed_test
from pettingzoo.test.state_test import state_test
from pettingzoo.utils import parallel_to_aec
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv, filter_prune_v0
from prune_env.data import DataSplits
from prune_env.game.reward import RoundReward
from prune_env.reporting.run_folder import unrounded_uniform

EnvMaker = Callable[..., FilterPruneEnv]
INFO_KEYS = {"action_mask", "applied_rate", "accuracy", "macs_ratio", "params_ratio"}


def play(env: FilterPruneEnv, seed: int, policy: str = "random") -> list[Any]:
    """One episode; everything that reset and the steps returned."""
    rng = np.random.default_rng(seed)
    observations, infos = env.reset(seed=seed)
    record: list[Any] = [(observations, infos)]
    while env.agents:
        actions = {}
        for agent in env.agents:
            legal = np.flatnonzero(infos[agent]["action_mask"])
            wild = rng.integers(env.action_space(agent).n)
            actions[agent] = int({"random": rng.choice(legal), "wild": wild, "idle": 0}[policy])
        result = env.step(actions)
        infos = result[-1]
        record.append(result)
    return record


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    return type(one) is type(two) and one == two


class TestConformance:
    def test_parallel_api(self, make_env: EnvMaker) -> None:
        parallel_api_test(make_env(), num_cycles=30)

    def test_parallel_seed(self, make_env: EnvMaker) -> None:
        parallel_seed_test(make_env, num_cycles=6)

    def test_state(self, make_env: EnvMaker) -> None:
        state_test(parallel_to_aec(make_env()), make_env(), num_cycles=12)

    def test_versioned_aec(self, trained: torch.nn.Module, tmp_path: Any) -> None:
        torch.save(trained.state_dict(), tmp_path / "weights.pt")
        settings = {"weights": tmp_path / "weights.pt", "reward_images": 50, "calibration_images": 200}
        api_test(filter_prune_v0.env(**settings), num_cycles=30)

    def test_aec(self, make_env: EnvMaker) -> None:
        api_test(parallel_to_aec(make_env()), num_cycles=30)
        seed_test(lambda: parallel_to_aec(make_env()), num_cycles=12)

    def test_max_cycles(self, make_env: EnvMaker) -> None:
        class Module:
            """What PettingZoo's test takes for a module."""

            @staticmethod
            def parallel_env(max_cycles: int) -> FilterPruneEnv:
                return make_env(rounds=6, max_cycles=max_cycles, target_macs=0.9)

            @staticmethod
            def env(max_cycles: int) -> pettingzoo.AECEnv:
                return parallel_to_aec(Module.parallel_env(max_cycles))

        max_cycles_test(Module)

    def test_versioned_module_is_registered(self, trained: torch.nn.Module, tmp_path: Any) -> None:
        weights = tmp_path / "weights.pt"
        torch.save(trained.state_dict(), weights)
        settings = {"weights": weights, "reward_images": 50, "calibration_images": 200}
        assert isinstance(filter_prune_v0.parallel_env(**settings), FilterPruneEnv)
        aec = filter_prune_v0.env(**settings)
        aec.reset(seed=0)
        assert aec.agents[0] == "conv_0"
        if hasattr(pettingzoo, "make"):
            made = pettingzoo.make("parallel", "prune_env/filter_prune_v0", **settings)
            assert made.metadata["name"] == "filter_prune_v0"


class TestStrict:
    """What PettingZoo's tests do not look at."""

    @pytest.mark.parametrize("policy", ["random", "wild", "idle"])
    def test_observations_lie_in_their_spaces_and_are_fresh(self, make_env: EnvMaker, policy: str) -> None:
        env = make_env(every_round=True)
        kept, copies = [], []
        for seed in range(3):
            for result in play(env, seed, policy):
                observations = result[0]
                assert observations.keys() == set(env.possible_agents)
                for agent, observation in observations.items():
                    assert env.observation_space(agent).contains(observation)
                    assert env.observation_space(agent) is env.observation_space(agent)
                kept.append(observations)
                copies.append(copy.deepcopy(observations))
                assert env.state_space.contains(env.state())
        assert equal(kept, copies), "a returned array was written to later"

    @pytest.mark.usefixtures("untouched_rngs")
    def test_three_whole_episodes_repeat_under_one_seed(self, make_env: EnvMaker) -> None:
        first, second = make_env(every_round=True), make_env(every_round=True)
        for seed in range(3):
            assert equal(play(first, seed), play(second, seed))
            assert np.array_equal(first.state(), second.state())

    def test_infos_have_the_same_keys_and_types_always(self, make_env: EnvMaker) -> None:
        env = make_env()
        for result in play(env, 0):
            infos = result[-1]
            assert infos.keys() == set(env.possible_agents)
            for info in infos.values():
                assert info.keys() == INFO_KEYS
                assert info["action_mask"].dtype == np.int8
                assert info["action_mask"].shape == (len(env.config.rates),)
                assert info["action_mask"][0] == 1
                assert all(type(info[key]) is float for key in INFO_KEYS - {"action_mask"})

    @pytest.mark.parametrize("policy", ["random", "wild", "idle"])
    @pytest.mark.parametrize("target", [0.3, 0.5, 0.85])
    def test_every_finished_plan_meets_the_budget(self, make_env: EnvMaker, policy: str, target: float) -> None:
        env = make_env(target_macs=target)
        for seed in range(5):
            infos = play(env, seed, policy)[-1][-1]
            assert target - 0.01 <= infos["conv_0"]["macs_ratio"] <= target
        assert all(entry.macs_ratio <= target for entry in env.archive)

    def test_episode_ends_with_full_dicts_and_no_agents(self, make_env: EnvMaker) -> None:
        env = make_env(rounds=2)
        *_, last = play(env, 0)
        observations, rewards, terminated, truncated, infos = last
        for part in (observations, rewards, terminated, truncated, infos):
            assert set(part) == set(env.possible_agents)
        assert all(value is True for value in terminated.values())
        assert all(value is False for value in truncated.values())
        assert env.agents == []
        with pytest.raises(RuntimeError, match=r"call reset\(\)"):
            env.step({})
        env.reset()
        assert env.agents == env.possible_agents

    def test_an_outside_limit_truncates(self, make_env: EnvMaker) -> None:
        env = make_env(rounds=3, max_cycles=2)
        *_, last = play(env, 0)
        assert not any(last[2].values())
        assert all(last[3].values())
        assert len(env.archive) == 0, "an unfinished plan is no result"


class TestRules:
    def test_a_legal_action_has_the_effect_its_rate_says(self, make_env: EnvMaker) -> None:
        env = make_env(target_macs=0.3)
        env.reset()
        for index, agent in enumerate(env.possible_agents):
            _, infos = env.reset()
            for action in np.flatnonzero(infos[agent]["action_mask"]):
                env.reset()
                env.step({other: int(action) if other == agent else 0 for other in env.possible_agents})
                filters = env.problem.full_plan[index]
                assert env.plan[index] == filters - int(env.config.rates[action] * filters + 1e-9)

    def test_an_illegal_action_becomes_the_nearest_legal_one_below(self, make_env: EnvMaker) -> None:
        env = make_env(target_macs=0.9, min_filters=28)
        _, infos = env.reset()
        mask = infos["conv_0"]["action_mask"]
        illegal = int(np.flatnonzero(mask == 0)[-1])
        below = int(np.flatnonzero(mask[:illegal])[-1])
        _, _, _, _, infos = env.step({agent: illegal if agent == "conv_0" else 0 for agent in env.agents})
        filters = env.problem.full_plan[0]
        assert infos["conv_0"]["applied_rate"] == pytest.approx(int(env.config.rates[below] * filters + 1e-9) / filters)

    def test_the_return_is_the_final_accuracy_ratio_minus_one(self, make_env: EnvMaker) -> None:
        for every_round in (False, True):
            env = make_env(every_round=every_round)
            record = play(env, 3)
            total = sum(result[1]["conv_0"] for result in record[1:])
            expected = record[-1][-1]["conv_0"]["accuracy"] / env.evaluator.original_accuracy - 1
            assert total == pytest.approx(expected)

    def test_all_agents_get_the_same_reward(self, make_env: EnvMaker) -> None:
        for result in play(make_env(), 1)[1:]:
            assert len(set(result[1].values())) == 1

    @pytest.mark.parametrize("reward", ["tradeoff", "amc"])
    def test_rewards_without_a_budget(self, make_env: EnvMaker, reward: str) -> None:
        env = make_env(target_macs=None, reward=reward, every_round=True)
        idle = play(env, 0, "idle")
        assert idle[-1][-1]["conv_0"]["macs_ratio"] == 1.0
        assert sum(result[1]["conv_0"] for result in idle[1:]) <= 0
        pruned = play(env, 0)
        assert pruned[-1][-1]["conv_0"]["macs_ratio"] < 1

    def test_a_reward_that_is_no_reward(self, trained: torch.nn.Module, digits: DataSplits) -> None:
        env = FilterPruneEnv.from_model(
            trained, digits, EnvConfig(prove=False, target_macs=None), reward=lambda step: 1.0
        )  # type: ignore[arg-type,return-value]
        env.reset()
        with pytest.raises(TypeError, match="must return a RoundReward"):
            env.step(dict.fromkeys(env.agents, 0))

    def test_a_reward_of_ones_own(self, trained: torch.nn.Module, digits: DataSplits) -> None:
        config = EnvConfig(prove=False, reward_images=50, rounds=2)
        env = FilterPruneEnv.from_model(
            trained, digits, config, reward=lambda step: RoundReward(7.0 if step.last else 0.5)
        )
        record = play(env, 0)
        assert [result[1]["conv_0"] for result in record[1:]] == [0.5, 7.0]

    def test_tradeoff_ends_a_lost_network(self, make_env: EnvMaker) -> None:
        env = make_env(target_macs=None, reward="tradeoff", every_round=True, rounds=12, rates=(0.0, 0.9))
        env.reset()
        rounds = 0
        while env.agents:
            _, _, terminated, _, _ = env.step(dict.fromkeys(env.agents, 1))
            rounds += 1
        assert terminated["conv_0"]
        assert rounds < 12

    def test_two_clearly_different_plans_get_different_rewards(self, make_env: EnvMaker) -> None:
        """Case 2: without recalibration both would be at chance level."""
        env = make_env(target_macs=None, reward="amc", rounds=1, rates=(0.0, 0.3, 0.7))
        accuracies = []
        for action in (1, 2):
            env.reset()
            *_, infos = env.step(dict.fromkeys(env.agents, action))
            accuracies.append(infos["conv_0"]["accuracy"])
        assert accuracies[0] > accuracies[1] + 0.05
        assert accuracies[0] > 0.5

    def test_pruning_leaves_no_trace(self, make_env: EnvMaker, trained: torch.nn.Module) -> None:
        """Case 11: after prune and reset everything is as it was, and the user's module is never changed."""
        before, modules = copy.deepcopy(trained.state_dict()), [type(module) for module in trained.modules()]
        env = make_env(every_round=True)
        fresh = env.pruned_model().state_dict()
        play(env, 5)
        env.pruned_model()
        env.reset()
        assert [type(module) for module in trained.modules()] == modules
        assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in trained.modules())
        again = env.pruned_model().state_dict()
        assert all(torch.equal(fresh[name], tensor) for name, tensor in again.items())

    @pytest.mark.parametrize("batches", [0, 5])
    def test_pruned_model_is_small_and_as_accurate_as_the_reward_says(self, make_env: EnvMaker, batches: int) -> None:
        env = make_env(finetune_batches=batches)
        infos = play(env, 2)[-1][-1]
        network = env.pruned_model()
        filters = [m.out_channels for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
        assert tuple(filters) == env.plan
        split = env.problem.data.reward.balanced(100)
        with torch.inference_mode():
            right = (network(env.problem.data.normalise(split.images)).argmax(1) == split.labels).float().mean()
        assert float(right) == pytest.approx(infos["conv_0"]["accuracy"], abs=0.03)  # bfloat16 against float32

    def test_archive_keeps_every_finished_plan_and_survives_a_new_process(self, make_env: EnvMaker) -> None:
        env = make_env()
        for seed in range(4):
            play(env, seed)
        best = env.archive.best(2)
        assert best[0].accuracy >= best[1].accuracy
        assert best[0].accuracy == max(entry.accuracy for entry in env.archive)
        other = make_env()
        other.load_state_dict(pickle.loads(pickle.dumps(env.state_dict())))
        assert list(other.archive) == list(env.archive)
        evaluations = other.evaluator.evaluations
        play(other, 0)
        assert other.evaluator.evaluations == evaluations, "a known plan was evaluated again"

    def test_recovery_carries_weights_on(self, make_env: EnvMaker) -> None:
        env = make_env(round_finetune_batches=4, every_round=True)
        plain = make_env(every_round=True)
        first, second = play(env, 0), play(env, 0)
        assert equal(first, second), "the same actions, the same recovery"
        recovered, bare = env.pruned_model(), play(plain, 0) and plain.pruned_model()
        for one, two in zip(recovered.parameters(), bare.parameters(), strict=True):
            assert one.shape == two.shape
        assert any(
            not torch.equal(one, two) for one, two in zip(recovered.parameters(), bare.parameters(), strict=True)
        )
        assert first[-1][-1]["conv_0"]["accuracy"] >= play(plain, 0)[-1][-1]["conv_0"]["accuracy"] - 0.02

    def test_plans_are_trained_before_they_are_measured(self, make_env: EnvMaker) -> None:
        """Each from the original weights: a plan has one accuracy, whichever way the game came to it."""
        env, bare = make_env(finetune_batches=5, every_round=True), make_env(every_round=True)
        assert env.evaluator.original_accuracy == bare.evaluator.original_accuracy
        assert env.evaluator.accuracy(env.problem.full_plan) == env.evaluator.original_accuracy, (
            "nothing to recover from"
        )
        gains = []
        for seed in range(3):
            for one, two in zip(play(env, seed), play(bare, seed), strict=True):
                gains.append(one[-1]["conv_0"]["accuracy"] - two[-1]["conv_0"]["accuracy"])
        assert max(gains) > 0.05
        assert np.mean(gains) > 0.02
        asked = env.evaluator.evaluations
        play(env, 0)
        assert env.evaluator.evaluations == asked, "a known plan was measured again"
        other = make_env(finetune_batches=5)
        assert [other.evaluator.accuracy(entry.plan) for entry in env.archive] == [e.accuracy for e in env.archive]

    def test_plans_may_be_measured_on_the_way_to_them(self, make_env: EnvMaker) -> None:
        """Costs, plans and networks stay those of the plan, accuracies are those of milder cuts."""
        env, bare = make_env(measure_at=0.5), make_env()
        for seed in range(4):
            one, two = play(env, seed)[-1][-1]["conv_0"], play(bare, seed)[-1][-1]["conv_0"]
            assert env.plan == bare.plan
            assert one["macs_ratio"] == two["macs_ratio"]
            assert one["accuracy"] == bare.evaluator.accuracy(env.evaluator.measured(env.plan))
            assert one["accuracy"] > two["accuracy"]
        filters = [m.out_channels for m in env.pruned_model().modules() if isinstance(m, torch.nn.Conv2d)]
        assert tuple(filters) == env.plan
        other = make_env(measure_at=0.5)
        other.load_state_dict(env.state_dict())
        evaluations = other.evaluator.evaluations
        play(other, 0)
        assert other.evaluator.evaluations == evaluations, "a known plan was measured again"
        with pytest.raises(ValueError, match=r"measure_at from 0\.5 to 1\.0"):
            make_env().load_state_dict(env.state_dict())

    @pytest.mark.parametrize(
        "settings", [{"finetune_batches": 2}, {"round_finetune_batches": 2}, {"importance": "taylor"}]
    )
    @pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
    def test_training_needs_no_gradients_of_the_callers(
        self, make_env: EnvMaker, settings: dict[str, Any], without: Callable[[], Any]
    ) -> None:
        """TorchRL's collectors step environments so."""
        usual = make_env(**settings)
        expected = play(usual, 0)
        with without():
            env = make_env(**settings)
            assert equal(play(env, 0), expected)
            found = env.pruned_model().state_dict()
        for name, tensor in usual.pruned_model().state_dict().items():
            assert torch.equal(tensor, found[name]), name

    def test_the_problem_knows_what_learns(self, trained: torch.nn.Module, digits: DataSplits) -> None:
        frozen, seen = copy.deepcopy(trained), set()
        frozen.features[0].requires_grad_(False)
        for settings in ({}, {"finetune_batches": 1}, {"round_finetune_batches": 1}):
            config = EnvConfig(reward_images=50, calibration_images=50, prove=False, **settings)
            one, two = (FilterPruneEnv.from_model(model, digits, config).problem for model in (trained, frozen))
            assert (one == two) == (not settings), "frozen layers matter where something is trained"
            seen |= {one, two}
        assert len(seen) == 5

    def test_round_to_keeps_multiples(self, make_env: EnvMaker) -> None:
        env = make_env(round_to=8)
        for seed in range(4):
            play(env, seed)
            assert all(kept % 8 == 0 for kept in env.plan)
            assert any(kept < full for kept, full in zip(env.plan, env.problem.full_plan, strict=True))
        assert all(kept % 8 == 0 for kept in env.budget.uniform())
        unrounded = unrounded_uniform(env)
        assert any(kept % 8 for kept in unrounded)
        assert env.config.target_macs is not None
        assert env.cost_ratios(unrounded)[0] == pytest.approx(env.config.target_macs, abs=0.01)
        built = [module.out_channels for module in env.pruned_model().modules() if isinstance(module, nn.Conv2d)]
        assert built
        assert all(channels % 8 == 0 for channels in built)

    @pytest.mark.parametrize("reward", ["budget", "amc"])
    def test_the_best_plans_are_those_of_the_highest_return(self, make_env: EnvMaker, reward: str) -> None:
        env = make_env(reward=reward, target_macs=0.6)
        returns = {}
        for seed in range(6):
            record = play(env, seed)
            returns[env.plan] = sum(result[1]["conv_0"] for result in record[1:])
        best = env.archive.best(1)[0]
        assert returns[best.plan] == max(returns.values())

    def test_the_state_of_another_problem_is_refused(self, make_env: EnvMaker) -> None:
        state = make_env().state_dict()
        with pytest.raises(ValueError, match=r"\(changed since: importance from 'l1' to 'random'\)"):
            make_env(importance="random").load_state_dict(state)
        with pytest.raises(ValueError, match=r"\(changed since: weights, images, ranking or a function\)"):
            make_env().load_state_dict(state | {"problem": "of other weights"})
        older = state["settings"].copy()
        del older["racing"]
        with pytest.raises(ValueError, match=r"\(changed since: racing from not set to None\)"):
            make_env().load_state_dict(state | {"problem": "of another release", "settings": older})

    def test_what_is_handed_out_may_be_written_to(self, make_env: EnvMaker) -> None:
        """Transitions that were played before are remembered; their arrays are not those of the players."""
        env = make_env()
        expected = play(env, 0)
        observations, infos = env.reset()
        while env.agents:
            for agent in env.agents:
                observations[agent].fill(7)
                infos[agent]["action_mask"].fill(0)
            observations, *_, infos = env.step(dict.fromkeys(env.agents, 1))
        assert equal(play(env, 0), expected)

    def test_pickles(self, make_env: EnvMaker) -> None:
        env = make_env()
        twin = pickle.loads(pickle.dumps(env))
        assert equal(play(env, 0), play(twin, 0))


class TestRendering:
    def test_ansi(self, make_env: EnvMaker) -> None:
        env = make_env(render_mode="ansi")
        play(env, 0)
        text = env.render()
        assert isinstance(text, str)
        lines = text.splitlines()
        assert len(lines) == len(env.possible_agents) + 1
        assert lines[0].split()[:2] == ["conv_0", "features.0"]
        assert re.search(rf"\b{env.plan[0]} of +{env.problem.full_plan[0]}\b", lines[0])

    def test_rgb_array(self, make_env: EnvMaker) -> None:
        env = make_env(render_mode="rgb_array")
        env.reset()
        before = env.render()
        play(env, 0)
        after = env.render()
        assert isinstance(before, np.ndarray)
        assert before.dtype == np.uint8
        assert before.shape[2] == 3
        assert not np.array_equal(before, after)

    def test_without_a_mode(self, make_env: EnvMaker) -> None:
        assert make_env().render() is None


@pytest.mark.supersuit
def test_supersuit_vectorises_the_env(make_env: EnvMaker) -> None:
    """Case 18: what SuperSuit offers for Stable-Baselines3, in this process."""
    import supersuit

    vector = supersuit.pettingzoo_env_to_vec_env_v1(make_env())
    observations, _ = vector.reset(seed=0)
    assert observations.shape == (5, len(make_env().observation_names))
    for _ in range(7):  # more than two episodes
        observations, rewards, *_ = vector.step(np.ones(5, dtype=np.int64))
        assert observations.shape[0] == rewards.shape[0] == 5


def test_torchrl_plays_two_episodes_on(make_env: EnvMaker) -> None:
    """Case 16: the wrapper resets in its constructor, and goes on after an episode's end."""
    from torchrl.envs import PettingZooWrapper

    env = make_env(rounds=2)
    wrapped = PettingZooWrapper(env, use_mask=False)
    rollout = wrapped.rollout(max_steps=5, break_when_any_done=False)  # two episodes and a step
    assert rollout["next", "done"].flatten().tolist() == [False, True, False, True, False]
    assert rollout["conv", "observation"].shape == (5, 5, len(env.observation_names))
    assert len(env.archive) in (1, 2)
