"""Each option does what its paper says, and nothing where it is off."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from games import Ragged
from hypothesis import given, settings
from hypothesis import strategies as st
from test_qmix_agent import SMALL, weights
from test_qmix_learner import an_episode
from torch import nn
from torch.nn import functional

from qmix_agent import QMIX, QMIXConfig
from qmix_agent.learner import Learner
from qmix_agent.networks import AgentNetwork
from qmix_agent.replay_buffer import ReplayBuffer, importance_at, pad
from qmix_agent.team_env import TeamEnv

SPEC = TeamEnv(Ragged()).spec  # 3 agents, 3 features, 5 actions, 4 state features
OPTIONS: list[dict[str, Any]] = [
    {"parameter_sharing": False},
    {"parameter_sharing": False, "recurrent": False},
    {"layer_norm": True},
    {"n_step": 2, "td_lambda": 1.0},
    {"off_policy_correction": False},
    {"hypernet_layers": 1},
    {"mixing_weights": "softplus"},
    {"priority_alpha": 0.6},
    {"exploration": "noisy"},
    {"exploration": "noisy", "parameter_sharing": False, "recurrent": False},
    {"target_tau": 0.01},
]


def a_learner(**options: Any) -> Learner:
    return Learner(SPEC, dataclasses.replace(SMALL, **options), seed=1, device="cpu")


def moments(network: AgentNetwork, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations and last actions of 4 episodes of 6 steps."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(4, 6, 3, 3, generator=rng), torch.randint(-1, 5, (4, 6, 3), generator=rng)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_trains_every_weight_and_is_repeatable(options: dict[str, Any], untouched_rngs: None) -> None:
    batch = pad([an_episode(5, False, seed=seed) for seed in range(4)])
    one, two = a_learner(**options), a_learner(**options)
    named = {**dict(one.network.named_parameters()), **dict(one.mixer.named_parameters())}
    before = {name: parameter.clone() for name, parameter in named.items()}
    for learner in (one, two):
        result = learner.update(batch)
    assert [name for name, parameter in named.items() if torch.equal(parameter, before[name])] == []
    assert all(torch.equal(first, second) for first, second in zip(one.parameters, two.parameters, strict=True))
    assert result.td_error == pytest.approx(sum(result.episode_errors) / 4, rel=1e-5)  # all are equally long
    agents = [QMIX(Ragged(), dataclasses.replace(SMALL, **options), seed=2).learn(6, progress=False) for _ in range(2)]
    assert weights(agents[0]) == weights(agents[1])


# Parameter sharing


def test_a_network_without_sharing_is_n_networks() -> None:
    network = a_learner(parameter_sharing=False).network
    observations, last_actions = moments(network)
    q, hidden = network(observations, last_actions)
    assert hidden is not None
    body: Any = network.body
    for agent in range(3):
        inputs = torch.cat(
            [observations[:, :, agent], functional.one_hot(last_actions[:, :, agent] + 1, 6)[..., 1:]], -1
        )

        def linear(layer: Any, agent: int = agent) -> nn.Linear:
            made = nn.Linear(*layer.weight.shape[1:])
            made.weight.data, made.bias.data = layer.weight[agent].T, layer.bias[agent]
            return made

        gru = nn.GRU(8, 8, batch_first=True)
        from_input, from_hidden = linear(body.from_input), linear(body.from_hidden)
        gru.weight_ih_l0.data, gru.bias_ih_l0.data = from_input.weight.data, from_input.bias.data
        gru.weight_hh_l0.data, gru.bias_hh_l0.data = from_hidden.weight.data, from_hidden.bias.data
        features, memory = gru(linear(network.encoder)(inputs).relu())
        torch.testing.assert_close(q[:, :, agent], linear(network.head)(features), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(hidden[:, agent], memory[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sharing", [True, False])
def test_a_memory_handed_over_is_a_memory_kept(sharing: bool) -> None:
    network = a_learner(parameter_sharing=sharing).network
    observations, last_actions = moments(network)
    whole, end = network(observations, last_actions)
    first, memory = network(observations[:, :2], last_actions[:, :2])
    second, last = network(observations[:, 2:], last_actions[:, 2:], memory)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(last, end)


def test_without_sharing_nothing_of_one_agent_moves_another() -> None:
    network = a_learner(parameter_sharing=False).network
    q, _ = network(*moments(network))
    q[:, :, 1].sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[[0, 2]] == 0).all()
        assert (parameter.grad[1] != 0).any()


# Layer norm, noise


def test_layer_norm_makes_features_blind_to_scale() -> None:
    """The encoder's bias aside, an observation ten times as large is the same observation."""
    q = {}
    for layer_norm in (True, False):
        network = a_learner(layer_norm=layer_norm, recurrent=False, last_action=False, agent_id=False).network
        with torch.no_grad():
            network.encoder.bias.zero_()  # type: ignore[operator, union-attr]
        observations, last_actions = moments(network)
        q[layer_norm] = [network(scale * observations, last_actions)[0] for scale in (10.0, 100.0)]
    torch.testing.assert_close(*q[True], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(*q[False], rtol=0.1)


def test_a_noisy_head_is_its_mean_plus_factorised_noise() -> None:
    network = a_learner(exploration="noisy", recurrent=False).network
    head: Any = network.head
    assert (head.sigma.weight == 0.5 / math.sqrt(8)).all()
    rng = torch.Generator().manual_seed(0)
    features, noise = torch.randn(2, 3, 8, generator=rng), torch.randn(2, 3, 13, generator=rng)
    assert torch.equal(head(features, None), head.mean(features))
    signed = noise.sign() * noise.abs().sqrt()
    for game in range(2):
        for agent in range(3):
            e_in, e_out = signed[game, agent, :8], signed[game, agent, 8:]
            weight = head.mean.weight + head.sigma.weight * torch.outer(e_out, e_in)
            expected = functional.linear(features[game, agent], weight, head.mean.bias + head.sigma.bias * e_out)
            torch.testing.assert_close(head(features, noise)[game, agent], expected)


def test_noise_depends_on_the_episode_alone_and_evaluation_has_none() -> None:
    config = dataclasses.replace(SMALL, exploration="noisy", learning_starts=9, eval_every=0)
    rows: list[dict[str, Any]] = []
    one = QMIX(Ragged(), config).learn(8, progress=False, callback=lambda _, row: rows.append(row))
    two = QMIX(Ragged(), config).learn(8, n_envs=4, progress=False)
    assert {row["epsilon"] for row in rows} == {0.0}
    for first, second in zip(one.buffer, two.buffer, strict=True):  # nothing was learned, so rounds change nothing
        assert np.array_equal(first.actions, second.actions)
    assert one.evaluate(episodes=3) == two.evaluate(episodes=3)
    greedy = QMIX(Ragged(), dataclasses.replace(config, noisy_sigma=1e-9)).learn(8, progress=False)
    pairs = zip(one.buffer, greedy.buffer, strict=True)
    assert any(not np.array_equal(first.actions, second.actions) for first, second in pairs)


# Prioritised replay


@settings(max_examples=50, deadline=None)
@given(
    errors=st.lists(st.floats(0, 1e3), min_size=1, max_size=12),
    alpha=st.floats(0.1, 1),
    beta=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_weights_are_those_of_the_paper(errors: list[float], alpha: float, beta: float, seed: int) -> None:
    buffer = ReplayBuffer(20, [an_episode(1, True, seed=index) for index in range(len(errors))], errors)
    buffer.set_priorities(range(len(errors)), errors)
    drawn, episodes, importance = buffer.sample_by_priority(5, alpha, beta, np.random.default_rng(seed))
    assert len(drawn) == min(5, len(errors))
    assert all(episode is list(buffer)[index] for index, episode in zip(drawn, episodes, strict=True))
    total = sum((error + 1e-6) ** alpha for error in errors)
    expected = [(len(errors) * (errors[index] + 1e-6) ** alpha / total) ** -beta for index in drawn]
    assert importance == pytest.approx([one / max(expected) for one in expected], rel=1e-5)


def test_large_errors_are_drawn_in_proportion() -> None:
    buffer = ReplayBuffer(4, [an_episode(1, True, seed=index) for index in range(4)], [1.0] * 4)
    buffer.set_priorities(range(4), [0.0, 1.0, 2.0, 5.0])
    rng = np.random.default_rng(0)
    counts = np.bincount(np.concatenate([buffer.sample_by_priority(4, 1.0, 0.4, rng)[0] for _ in range(1000)]))
    assert counts[1:] / counts.sum() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)


def test_a_new_episode_comes_first_and_the_oldest_goes_with_its_priority() -> None:
    buffer = ReplayBuffer(2)
    for seed in range(2):
        buffer.add(an_episode(1, True, seed=seed))
    buffer.set_priorities([0, 1], [7.0, 3.0])
    buffer.add(an_episode(1, True, seed=2))
    assert buffer.priorities == pytest.approx([3.0, 7.0], abs=1e-5)


def test_weighted_losses_are_weighted_and_priorities_are_the_errors() -> None:
    batch = pad([an_episode(3, True), an_episode(5, False, seed=1)])
    learner = a_learner()
    q_tot, targets = learner.q_and_targets(batch)
    errors = (q_tot - targets).abs().detach().squeeze(-1) * batch.filled
    each = [errors[0, :3].mean().item(), errors[1].mean().item()]
    only_first = learner.loss(q_tot, targets, batch.filled, torch.tensor([1.0, 0.0]))
    alone = pad([an_episode(3, True)])
    assert only_first.item() == pytest.approx(learner.loss(*learner.q_and_targets(alone), alone.filled).item() * 3 / 8)
    assert learner.update(batch).episode_errors == pytest.approx(each)


def test_the_correction_grows_to_be_full() -> None:
    config = QMIXConfig(priority_beta=0.4, epsilon_episodes=100)
    assert [importance_at(config, n) for n in (0, 50, 100, 500)] == pytest.approx([0.4, 0.7, 1.0, 1.0])
    assert importance_at(dataclasses.replace(config, epsilon_episodes=0), 0) == 1.0
