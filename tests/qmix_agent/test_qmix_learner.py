"""The update: targets from the networks, padding, gradients, target networks, and numbers that are not finite."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from games import Ragged
from qmix_helpers import SMALL, a_learner, an_episode, weights

from qmix_agent import QMIX, Batch
from qmix_agent.learner import Learner
from qmix_agent.replay_buffer import make_batch
from qmix_agent.return_scale import ReturnScale
from qmix_agent.targets import greedy_values
from qmix_agent.types import Moments

# Settings


@pytest.mark.parametrize(
    "settings",
    [
        {"parameter_sharing": False},
        {"parameter_sharing": False, "recurrent": False},
        {"layer_norm": True},
        {"n_step": 2, "td_lambda": 1.0},
        {"off_policy_correction": False},
        {"target_tau": 0.01},
        {"mixer": "pooled"},
    ],
)
def test_every_setting_trains_every_weight_reproducibly(settings: dict[str, Any], untouched_rngs: None) -> None:
    batch = make_batch([an_episode(5, False, seed=seed) for seed in range(4)])
    one, two = a_learner(**settings), a_learner(**settings)
    named = {**dict(one.network.named_parameters()), **dict(one.mixer.named_parameters())}
    before = {name: parameter.clone() for name, parameter in named.items()}
    assert one.update(batch) == two.update(batch)
    assert [name for name, parameter in named.items() if torch.equal(parameter, before[name])] == []
    assert all(torch.equal(first, second) for first, second in zip(one.parameters, two.parameters, strict=True))
    config = dataclasses.replace(SMALL, **settings)
    agents = [QMIX(Ragged(), config, seed=2).learn(6, progress=False) for _ in range(2)]
    assert weights(agents[0]) == weights(agents[1])


# Targets


def test_the_target_uses_the_next_observation_state_and_mask() -> None:
    """The targets of a two-step episode, recomputed from the networks' outputs, reveal every off-by-one error."""
    learner = a_learner(td_lambda=0.0, gamma=0.9)
    learner.update(make_batch([an_episode(4, True, seed=9)]))  # the online and target networks now differ
    batch = make_batch([an_episode(2, False)])
    _, targets = learner.q_and_targets(batch)
    last = torch.cat([torch.full((1, 1, 3), -1), batch.actions], dim=1)
    with torch.no_grad():
        online = learner.network(batch.observations, last)[0]
        target = learner.target_network(batch.observations, last)[0]
        for t in range(2):
            values = []
            for agent in range(3):
                legal = np.flatnonzero(batch.action_masks[0, t + 1, agent])
                best = max(legal, key=lambda a: online[0, t + 1, agent, a].item())
                values.append(target[0, t + 1, agent, best].item())
            after = batch.after
            then = Moments(*(one[:, t : t + 1] for one in (after.states, after.observations, after.present)))
            mixed = learner.target_mixer(torch.tensor([[values]]), then).item()
            assert targets[0, t, 0].item() == pytest.approx(batch.rewards[0, t].item() + 0.9 * mixed, abs=1e-5)


def test_rewards_that_match_the_values_of_the_actions_taken_need_no_correction() -> None:
    """If rewards are what the target networks expect of the actions taken, the targets equal these values."""
    learner = a_learner(td_lambda=0.8, double_q=False)
    batch = make_batch([an_episode(5, False, seed=3)])
    learner.update(batch)  # the online and target networks now differ
    with torch.no_grad():
        last = torch.cat([torch.full((1, 1, 3), -1), batch.actions], dim=1)
        target_q = learner.target_network(batch.observations, last)[0]
        q = target_q[:, :-1].gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
        taken = learner.target_mixer(q, batch.before)
        best = greedy_values(target_q[:, 1:], target_q[:, 1:], batch.action_masks[:, 1:], double_q=False)
        next_values = learner.target_mixer(best, batch.after)
    batch = dataclasses.replace(batch, rewards=(taken - learner.config.gamma * next_values).squeeze(-1))
    assert torch.allclose(learner.q_and_targets(batch)[1], taken, atol=1e-5)


@pytest.mark.parametrize("mixer", ["qmix", "pooled", "vdn", "iql"])
def test_the_target_of_a_terminated_step_is_its_reward_and_of_padding_0(mixer: str) -> None:
    learner = a_learner(mixer=mixer)
    batch = make_batch([an_episode(3, True), an_episode(5, False)])
    q_tot, targets = learner.q_and_targets(batch)
    assert q_tot.shape == targets.shape == (2, 5, 3 if mixer == "iql" else 1)
    assert torch.equal(targets[0, 2], batch.rewards[0, 2].expand(targets.shape[-1]))
    assert (targets[0, 3:] == 0).all()
    assert not torch.equal(targets[1, 4], batch.rewards[1, 4].expand(targets.shape[-1]))
    assert torch.isfinite(targets).all()


# Padding


def test_padded_steps_have_no_gradient_and_no_weight_in_the_loss() -> None:
    learner = a_learner()
    short, long = an_episode(3, True), an_episode(5, False, seed=1)
    batch = make_batch([short, long])
    observations = batch.observations.clone().requires_grad_()
    states = batch.states.clone().requires_grad_()
    q_tot, targets = learner.q_and_targets(dataclasses.replace(batch, observations=observations, states=states))
    loss = learner.loss(q_tot, targets, batch.filled)
    loss.backward()
    assert observations.grad is not None
    assert states.grad is not None
    assert (observations.grad[0, 3:] == 0).all()
    assert (states.grad[0, 3:] == 0).all()
    assert (observations.grad[0, :3] != 0).any()
    assert (observations.grad[1, :5] != 0).any()
    single = [make_batch([one]) for one in (short, long)]
    alone = [learner.loss(*learner.q_and_targets(one), one.filled).item() for one in single]
    assert loss.item() == pytest.approx((3 * alone[0] + 5 * alone[1]) / 8, rel=1e-5)


def test_the_content_of_padding_changes_nothing() -> None:
    def updated_parameters(batch: Batch) -> list[torch.Tensor]:
        learner = a_learner()
        learner.update(batch)
        return learner.parameters

    batch = make_batch([an_episode(3, True), an_episode(5, False, seed=1)])
    spoiled = dataclasses.replace(
        batch,
        observations=batch.observations.index_put((torch.tensor(0), torch.tensor([4, 5])), torch.tensor(1e3)),
        rewards=batch.rewards.index_put((torch.tensor(0), torch.tensor([3, 4])), torch.tensor(-1e3)),
    )
    pairs = zip(updated_parameters(batch), updated_parameters(spoiled), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


# Updates


def states_of(learner: Learner, prefix: str = "") -> dict[str, torch.Tensor]:
    parts = {name: getattr(learner, prefix + name).state_dict() for name in ("network", "mixer")}
    return {f"{part}.{key}": value.clone() for part, state in parts.items() for key, value in state.items()}


def test_every_weight_learns_and_the_target_networks_are_copied_periodically() -> None:
    learner = a_learner(target_update_every=3)
    batch = make_batch([an_episode(5, False, seed=seed) for seed in range(4)])
    start = states_of(learner)
    learner.update(batch)
    after = states_of(learner)
    assert [name for name in start if torch.equal(start[name], after[name])] == []
    assert all(torch.equal(start[name], value) for name, value in states_of(learner, "target_").items())
    learner.update(batch)
    assert all(torch.equal(start[name], value) for name, value in states_of(learner, "target_").items())
    learner.update(batch)
    online, target = states_of(learner), states_of(learner, "target_")
    assert all(torch.equal(online[name], target[name]) for name in online)


def test_a_soft_target_update_moves_by_a_fraction() -> None:
    learner = a_learner(target_tau=0.25)
    start = states_of(learner, "target_")
    learner.update(make_batch([an_episode(5, False)]))
    online, target = states_of(learner), states_of(learner, "target_")
    for name in online:
        torch.testing.assert_close(target[name], 0.75 * start[name] + 0.25 * online[name])


@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_updates_reduce_the_loss(loss: str) -> None:
    learner = a_learner(loss=loss, learning_rate=1e-2, target_update_every=1000)
    batch = make_batch([an_episode(4, True, seed=seed) for seed in range(4)])
    first = learner.update(batch)
    for _ in range(60):
        last = learner.update(batch)
    assert last.loss < first.loss / 3
    assert last.td_error < first.td_error


def test_metrics_are_means_over_the_played_steps() -> None:
    learner, batch = a_learner(loss="mse"), make_batch([an_episode(3, True), an_episode(5, False, seed=1)])
    q_tot, targets = (one.detach().squeeze(-1)[batch.filled.bool()] for one in learner.q_and_targets(batch))
    metrics = learner.update(batch)
    assert metrics.loss == pytest.approx(((q_tot - targets) ** 2).mean().item(), rel=1e-5)
    assert metrics.q_tot == pytest.approx(q_tot.mean().item(), rel=1e-5)
    assert metrics.td_error == pytest.approx((q_tot - targets).abs().mean().item(), rel=1e-5)


def test_gradients_are_clipped() -> None:
    loose, tight = (a_learner(max_grad_norm=norm) for norm in (1e9, 1e-3))
    batch = make_batch([an_episode(4, True)])
    assert loose.update(batch).grad_norm == tight.update(batch).grad_norm > 1e-3  # the norm before clipping
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in tight.parameters if p.grad is not None]))
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def test_an_update_with_a_scale_learns_from_standardised_rewards() -> None:
    learner, batch = a_learner(), make_batch([an_episode(3, True)])
    scale = ReturnScale(count=3, mean=5.0, sum_of_squares=12.0)
    rewards = scale.standardise(batch.rewards, batch.terminated, learner.config.gamma)
    assert learner.update(batch, scale) == a_learner().update(dataclasses.replace(batch, rewards=rewards))
    assert learner.update(batch, scale) != a_learner().update(batch)


# Numbers that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_stop_learning_and_change_nothing(bad: float) -> None:
    learner, batch = a_learner(), make_batch([an_episode(3, False)])
    learner.update(batch)
    before = learner.state_dict()
    spoiled = dataclasses.replace(batch, rewards=batch.rewards + bad)
    with pytest.raises(FloatingPointError, match=r"loss.*update 2\b.*rewards"):
        learner.update(spoiled)
    after = learner.state_dict()
    assert all(torch.equal(before["network"][name], after["network"][name]) for name in before["network"])
    assert after["updates"] == 1


def test_a_gradient_that_is_not_finite_is_named() -> None:
    learner = a_learner()
    next(iter(learner.mixer.parameters())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match=r"grad_norm.*nan.*mixer\.weights_1\.0\.weight"):
        learner.update(make_batch([an_episode(3, False)]))
    assert all(torch.isfinite(parameter).all() for parameter in learner.parameters)
