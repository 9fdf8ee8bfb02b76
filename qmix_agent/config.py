"""The agent's settings. Standard library only, so that a command line can be made from them cheaply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIXERS = ("qmix", "vdn", "iql")
LOSSES = ("huber", "mse")
EXPLORATIONS = ("agent", "team")


@dataclass(frozen=True)
class QMIXConfig:
    """Settings of `QMIX`. Raises ValueError that names the field."""

    # Networks
    mixer: Literal["qmix", "vdn", "iql"] = "qmix"
    """How agents' values become the team's: qmix (monotonic, sees the state), vdn (sum), iql (not at all)."""
    recurrent: bool = True
    """A GRU that remembers the episode; otherwise agents see the present observation only."""
    hidden_size: int = 64
    """Width of the agents' network."""
    mixing_embed: int = 32
    """Width of the mixing network's hidden layer."""
    hypernet_hidden: int = 64
    """Width of the hypernetworks that make the mixing network's weights from the state."""
    last_action: bool = True
    """Agents see their own previous action."""
    agent_id: bool = True
    """Agents see who they are, so that the shared network can treat them differently."""

    # Learning
    learning_rate: float = 1e-3
    """Of Adam."""
    gamma: float = 0.99
    """Discount per step."""
    td_lambda: float = 0.6
    """0: one-step targets; 1: Monte Carlo returns. Above 0 a late reward reaches early steps in one update."""
    double_q: bool = True
    """The live network chooses the next action, the target network values it (van Hasselt et al. 2016)."""
    loss: Literal["huber", "mse"] = "huber"
    """Of the temporal-difference error; huber turns linear at an error of 1."""
    max_grad_norm: float = 10.0
    """Gradients of a larger Euclidean norm are scaled down to it."""
    batch_size: int = 32
    """Episodes in an update."""
    buffer_size: int = 2000
    """Episodes kept for replay; the oldest goes first."""
    learning_starts: int = 32
    """Episodes played before the first update."""
    updates_per_episode: int = 4
    """Updates after each episode. Raise it where episodes are dear."""
    target_update_every: int = 200
    """Updates between copies of the live network into the target network. Unused with `target_tau`."""
    target_tau: float | None = None
    """Move the target network this fraction of the way at every update instead of copying it now and then."""
    standardise_rewards: bool = False
    """Learn from rewards divided by the running standard deviation of episode returns. The order of policies stays,
    and learning no longer depends on the unit of reward. `loss`, `q_tot` and `td_error` are then in that unit."""

    # Exploration
    exploration: Literal["agent", "team"] = "agent"
    """Who explores with probability epsilon. agent: each on its own. team: the step as a whole, and then 1 to N agents,
    a random number of them; in a large team this leaves many joint actions greedy, or nearly so."""
    epsilon_start: float = 1.0
    """Probability of exploring in the first episode."""
    epsilon_end: float = 0.05
    """Probability of exploring after `epsilon_episodes`."""
    epsilon_episodes: int = 100
    """Episodes in which epsilon falls linearly."""

    # Evaluation while learning
    eval_every: int = 20
    """Episodes between greedy evaluations; 0 for none."""
    eval_episodes: int = 5
    """Greedy episodes in an evaluation. One is enough where the game is deterministic."""

    def __post_init__(self) -> None:
        _one_of(self, "mixer", MIXERS)
        _one_of(self, "loss", LOSSES)
        _one_of(self, "exploration", EXPLORATIONS)
        for name in ("recurrent", "last_action", "agent_id", "double_q", "standardise_rewards"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("hidden_size", "mixing_embed", "hypernet_hidden", "batch_size", "buffer_size"):
            _whole(self, name, 1)
        for name in ("learning_starts", "updates_per_episode", "target_update_every", "eval_episodes"):
            _whole(self, name, 1)
        for name in ("epsilon_episodes", "eval_every"):
            _whole(self, name, 0)
        for name in ("gamma", "td_lambda", "epsilon_start", "epsilon_end"):
            _number(self, name, 0.0, 1.0)
        for name in ("learning_rate", "max_grad_norm"):
            _positive(self, name)
        if self.target_tau is not None:
            _number(self, "target_tau", 0.0, 1.0)
            _positive(self, "target_tau")
        for name in ("learning_starts", "batch_size"):
            if getattr(self, name) > self.buffer_size:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but the buffer never holds more than "
                    f"buffer_size = {self.buffer_size} episodes; lower the one or raise the other"
                )


def _one_of(config: QMIXConfig, name: str, names: tuple[str, ...]) -> None:
    if getattr(config, name) not in names:
        raise ValueError(f"{name} must be one of {', '.join(names)}; got {getattr(config, name)!r}")


def _whole(config: QMIXConfig, name: str, least: int) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _number(config: QMIXConfig, name: str, least: float, most: float) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}, got {value!r}")


def _positive(config: QMIXConfig, name: str) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive, finite number, got {value!r}")
