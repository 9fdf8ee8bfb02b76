"""The agent network: recurrence, separate weights, and layer normalisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from qmix_helpers import a_learner
from torch import nn
from torch.nn import functional


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
