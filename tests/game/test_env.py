"""The environment: what it returns, the rules of the game, copies, and saved states."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from episodes import FAST, EnvMaker, episode_return, equal, last_info, play, play_together
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem
from prune_env.data import DataSplits
from prune_env.evaluation.pool import WorkerError
from prune_env.game.reward import RoundReward, Tradeoff, amc

INFO_KEYS = {"action_mask", "applied_rate", "accuracy", "macs_ratio", "params_ratio"}


def conv_filters(network: nn.Module) -> tuple[int, ...]:
    return tuple(module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d))


class TestReturnedValues:
    @pytest.mark.parametrize("policy", ["random", "wild", "idle"])
    def test_observations_lie_in_their_spaces_and_are_new_arrays(self, make_env: EnvMaker, policy: str) -> None:
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
        assert equal(kept, copies), "a returned array changed later"

    @pytest.mark.usefixtures("untouched_rngs")
    def test_episodes_repeat_under_one_seed(self, make_env: EnvMaker) -> None:
        first, second = make_env(every_round=True), make_env(every_round=True)
        for seed in range(3):
            assert equal(play(first, seed), play(second, seed))
            assert np.array_equal(first.state(), second.state())

    def test_infos_always_have_the_same_keys_and_types(self, make_env: EnvMaker) -> None:
        env = make_env()
        for result in play(env):
            infos = result[-1]
            assert infos.keys() == set(env.possible_agents)
            for info in infos.values():
                assert info.keys() == INFO_KEYS
                assert info["action_mask"].dtype == np.int8
                assert info["action_mask"].shape == (len(env.config.rates),)
                assert info["action_mask"][0] == 1
                assert all(type(info[key]) is float for key in INFO_KEYS - {"action_mask"})

    def test_the_last_step_reports_every_agent_and_leaves_none(self, make_env: EnvMaker) -> None:
        env = make_env(rounds=2)
        *_, last = play(env)
        for part in last:
            assert set(part) == set(env.possible_agents)
        _, _, terminated, truncated, _ = last
        assert all(value is True for value in terminated.values())
        assert all(value is False for value in truncated.values())
        assert env.agents == []
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            env.step(dict.fromkeys(env.possible_agents, 0))
        env.reset()
        assert env.agents == env.possible_agents

    def test_max_cycles_truncates_an_episode(self, make_env: EnvMaker) -> None:
        env = make_env(rounds=3, max_cycles=2)
        *_, last = play(env)
        assert not any(last[2].values())
        assert all(last[3].values())
        assert len(env.archive) == 0, "an unfinished plan is not a result"

    def test_returned_arrays_may_be_changed(self, make_env: EnvMaker) -> None:
        """Transitions are memoised; callers must not be able to change the stored arrays."""
        env = make_env()
        expected = play(env)
        observations, infos = env.reset()
        while env.agents:
            for agent in env.agents:
                observations[agent].fill(7)
                infos[agent]["action_mask"].fill(0)
            observations, *_, infos = env.step(dict.fromkeys(env.agents, 1))
        assert equal(play(env), expected)


class TestRules:
    @pytest.mark.parametrize("policy", ["random", "wild", "idle"])
    @pytest.mark.parametrize("target", [0.3, 0.5, 0.85])
    def test_every_finished_plan_meets_the_budget(self, make_env: EnvMaker, policy: str, target: float) -> None:
        env = make_env(target_macs=target)
        for seed in range(5):
            assert target - 0.01 <= last_info(play(env, seed, policy))["macs_ratio"] <= target
        assert all(entry.macs_ratio <= target for entry in env.archive)

    def test_a_legal_action_removes_what_its_rate_says(self, make_env: EnvMaker) -> None:
        env = make_env(target_macs=0.3, round_to=1)
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

    @pytest.mark.parametrize("every_round", [False, True])
    def test_the_return_is_the_final_accuracy_ratio_minus_one(self, make_env: EnvMaker, every_round: bool) -> None:
        env = make_env(every_round=every_round)
        record = play(env, 3)
        expected = last_info(record)["accuracy"] / env.evaluator.original_accuracy - 1
        assert episode_return(record) == pytest.approx(expected)

    def test_all_agents_get_the_same_reward(self, make_env: EnvMaker) -> None:
        for result in play(make_env(), 1)[1:]:
            assert len(set(result[1].values())) == 1

    @pytest.mark.parametrize("reward", ["tradeoff", "amc"])
    def test_rewards_without_a_budget(self, make_env: EnvMaker, reward: str) -> None:
        env = make_env(target_macs=None, reward=reward, every_round=True)
        idle = play(env, policy="idle")
        assert last_info(idle)["macs_ratio"] == 1.0
        assert episode_return(idle) <= 0
        assert last_info(play(env))["macs_ratio"] < 1

    def test_a_custom_reward(self, trained: nn.Module, digits: DataSplits) -> None:
        config = EnvConfig(**{**FAST, "rounds": 2, "target_macs": None})
        env = FilterPruneEnv.from_model(
            trained, digits, config, reward=lambda step: RoundReward(7.0 if step.last else 0.5)
        )
        assert [result[1]["conv_0"] for result in play(env)[1:]] == [0.5, 7.0]

    def test_a_custom_reward_must_return_a_round_reward(self, trained: nn.Module, digits: DataSplits) -> None:
        config = EnvConfig(**{**FAST, "target_macs": None})
        env = FilterPruneEnv.from_model(trained, digits, config, reward=lambda step: 1.0)  # type: ignore[arg-type,return-value]
        env.reset()
        with pytest.raises(TypeError, match="RoundReward"):
            env.step(dict.fromkeys(env.agents, 0))

    def test_tradeoff_ends_the_episode_of_a_useless_network(self, make_env: EnvMaker) -> None:
        env = make_env(target_macs=None, reward="tradeoff", every_round=True, rounds=12, rates=(0.0, 0.9))
        record = play(env, policy="1")
        assert record[-1][2]["conv_0"]
        assert len(record) - 1 < 12

    def test_a_milder_plan_is_clearly_more_accurate(self, make_env: EnvMaker) -> None:
        """Without recalibration of BatchNorm both plans would be at chance level."""
        env = make_env(target_macs=None, reward="amc", rounds=1, rates=(0.0, 0.3, 0.7))
        mild, deep = (last_info(play(env, policy=action))["accuracy"] for action in ("1", "2"))
        assert mild > deep + 0.05
        assert mild > 0.5

    def test_round_to_keeps_multiples(self, make_env: EnvMaker) -> None:
        env = make_env(round_to=8)
        for seed in range(4):
            play(env, seed)
            assert all(kept % 8 == 0 for kept in env.plan)
            assert any(kept < full for kept, full in zip(env.plan, env.problem.full_plan, strict=True))
        assert all(kept % 8 == 0 for kept in env.budget.uniform())
        assert all(filters % 8 == 0 for filters in conv_filters(env.pruned_model()))
        unrounded = replace(env.budget, limits=replace(env.budget.limits, round_to=1)).uniform()
        assert any(kept % 8 for kept in unrounded)
        assert env.cost_ratios(unrounded)[0] == pytest.approx(0.5, abs=0.01)


class TestNetworks:
    def test_neither_the_users_network_nor_the_game_keeps_a_trace_of_an_episode(
        self, make_env: EnvMaker, trained: nn.Module
    ) -> None:
        before = pickle.dumps(trained)
        env = make_env(every_round=True)
        original = env.pruned_model().state_dict()
        play(env, 5)
        env.pruned_model()
        env.reset()
        assert pickle.dumps(trained) == before, "weights, hooks or modules of the user's network changed"
        assert all(torch.equal(original[name], tensor) for name, tensor in env.pruned_model().state_dict().items())

    @pytest.mark.parametrize("batches", [0, 5])
    def test_pruned_model_is_small_and_as_accurate_as_reported(self, make_env: EnvMaker, batches: int) -> None:
        env = make_env(finetune_batches=batches)
        reported = last_info(play(env, 2))["accuracy"]
        network = env.pruned_model()
        assert conv_filters(network) == env.plan
        split = env.problem.data.reward.balanced(100)
        with torch.inference_mode():
            correct = network(env.problem.data.normalise(split.images)).argmax(1) == split.labels
        assert float(correct.float().mean()) == pytest.approx(reported, abs=0.03)  # bfloat16 against float32

    def test_finetuning_improves_accuracies_and_a_plan_still_has_one_accuracy(self, make_env: EnvMaker) -> None:
        env, untuned = make_env(finetune_batches=5, every_round=True), make_env(every_round=True)
        original = env.evaluator.original_accuracy
        assert original == untuned.evaluator.original_accuracy
        assert env.evaluator.accuracy(env.problem.full_plan) == original, "the original network needs no finetuning"
        gains = []
        for seed in range(3):
            for one, two in zip(play(env, seed), play(untuned, seed), strict=True):
                gains.append(one[-1]["conv_0"]["accuracy"] - two[-1]["conv_0"]["accuracy"])
        assert max(gains) > 0.05
        assert np.mean(gains) > 0.02
        evaluations = env.evaluator.evaluations
        play(env)
        assert env.evaluator.evaluations == evaluations, "a known plan was measured again"
        other = make_env(finetune_batches=5)
        assert [other.evaluator.accuracy(entry.plan) for entry in env.archive] == [e.accuracy for e in env.archive]

    @pytest.mark.parametrize(
        "settings", [{"finetune_batches": 2}, {"round_finetune_batches": 2}, {"importance": "taylor"}]
    )
    @pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
    def test_networks_learn_although_the_caller_turned_gradients_off(
        self, make_env: EnvMaker, settings: dict[str, Any], without: Callable[[], Any]
    ) -> None:
        """TorchRL's collectors step environments without gradients."""
        usual = make_env(**settings)
        expected = play(usual)
        with without():
            env = make_env(**settings)
            assert equal(play(env), expected)
            found = env.pruned_model().state_dict()
        for name, tensor in usual.pruned_model().state_dict().items():
            assert torch.equal(tensor, found[name]), name


class TestTwoHalvesOfAStep:
    def test_they_are_a_step(self, make_env: EnvMaker) -> None:
        whole, halves = make_env(), make_env()
        for env in (whole, halves):
            env.reset(seed=0)
        while whole.agents:
            actions = dict.fromkeys(whole.agents, 2)
            expected = whole.step(actions)
            halves.step_async(actions)
            assert equal(halves.step_wait(), expected)
        with pytest.raises(RuntimeError, match=r"step_async"):
            halves.step_wait()

    def test_a_second_step_cannot_start_before_the_first_has_ended(self, make_env: EnvMaker) -> None:
        env = make_env()
        env.reset()
        env.step_async(dict.fromkeys(env.agents, 1))
        with pytest.raises(RuntimeError, match=r"step_wait"):
            env.step_async(dict.fromkeys(env.agents, 2))

    def test_a_reset_forgets_the_first_half(self, make_env: EnvMaker) -> None:
        env = make_env()
        env.reset()
        env.step_async(dict.fromkeys(env.agents, 1))
        env.reset()
        with pytest.raises(RuntimeError, match=r"step_async"):
            env.step_wait()

    def test_a_failed_evaluation_ends_the_episode(self, make_env: EnvMaker, monkeypatch: pytest.MonkeyPatch) -> None:
        env = make_env(rounds=1)
        env.reset()

        def fails(*_: Any) -> float:
            raise WorkerError("all workers died")

        with monkeypatch.context() as patch:
            patch.setattr(env.evaluator, "accuracy", fails)
            with pytest.raises(WorkerError):
                env.step(dict.fromkeys(env.agents, 1))
        with pytest.raises(RuntimeError, match="reset"):
            env.step(dict.fromkeys(env.possible_agents, 1))
        env.reset()
        env.step(dict.fromkeys(env.agents, 1))
        assert len(env.archive) == 1


class TestCopies:
    def test_clones_share_problem_evaluator_and_archive_but_no_episode(self, make_env: EnvMaker) -> None:
        env = make_env()
        clone = env.clone()
        assert clone.problem is env.problem
        assert clone.evaluator is env.evaluator
        assert clone.archive is env.archive
        assert clone.fingerprint == env.fingerprint
        for one in (env, clone):
            one.reset(seed=1)
        env.step(dict.fromkeys(env.agents, 1))
        assert clone.plan == clone.problem.full_plan, "a step of one environment moved the other"
        assert clone.action_space("conv_0") is not env.action_space("conv_0")

    def test_episodes_at_the_same_time_are_those_of_one_after_another(self, make_env: EnvMaker) -> None:
        assert play_together(make_env(), 6) == play_together(make_env(), 6, together=3)

    def test_pickles_and_deep_copies_play_the_same_game(self, make_env: EnvMaker) -> None:
        env = make_env()
        for twin in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
            assert equal(play(env), play(twin))
            assert twin.fingerprint == env.fingerprint
            assert twin.archive is not env.archive
            assert twin.clone(twin.evaluator).evaluator is twin.evaluator

    def test_an_environment_takes_the_settings_of_its_problem(self, trained: nn.Module, digits: DataSplits) -> None:
        problem = PruningProblem.create(trained, digits, EnvConfig(**{**FAST, "target_macs": 0.7}))
        env = FilterPruneEnv(problem)
        assert env.config == problem.config
        assert last_info(play(env))["macs_ratio"] <= 0.7

    def test_several_environments_share_a_problem_and_an_evaluator(self, make_env: EnvMaker) -> None:
        first = make_env()
        second = FilterPruneEnv(
            first.problem, replace(first.config, target_macs=0.7, rounds=2), evaluator=first.evaluator
        )
        play(first), play(second)
        assert first.archive.best()[0].macs_ratio <= 0.5 < 0.69 <= second.archive.best()[0].macs_ratio


class TestSavedState:
    def test_known_plans_are_not_evaluated_again(self, make_env: EnvMaker) -> None:
        env = make_env()
        for seed in range(4):
            play(env, seed)
        other = make_env()
        other.load_state_dict(pickle.loads(pickle.dumps(env.state_dict())))
        assert list(other.archive) == list(env.archive)
        evaluations = other.evaluator.evaluations
        play(other)
        assert other.evaluator.evaluations == evaluations

    def test_the_state_of_another_problem_is_refused(self, make_env: EnvMaker) -> None:
        state = make_env().state_dict()
        with pytest.raises(ValueError, match=r"importance .*'l1' .*'random'"):
            make_env(importance="random").load_state_dict(state)
        with pytest.raises(ValueError, match="weights"):
            make_env().load_state_dict(state | {"problem": "of other weights"})

    def test_the_state_of_another_reward_function_is_refused(self, make_env: EnvMaker) -> None:
        problem = make_env(target_macs=None, reward="tradeoff").problem
        config = EnvConfig(**FAST, target_macs=None)
        state = FilterPruneEnv(problem, config, reward=Tradeoff(0.5)).state_dict()
        FilterPruneEnv(problem, config, reward=Tradeoff(0.5)).load_state_dict(state)
        for reward in (Tradeoff(1.0), amc):
            with pytest.raises(ValueError, match="reward"):
                FilterPruneEnv(problem, config, reward=reward).load_state_dict(state)

    def test_settings_that_the_saving_release_lacked_are_named(self, make_env: EnvMaker) -> None:
        state = make_env().state_dict()
        older = {name: value for name, value in state["settings"].items() if name != "round_to"}
        with pytest.raises(ValueError, match=r"round_to .*not set .*None"):
            make_env().load_state_dict(state | {"problem": "of another release", "settings": older})


class TestRendering:
    def test_ansi(self, make_env: EnvMaker) -> None:
        env = make_env(render_mode="ansi")
        play(env)
        text = env.render()
        assert isinstance(text, str)
        lines = text.splitlines()
        assert len(lines) == len(env.possible_agents) + 1
        assert lines[0].split()[:2] == ["conv_0", "features.0"]
        assert re.search(rf"\b{env.plan[0]} of +{env.problem.full_plan[0]}\b", lines[0])
        assert "round 3 of 3" in lines[-1]

    def test_rgb_array(self, make_env: EnvMaker) -> None:
        env = make_env(render_mode="rgb_array")
        env.reset()
        before = env.render()
        play(env)
        after = env.render()
        assert isinstance(before, np.ndarray)
        assert before.dtype == np.uint8
        assert before.shape[2] == 3
        assert not np.array_equal(before, after)

    def test_without_a_mode(self, make_env: EnvMaker) -> None:
        assert make_env().render() is None


def test_a_given_plan_can_be_played(make_env: EnvMaker) -> None:
    """It is evaluated, paid for and archived like the end of an episode with the same plan."""
    env = make_env(target_macs=0.5)
    play(env)
    (entry,) = env.archive
    other = make_env(target_macs=0.5)
    assert other.play(entry.plan) == entry.episode_return
    assert list(other.archive) == [entry]
    assert other.plan == entry.plan
    assert not other.agents
    other.reset()
    assert other.plan == other.problem.full_plan


@pytest.mark.parametrize(
    ("plan", "named"), [((16, 16), "2"), ((1, 8, 8, 8, 8), "1, 8"), ((10**6, 8, 8, 8, 8), "conv_0")]
)
def test_a_plan_that_cannot_be_played_is_refused(make_env: EnvMaker, plan: tuple[int, ...], named: str) -> None:
    env = make_env(target_macs=0.5)
    with pytest.raises(ValueError, match=named):
        env.play(plan)
    with pytest.raises(ValueError, match=r"target_macs=0\.5"):
        env.play(env.problem.full_plan)
    assert not len(env.archive)


def test_a_plan_is_played_at_a_given_budget(make_env: EnvMaker) -> None:
    env = make_env(target_macs=(0.3, 0.5))
    plan = env.least_change.plan(0.4)
    env.play(plan, 0.4)
    assert env.budget.target == 0.4
    assert plan in env.archive
