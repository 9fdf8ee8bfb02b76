"""FilterPruneEnv: filter pruning as a cooperative game with one agent per pruning group.

This file connects the parts. `pruning` finds what can be cut, `evaluation` measures accuracies, `budget` decides which
actions are legal, `episode` what they lead to, `reward` what they pay, and `observation` what agents see.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import ParallelEnv
from torch import nn

from ..common.expect import expect
from ..common.settings import Seed, checked
from ..data import DataSplits
from ..data.objective import Loss, Metric
from ..evaluation.evaluator import Evaluator
from ..evaluation.resources import Resources
from ..pruning import Inspection, Plan, PruningGroup
from ..pruning.groups import check_plan
from ..pruning.problem import PruningProblem
from . import exchange, render, saved_state, validation
from .archive import Archive
from .budget import Budget
from .config import EnvConfig, completed
from .costs import cost_function
from .episode import Episode
from .evaluators import ImaginedEvaluator, live_evaluator
from .exchange import reset_options
from .fingerprint import game_fingerprint
from .least_change import LeastChange
from .observation import Observer
from .reward import REWARDS, RewardFunction
from .targets import Budgets
from .transition import RoundState, Transitions

StepResult = tuple[dict[str, np.ndarray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]


class FilterPruneEnv(ParallelEnv[str, np.ndarray, int]):
    """Prune a trained network round by round. All agents get the same reward.

    - Agents: conv_0 ... conv_{G-1} in forward order; `groups` holds the layers of each.
    - Actions: Discrete; an index into `config.rates`, the fraction of the remaining filters that is removed.
    - Observations: Box [0, 1], float32 [F]; `observation_names` names the entries, `state_names` those of `state()`.
    - `action_proposal` names the entry `proposed_rate` and gives the rate of every action, so that an agent can start
      from the least-change plan.
    - Infos: action_mask (int8 [A]), applied_rate, accuracy, macs_ratio and params_ratio, with the same keys at reset
      and at every step.

    Args:
        problem: The network, its data and its groups.
        config: Settings of the game. None takes the settings that the problem was created with, and defaults.
        evaluator: Returns the accuracy of plans. None for a `LiveEvaluator` on the CPU.
        reward: A reward function instead of the registered one that `config.reward` names.
        render_mode: ansi, rgb_array or None.
        resources: Device, workers and cache file of the `LiveEvaluator` that is made without `evaluator`.

    Raises:
        TypeError: An argument has another type.
        ValueError: Problem, config, evaluator and reward do not fit together.

    Example:
        >>> config = EnvConfig(target_macs=0.5)
        >>> env = FilterPruneEnv(PruningProblem.create(model, data, config), config)
        >>> observations, infos = env.reset()
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "filter_prune_v0",
        "render_modes": list(render.MODES),
        "is_parallelizable": True,
        "render_fps": 1,
    }

    def __init__(
        self,
        problem: PruningProblem,
        config: EnvConfig | None = None,
        *,
        evaluator: Evaluator | None = None,
        reward: RewardFunction | None = None,
        render_mode: str | None = None,
        resources: Resources | None = None,
    ) -> None:
        remedy = "write PruningProblem.create(model, data), or FilterPruneEnv.from_model(model, data)"
        expect(problem, PruningProblem, "problem must be a PruningProblem", remedy)
        expect(config, (EnvConfig, type(None)), "config must be an EnvConfig", "write EnvConfig(target_macs=0.5)")
        config = config or completed(problem.config)
        validation.check_rules(config, reward, render_mode)
        validation.check_problem(config, problem)
        if evaluator is not None:
            validation.check_evaluator(config, problem, evaluator, resources)
        self.problem, self.config, self.render_mode = problem, config, render_mode
        self.max_cycles = config.max_cycles or config.rounds
        self._settings = config.texts()  # now, because the file of the latency table may change
        cost, limits = cost_function(config.cost, problem, config.latency_table), config.limits(problem.groups)
        rules = Budget(cost, problem.full_plan, config.rates, None, limits, config.cost)
        self.budgets = Budgets(rules, config.targets)
        """The budgets of the episodes; `budgets.of(0.4)` is any other."""
        for budget in self.budgets:
            validation.warn_coarse(budget)
        self.evaluator: Evaluator = live_evaluator(problem, config, resources) if evaluator is None else evaluator
        self.archive = Archive(config.cost)
        """Every finished plan with its accuracy, over all episodes."""
        self.least_change = LeastChange(rules, problem.output_changes)
        """`least_change.plan(0.4)` is the plan that changes the network's outputs least, to first order."""
        self.observer = Observer(problem, rules, self.least_change)
        self.reward_function = reward or REWARDS[config.reward]
        """Pays for every move."""
        self._transitions = Transitions(problem.cost, problem.full_plan, self.observer, config.rounds)
        self.observation_names, self.state_names = self.observer.names, self.observer.state_names
        self.action_names = tuple(f"rate_{rate:g}" for rate in config.rates)
        self.action_proposal = "proposed_rate", config.rates
        self.possible_agents = [group.name for group in problem.groups]
        self.observation_spaces, self.action_spaces = exchange.agent_spaces(problem.groups, self.observer)
        self.state_space = spaces.Box(0.0, 1.0, (len(self.state_names),), np.float32)
        self.agents: list[str] = []
        self.np_random, self.np_random_seed = seeding.np_random()
        self._next: RoundState | None  # set between step_async and step_wait
        self._new_episode(config)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        data: DataSplits,
        config: EnvConfig | None = None,
        *,
        metric: Metric | None = None,
        loss: Loss | None = None,
        reward: RewardFunction | None = None,
        render_mode: str | None = None,
        resources: Resources | None = None,
    ) -> FilterPruneEnv:
        """Create the problem of a network and data, and its environment.

        Args:
            model: The trained network: any device, precision and mode. It is copied and never changed.
            data: The four splits.
            config: Settings of the game.
            metric: Scores a network instead of top-1 accuracy, see `prune_env.data.objective.Metric`.
            loss: Trains pruned networks instead of cross-entropy, see `prune_env.data.objective.Loss`.
            reward: A reward function instead of the registered one that `config.reward` names.
            render_mode: ansi, rgb_array or None.
            resources: Device, workers and cache file of the evaluator.

        Raises:
            TypeError: An argument has another type.
            ValueError: The arguments do not fit together.
        """
        expect(config, (EnvConfig, type(None)), "config must be an EnvConfig", "write EnvConfig(target_macs=0.5)")
        config = config or EnvConfig()
        validation.check_rules(config, reward, render_mode)
        if isinstance(data, DataSplits):  # `create` reports other types
            validation.check_training(config, loss, data)
        problem = PruningProblem.create(model, data, config, metric=metric, loss=loss)
        return cls(problem, config, reward=reward, render_mode=render_mode, resources=resources)

    @property
    def groups(self) -> tuple[PruningGroup, ...]:
        """The pruning group of each agent, in the order of the agents."""
        return self.problem.groups

    @property
    def inspection(self) -> Inspection:
        """What can be pruned and how far, what is protected and why, and how well that is proven; prints as a table."""
        return self.problem.inspection.limited(self.budget.limits, self.problem.cost)

    @property
    def round_state(self) -> RoundState:
        """The game after the rounds played so far."""
        return self._episode.state

    @property
    def target_name(self) -> str:
        """The option of `reset` that sets the target of an episode: target_macs, target_params or target_latency."""
        return f"target_{self.config.cost}"

    @property
    def budget(self) -> Budget:
        """The budget of the current episode; before the first one, that of the first target."""
        return self.round_state.budget

    @property
    def plan(self) -> Plan:
        """Filters kept in each group now, in the order of the agents."""
        return self.round_state.plan

    def observation_space(self, agent: str) -> spaces.Space:
        """Return the agent's observation space: the identical object at every call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """Return the agent's action space: the identical object at every call."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Return to the original network.

        With one target the game is deterministic, and the seed only feeds `np_random` for wrappers.

        Args:
            seed: Seed of `np_random`, which shuffles the targets if the game has several.
            options: `{"target_macs": 0.4}` sets the target of this episode; `target_name` is the name for budgets of
                other costs. Otherwise it is one of the game's targets; all get equally many episodes.

        Raises:
            ValueError: The target is no fraction in (0, 1] or out of reach, or the game has no budget.
        """
        if seed is not None:
            self.np_random, self.np_random_seed = seeding.np_random(checked("seed", seed, Seed))
        target = reset_options(options, self.target_name).get(self.target_name)
        self._start(self.budgets.deal(self.np_random) if target is None else self.budgets.of(target))
        self.agents = list(self.possible_agents)
        return self._observe()

    def step(self, actions: Mapping[str, int]) -> StepResult:
        """Play one round.

        An illegal action counts as the nearest legal rate below; the infos report the applied rate. After the end of an
        episode, no actions return five empty dicts, as SuperSuit's `black_death_v3` expects.

        Args:
            actions: Every agent's action.

        Raises:
            ValueError: An agent is missing, or an action lies outside its space.
            RuntimeError: The episode is over, and there are actions, or it has not started.
        """
        if not actions and not self.agents and self.round_state.number:
            return {}, {}, {}, {}, {}
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Mapping[str, int]) -> None:
        """Play the first half of `step`: workers, if there are any, start to evaluate the next plan.

        Raises:
            RuntimeError: The episode is over, or `step_wait` was not called after the last `step_async`.
        """
        if self._next is not None:
            raise RuntimeError("a step is running already; call step_wait() before the next step_async()")
        if not self.agents:
            raise RuntimeError("the episode is over or has not started; call reset() before step()")
        checked = validation.checked_actions(actions, self.agents, self.action_spaces, self.config.rates)
        self._next = self._transitions.after(self.round_state, checked)
        self._episode.announce(self._next.plan, last=self._next.number == self.config.rounds)

    def step_wait(self) -> StepResult:
        """Play the second half of `step`.

        Raises:
            RuntimeError: `step_async` was not called.
        """
        if self._next is None:
            raise RuntimeError("no step is running; call step_async(actions) first")
        state, self._next = self._next, None
        reward, terminated = self.move(state, last=state.number == self.config.rounds)
        truncated = state.number >= self.max_cycles and not terminated
        agents = self.agents
        if terminated or truncated:
            self.agents = []
        observations, infos = self._observe()
        rewards = dict.fromkeys(agents, reward)
        return observations, rewards, dict.fromkeys(agents, terminated), dict.fromkeys(agents, truncated), infos

    def move(self, state: RoundState, last: bool) -> tuple[float, bool]:
        """Enter a round state: carry weights, evaluate, pay, and archive a finished plan.

        Args:
            state: The next state, which `step` or a single-agent view has chosen.
            last: Whether this is the last move of the episode.

        Returns:
            The reward, and whether the episode is over: this was its last move, or the reward function ended it.
        """
        agents, self.agents = self.agents, []  # if the evaluation fails, the episode is over
        result = self._episode.move(state, last)
        self.agents = agents
        return result

    def play(self, plan: Plan, target: float | None = None) -> float:
        """Play an episode of one move that ends with a given plan: it is evaluated, paid for and archived.

        A search can start from a plan that is known to be good, such as `least_change.plan(0.5)`.

        Args:
            plan: Filters kept in each group, in the order of the agents.
            target: The target of the episode; None for the current one.

        Returns:
            The reward.

        Raises:
            ValueError: The plan is not one of this network, breaks a limit, or exceeds the budget.
        """
        check_plan(self.groups, plan)
        budget = self.budget if target is None else self.budgets.of(target)
        budget.check_finished(plan)
        self._start(budget)
        self.agents = []
        return self.move(self._transitions.to(self.round_state, tuple(plan)), last=True)[0]

    def state(self) -> np.ndarray:
        """Return all observations and the network's totals, float32 [S]; also after the last step."""
        now = self.round_state
        return self.observer.state(now.budget, now.plan, now.last_rates, now.rounds)

    def totals(self) -> dict[str, float]:
        """Return the entries of the infos that describe the whole network: its last known accuracy and its cost."""
        now = self.round_state
        return {
            "accuracy": float(self._episode.accuracy),
            "macs_ratio": float(now.macs_ratio),
            "params_ratio": float(now.params_ratio),
            f"{self.config.cost}_ratio": float(now.cost_ratio),
        }

    def pruned_model(self) -> nn.Module:
        """Return the current plan's network as it is evaluated: a new, smaller module on the CPU.

        BatchNorm statistics are recalibrated. With `finetune_batches` the network is finetuned in this call; its
        weights are equal to the evaluated ones up to rounding.
        """
        return self._episode.network().cpu()

    def cost_ratios(self, plan: Plan) -> tuple[float, float]:
        """Return MACs and parameters of a plan as fractions of the original network's."""
        return self._transitions.cost_ratios(plan)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that a plan's accuracy depends on. The first access reads every weight."""
        return game_fingerprint(self.problem, self.config, self._settings)

    def render(self) -> str | np.ndarray | None:
        """Return one line per agent and one for the network, as text (`ansi`) or as an image (`rgb_array`)."""
        if self.render_mode is None:
            return None
        shares = self.observer.macs_shares(self.plan).tolist()
        return render.draw(self.render_mode, self.groups, self.round_state, shares, self._episode.accuracy)

    def clone(self, evaluator: Evaluator | None = None, target: float | None = None) -> FilterPruneEnv:
        """Return another environment of the same game, to play an episode at the same time.

        Problem, evaluator and archive are shared, and so is the deck of targets.

        Args:
            evaluator: An evaluator that the clone uses instead, for instance one that counts.
            target: The only target of the clone's episodes; None for those of this environment.
        """
        other = copy.copy(self)
        if evaluator is not None:
            validation.check_evaluator(self.config, self.problem, evaluator)
            other.evaluator = evaluator
        if target is not None:
            other.budgets = self.budgets.only(target)
            other.config = self.config.with_targets(target)
            other._settings = self._settings | {self.target_name: repr(target)}
            other.__dict__.pop("fingerprint", None)  # cached, and the settings belong to it
        other.observation_spaces, other.action_spaces = exchange.agent_spaces(self.groups, self.observer)
        other.np_random, other.np_random_seed = seeding.np_random()
        other.agents = []
        other._new_episode(other.config)
        return other

    def imagine(self) -> FilterPruneEnv:
        """Return an environment of the same game in which nothing is evaluated, so that an agent can plan.

        In it every network has the accuracy of the original one, and no plan enters the archive.
        """
        other = self.clone(ImaginedEvaluator(self.evaluator))
        other.archive = self.archive.read_only()
        other._new_episode(dataclasses.replace(self.config, round_finetune_batches=0))
        return other

    @property
    def episode_options(self) -> dict[str, Any]:
        """The options with which `reset` repeats the current episode."""
        return {} if self.budget.target is None else {self.target_name: self.budget.target}

    @property
    def all_episode_options(self) -> list[dict[str, Any]]:
        """The options of every kind of episode, one for each target; evaluations that use them move no deck."""
        return [{} if target is None else {self.target_name: target} for target in self.config.targets]

    @property
    def known(self) -> bool:
        """Whether the current plan is in the archive."""
        return self.plan in self.archive

    def close(self) -> None:
        """End the workers, if there are any; they start again when they are needed."""
        self.evaluator.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what lasts beyond an episode: the archive, and what it was made with."""
        return saved_state.save(self._origin(), self.archive, self.budgets.deck)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the archive of an earlier run of the same game. Its plans are not evaluated again.

        Raises:
            ValueError: The state belongs to other settings, weights, images, ranking or functions.
        """
        self.check_state(state)
        saved_state.load(state, self.archive, self.budgets.deck)
        if not self.config.round_finetune_batches:
            for entry in self.archive:
                self.evaluator.remember(entry.plan, entry.accuracy)

    def check_state(self, state: dict[str, Any]) -> None:
        """Check that a `state_dict` belongs to the same game.

        Raises:
            ValueError: It belongs to other settings, weights, images, ranking or functions.
        """
        saved_state.check(state, self._origin())

    def _origin(self) -> dict[str, Any]:
        return saved_state.origin(self.fingerprint, self.reward_function, self._settings)

    def _new_episode(self, config: EnvConfig) -> None:
        """Prepare episodes of this environment, and start with the first target."""
        self._episode = Episode(self.problem, config, self.evaluator, self.reward_function, self.archive)
        self._start(self.budgets.first)

    def _start(self, budget: Budget) -> None:
        self._episode.start(self._transitions.start(budget))
        self._next = None

    def _observe(self) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        agents, now = self.possible_agents, self.round_state
        return exchange.observations(agents, now), exchange.infos(agents, now, self.totals())
