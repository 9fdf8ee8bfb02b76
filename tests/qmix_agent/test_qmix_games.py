"""What only a right implementation learns. Small networks and few episodes keep it fast."""

from __future__ import annotations

import pytest
from games import Memory, TwoStep

from qmix_agent import QMIX, QMIXConfig

# As in the paper: uniform exploration throughout. One-step targets then, as longer ones would value the next step's
# random action.
TWO_STEP = {
    "recurrent": False,
    "epsilon_end": 1.0,
    "epsilon_episodes": 0,
    "td_lambda": 0.0,
    "gamma": 1.0,
    "loss": "mse",
    "learning_rate": 5e-3,
    "target_update_every": 25,
    "hidden_size": 32,
    "mixing_embed": 8,
    "hypernet_hidden": 16,
    "eval_every": 0,
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("mixer", "best"), [("qmix", 8.0), ("vdn", 7.0)])
def test_two_step_game_qmix_reaches_8_and_vdn_settles_for_7(mixer: str, best: float, seed: int) -> None:
    agent = QMIX(TwoStep(), QMIXConfig(mixer=mixer, **TWO_STEP), seed=seed).learn(120, progress=False)  # type: ignore[arg-type]
    assert agent.evaluate(episodes=1).mean == best


@pytest.mark.parametrize(("recurrent", "solved"), [(True, True), (False, False)])
def test_only_a_memory_solves_the_memory_game(recurrent: bool, solved: bool) -> None:
    config = QMIXConfig(
        recurrent=recurrent,
        last_action=False,  # agents could otherwise write the bit down in their own action
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
