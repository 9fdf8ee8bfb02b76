"""Settings of QMIX. Only the standard library is imported, so that a command line can be built without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn, get_args

Mixer = Literal["qmix", "pooled", "vdn", "iql"]
Loss = Literal["huber", "mse"]
LARGEST = 2**31 - 1
"""The largest number that a setting takes."""


@dataclass(frozen=True)
class QMIXConfig:
    """Settings of `QMIX`.

    Raises:
        ValueError: A field has an invalid value; the message starts with the name of the field.
    """

    # Networks
    mixer: Mixer = "qmix"
    """How agent values combine into the team value: qmix (monotonic, sees the state), pooled (monotonic, sees the mean
    of the team's observations and so serves teams of any size), vdn (sum), iql (not at all)."""
    recurrent: bool = True
    """Use a GRU that remembers the episode; otherwise agents act on the current observation only."""
    hidden_size: int = 64
    """Width of the agent network."""
    layer_norm: bool = False
    """Normalise the hidden features of the agent network (Ba et al. 2016)."""
    parameter_sharing: bool = True
    """Share one network among all agents; otherwise each agent has its own weights and `agent_id` has no effect."""
    mixing_embed: int = 32
    """Width of the mixing network's hidden layer."""
    hypernet_hidden: int = 64
    """Width of the hypernetworks that compute the mixing weights from the state."""
    last_action: bool = True
    """Give each agent its own previous action as input."""
    prior: bool = False
    """Start from what the environment proposes (its attribute `action_proposal`): an action's value begins as minus the
    distance between its amount and the proposed one, and is corrected by learning (Silver et al. 2018,
    arXiv:1812.06298)."""
    agent_id: bool = True
    """Give each agent its one-hot identity as input, so that a shared network can treat agents differently."""

    # Learning
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    gamma: float = 0.99
    """Discount factor per step."""
    td_lambda: float = 0.6
    """Lambda of the lambda-returns: 0 for one-step targets, 1 for whole returns. Above 0, a late reward reaches early
    steps in a single update."""
    off_policy_correction: bool = True
    """Correct lambda-returns for exploration, so that the cost of an explored action is not attributed to the steps
    before it (Harutyunyan et al. 2016). Without it, exploration counts like any other action (Peng and Williams 1996).
    No effect with td_lambda=0 or n_step=1."""
    n_step: int | None = None
    """Longest return in a target; None for returns to the end of the episode. With `td_lambda` it defines one truncated
    lambda-return (Sutton and Barto 2018, equation 12.9): a weighted sum of the n-step returns up to this n. For
    example, td_lambda=1 with n_step=3 and no correction is the plain 3-step return."""
    double_q: bool = True
    """Select the next action with the online network and evaluate it with the target network (van Hasselt et al.
    2016)."""
    loss: Loss = "huber"
    """Loss of the temporal-difference error; huber is linear above an error of 1."""
    max_grad_norm: float = 10.0
    """Scale gradients down to this Euclidean norm if they exceed it."""
    batch_size: int = 32
    """Episodes in one update."""
    buffer_size: int = 2000
    """Episodes kept for replay; a full buffer drops the oldest."""
    learning_starts: int = 32
    """Episodes played before the first update."""
    updates_per_episode: int = 4
    """Updates after each episode. Raise it where playing an episode is expensive."""
    target_update_every: int = 200
    """Updates between copies of the online networks into the target networks. No effect with `target_tau`."""
    target_tau: float | None = None
    """Fraction by which the target networks move towards the online networks at every update; None for periodic
    copies."""
    standardise_returns: bool = False
    """Learn values relative to the mean of all returns so far, in units of their standard deviation (see
    `ReturnScale`). Differences between actions then count from the first update, however small they are compared with
    the level of the returns. The metrics `q_tot`, `loss` and `td_error` are in these units. Use it for games that
    reward at the end of an episode. Leave it off where every step contributes to a return that varies much: QMIX then
    fails in simple_spread (docs/benchmarks/qmix.md)."""

    # Exploration
    epsilon_start: float = 1.0
    """Probability of a random action in the first episode. Each agent explores independently."""
    epsilon_end: float = 0.05
    """Probability of a random action after `epsilon_episodes`."""
    epsilon_episodes: int = 100
    """Episodes over which epsilon falls linearly."""

    imagined_episodes: int = 0
    """Episodes that are imagined before each one that is played, once learning has started; see `planning`. It needs
    an environment with a method `imagine`. 0 plays epsilon-greedily without planning."""

    # Evaluation and checkpoints during training
    eval_every: int = 20
    """Episodes between greedy evaluations; 0 for none."""
    eval_episodes: int = 5
    """Greedy episodes per evaluation. One is enough for a deterministic game."""
    checkpoint_every: int = 50
    """Episodes between checkpoints. Training also writes one at its end and at Ctrl-C."""
    keep_checkpoints: int = 2
    """Number of most recent checkpoints to keep."""

    def __post_init__(self) -> None:
        _check_choice(self, "mixer", get_args(Mixer))
        _check_choice(self, "loss", get_args(Loss))
        for name in ("recurrent", "layer_norm", "parameter_sharing", "last_action", "prior", "agent_id"):
            _check_bool(self, name)
        for name in ("double_q", "off_policy_correction", "standardise_returns"):
            _check_bool(self, name)
        for name in ("hidden_size", "mixing_embed", "hypernet_hidden", "batch_size", "buffer_size"):
            _check_integer(self, name, 1)
        for name in ("learning_starts", "updates_per_episode", "target_update_every", "eval_episodes"):
            _check_integer(self, name, 1)
        for name in ("checkpoint_every", "keep_checkpoints"):
            _check_integer(self, name, 1)
        for name in ("epsilon_episodes", "imagined_episodes", "eval_every"):
            _check_integer(self, name, 0)
        for name in ("gamma", "td_lambda", "epsilon_start", "epsilon_end"):
            _check_fraction(self, name)
        for name in ("learning_rate", "max_grad_norm"):
            _check_positive(self, name)
        if self.n_step is not None:
            _check_integer(self, "n_step", 1)
        if self.target_tau is not None:
            _check_fraction(self, "target_tau")
            _check_positive(self, "target_tau")
        for name in ("learning_starts", "batch_size"):
            if getattr(self, name) > self.buffer_size:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but must not exceed buffer_size ({self.buffer_size}), which "
                    "limits the episodes in the replay buffer"
                )


def _check_choice(config: QMIXConfig, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if not isinstance(value, str) or value not in choices:
        _refuse(name, value, f"one of {', '.join(choices)}")


def _check_bool(config: QMIXConfig, name: str) -> None:
    if not isinstance(value := getattr(config, name), bool):
        _refuse(name, value, "True or False")


def _check_integer(config: QMIXConfig, name: str, minimum: int) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= LARGEST:
        _refuse(name, value, f"an integer from {minimum} up to {LARGEST}")


def _check_fraction(config: QMIXConfig, name: str) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        _refuse(name, value, "a number from 0 to 1")


def _check_positive(config: QMIXConfig, name: str) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LARGEST:
        _refuse(name, value, f"a number above 0 and up to {LARGEST}")


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless an argument is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise ValueError(f"{name} must be an integer from 1 up to {LARGEST}, got {value!r}")


def _refuse(name: str, value: object, allowed: str) -> NoReturn:
    shown = " ".join(repr(value).split())  # one short line, also for arrays
    raise ValueError(f"{name} must be {allowed}; got {shown if len(shown) <= 80 else shown[:80] + '...'}")
