"""Games that only a correct implementation learns. Small networks and few episodes keep the tests fast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from games import Matrix, Memory, TwoStep

from qmix_agent import QMIX, QMIXConfig
from qmix_agent.types import Moments

MONOTONIC = ((0.0, 1.0, 2.0), (1.0, 3.0, 5.0), (2.0, 5.0, 9.0))
CLIMBING = ((11.0, -30.0, 0.0), (-30.0, 7.0, 6.0), (0.0, 0.0, 5.0))
"""Claus and Boutilier 1998: if only one agent leaves the best cell, the team pays 30."""


def two_step_config(**settings: Any) -> QMIXConfig:
    """As in the paper, exploration is uniform throughout."""
    defaults = {
        "recurrent": False,
        "epsilon_end": 1.0,
        "epsilon_episodes": 0,
        "gamma": 1.0,
        "loss": "mse",
        "learning_rate": 5e-3,
        "target_update_every": 25,
        "hidden_size": 32,
        "mixing_embed": 8,
        "hypernet_hidden": 16,
        "eval_every": 0,
    }
    return QMIXConfig(**(defaults | settings))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
@pytest.mark.parametrize(("mixer", "best"), [("qmix", 8.0), ("vdn", 7.0)])
def test_in_the_two_step_game_qmix_reaches_8_and_vdn_7(mixer: str, best: float, seed: int) -> None:
    agent = QMIX(TwoStep(), two_step_config(mixer=mixer), seed=seed).learn(120, progress=False)
    assert agent.evaluate(episodes=1).mean == best


@pytest.mark.parametrize("n_envs", [1, 8])
@pytest.mark.parametrize("mixer", ["qmix", "vdn", "iql"])
def test_all_mixers_solve_a_monotonic_matrix(mixer: str, n_envs: int) -> None:
    agent = QMIX(Matrix(MONOTONIC), two_step_config(mixer=mixer))
    assert agent.learn(120, n_envs=n_envs, progress=False).evaluate(episodes=1).mean == 9.0


@pytest.mark.parametrize(("mixer", "seed"), [("qmix", 1), ("vdn", 1), ("iql", 2)])
def test_standardised_returns_reveal_small_differences_at_a_high_level(mixer: str, seed: int) -> None:
    """The accuracies of pruned networks are like this. At each of these seeds, learning fails without them."""
    game = Matrix(tuple(tuple(100 + pay / 100 for pay in row) for row in MONOTONIC))
    agent = QMIX(game, two_step_config(mixer=mixer, standardise_returns=True), seed).learn(120, progress=False)
    assert agent.evaluate(episodes=1).mean == pytest.approx(100.09, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"td_lambda": 0.0},
        {"td_lambda": 1.0},
        {"parameter_sharing": False},
        {"layer_norm": True},
        {"standardise_returns": True},
    ],
)
def test_every_variant_of_qmix_reaches_8_in_the_two_step_game(settings: dict[str, Any]) -> None:
    agent = QMIX(TwoStep(), two_step_config(**settings)).learn(160, progress=False)
    assert agent.evaluate(episodes=1).mean == 8.0


def test_without_the_correction_a_first_step_is_valued_by_random_second_steps() -> None:
    """Whole returns of random play: the risky matrix pays (0 + 1 + 1 + 8) / 4 on average, the safe one 7."""
    config = two_step_config(td_lambda=1.0, off_policy_correction=False)
    assert QMIX(TwoStep(), config).learn(160, progress=False).evaluate(episodes=1).mean == 7.0


@pytest.mark.slow
def test_qmix_is_unreliable_where_the_best_joint_action_is_not_each_agents_best() -> None:
    """A known limit (Son et al. 2019, arXiv:1905.05408, section 5.1): the climbing game is not monotonic.

    Whichever of actions 0 and 1 each agent values more, some cell of the 2 x 2 corner of Q_tot is wrong by at least
    18.5. With 0 above 1 for both agents, Q(1, 1) <= Q(0, 1), but the payoffs are 7 and -30; the other orders need
    -30 >= 11. So the fit decides which action looks best, and it is not always the best one.
    """
    returns = []
    for seed in range(3):
        agent = QMIX(Matrix(CLIMBING), two_step_config(), seed=seed).learn(160, progress=False)
        learner, observations = agent.learner, torch.ones(1, 1, 2, 1)
        with torch.no_grad():
            q = learner.network(observations, torch.full((1, 1, 2), -1))[0][0, 0]  # [2, 3]
            pairs = torch.cartesian_prod(*q)[None]  # [1, 9, 2]
            q_tot = learner.mixer(
                pairs, Moments(torch.ones(1, 9, 2), torch.ones(1, 9, 2, 1), torch.ones(1, 9, 2))
            ).reshape(3, 3)
        assert (q_tot - torch.tensor(CLIMBING))[:2, :2].abs().max() >= 18.5
        returns.append(agent.evaluate(episodes=1).mean)
    assert min(returns) < 11.0


@pytest.mark.parametrize(("recurrent", "solved"), [(True, True), (False, False)])
def test_only_a_recurrent_network_solves_the_memory_game(recurrent: bool, solved: bool) -> None:
    config = QMIXConfig(
        recurrent=recurrent,
        last_action=False,  # otherwise agents could store the bit in their own action
        learning_rate=5e-3,
        target_update_every=25,
        epsilon_episodes=60,
        hidden_size=32,
        mixing_embed=8,
        hypernet_hidden=16,
        eval_every=0,
    )
    agent = QMIX(Memory(), config, seed=0).learn(90, progress=False)
    mean = agent.evaluate(episodes=32).mean
    assert mean == 1.0 if solved else mean < 0.8
