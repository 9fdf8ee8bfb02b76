"""FilterPruneSuite: many games in one environment, so that one team learns to prune any network.

Letters: N agents of the largest game, F observation entries.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import ParallelEnv

from ..common.expect import expect
from ..common.settings import Seed, checked
from ..pruning import Plan
from .budget import Budget
from .env import FilterPruneEnv, StepResult
from .exchange import reset_options
from .reward import REWARDS, RewardInput
from .targets import Deck


class FilterPruneSuite(ParallelEnv[str, np.ndarray, int]):
    """Plays another game in each episode: another network, other data, another budget.

    - Agents: conv_0 ... conv_{N-1} of the largest game. In an episode, `agents` lists those of its game; the others are
      absent.
    - Actions, observations and infos are those of the games, which all have the same rates.
    - `state()` holds the observations of all N agents, zeros for absent ones, and the network's totals.
    - Reward: that of the game. With `relative`, the last round pays the return minus that of the uniform plan of the
      same budget, so that a return means the same in every game: how much better than uniform pruning.

    All games are played equally often, each with its own targets. Every game keeps its own archive:
    `suite.games[name].archive`.

    Args:
        games: The games by name.
        relative: Compare returns with the uniform plan, played in one round. It costs one evaluation for each game and
            target.

    Raises:
        TypeError: `games` is no dict, or a game is no `FilterPruneEnv`.
        ValueError: There is no game, the games differ in their rates, or `relative` meets a game in which the uniform
            plan has no return: without a budget, with weights carried between rounds, truncated before the last round,
            or with rewards of several rounds.

    Example:
        >>> suite = FilterPruneSuite({"resnet20": make_env("resnet20", "cifar10"), "digits": make_env("small_cnn")})
        >>> observations, infos = suite.reset(options={"game": "digits", "target_macs": 0.3})
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "filter_prune_suite_v0", "is_parallelizable": True}
    render_mode = None

    def __init__(self, games: Mapping[str, FilterPruneEnv], *, relative: bool = True) -> None:
        expect(games, Mapping, "games must be a dict of FilterPruneEnv by name", 'write {"name": env}')
        if not games:
            raise ValueError("games must name at least one FilterPruneEnv, got none")
        for name, game in games.items():
            expect(game, FilterPruneEnv, f"games[{name!r}] must be a FilterPruneEnv", "make one with make_env")
        _check_games(games, relative)
        self.games, self.relative = dict(games), relative
        self.deck = Deck(tuple(games))
        """Deals the games of the episodes."""
        self.game_name = next(iter(self.games))
        """The name of the game of the current episode."""
        largest = max(self.games.values(), key=lambda game: len(game.possible_agents))
        self.possible_agents = list(largest.possible_agents)
        self.observation_names, self.action_names = largest.observation_names, largest.action_names
        self.state_names, self.action_proposal = largest.state_names, largest.action_proposal
        self.observation_spaces, self.action_spaces = largest.observation_spaces, largest.action_spaces
        self.state_space: spaces.Space = largest.state_space
        self.agents: list[str] = []
        self.np_random, self.np_random_seed = seeding.np_random()
        self._uniform_returns: dict[tuple[str, float], float] = {}

    def observation_space(self, agent: str) -> spaces.Space:
        """Return the agent's observation space: the identical object at every call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """Return the agent's action space: the identical object at every call."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Start an episode of the next game.

        Args:
            seed: Seed of `np_random`, which shuffles the games and their targets.
            options: `{"game": "digits"}` sets the game of this episode; further options are those of the game.

        Raises:
            ValueError: No game has this name, or the game refuses an option.
        """
        if seed is not None:
            self.np_random, self.np_random_seed = seeding.np_random(checked("seed", seed, Seed))
        target_name = self.game.target_name  # equal in all games, as it is the name of an observation
        rest = reset_options(options, "game", target_name)
        name = rest.pop("game", None)
        if name is None:
            name = self.deck.deal(self.np_random)
        elif name not in list(self.games):
            raise ValueError(f"game {name!r} is unknown; choose one of {', '.join(self.games)}")
        game = self.games[name]
        if rest.get(target_name) is None and None not in game.config.targets:
            rest[target_name] = game.budgets.deal(self.np_random).target
        result = game.reset(options=rest)
        self.game_name, self.agents = name, list(game.agents)
        return result

    def step(self, actions: Mapping[str, int]) -> StepResult:
        """Play one round of the current game; see `FilterPruneEnv.step`."""
        if not actions and not self.agents and self.game.round_state.number:
            return {}, {}, {}, {}, {}
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Mapping[str, int]) -> None:
        """Play the first half of `step`; see `FilterPruneEnv.step_async`."""
        self.game.step_async(actions)

    def step_wait(self) -> StepResult:
        """Play the second half of `step`; see `FilterPruneEnv.step_wait`."""
        observations, rewards, terminations, truncations, infos = self.game.step_wait()
        self.agents = list(self.game.agents)
        if self.relative and not self.agents:
            uniform = self._uniform_return()
            rewards = {agent: reward - uniform for agent, reward in rewards.items()}
        return observations, rewards, terminations, truncations, infos

    def state(self) -> np.ndarray:
        """Return the observations of all agents and the network's totals, float32 [N * F + totals]."""
        state, totals = self.game.state(), len(self.game.observer.totals)
        padding = np.zeros(len(self.state_names) - len(state), np.float32)
        return np.concatenate((state[:-totals], padding, state[-totals:]))

    @property
    def game(self) -> FilterPruneEnv:
        """The game of the current episode."""
        return self.games[self.game_name]

    @property
    def plan(self) -> Plan:
        """Filters kept in each group of the current game now."""
        return self.game.plan

    @property
    def budget(self) -> Budget:
        """The budget of the current episode."""
        return self.game.budget

    @property
    def episode_options(self) -> dict[str, Any]:
        """The options with which `reset` repeats the current episode."""
        return {"game": self.game_name, **self.game.episode_options}

    @property
    def all_episode_options(self) -> list[dict[str, Any]]:
        """The options of every kind of episode, one for each game and target."""
        return [{"game": name, **one} for name, game in self.games.items() for one in game.all_episode_options]

    @property
    def known(self) -> bool:
        """Whether the current plan is in the archive of its game."""
        return self.game.known

    def clone(self) -> FilterPruneSuite:
        """Return another environment of the same games, to play an episode at the same time.

        Problems, evaluators, archives and decks are shared.
        """
        return self._with_games({name: game.clone() for name, game in self.games.items()})

    def imagine(self) -> FilterPruneSuite:
        """Return an environment of the same games in which nothing is evaluated, so that an agent can plan."""
        other = self._with_games({name: game.imagine() for name, game in self.games.items()})
        other.relative = False
        return other

    def close(self) -> None:
        """End the workers of all games."""
        for game in self.games.values():
            game.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what lasts beyond an episode: the archives, and what they were made with."""
        return {
            "relative": self.relative,
            "games_left": list(self.deck.left),
            "games": {name: game.state_dict() for name, game in self.games.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the archives of an earlier run of the same games.

        Raises:
            ValueError: The state belongs to other games.
        """
        own = {"relative": self.relative, "games": list(self.games)}
        before = {"relative": state.get("relative"), "games": list(state.get("games", ()))}
        if changes := [f"{name} from {before[name]} to {own[name]}" for name in own if before[name] != own[name]]:
            raise ValueError(f"the saved state belongs to another suite (changed since: {', '.join(changes)})")
        for name, game in self.games.items():
            game.check_state(state["games"][name])
        for name, game in self.games.items():
            game.load_state_dict(state["games"][name])
        self.deck.left = list(state["games_left"])

    def _with_games(self, games: dict[str, FilterPruneEnv]) -> FilterPruneSuite:
        other = copy.copy(self)
        other.games = games
        other.observation_spaces, other.action_spaces = copy.deepcopy((self.observation_spaces, self.action_spaces))
        other.np_random, other.np_random_seed = seeding.np_random()
        other.agents = []
        return other

    def _uniform_return(self) -> float:
        """Return what the uniform plan of the current game and budget would have paid."""
        game, budget = self.game, self.game.budget
        assert budget.target is not None
        key = self.game_name, budget.target
        if key not in self._uniform_returns:
            plan, original = budget.uniform(), game.evaluator.original_accuracy
            step = RewardInput(
                accuracy_before=original,
                accuracy_after=game.evaluator.accuracy(plan),
                original_accuracy=original,
                macs_before=1.0,
                macs_after=game.cost_ratios(plan)[0],
                last=True,
            )
            self._uniform_returns[key] = game.reward_function(step).reward
        return self._uniform_returns[key]


def _check_games(games: Mapping[str, FilterPruneEnv], relative: bool) -> None:
    """Check that one team can play all games."""
    first_name, first = next(iter(games.items()))
    for name, game in games.items():
        for attribute in ("action_names", "observation_names"):
            if (theirs := getattr(game, attribute)) != (expected := getattr(first, attribute)):
                raise ValueError(
                    f"games[{name!r}] has the {attribute} {theirs}, but games[{first_name!r}] has {expected}; all "
                    "games of a suite need equal rates and budgets of one cost"
                )
        if relative and (obstacle := _obstacle(game)):
            raise ValueError(
                f"games[{name!r}] has {obstacle}, so its returns cannot be compared with the uniform plan's; change "
                "that, or set relative=False"
            )


def _obstacle(game: FilterPruneEnv) -> str | None:
    """Return why the return of the uniform plan cannot be computed from its accuracy, or None if it can."""
    config = game.config
    if config.every_round and game.reward_function is not REWARDS["budget"]:
        return f"every_round={config.every_round} with another reward than 'budget'"
    if None in config.targets:
        return "no budget"
    if config.round_finetune_batches:
        return f"round_finetune_batches={config.round_finetune_batches}"
    if config.max_cycles is not None and config.max_cycles < config.rounds:
        return f"max_cycles={config.max_cycles} below rounds={config.rounds}"
    return None
