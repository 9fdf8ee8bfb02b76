"""The same task for one agent, as Gymnasium environments on top of a FilterPruneEnv.

    LayerByLayer   one group after another, a continuous keep ratio each: AMC's game (He et al. 2018, arXiv:1802.03494)
    Joint          all groups at once, round by round

Both play on the FilterPruneEnv itself, their `game`: its network, evaluator, budget, reward and archive are theirs, and
`game.plan`, `game.state()` and `game.pruned_model()` follow. One player at a time.

Importing this module registers both:
`gymnasium.make("prune_env.single_agent:prune_env/LayerByLayer-v0", network="resnet20", data="cifar10")`.
The versions rise when the same actions would bring other observations or rewards. Letters: G groups, A rates,
F features, S entries of the state.
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
    """One step for each group, in forward order; the last one ends the episode.

    Action        Box [0, 1], float32 [1]: the fraction of the group's filters that stays. It is cut down to what leaves
                  the budget in reach if all later groups keep as little as they may. `gymnasium.wrappers.RescaleAction`
                  makes it [-1, 1], for algorithms that explore around 0
    Observation   Box [0, 1], float32 [F + 2]: what the group's agent would see now, then the bound and the fraction
                  kept in the group before; `observation_names` names the entries
    Info          keep_ratio: what stays in the group just settled; most_kept: the next action's bound; plan: int64 [G];
                  accuracy, macs_ratio, params_ratio

    A finished plan below the budget gets filters back by the budget's rule for overshoots (`Budget.project`); the last
    step's keep_ratio and plan say what was applied. Of the settings, `rounds` and `max_cycles` play no part, and
    `every_round` evaluates after every group. Raises ValueError for recovery between rounds, of which there are none.
    """

    def __init__(self, game: FilterPruneEnv) -> None:
        super().__init__(game)
        if game.config.round_finetune_batches:
            raise ValueError(
                "layer by layer there are no rounds to recover after, since the last step may give filters back; set "
                f"round_finetune_batches=0 instead of {game.config.round_finetune_batches}, or take Joint"
            )
        self.observation_names = (*game.observation_names, "most_kept", "previous_kept")
        self.observation_space = spaces.Box(0.0, 1.0, (len(self.observation_names),), np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self._full = np.array(game.full_plan)
        self._rounds = Transitions(game.budget, game.cost, game.observer, len(game.groups))
        self._position: RoundState | None = None  # none: not begun, or over
        self._most: int

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Back to the unpruned network. The game is deterministic: the seed only feeds `np_random`."""
        super().reset(seed=seed)
        self.game.reset(seed=seed)
        self.game.agents = []  # its own agents play again after its own reset
        self._position = self.game.position
        return self._seen(self._position)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Settles a group. Raises ValueError for an action outside its space, RuntimeError after the episode's end."""
        before, game = self._position, self.game
        if before is None or before is not game.position:
            raise RuntimeError(
                "the episode is over, was never begun, or others played on the same game; call reset() before step()"
            )
        group, last = before.number, before.number + 1 == len(game.groups)
        kept = game.budget.kept(group, _ratio(action))
        plan = (*before.plan[:group], min(kept, self._most), *before.plan[group + 1 :])
        if last:
            plan = game.budget.project(game.full_plan, plan, last=True)
        now = self._rounds.to(before, plan)
        reward, ended = game.move(now, last, game.race() if last else None)
        self._position = None if ended else now
        observation, info = self._seen(now)
        return observation, float(reward), ended, False, info

    def _seen(self, now: RoundState) -> tuple[np.ndarray, dict[str, Any]]:
        """Observation and info; after the last step once more of the last group."""
        group = min(now.number, len(self._full) - 1)
        self._most = self.game.budget.most_kept(now.plan, group)
        kept = now.plan / self._full
        most, previous = self._most / self._full[group], kept[now.number - 1] if now.number else 1.0
        observation = np.append(now.observations[group], (most, previous)).astype(np.float32)
        info = {"keep_ratio": float(previous), "most_kept": float(most), "plan": np.array(now.plan)}
        return observation, info | self.game.totals()


class Joint(_View):
    """One action for all groups, round by round.

    Action        MultiDiscrete [G], each an index into `rates`; an illegal one becomes the nearest legal rate below
    Observation   Box [0, 1], float32 [S]: `game.state()`, its entries named by `game.state_names`
    Info          action_mask: int8 [G, A]; applied_rate: [G]; accuracy, macs_ratio, params_ratio
    """

    def __init__(self, game: FilterPruneEnv) -> None:
        super().__init__(game)
        self.observation_space = game.state_space
        self.action_space = spaces.MultiDiscrete([len(game.config.rates)] * len(game.groups))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Back to the unpruned network. The game is deterministic: the seed only feeds `np_random`."""
        super().reset(seed=seed)
        self.game.reset(seed=seed)
        return self.game.state(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Prunes once. Raises ValueError for an action outside its space, RuntimeError after the episode's end."""
        agents = self.game.possible_agents
        if np.shape(action) != (len(agents),):
            raise ValueError(f"expected one action for each of the {len(agents)} groups, got shape {np.shape(action)}")
        _, rewards, terminated, truncated, _ = self.game.step(dict(zip(agents, action, strict=True)))
        first = agents[0]
        return self.game.state(), float(rewards[first]), terminated[first], truncated[first], self._info()

    def action_masks(self) -> np.ndarray:
        """Where actions are legal, bool [G * A]: what sb3-contrib's MaskablePPO asks for."""
        return self.game.position.masks.astype(bool).ravel()

    def _info(self) -> dict[str, Any]:
        now = self.game.position
        return {"action_mask": now.masks.copy(), "applied_rate": np.array(now.last_rates)} | self.game.totals()


def layer_by_layer(network: str = "small_cnn", data: str = "digits", **settings: Any) -> LayerByLayer:
    """See `prune_env.make_env` for the settings."""
    return LayerByLayer(make_env(network, data, **settings))


def joint(network: str = "small_cnn", data: str = "digits", **settings: Any) -> Joint:
    """See `prune_env.make_env` for the settings."""
    return Joint(make_env(network, data, **settings))


def _ratio(action: np.ndarray) -> float:
    wanted = np.asarray(action, np.float64)
    if wanted.shape != (1,) or not 0 <= wanted[0] <= 1:
        raise ValueError(f"action {action!r} is not in Box(0, 1, (1,)): it is the fraction of filters that stays")
    return round(float(wanted[0]), 6)  # of 10 filters a float32's 0.3 keeps 3, although it is 0.30000001


def _register() -> None:
    for name, entry_point in (("LayerByLayer", "layer_by_layer"), ("Joint", "joint")):
        if (known := f"prune_env/{name}-v0") not in gymnasium.registry:
            gymnasium.register(known, entry_point=f"{__name__}:{entry_point}")


_register()
