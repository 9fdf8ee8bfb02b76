"""The agent network: recurrence, separate weights, and layer normalisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from qmix_helpers import a_learner
from torch import nn
from torch.nn import functional

from qmix_agent.types import Proposal


def random_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return observations and last actions of 4 episodes of 6 steps."""
    rng = torch.Generator().manual_seed(0)
    return torch.randn(4, 6, 3, 3, generator=rng), torch.randint(-1, 5, (4, 6, 3), generator=rng)


def test_a_network_without_sharing_is_one_network_per_agent() -> None:
    network = a_learner(parameter_sharing=False).network
    observations, last_actions = random_inputs()
    q, hidden = network(observations, last_actions)
    assert hidden is not None
    body: Any = network.body
    for agent in range(3):
        one_hot = functional.one_hot(last_actions[:, :, agent] + 1, 6)[..., 1:]
        inputs = torch.cat([observations[:, :, agent], one_hot], -1)

        def linear(layer: Any, agent: int = agent) -> nn.Linear:
            single = nn.Linear(*layer.weight.shape[1:])
            single.weight.data, single.bias.data = layer.weight[agent].T, layer.bias[agent]
            return single

        gru = nn.GRU(8, 8, batch_first=True)
        from_input, from_hidden = linear(body.from_input), linear(body.from_hidden)
        gru.weight_ih_l0.data, gru.bias_ih_l0.data = from_input.weight.data, from_input.bias.data
        gru.weight_hh_l0.data, gru.bias_hh_l0.data = from_hidden.weight.data, from_hidden.bias.data
        features, last_hidden = gru(linear(network.encoder)(inputs).relu())
        torch.testing.assert_close(q[:, :, agent], linear(network.head)(features), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(hidden[:, agent], last_hidden[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sharing", [True, False])
def test_an_episode_can_be_processed_in_parts(sharing: bool) -> None:
    network = a_learner(parameter_sharing=sharing).network
    observations, last_actions = random_inputs()
    whole, end = network(observations, last_actions)
    first, hidden = network(observations[:, :2], last_actions[:, :2])
    second, last = network(observations[:, 2:], last_actions[:, 2:], hidden)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(last, end)


def test_without_sharing_one_agents_values_depend_on_its_own_weights_only() -> None:
    network = a_learner(parameter_sharing=False).network
    q, _ = network(*random_inputs())
    q[:, :, 1].sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[[0, 2]] == 0).all()
        assert (parameter.grad[1] != 0).any()


def test_without_sharing_each_agent_has_its_own_slope() -> None:
    learner = a_learner(parameter_sharing=False, prior=True, proposal=Proposal(1, (0.0, 0.1, 0.3, 0.6, 1.0)))
    q, _ = learner.network(*random_inputs())
    q[:, :, 1].sum().backward()
    gradient = learner.network.slope.grad
    assert gradient is not None
    assert gradient[1] != 0
    assert (gradient[[0, 2]] == 0).all()


@pytest.mark.parametrize("settings", [{}, {"recurrent": False}, {"parameter_sharing": False}])
def test_with_a_prior_an_untrained_network_prefers_what_is_proposed(settings: dict[str, Any]) -> None:
    learner = a_learner(prior=True, proposal=Proposal(1, (0.0, 0.1, 0.3, 0.6, 1.0)), **settings)
    observations, last_actions = random_inputs()
    observations = observations.sigmoid()
    for network in (learner.network, learner.target_network):
        q, _ = network(observations, last_actions)
        distances = (torch.tensor([0.0, 0.1, 0.3, 0.6, 1.0]) - observations[..., 1:2]).abs()
        torch.testing.assert_close(q, -distances)
    q, _ = learner.network(observations, last_actions)
    q.sum().backward()
    assert all(parameter.grad is not None for parameter in learner.network.parameters())
    assert learner.network.head.get_parameter("weight").grad.abs().max() > 0  # so that it learns


def test_a_prior_needs_a_proposal() -> None:
    with pytest.raises(ValueError, match=r"prior needs .*action_proposal"):
        a_learner(prior=True)


def test_layer_norm_makes_values_independent_of_the_scale_of_observations() -> None:
    """This holds exactly if the encoder has no bias."""
    q = {}
    for layer_norm in (True, False):
        network = a_learner(layer_norm=layer_norm, recurrent=False, last_action=False, agent_id=False).network
        encoder: Any = network.encoder
        with torch.no_grad():
            encoder.bias.zero_()
        observations, last_actions = random_inputs()
        q[layer_norm] = [network(scale * observations, last_actions)[0] for scale in (10.0, 100.0)]
    torch.testing.assert_close(*q[True], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(*q[False], rtol=0.1)
