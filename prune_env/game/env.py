"""FilterPruneEnv: filter pruning as a cooperative game, one agent for each group of convolutions.

This file is wiring: what can go is in `pruning`, how good it is in `evaluation`, what is legal in `budget`, what pays
in `reward`, what is seen in `observation`.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import ParallelEnv
from torch import nn

from ..common.fingerprints import function_fingerprint, weights_fingerprint
from ..data import DataSplits
from ..data.objective import Loss, Metric, check_loss, check_metric
from ..evaluation.evaluator import Evaluator
from ..evaluation.racing import Race
from ..evaluation.workers import EvaluatorKind, backend
from ..pruning import Cost, Plan, build, importance, trusted
from ..training.trainable import learning_fingerprint
from . import render
from .archive import Archive, Entry
from .budget import Budget
from .carried_weights import CarriedWeights
from .config import EnvConfig, differences
from .observation import Observer
from .reward import RewardFunction, RewardInput, RoundReward, get_reward
from .tabulated import TabulatedEvaluator
from .transition import RoundState, Transitions
from .validation import calibration_batches, check_budget, check_head, check_original, check_racing, check_types

RENDER_MODES = ("ansi", "rgb_array")
RACED_FOR = 10
"""Place in the archive that a plan must be able to reach for an exact count, where counts may end early."""

StepResult = tuple[dict[str, np.ndarray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]


class FilterPruneEnv(ParallelEnv[str, np.ndarray, int]):
    """Prunes a trained network round by round; all agents get the same reward.

    Agents         conv_0 ... conv_{G-1} in forward order; `groups` names the layers of each
    Actions        Discrete: an index into `config.rates`, the fraction of the remaining filters that goes
    Observations   Box [0, 1], float32 [F]; `observation_names` names the entries, `state_names` those of `state()`
    Infos          action_mask (int8 [A]), applied_rate, accuracy, macs_ratio, params_ratio; the same keys at every step

    The model may be on any device, of any precision and in either mode; it is copied, without its hooks, and never
    changed. Raises ValueError where model, data and config do not fit together, TypeError for other objects.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "filter_prune_v0",
        "render_modes": list(RENDER_MODES),
        "is_parallelizable": True,
        "render_fps": 1,
    }

    def __init__(
        self,
        model: nn.Module,
        data: DataSplits,
        config: EnvConfig | None = None,
        *,
        reward: RewardFunction | None = None,
        metric: Metric | None = None,
        loss: Loss | None = None,
        render_mode: str | None = None,
        device: torch.device | str = "cpu",
        cache: str | Path | None = None,
        evaluator: EvaluatorKind = "local",
        workers: int | None = None,
    ) -> None:
        """cache   a file that keeps accuracies for later runs and for other processes (SQLite); not with a metric,
                    nor with a loss where `finetune_batches` are set
        evaluator   where plans are measured: "local" is this process; "processes", `workers` of them on this machine;
                    "ray", actors on a cluster (see README). Workers pay where several episodes are played at once,
                    through `clone`, `step_async` and `step_wait`
        workers     how many; None for one to each processor

        Functions of one's own:

        reward  in place of the one that `config` names
        metric  (model, split) -> float, in place of top-1 accuracy: more is better, above 0 for the unpruned network.
                Infos, archive and `finalise` call it accuracy. See `prune_env.evaluation.metric.Metric`
        loss    (logits, images, labels) -> scalar, in place of cross-entropy where the pruned network is trained
        Labels without classes need a metric, and a loss as soon as something is trained.
        """
        check_types(model, data, config)
        config = config or EnvConfig()
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode {render_mode!r} is unknown; choose one of {', '.join(RENDER_MODES)} or None")
        self.config, self.data, self.render_mode = config, data, render_mode
        self.metric, self.loss = metric, loss
        pool = backend(evaluator, workers, str(device))  # what it lacks is told before anything is computed
        check_metric(metric, data)
        # A plan of no groups: a copy of its own without hooks. The caller may train theirs on.
        self.model = build(model, (), {}, ()).cpu().float().eval()
        model = self.model
        self.max_cycles = config.max_cycles or config.rounds
        example = data.example_input
        check_head(model, data)
        check_budget(config, reward, metric)
        if config.trains:
            check_loss(loss, data)
        self.inspection = trusted(model, example, prove=config.prove)
        """What can be pruned, what is protected and why, and how well that is proven; prints as a table."""
        self.groups = list(self.inspection.groups)
        scores = importance.scores(
            config.importance,
            model,
            self.groups,
            batches=calibration_batches(data, config),
            seed=config.problem_seed,
        )
        self.ranking = importance.ranking(scores)
        self.cost = Cost(model, self.groups, example)
        self.full_plan: Plan = tuple(group.filters for group in self.groups)
        self.budget = Budget(
            self.cost.macs,
            self.full_plan,
            config.rates,
            config.target_macs,
            min_filters=config.min_filters,
            round_to=config.round_to,
        )
        self.evaluator: Evaluator | TabulatedEvaluator = Evaluator(
            model,
            data,
            self.groups,
            self.ranking,
            reward_images=config.reward_images,
            calibration_images=config.calibration_images,
            metric=metric,
            measure_at=config.measure_at,
            finetune_batches=config.finetune_batches,
            loss=loss,
            seed=config.problem_seed,
            device=device,
            cache=cache,
            workers=pool,
        )
        try:
            check_racing(config, self.evaluator.task, self.evaluator.recorded)
            check_original(self.evaluator.original_accuracy, metric, config)
        except ValueError:
            self.evaluator.close()  # its workers
            raise
        self.archive = Archive()
        """Every finished plan with its accuracy, over all episodes."""
        self._reward = get_reward(reward or config.reward)
        self._new_recovery = partial(CarriedWeights, model, data, self.groups, self.ranking, config, device, loss)
        self._recovery = self._new_recovery()
        self.observer = Observer(model, self.groups, self.cost, self.budget, scores)

        self.possible_agents = [group.name for group in self.groups]
        self.observation_names = self.observer.names
        self.state_names = self.observer.state_names
        observation = (0.0, 1.0, (len(self.observation_names),), np.float32)
        self.observation_spaces = {agent: spaces.Box(*observation) for agent in self.possible_agents}
        self.action_spaces = {agent: spaces.Discrete(len(config.rates)) for agent in self.possible_agents}
        self.state_space = spaces.Box(0.0, 1.0, (len(self.state_names),), np.float32)
        self.agents: list[str] = []
        self.np_random, self.np_random_seed = seeding.np_random()
        self._rounds = Transitions(self.budget, self.cost, self.observer, config.rounds)
        self.position: RoundState
        """Where the game stands."""
        self._ahead: tuple[RoundState, Race | None] | None = None  # where `step_async` leads
        self._accuracy: float
        self._return: float
        self._start()

    def observation_space(self, agent: str) -> spaces.Space:
        """The identical object at every call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """The identical object at every call."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Back to the unpruned network. The game is deterministic: the seed only feeds `np_random` of wrappers."""
        if seed is not None:
            self.np_random, self.np_random_seed = seeding.np_random(seed)
        self._start()
        self.agents = list(self.possible_agents)
        return self._observations(), self._infos()

    def step(self, actions: Mapping[str, int]) -> StepResult:
        """Prunes once. Every agent acts; an illegal action becomes the nearest legal rate below, seen in the infos.

        Raises ValueError for a missing agent or an action outside its space, RuntimeError after the episode's end.
        """
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Mapping[str, int]) -> None:
        """The first half of `step`: workers, if there are any, begin to measure what the actions lead to."""
        if self._ahead is not None:
            raise RuntimeError("a step has begun already; call step_wait() before the next step_async()")
        ahead = self._rounds.after(self.position, self._checked(actions))
        last = ahead.number == self.config.rounds
        self._ahead = ahead, self.race() if last else None
        if (last or self.config.every_round) and not self._recovery.on:
            self.evaluator.submit(ahead.plan, self._ahead[1])

    def step_wait(self) -> StepResult:
        """The second half of `step`. Raises RuntimeError unless `step_async` came before."""
        if self._ahead is None:
            raise RuntimeError("nothing to wait for; call step_async(actions) first")
        (now, race), self._ahead = self._ahead, None
        reward, terminated = self.move(now, now.number == self.config.rounds, race)
        truncated = now.number >= self.max_cycles and not terminated
        agents = self.agents
        if terminated or truncated:
            self.agents = []
        return (
            self._observations(),
            dict.fromkeys(agents, reward),
            dict.fromkeys(agents, terminated),
            dict.fromkeys(agents, truncated),
            self._infos(),
        )

    def move(self, now: RoundState, last: bool, race: Race | None = None) -> tuple[float, bool]:
        """Goes on to a position that any player chose: recovers, measures, pays, keeps a finished plan.

        Returns the reward and whether the episode is over, because this was its last move or the network is lost.
        """
        before, accuracy_before = self.position, self._accuracy
        agents, self.agents = self.agents, []  # where measuring fails the episode is lost, and says so
        self.position = now
        if self._recovery.on:
            self._recovery.step(now.plan, now.number)
        if last or self.config.every_round:
            self._accuracy = self._measure(race)
        self.agents = agents

        result = self._reward(
            RewardInput(
                accuracy_before=accuracy_before,
                accuracy_after=self._accuracy,
                original_accuracy=self.evaluator.original_accuracy,
                macs_before=before.macs_ratio,
                macs_after=now.macs_ratio,
                last=last,
            )
        )
        if not isinstance(result, RoundReward):
            raise TypeError(f"a reward function must return a RoundReward, {self._reward!r} returned {result!r}")
        reward, collapsed = result
        self._return += reward
        if last or collapsed:
            self.archive.add(Entry(now.plan, self._accuracy, now.macs_ratio, now.params_ratio, self._return))
        return reward, last or collapsed

    def state(self) -> np.ndarray:
        """All observations and the network's totals, float32 [S]; also after the last step."""
        now = self.position
        return self.observer.state(now.plan, now.last_rates, now.left)

    def totals(self) -> dict[str, float]:
        """What infos say of the whole network: its last known accuracy, and its cost."""
        now = self.position
        return {
            "accuracy": float(self._accuracy),
            "macs_ratio": float(now.macs_ratio),
            "params_ratio": float(now.params_ratio),
        }

    def pruned_model(self) -> nn.Module:
        """The current plan's network, as it was measured unless `measure_at` says otherwise: a new, smaller module with
        recalibrated BatchNorm statistics, on the CPU. With `finetune_batches` it is trained for this call, equal up to
        rounding: `Evaluator.network`."""
        if not self._recovery.on:
            return self.evaluator.network(self.plan).cpu()
        network = self._recovery.network()
        self.evaluator.recalibrate(network)
        return network.cpu()

    def cost_ratios(self, plan: Plan) -> tuple[float, float]:
        """MACs and parameters of a plan as fractions of the unpruned network's."""
        return self._rounds.cost_ratios(plan)

    @property
    def plan(self) -> Plan:
        """Filters kept in each group now, in the order of the agents."""
        return self.position.plan

    @cached_property
    def problem(self) -> str:
        """A fingerprint of all that a plan's accuracy depends on. Reads every weight; none ever changes."""
        digest = hashlib.blake2b(
            f"{weights_fingerprint(self.model)} {self.data.fingerprint} {self.config}".encode(), digest_size=16
        )
        for function in (self.metric, self.loss):
            if function is not None:
                digest.update(function_fingerprint(function).encode())
        if self.config.trains:
            digest.update(learning_fingerprint(self.model, self.data.example_input).encode())
        for group in self.groups:
            digest.update(f"{group.layers} {self.ranking[group.name].tolist()}".encode())
        return digest.hexdigest()

    def render(self) -> str | np.ndarray | None:
        """A line for every agent and one for the network (`ansi`), or the same as a picture (`rgb_array`)."""
        if self.render_mode is None:
            return None
        now = self.position
        macs = self.observer.macs_shares(now.plan)
        rows = [
            render.RenderRow(group.name, group.layers, group.filters, kept, float(share), float(rate))
            for group, kept, share, rate in zip(self.groups, now.plan, macs, now.last_rates, strict=True)
        ]
        totals = (self._accuracy, now.macs_ratio, now.params_ratio, now.number, now.count)
        return render.ansi(rows, *totals) if self.render_mode == "ansi" else render.rgb_array(rows, *totals)

    def clone(self) -> FilterPruneEnv:
        """The same game for another episode beside this one: network, evaluator and archive are shared."""
        other = copy.copy(self)
        other.observation_spaces, other.action_spaces = copy.deepcopy((self.observation_spaces, self.action_spaces))
        other.np_random, other.np_random_seed = seeding.np_random()
        other.agents, other._ahead, other._recovery = [], None, self._new_recovery()
        other._start()
        return other

    def close(self) -> None:
        """Ends the workers, if there are any; they start again when needed."""
        self.evaluator.close()

    def state_dict(self) -> dict[str, Any]:
        """What episodes leave behind: the archive, and which problem it belongs to. Plain lists, numbers and text."""
        return {"problem": self.problem, "settings": self._settings(), "archive": self.archive.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the archive of an earlier run on the same problem; its plans are not evaluated again.

        Raises ValueError for the state of another problem: other settings, weights, images, ranking or functions.
        """
        if state["problem"] != self.problem:
            changes = [
                f"{name} from {was} to {now}" for name, was, now in differences(state["settings"], self._settings())
            ]
            raise ValueError(
                "the saved state belongs to another problem (changed since: "
                f"{', '.join(changes) or 'weights, images, ranking or a function'}); start a new run, or bring back "
                "what it was made with"
            )
        self.archive.load_state_dict(state["archive"])
        if not self._recovery.on:
            for entry in self.archive:
                self.evaluator.remember(entry.plan, entry.accuracy)

    def _settings(self) -> dict[str, str]:
        return {name: repr(value) for name, value in dataclasses.asdict(self.config).items()}

    def _start(self) -> None:
        self.position = self._rounds.start
        self._accuracy, self._return = self.evaluator.original_accuracy, 0.0
        self._ahead = None
        self._recovery.reset()

    def _measure(self, race: Race | None) -> float:
        if self._recovery.on:
            return self.evaluator.accuracy_of(self._recovery.network())
        return self.evaluator.accuracy(self.plan, race)

    def race(self) -> Race | None:
        """What a plan that is finished now is raced against, None for an exact count."""
        if self.config.racing is None or len(self.archive) < RACED_FOR:
            return None
        return Race(self.archive.best(RACED_FOR)[-1].accuracy, self.config.racing)

    def _checked(self, actions: Mapping[str, int]) -> list[int]:
        if not self.agents:
            raise RuntimeError("the episode is over, or was never begun; call reset() before step()")
        wanted, count = [], len(self.config.rates)
        for agent in self.agents:
            if agent not in actions:
                raise ValueError(f"no action for agent {agent!r}; every agent of env.agents acts in every round")
            action = actions[agent]
            legal = isinstance(action, (int, np.integer)) and 0 <= action < count  # `contains` is slow
            if not legal and not self.action_spaces[agent].contains(action):
                raise ValueError(
                    f"action {actions[agent]!r} of agent {agent!r} is not in {self.action_spaces[agent]}: it is an "
                    f"index into rates {self.config.rates}"
                )
            wanted.append(int(actions[agent]))
        return wanted

    def _observations(self) -> dict[str, np.ndarray]:
        rows = self.position.observations.copy()  # fresh at every call
        return dict(zip(self.possible_agents, rows, strict=True))

    def _infos(self) -> dict[str, dict[str, Any]]:
        now, masks, network = self.position, self.position.masks.copy(), self.totals()
        return {
            agent: {"action_mask": mask, "applied_rate": float(rate), **network}
            for agent, mask, rate in zip(self.possible_agents, masks, now.last_rates, strict=True)
        }
