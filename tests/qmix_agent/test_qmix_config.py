"""Settings refuse what they cannot mean."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from qmix_agent import QMIXConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mixer", "sum"),
        ("loss", "l1"),
        ("exploration", "boltzmann"),
        ("recurrent", 1),
        ("hidden_size", 0),
        ("hidden_size", "64"),
        ("batch_size", 2.0),
        ("updates_per_episode", True),
        ("gamma", 1.1),
        ("td_lambda", -0.1),
        ("epsilon_start", float("nan")),
        ("epsilon_episodes", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("max_grad_norm", -1.0),
        ("target_tau", 0.0),
        ("target_tau", 1.5),
        ("eval_every", -1),
        ("n_step", 0),
        ("hypernet_layers", 3),
        ("hypernet_layers", True),
        ("mixing_weights", "exp"),
        ("parameter_sharing", 1),
        ("layer_norm", None),
        ("priority_alpha", 1.5),
        ("priority_beta", -0.1),
        ("noisy_sigma", 0.0),
        ("batch_size", 5000),
        ("learning_starts", 5000),
    ],
)
def test_wrong_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} "):
        QMIXConfig(**{field: value})


def test_the_settings_need_no_torch() -> None:
    code = "import sys, qmix_agent; qmix_agent.QMIXConfig(); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_resolve() -> None:
    import qmix_agent

    assert all(getattr(qmix_agent, name) is not None for name in qmix_agent.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = qmix_agent.nothing
