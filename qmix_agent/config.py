"""The agent's settings. Standard library only, so that a command line can be made from them cheaply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIXERS = ("qmix", "vdn", "iql")
LOSSES = ("huber", "mse")
EXPLORATIONS = ("agent", "team", "noisy")
MIXING_WEIGHTS = ("abs", "softplus")


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
    layer_norm: bool = False
    """Normalise the agents' hidden features (Ba et al. 2016)."""
    parameter_sharing: bool = True
    """One network for all agents; otherwise each agent has weights of its own, and `agent_id` has no use."""
    mixing_embed: int = 32
    """Width of the mixing network's hidden layer."""
    hypernet_hidden: int = 64
    """Width of the hypernetworks that make the mixing network's weights from the state."""
    hypernet_layers: Literal[1, 2] = 2
    """Layers of these hypernetworks. With 1 they are linear, as in the paper, and `hypernet_hidden` has no use."""
    mixing_weights: Literal["abs", "softplus"] = "abs"
    """What makes the mixing network's weights non-negative. softplus never lets a weight be exactly 0."""
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
    """0: one-step targets; 1: whole returns. Above 0 a late reward reaches early steps in one update."""
    off_policy_correction: bool = True
    """Returns are those of the greedy policy: what an explored action costs later is not charged to the steps before
    it (Harutyunyan et al. 2016). Without it exploration counts as it came (Peng and Williams 1996). Unused with
    td_lambda=0 or n_step=1."""
    n_step: int | None = None
    """Longest return in a target. It and `td_lambda` make one truncated lambda-return (Sutton and Barto 2018, equation
    12.9): the n-step returns up to this n, weighted by `td_lambda`. So td_lambda=1 with n_step=3, uncorrected, is the
    plain 3-step return. None: up to the end of the episode."""
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
    priority_alpha: float = 0.0
    """How much an episode's mean TD error decides how often it is replayed (Schaul et al. 2016); 0: not at all, and no
    episode is twice in a batch; 1: in proportion to it."""
    priority_beta: float = 0.4
    """How far importance weights correct for that in the first episode. Rises linearly to 1, a full correction, over
    `epsilon_episodes`. Unused without `priority_alpha`."""
    learning_starts: int = 32
    """Episodes played before the first update."""
    updates_per_episode: int = 4
    """Updates after each episode. Raise it where episodes are dear."""
    target_update_every: int = 200
    """Updates between copies of the live network into the target network. Unused with `target_tau`."""
    target_tau: float | None = None
    """Move the target network this fraction of the way at every update instead of copying it now and then."""
    standardise_returns: bool = False
    """Learn values as their distance from the mean of all returns so far, in standard deviations: differences between
    actions count from the first update, however small they are beside the level and the unit of reward. `q_tot`, `loss`
    and `td_error`, and with it priorities, are then of these. See `ReturnScale`. For games that pay at their end: where
    every step pays a part of a return that varies much, what a step pays becomes small, and QMIX fails in simple_spread
    (benchmarks/QMIX.md)."""

    # Exploration
    exploration: Literal["agent", "team", "noisy"] = "agent"
    """Who explores with probability epsilon. agent: each on its own. team: the step as a whole, and then 1 to N agents,
    a random number of them; in a large team this leaves many joint actions greedy, or nearly so. noisy: nobody; each
    agent acts by a last layer with learned noise, drawn anew for every episode (Fortunato et al. 2018)."""
    noisy_sigma: float = 0.5
    """Size of that noise at the start, relative to the weights'. Unused unless `exploration` is noisy."""
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
        _one_of(self, "mixing_weights", MIXING_WEIGHTS)
        _one_of(self, "hypernet_layers", (1, 2))
        for name in ("recurrent", "layer_norm", "parameter_sharing", "last_action", "agent_id"):
            _true_or_false(self, name)
        for name in ("double_q", "off_policy_correction", "standardise_returns"):
            _true_or_false(self, name)
        for name in ("hidden_size", "mixing_embed", "hypernet_hidden", "batch_size", "buffer_size"):
            _whole(self, name, 1)
        for name in ("learning_starts", "updates_per_episode", "target_update_every", "eval_episodes"):
            _whole(self, name, 1)
        for name in ("epsilon_episodes", "eval_every"):
            _whole(self, name, 0)
        for name in ("gamma", "td_lambda", "epsilon_start", "epsilon_end", "priority_alpha", "priority_beta"):
            _number(self, name, 0.0, 1.0)
        for name in ("learning_rate", "max_grad_norm", "noisy_sigma"):
            _positive(self, name)
        if self.n_step is not None:
            _whole(self, "n_step", 1)
        if self.target_tau is not None:
            _number(self, "target_tau", 0.0, 1.0)
            _positive(self, "target_tau")
        for name in ("learning_starts", "batch_size"):
            if getattr(self, name) > self.buffer_size:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but the buffer never holds more than "
                    f"buffer_size = {self.buffer_size} episodes; lower the one or raise the other"
                )


def _one_of(config: QMIXConfig, name: str, values: tuple[object, ...]) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or value not in values:
        raise ValueError(f"{name} must be one of {', '.join(map(str, values))}; got {value!r}")


def _true_or_false(config: QMIXConfig, name: str) -> None:
    if not isinstance(getattr(config, name), bool):
        raise ValueError(f"{name} must be True or False, got {getattr(config, name)!r}")


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
