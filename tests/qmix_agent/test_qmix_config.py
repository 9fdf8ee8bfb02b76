"""QMIXConfig: invalid values, cheap imports, and the public names of the package."""

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
        ("checkpoint_every", 0),
        ("keep_checkpoints", 0),
        ("n_step", 0),
        ("parameter_sharing", 1),
        ("layer_norm", None),
        ("batch_size", 5000),
        ("learning_starts", 5000),
    ],
)
def test_an_invalid_value_is_refused_and_its_field_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} "):
        QMIXConfig(**{field: value})


def test_the_config_does_not_import_torch() -> None:
    code = "import sys, qmix_agent; qmix_agent.QMIXConfig(); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_can_be_imported() -> None:
    import qmix_agent

    assert all(getattr(qmix_agent, name) is not None for name in qmix_agent.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = qmix_agent.nothing
