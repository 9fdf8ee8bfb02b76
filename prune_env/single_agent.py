"""Single-agent views of the game, as Gymnasium environments on top of a FilterPruneEnv.

- `LayerByLayer`: one group after another, with a continuous keep ratio each. This is the game of AMC (He et al. 2018,
  arXiv:1802.03494).
- `Joint`: all groups at once, round by round.

A view plays on its FilterPruneEnv, called `game`: network, evaluator, budget, reward and archive are shared, and
`game.plan`, `game.state()` and `game.pruned_model()` follow the view. Only one player may use a game at a time.

Importing this module registers both:
`gymnasium.make("prune_env.single_agent:prune_env/LayerByLayer-v0", network="resnet20", data="cifar10")`.
A version rises when the same actions would give other observations or rewards. Letters: G groups, A rates, F features,
S entries of the state.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .game.env import FilterPruneEnv
from .game.make import make_env
from .game.transition import RoundState, Transitions


class _View(gymnasium.Env[np.ndarray, np.ndarray]):
    def __init__(self, game: FilterPruneEnv) -> None:
        self.game, self.metadata, self.render_mode = game, game.metadata, game.render_mode

    def render(self) -> Any:
        return self.game.render()

    def close(self) -> None:
        self.game.close()


class LayerByLayer(_View):
    """Decide one group per step, in forward order; the last step ends the episode.

    - Action: Box [0, 1], float32 [1]; the fraction of the group's filters that stays. It is limited so that the budget
      stays within reach if all later groups keep their minimum. `gymnasium.wrappers.RescaleAction` maps it to [-1, 1].
    - Observation: Box [0, 1], float32 [F + 2]; the observation of the group's agent, the limit, and the fraction
      kept in the group before. `observation_names` names the entries.
    - Info: keep_ratio (what the group just decided keeps), most_kept (limit of the next action), plan (int64 [G]),
      accuracy, macs_ratio, params_ratio.

    A finished plan below the budget gets filters back by the budget's rule for overshoots (`Budget.project`);
    keep_ratio and plan of the last step report the result. The settings `rounds` and `max_cycles` are unused, and
    `every_round` evaluates after every group.

    Raises:
        ValueError: The game carries weights from round to round.
    """

    def __init__(self, game: FilterPruneEnv) -> None:
        super().__init__(game)
        if game.config.round_finetune_batches:
            raise ValueError(
                f"round_finetune_batches={game.config.round_finetune_batches} needs rounds, and layer by layer there "
                "are none; set it to 0, or use Joint"
            )
        self.observation_names = (*game.observation_names, "most_kept", "previous_kept")
        self.observation_space = spaces.Box(0.0, 1.0, (len(self.observation_names),), np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self._full = np.array(game.problem.full_plan)
        self._transitions = Transitions(game.problem.cost, game.problem.full_plan, game.observer, len(game.groups))
        self._state: RoundState | None = None  # None before the first reset and after an episode
        self._most: int

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return to the original network; see `FilterPruneEnv.reset` for seed and options."""
        super().reset(seed=seed)
        self.game.reset(seed=seed, options=options)
        self.game.agents = []  # the game's own agents need a reset before they play again
        self._state = self.game.round_state
        return self._observe(self._state)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide one group.

        Raises:
            ValueError: The action lies outside its space.
            RuntimeError: The episode is over or has not started, or another player has used the game.
        """
        before, game = self._state, self.game
        if before is None or before is not game.round_state:
            raise RuntimeError(
                "the episode is over or has not started, or another player has used the game; call reset() before "
                "step()"
            )
        group, last = before.number, before.number + 1 == len(game.groups)
        kept = game.budget.kept(group, _ratio(action))
        plan = (*before.plan[:group], min(kept, self._most), *before.plan[group + 1 :])
        if last:
            plan = game.budget.project(game.problem.full_plan, plan, last=True)
        now = self._transitions.to(before, plan)
        reward, ended = game.move(now, last)
        self._state = None if ended else now
        observation, info = self._observe(now)
        return observation, float(reward), ended, False, info

    def _observe(self, now: RoundState) -> tuple[np.ndarray, dict[str, Any]]:
        """Return observation and info; after the last step those of the last group."""
        group = min(now.number, len(self._full) - 1)
        self._most = self.game.budget.most_kept(now.plan, group)
        kept = now.plan / self._full
        most, previous = self._most / self._full[group], kept[now.number - 1] if now.number else 1.0
        observation = np.append(now.observations[group], (most, previous)).astype(np.float32)
        info = {"keep_ratio": float(previous), "most_kept": float(most), "plan": np.array(now.plan)}
        return observation, info | self.game.totals()


class Joint(_View):
    """Decide all groups at once, round by round.

    - Action: MultiDiscrete [G], indices into `rates`; an illegal one counts as the nearest legal rate below.
    - Observation: Box [0, 1], float32 [S]; `game.state()`, whose entries `game.state_names` names.
    - Info: action_mask (int8 [G, A]), applied_rate ([G]), accuracy, macs_ratio, params_ratio.
    """

    def __init__(self, game: FilterPruneEnv) -> None:
        super().__init__(game)
        self.observation_space = game.state_space
        self.action_space = spaces.MultiDiscrete([len(game.config.rates)] * len(game.groups))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return to the original network; see `FilterPruneEnv.reset` for seed and options."""
        super().reset(seed=seed)
        self.game.reset(seed=seed, options=options)
        return self.game.state(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play one round.

        Raises:
            ValueError: The action lies outside its space.
            RuntimeError: The episode is over.
        """
        agents = self.game.possible_agents
        if np.shape(action) != (len(agents),):
            raise ValueError(f"expected one action for each of the {len(agents)} groups, got shape {np.shape(action)}")
        _, rewards, terminated, truncated, _ = self.game.step(dict(zip(agents, action, strict=True)))
        first = agents[0]
        return self.game.state(), float(rewards[first]), terminated[first], truncated[first], self._info()

    def action_masks(self) -> np.ndarray:
        """Return where actions are legal, bool [G * A], as MaskablePPO of sb3-contrib expects."""
        return self.game.round_state.masks.astype(bool).ravel()

    def _info(self) -> dict[str, Any]:
        now = self.game.round_state
        return {"action_mask": now.masks.copy(), "applied_rate": np.array(now.last_rates)} | self.game.totals()


def layer_by_layer(network: str = "small_cnn", data: str = "digits", **settings: Any) -> LayerByLayer:
    """Make the layer-by-layer view of a registered network; see `prune_env.make_env` for the settings."""
    return LayerByLayer(make_env(network, data, **settings))


def joint(network: str = "small_cnn", data: str = "digits", **settings: Any) -> Joint:
    """Make the joint view of a registered network; see `prune_env.make_env` for the settings."""
    return Joint(make_env(network, data, **settings))


def _ratio(action: np.ndarray) -> float:
    ratio = np.asarray(action, np.float64)
    if ratio.shape != (1,) or not 0 <= ratio[0] <= 1:
        raise ValueError(f"action {action!r} is not in Box(0, 1, (1,)); give the fraction of filters that stays")
    return round(float(ratio[0]), 6)  # a float32 of 0.3 is 0.30000001, and must keep 3 of 10 filters


def _register() -> None:
    for name, entry_point in (("LayerByLayer", "layer_by_layer"), ("Joint", "joint")):
        if (known := f"prune_env/{name}-v0") not in gymnasium.registry:
            gymnasium.register(known, entry_point=f"{__name__}:{entry_point}")


_register()
