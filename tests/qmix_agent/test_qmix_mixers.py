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
from qmix_agent.mixers import MIXERS, PooledMixer, QMixer, VDNMixer
from qmix_agent.types import Moments


def test_config_and_registry_have_the_same_mixers() -> None:
    assert tuple(MIXERS) == get_args(config.Mixer)


TEAM_MIXERS = {
    "qmix": lambda: QMixer(4, 3, embed=8, hypernet_hidden=8),
    "pooled": lambda: PooledMixer(5, embed=8, hypernet_hidden=8),
    "vdn": VDNMixer,
}


def random_moments(rng: torch.Generator, agents: int = 4, episodes: int = 3, steps: int = 2) -> Moments:
    """Return moments with three state features and five observation features, in which everybody is present."""
    shape = episodes, steps
    states, observations = torch.randn(*shape, 3, generator=rng), torch.randn(*shape, agents, 5, generator=rng)
    return Moments(states, observations, torch.ones(*shape, agents))


def random_mixer(name: str, rng: torch.Generator) -> nn.Module:
    mixer = TEAM_MIXERS[name]()
    for parameter in mixer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng)
    return mixer


@pytest.mark.parametrize("name", TEAM_MIXERS)
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_team_values_are_monotonic_in_every_agent(name: str, seed: int, scale: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    mixer, moments = random_mixer(name, rng), random_moments(rng, episodes=16)
    q = (scale * torch.randn(16, 2, 4, generator=rng)).requires_grad_()
    (gradient,) = torch.autograd.grad(mixer(q, moments).sum(), q)
    assert (gradient >= 0).all()
    assert (gradient > 0).any()


@pytest.mark.parametrize("name", TEAM_MIXERS)
def test_the_values_of_absent_agents_do_not_count(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    mixer, moments, q = random_mixer(name, rng), random_moments(rng), torch.randn(3, 2, 4, generator=rng)
    moments.present[..., 2] = 0
    changed = q.clone()
    changed[..., 2] += 100
    assert torch.equal(mixer(q, moments), mixer(changed, moments))
    changed[..., 1] += 100
    assert not torch.equal(mixer(q, moments), mixer(changed, moments))


def test_qmix_follows_its_equation() -> None:
    """Q_tot = |w2(s)| . ELU(|W1(s)| q + b1(s)) + V(s), for one state at a time."""
    rng = torch.Generator().manual_seed(0)
    mixer, moments = QMixer(n_agents=4, n_state=3, embed=4, hypernet_hidden=5), random_moments(rng)
    q = torch.randn(3, 2, 4, generator=rng)
    mixed = mixer(q, moments)
    for episode in range(3):
        for step in range(2):
            state = moments.states[episode, step]
            hidden = nn.functional.elu(q[episode, step] @ mixer.weights_1(state).abs().view(4, 4) + mixer.bias_1(state))
            expected = hidden @ mixer.weights_2(state).abs() + mixer.value(state)
            torch.testing.assert_close(mixed[episode, step], expected)


class TestPooled:
    def test_it_follows_its_equation(self) -> None:
        """Q_tot = |w2(z)| . ELU(mean_i |w1(o_i, z)| q_i + b1(z)) + V(z) and z = mean_i f(o_i), one agent at a time."""
        rng = torch.Generator().manual_seed(0)
        mixer, moments, q = random_mixer("pooled", rng), random_moments(rng), torch.randn(3, 2, 4, generator=rng)
        mixed = mixer(q, moments)
        for episode in range(3):
            for step in range(2):
                team = moments.observations[episode, step]
                z = torch.stack([mixer.describe(one) for one in team]).mean(0)
                weighted = [
                    mixer.weights_1(torch.cat([one, z])).abs() * value
                    for one, value in zip(team, q[episode, step], strict=True)
                ]
                hidden = nn.functional.elu(torch.stack(weighted).mean(0) + mixer.bias_1(z))
                expected = hidden @ mixer.weights_2(z).abs() + mixer.value(z)
                torch.testing.assert_close(mixed[episode, step], expected)

    def test_the_order_of_agents_does_not_matter(self) -> None:
        rng = torch.Generator().manual_seed(0)
        mixer, moments, q = random_mixer("pooled", rng), random_moments(rng), torch.randn(3, 2, 4, generator=rng)
        order = [2, 0, 3, 1]
        moved = Moments(moments.states, moments.observations[..., order, :], moments.present[..., order])
        torch.testing.assert_close(mixer(q[..., order], moved), mixer(q, moments))

    @pytest.mark.parametrize("padding", [1, 7])
    def test_padding_with_absent_agents_changes_nothing(self, padding: int) -> None:
        rng = torch.Generator().manual_seed(0)
        mixer, moments, q = random_mixer("pooled", rng), random_moments(rng), torch.randn(3, 2, 4, generator=rng)
        padded = Moments(
            moments.states,
            nn.functional.pad(moments.observations, (0, 0, 0, padding)),
            nn.functional.pad(moments.present, (0, padding)),
        )
        larger = nn.functional.pad(q, (0, padding), value=9.0)
        torch.testing.assert_close(mixer(larger, padded), mixer(q, moments))

    def test_without_agents_the_value_is_finite(self) -> None:
        """After the end of an episode nobody is present."""
        rng = torch.Generator().manual_seed(0)
        mixer, moments = random_mixer("pooled", rng), random_moments(rng)
        moments.present.zero_()
        assert mixer(torch.ones(3, 2, 4), moments).isfinite().all()


@pytest.mark.parametrize("name", TEAM_MIXERS)
def test_leading_dimensions_share_the_mixing_weights_of_their_moments(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    mixer, moments = random_mixer(name, rng), random_moments(rng)
    q = torch.randn(2, 3, 2, 4, generator=rng)
    torch.testing.assert_close(mixer(q, moments), torch.stack([mixer(one, moments) for one in q]))


def test_vdn_sums() -> None:
    moments = random_moments(torch.Generator().manual_seed(0), agents=2, episodes=1, steps=1)
    assert VDNMixer()(torch.tensor([[[1.0, 2.0]]]), moments).item() == 3.0


@pytest.mark.parametrize("name", get_args(config.Mixer))
def test_shapes(name: str) -> None:
    mixer = MIXERS[name](SPEC, config.QMIXConfig())
    moments = Moments(torch.zeros(2, 5, 4), torch.zeros(2, 5, 3, 3), torch.ones(2, 5, 3))
    assert mixer(torch.zeros(2, 5, 3), moments).shape == (2, 5, 3 if name == "iql" else 1)
