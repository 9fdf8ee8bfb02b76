"""Mixers."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qmix_helpers import SPEC
from torch import nn

from qmix_agent import config
from qmix_agent.mixers import MIXERS, QMixer, VDNMixer


def test_config_and_registry_have_the_same_mixers() -> None:
    assert tuple(MIXERS) == get_args(config.Mixer)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_qmix_is_monotonic_in_every_agent(seed: int, scale: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    mixer = QMixer(4, 3, embed=8, hypernet_hidden=8)
    for parameter in mixer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng)
    q = (scale * torch.randn(16, 2, 4, generator=rng)).requires_grad_()
    states = scale * torch.randn(16, 2, 3, generator=rng)
    (gradient,) = torch.autograd.grad(mixer(q, states).sum(), q)
    assert (gradient >= 0).all()
    assert (gradient > 0).any()


def test_qmix_follows_its_equation() -> None:
    """Q_tot = |w2(s)| . ELU(|W1(s)| q + b1(s)) + V(s), for one state at a time."""
    rng = torch.Generator().manual_seed(0)
    mixer = QMixer(n_agents=2, n_state=3, embed=4, hypernet_hidden=5)
    q, states = torch.randn(3, 2, 2, generator=rng), torch.randn(3, 2, 3, generator=rng)
    mixed = mixer(q, states)
    for episode in range(3):
        for step in range(2):
            state = states[episode, step]
            hidden = nn.functional.elu(q[episode, step] @ mixer.weights_1(state).abs().view(2, 4) + mixer.bias_1(state))
            expected = hidden @ mixer.weights_2(state).abs() + mixer.value(state)
            torch.testing.assert_close(mixed[episode, step], expected)


def test_leading_dimensions_share_the_mixing_weights_of_their_states() -> None:
    rng = torch.Generator().manual_seed(0)
    mixer = QMixer(n_agents=2, n_state=3, embed=4, hypernet_hidden=5)
    q, states = torch.randn(2, 3, 4, 2, generator=rng), torch.randn(3, 4, 3, generator=rng)
    torch.testing.assert_close(mixer(q, states), torch.stack([mixer(one, states) for one in q]))


def test_vdn_sums_and_ignores_the_state() -> None:
    q = torch.tensor([[[1.0, 2.0]]])
    assert VDNMixer()(q, torch.zeros(1, 1, 3)).item() == 3.0
    assert VDNMixer()(q, torch.ones(1, 1, 3)).item() == 3.0


@pytest.mark.parametrize("name", ["qmix", "vdn", "iql"])
def test_shapes(name: str) -> None:
    mixer = MIXERS[name](SPEC, config.QMIXConfig())
    assert mixer(torch.zeros(2, 5, 3), torch.zeros(2, 5, 4)).shape == (2, 5, 3 if name == "iql" else 1)
