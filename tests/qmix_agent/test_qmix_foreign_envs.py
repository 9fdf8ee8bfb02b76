"""Environments of other authors: what breaks the rules of PettingZoo is named, and what they allow is played."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from games import Game, Outcome, TwoStep
from gymnasium import spaces
from pettingzoo.utils import BaseParallelWrapper
from qmix_helpers import SMALL

from qmix_agent import QMIX
from qmix_agent.subprocess_env import SubprocessEnv
from qmix_agent.team_env import TeamEnv

OBSERVATIONS, REWARDS, TERMINATIONS, TRUNCATIONS, INFOS = range(5)
Change = Callable[[list[Any]], Any]


class Changed(TwoStep):
    """TwoStep whose steps return a changed result; `change` may also return another one."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def step(self, actions: dict[str, int]) -> Any:
        result = list(super().step(actions))
        changed = self.change(result)
        return tuple(result) if changed is None else changed


def sets(index: int, value: Any, agent: str = "agent_1") -> Change:
    """Return a change that gives an agent this value in one of the five dicts."""
    return lambda result: result[index].__setitem__(agent, value)


def drops(index: int, agent: str = "agent_1") -> Change:
    """Return a change that leaves an agent out of one of the five dicts."""

    def change(result: list[Any]) -> None:
        result[index].pop(agent, None)

    return change


def masks(value: Any) -> Change:
    """Return a change that gives agent_1 an action mask."""
    return sets(INFOS, {"action_mask": value})


def play(env: Any) -> QMIX:
    return QMIX(env, SMALL).learn(5, progress=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (sets(REWARDS, None), "reward.*'agent_1'.*None"),
        (sets(REWARDS, "7"), "reward.*'agent_1'.*'7'"),
        (sets(REWARDS, np.zeros(2)), "reward.*'agent_1'"),
        (sets(REWARDS, {}), "reward.*'agent_1'"),
        (sets(REWARDS, float("inf")), "reward.*'agent_1': inf"),
        (sets(REWARDS, np.array([np.nan])), "reward.*'agent_1': nan"),
        (drops(REWARDS), "reward.*'agent_1'"),
        (masks([1.0, float("nan")]), "mask.*'agent_1'.*nan"),
        (masks(np.array([1, -1], np.int8)), "mask.*'agent_1'.*-1"),
        (masks([0.5, 1.0]), "mask.*'agent_1'.*0.5"),
        (masks([2, 1]), "mask.*'agent_1'.*2"),
        (masks(["1", "0"]), "mask.*'agent_1'"),
        (masks([[1, 1]]), r"mask.*'agent_1'.*\(1, 2\)"),
        (masks([[1], [1, 2]]), "mask.*'agent_1'.*list"),
        (masks({"left": 1}), "mask.*'agent_1'.*left"),
        (sets(OBSERVATIONS, ["a", "b", "c"]), "observation.*'agent_1'.*<U1"),
        (sets(OBSERVATIONS, None), "observation.*'agent_1'.*NoneType"),
        (sets(OBSERVATIONS, [[1], [1, 2]]), "observation.*'agent_1'.*list"),
        (sets(OBSERVATIONS, {"pixels": np.zeros(3)}), "observation.*'agent_1'.*pixels"),
        (sets(OBSERVATIONS, np.zeros(3, np.complex64)), "observation.*'agent_1'.*complex64"),
        (sets(OBSERVATIONS, torch.zeros(3, requires_grad=True)), "observation.*'agent_1'.*Tensor"),
        (sets(OBSERVATIONS, np.full(3, 1e300)), "observation.*'agent_1'.*e.300"),
        (drops(OBSERVATIONS), "observation.*'agent_1'"),
        (sets(TERMINATIONS, "False"), "terminations.*'agent_1'.*'False'"),
        (sets(TERMINATIONS, None), "terminations.*'agent_1'.*None"),
        (sets(TRUNCATIONS, float("nan")), "truncations.*'agent_1'.*nan"),
        (sets(TRUNCATIONS, np.zeros(2)), "truncations.*'agent_1'"),
        (sets(INFOS, [1, 0]), "info.*'agent_1'.*list"),
        (lambda result: result[:4], "step.*infos"),
        (lambda result: result[0], "step.*dict"),
        (lambda result: result.__setitem__(REWARDS, 7.0), "step.*float"),
        (lambda result: result.__setitem__(INFOS, None), "step.*NoneType"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_step_that_breaks_the_rules_is_refused_with_environment_agent_and_value(change: Change, named: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)Changed.*{named}"):
        play(Changed(change))


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result.__setitem__(REWARDS, {a: np.array([r]) for a, r in result[REWARDS].items()}),
        lambda result: result.__setitem__(REWARDS, {a: torch.tensor(r) for a, r in result[REWARDS].items()}),
        lambda result: result.__setitem__(TERMINATIONS, {a: np.array([t]) for a, t in result[TERMINATIONS].items()}),
        lambda result: result.__setitem__(TRUNCATIONS, {a: int(t) for a, t in result[TRUNCATIONS].items()}),
        lambda result: result.__setitem__(TRUNCATIONS, {}),
        lambda result: result.__setitem__(OBSERVATIONS, {a: list(o) for a, o in result[OBSERVATIONS].items()}),
        masks([1.0, 1.0]),
        masks(np.array([True, True])),
        drops(INFOS),
        sets(INFOS, None),
    ],
)
def test_other_ways_to_write_the_same_step_make_no_difference(change: Change) -> None:
    one, two = play(Changed(change)), play(TwoStep())
    assert one.evaluate(episodes=3) == two.evaluate(episodes=3)
    assert [episode.total_reward for episode in one.trainer.buffer] == [
        episode.total_reward for episode in two.trainer.buffer
    ]


# States and empty spaces


class Stated(TwoStep):
    """TwoStep with another state: a value, or an error that is raised."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def state(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.mark.parametrize("value", [np.zeros(0), [], {"position": 1}, "start", [[1], [1, 2]], np.array([np.nan])])
def test_a_state_without_numbers_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Stated.*state\(\)"):
        QMIX(Stated(value), SMALL)


@pytest.mark.parametrize("value", [np.zeros(2), None, "start", [1.0, 2.0, np.inf]])
def test_a_state_that_changes_its_form_is_refused(value: Any) -> None:
    env = Stated(np.zeros(3))
    agent = QMIX(env, SMALL)
    env.value = value
    with pytest.raises(ValueError, match=r"Stated.*state\(\)"):
        agent.learn(1, progress=False)


@pytest.mark.parametrize("value", [NotImplementedError(), None])
def test_without_a_state_the_observations_are_the_state(value: Any) -> None:
    spec = QMIX(Stated(value), SMALL).spec
    assert (spec.has_state, spec.n_state) == (False, 6)


@pytest.mark.parametrize("wrap", [lambda env: env, BaseParallelWrapper])
def test_an_attribute_that_is_called_state_is_no_state_method(wrap: Callable[[Any], Any]) -> None:
    env: Any = TwoStep()
    env.state = "playing"
    env.metadata = {}
    assert not TeamEnv(wrap(env)).spec.has_state


class Faulty(TwoStep):
    def state(self) -> np.ndarray:
        return self.positon  # type: ignore[attr-defined]


def test_an_error_inside_state_is_not_taken_for_a_missing_state() -> None:
    with pytest.raises(AttributeError, match="positon"):
        QMIX(Faulty(), SMALL)
    with pytest.raises(RuntimeError, match="positon"), SubprocessEnv(Faulty) as env:
        QMIX(env, SMALL)


class Blind(Game):
    """A matrix game without observations: its first agents observe nothing, and the last one `size` features."""

    def __init__(self, size: int) -> None:
        super().__init__((3, 3), 0)
        self.observation_spaces["agent_1"] = spaces.Box(-1.0, 1.0, (size,), np.float32)

    def observe(self) -> dict[str, Any]:
        return {agent: np.zeros(self.observation_spaces[agent].shape) for agent in self.agents}  # type: ignore[arg-type]

    def transition(self, actions: dict[str, int]) -> Outcome:
        return Outcome(float(sum(actions.values())), terminated=True)


@pytest.mark.parametrize("size", [0, 2])
@pytest.mark.parametrize("settings", [{}, {"last_action": False, "agent_id": False}])
def test_agents_that_observe_nothing_can_play(size: int, settings: dict[str, bool]) -> None:
    exploring = {"epsilon_end": 1.0, "epsilon_episodes": 0, "learning_rate": 5e-3, "batch_size": 16}
    config = dataclasses.replace(SMALL, **exploring, **settings)
    agent = QMIX(Blind(size), config).learn(120, progress=False)
    assert agent.evaluate(episodes=1).mean == 4.0
    assert set(agent.act(Blind(size).reset()[0], reset=True)) == {"agent_0", "agent_1"}


@pytest.mark.parametrize("value", [1.7, -1, 3, float("nan")])
def test_a_discrete_observation_that_is_no_integer_of_its_space_is_refused(value: float) -> None:
    env = Changed(lambda result: result.__setitem__(OBSERVATIONS, {"agent_0": 1, "agent_1": value}))
    env.observation_spaces = dict.fromkeys(env.possible_agents, spaces.Discrete(3))
    env.observe = lambda: dict.fromkeys(env.agents, 0)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=f"Changed.*observation.*'agent_1'.*{value}"):
        play(env)


# Agents that leave and return


class Coming(Game):
    """Two agents for four steps. `present` lists the agents at each time, `ended` those flagged as terminated."""

    def __init__(self, present: list[list[int]], ended: list[list[int]]) -> None:
        super().__init__((2, 2), 2)
        self.present, self.ended = present, ended
        self.acted: list[list[str]] = []

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        self.time += 1
        self.acted.append(sorted(actions))
        names = self.possible_agents
        self.agents = [names[index] for index in self.present[self.time]]
        shown = dict.fromkeys([*actions, *self.agents])
        return (
            {agent: np.zeros(2, np.float32) for agent in shown},
            dict.fromkeys(shown, 1.0),
            {agent: names.index(agent) in self.ended[self.time] for agent in shown},
            {agent: self.time == 4 for agent in shown},
            {},
        )

    def observe(self) -> dict[str, Any]:
        return {agent: np.zeros(2, np.float32) for agent in self.agents}


BOTH, FIRST, SECOND = ["agent_0", "agent_1"], ["agent_0"], ["agent_1"]


@pytest.mark.parametrize(
    ("present", "ended", "acted"),
    [
        pytest.param(4 * [[0, 1]] + [[]], 5 * [[]], 4 * [BOTH], id="both stay"),
        pytest.param(
            5 * [[0, 1]], [[], [0], [0], [0], [0]], [BOTH, SECOND, SECOND, SECOND], id="flagged, still listed"
        ),
        pytest.param([[0, 1], [1], [1], [1], []], 5 * [[]], [BOTH, SECOND, SECOND, SECOND], id="vanishes"),
        pytest.param([[0, 1], [1], [0, 1], [0, 1], []], 5 * [[]], [BOTH, SECOND, BOTH, BOTH], id="returns"),
        pytest.param([[0, 1], [0], [1], [0], []], 5 * [[]], [BOTH, FIRST, SECOND, FIRST], id="they alternate"),
    ],
)
def test_agents_may_leave_and_return(present: list[list[int]], ended: list[list[int]], acted: list[list[str]]) -> None:
    env = Coming(present, ended)
    agent = QMIX(env, SMALL).learn(1, progress=False)
    assert env.acted == acted
    (episode,) = agent.trainer.buffer
    assert (len(episode), episode.terminated.any()) == (4, False)


def test_an_agent_that_is_not_among_the_possible_ones_is_refused() -> None:
    def add(result: list[Any]) -> None:
        env.agents.append("agent_9")

    env = Changed(add)
    with pytest.raises(ValueError, match="agent_9"):
        play(env)


# Objects that are no ParallelEnv


class OldReset(TwoStep):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset(seed=0)


class OnlyObservations(TwoStep):
    def reset(self, seed: int | None = None, options: dict | None = None) -> Any:
        return super().reset(seed)[0]


class Unlisted(TwoStep):
    def reset(self, seed: int | None = None, options: dict | None = None) -> Any:
        result = super().reset(seed)
        del self.agents
        return result


class Twins(TwoStep):
    def __init__(self) -> None:
        super().__init__()
        self.possible_agents = ["agent_0", "agent_0"]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TwoStep, "TwoStep.*possible_agents"),
        (lambda: None, "NoneType.*possible_agents"),
        (lambda: [TwoStep(), "game"], "str.*possible_agents"),
        (OldReset, "OldReset.*reset.*seed"),
        (OnlyObservations, "OnlyObservations.*reset.*infos"),
        (Unlisted, "Unlisted.*agents"),
        (Twins, "Twins.*agent_0"),
    ],
)
def test_an_object_that_is_no_parallel_environment_is_refused(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        play(make())
