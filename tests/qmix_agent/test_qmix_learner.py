"""Targets by hand, gradients, mixers, target networks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from games import Ragged
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_agent import Batch, Episode, QMIXConfig
from qmix_agent import config as config_module
from qmix_agent.learner import Learner
from qmix_agent.mixers import MIXERS, QMixer, VDNMixer
from qmix_agent.replay_buffer import pad
from qmix_agent.return_scale import ReturnScale
from qmix_agent.targets import greedy_values, td_targets
from qmix_agent.team_env import TeamEnv

SMALL = QMIXConfig(hidden_size=8, mixing_embed=4, hypernet_hidden=8, batch_size=4, target_update_every=3)


def an_episode(length: int, terminated: bool, seed: int = 0) -> Episode:
    """Random numbers in the shapes of Ragged."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 2, (length + 1, 3, 5)).astype(bool)
    masks[..., 0] = True
    masks[:, 0, 3:] = masks[:, 2, 1:] = False
    ends = np.zeros(length, dtype=bool)
    ends[-1] = terminated
    return Episode(
        observations=rng.normal(size=(length + 1, 3, 3)).astype(np.float32),
        states=rng.normal(size=(length + 1, 4)).astype(np.float32),
        action_masks=masks,
        actions=np.zeros((length, 3), dtype=np.int64),
        rewards=rng.normal(size=length).astype(np.float32),
        terminated=ends,
    )


def a_learner(config: QMIXConfig = SMALL) -> Learner:
    return Learner(TeamEnv(Ragged()).spec, config, seed=1, device="cpu")


# Targets


def test_targets_by_hand_with_padding_termination_and_truncation() -> None:
    """Case 20."""
    rewards = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    terminated = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    filled = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    next_values = torch.tensor([[10.0, 20.0, 99.0, 99.0, 99.0], [10.0, 20.0, 30.0, 40.0, 50.0]]).unsqueeze(-1)
    one_step = td_targets(rewards, terminated, filled, next_values, gamma=0.5, td_lambda=0.0)
    # Terminated: 1 + 10/2, 2 + 20/2, 3, padding. Truncated: its last target counts on the 50 that would have followed.
    assert one_step.squeeze(-1).tolist() == [[6.0, 12.0, 3.0, 0.0, 0.0], [6.0, 12.0, 18.0, 24.0, 30.0]]
    whole = td_targets(rewards, terminated, filled, next_values, gamma=0.5, td_lambda=1.0)
    # Discounted sums: 2 + 3/2, 1 + 3.5/2; and 5 + 50/2 = 30, 4 + 30/2 = 19, 3 + 19/2 = 12.5, 2 + 6.25, 1 + 8.25/2.
    assert whole.squeeze(-1).tolist() == [[2.75, 3.5, 3.0, 0.0, 0.0], [5.125, 8.25, 12.5, 19.0, 30.0]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    gamma=st.floats(0, 1),
    td_lambda=st.floats(0, 1),
    n_step=st.none() | st.integers(1, 7),
    seed=st.integers(0, 10_000),
)
def test_lambda_returns_are_the_weighted_sum_of_n_step_returns(
    lengths: list[int], gamma: float, td_lambda: float, n_step: int | None, seed: int
) -> None:
    """Against the definition, (1 - lambda) sum lambda^(n-1) G^n, written out without any recursion.

    The last of the returns, by the end of the episode or by `n_step`, has the weight that is left.
    """
    rng, longest = np.random.default_rng(seed), max(lengths)
    rewards, values = rng.normal(size=(2, len(lengths), longest))
    terminated, filled = np.zeros((2, len(lengths), longest))
    for row, length in enumerate(lengths):
        terminated[row, length - 1] = rng.integers(0, 2)
        filled[row, :length] = 1
    as_tensors = [torch.tensor(array) for array in (rewards, terminated, filled)]
    targets = td_targets(*as_tensors, torch.tensor(values).unsqueeze(-1), gamma, td_lambda, n_step).squeeze(-1)
    for row, length in enumerate(lengths):
        for t in range(longest):
            expected = 0.0
            longest_return = min(length - t, n_step or length)
            for n in range(1, longest_return + 1):
                g = sum(gamma**k * rewards[row, t + k] for k in range(n))
                g += gamma**n * (1 - terminated[row, t + n - 1]) * values[row, t + n - 1]
                weight = td_lambda ** (n - 1) * (1.0 if n == longest_return else 1 - td_lambda)
                expected += weight * g
            assert targets[row, t].item() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 6),
    gamma=st.floats(0, 1),
    td_lambda=st.floats(0, 1),
    n_step=st.none() | st.integers(1, 7),
    terminates=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_corrected_returns_are_the_value_and_the_discounted_errors_after_it(
    length: int, gamma: float, td_lambda: float, n_step: int | None, terminates: bool, seed: int
) -> None:
    """Against the definition, Q_t + sum (gamma lambda)^k delta_{t+k} with delta_t = r_t + gamma V_{t+1} - Q_t."""
    rng = np.random.default_rng(seed)
    rewards, values, taken = rng.normal(size=(3, length))  # taken[t] is Q_t
    terminated = np.zeros(length)
    terminated[-1] = terminates
    next_taken = np.append(taken[1:], np.nan)  # the last step's must not be used
    arrays = [torch.tensor(array)[None] for array in (rewards, terminated, np.ones(length))]
    ahead, later = (torch.tensor(array)[None, :, None] for array in (values, next_taken))
    targets = td_targets(*arrays, ahead, gamma, td_lambda, n_step, later).flatten().tolist()
    errors = rewards + gamma * (1 - terminated) * values - taken
    for t in range(length):
        steps = range(min(length - t, n_step or length) if td_lambda else 1)
        expected = taken[t] + sum((gamma * td_lambda) ** k * errors[t + k] for k in steps)
        assert targets[t] == pytest.approx(expected, abs=1e-9)


def test_what_is_learned_perfectly_is_not_corrected() -> None:
    """Where rewards are what the target networks expect of the actions taken, the targets are these expectations."""
    learner = a_learner(dataclasses.replace(SMALL, td_lambda=0.8, double_q=False))
    batch = pad([an_episode(5, False, seed=3)])
    learner.update(batch)  # live and target differ from here on
    with torch.no_grad():
        last = torch.cat([torch.full((1, 1, 3), -1), batch.actions], dim=1)
        target_q = learner.target_network(batch.observations, last)[0]
        q = target_q[:, :-1].gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
        taken = learner.target_mixer(q, batch.states[:, :-1])
        best = greedy_values(target_q[:, 1:], target_q[:, 1:], batch.action_masks[:, 1:], double_q=False)
        ahead = learner.target_mixer(best, batch.states[:, 1:])
    batch = dataclasses.replace(batch, rewards=(taken - learner.config.gamma * ahead).squeeze(-1))
    assert torch.allclose(learner.q_and_targets(batch)[1], taken, atol=1e-5)


def test_double_q_on_two_steps_by_hand() -> None:
    """Case 23: the live network likes 2 best, which is illegal, then 1; the target values 1 at 5, and likes 0 at 7."""
    live = torch.tensor([[[1.0, 4.0, 9.0]]])
    target = torch.tensor([[[7.0, 5.0, 8.0]]])
    masks = torch.tensor([[[True, True, False]]])
    assert greedy_values(live, target, masks, double_q=True).item() == 5.0
    assert greedy_values(live, target, masks, double_q=False).item() == 7.0


def test_the_target_looks_one_step_ahead_with_the_next_state_and_mask() -> None:
    """The whole target of a two-step episode from the networks' own outputs: catches every off-by-one."""
    learner = a_learner(dataclasses.replace(SMALL, td_lambda=0.0, gamma=0.9))
    learner.update(pad([an_episode(4, True, seed=9)]))  # live and target differ from here on
    batch = pad([an_episode(2, False)])
    _, targets = learner.q_and_targets(batch)
    last = torch.cat([torch.full((1, 1, 3), -1), batch.actions], dim=1)
    with torch.no_grad():
        live, target = learner.network(batch.observations, last)[0], learner.target_network(batch.observations, last)[0]
        for t in range(2):
            values = []
            for agent in range(3):
                legal = np.flatnonzero(batch.action_masks[0, t + 1, agent])
                best = max(legal, key=lambda a: live[0, t + 1, agent, a].item())
                values.append(target[0, t + 1, agent, best].item())
            mixed = learner.target_mixer(torch.tensor([[values]]), batch.states[:, t + 1 : t + 2]).item()
            assert targets[0, t, 0].item() == pytest.approx(batch.rewards[0, t].item() + 0.9 * mixed, abs=1e-5)


@pytest.mark.parametrize("mixer", ["qmix", "vdn", "iql"])
def test_a_terminated_step_is_worth_its_reward_and_padding_nothing(mixer: str) -> None:
    learner = a_learner(dataclasses.replace(SMALL, mixer=mixer))
    batch = pad([an_episode(3, True), an_episode(5, False)])
    q_tot, targets = learner.q_and_targets(batch)
    assert q_tot.shape == targets.shape == (2, 5, 3 if mixer == "iql" else 1)
    assert torch.equal(targets[0, 2], batch.rewards[0, 2].expand(targets.shape[-1]))
    assert (targets[0, 3:] == 0).all()
    assert not torch.equal(targets[1, 4], batch.rewards[1, 4].expand(targets.shape[-1]))
    assert torch.isfinite(targets).all()


# Padding


def test_padded_steps_have_no_gradient_and_no_say() -> None:
    learner = a_learner()
    short, long = an_episode(3, True), an_episode(5, False, seed=1)
    batch = pad([short, long])
    observations = batch.observations.clone().requires_grad_()
    states = batch.states.clone().requires_grad_()
    watched = dataclasses.replace(batch, observations=observations, states=states)
    q_tot, targets = learner.q_and_targets(watched)
    loss = learner.loss(q_tot, targets, batch.filled)
    loss.backward()
    assert observations.grad is not None
    assert states.grad is not None
    assert (observations.grad[0, 3:] == 0).all()
    assert (states.grad[0, 3:] == 0).all()
    assert (observations.grad[0, :3] != 0).any()
    assert (observations.grad[1, :5] != 0).any()
    alone = [learner.loss(*learner.q_and_targets(pad([one])), pad([one]).filled).item() for one in (short, long)]
    assert loss.item() == pytest.approx((3 * alone[0] + 5 * alone[1]) / 8, rel=1e-5)


def test_garbage_in_padding_changes_nothing() -> None:
    def moved(batch: Batch) -> list[torch.Tensor]:
        learner = a_learner()
        learner.update(batch)
        return learner.parameters

    batch = pad([an_episode(3, True), an_episode(5, False, seed=1)])
    spoiled = dataclasses.replace(
        batch,
        observations=batch.observations.index_put((torch.tensor(0), torch.tensor([4, 5])), torch.tensor(1e3)),
        rewards=batch.rewards.index_put((torch.tensor(0), torch.tensor([3, 4])), torch.tensor(-1e3)),
    )
    assert all(torch.equal(one, two) for one, two in zip(moved(batch), moved(spoiled), strict=True))


# Mixers


def test_config_and_registry_name_the_same_mixers() -> None:
    assert tuple(MIXERS) == config_module.MIXERS


@pytest.mark.parametrize("mixing_weights", ["abs", "softplus"])
@pytest.mark.parametrize("hypernet_layers", [1, 2])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_qmix_is_monotonic_in_every_agent(hypernet_layers: int, mixing_weights: str, seed: int, scale: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    mixer = QMixer(4, 3, embed=8, hypernet_hidden=8, hypernet_layers=hypernet_layers, mixing_weights=mixing_weights)
    for parameter in mixer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng)
    q = (scale * torch.randn(16, 2, 4, generator=rng)).requires_grad_()
    states = scale * torch.randn(16, 2, 3, generator=rng)
    (gradient,) = torch.autograd.grad(mixer(q, states).sum(), q)
    assert (gradient >= 0).all()
    assert (gradient > 0).any()


def test_qmix_depends_on_the_state_and_vdn_sums() -> None:
    mixer = QMixer(n_agents=2, n_state=3, embed=8, hypernet_hidden=8)
    q = torch.tensor([[[1.0, 2.0]]])
    assert mixer(q, torch.zeros(1, 1, 3)).item() != mixer(q, torch.ones(1, 1, 3)).item()
    assert VDNMixer()(q, torch.zeros(1, 1, 3)).item() == 3.0


# Updates


def states_of(learner: Learner, prefix: str = "") -> dict[str, torch.Tensor]:
    parts = {name: getattr(learner, prefix + name).state_dict() for name in ("network", "mixer")}
    return {f"{part}.{key}": value.clone() for part, state in parts.items() for key, value in state.items()}


def test_every_weight_learns_the_target_stands_still_and_then_follows() -> None:
    """Case 24."""
    learner, batch = a_learner(), pad([an_episode(5, False, seed=seed) for seed in range(4)])
    start = states_of(learner)
    learner.update(batch)
    after = states_of(learner)
    assert [name for name in start if torch.equal(start[name], after[name])] == []
    assert all(torch.equal(start[name], value) for name, value in states_of(learner, "target_").items())
    learner.update(batch)
    assert all(torch.equal(start[name], value) for name, value in states_of(learner, "target_").items())
    learner.update(batch)  # the third, target_update_every
    live, target = states_of(learner), states_of(learner, "target_")
    assert all(torch.equal(live[name], target[name]) for name in live)


def test_soft_target_update_goes_its_fraction_of_the_way() -> None:
    learner = a_learner(dataclasses.replace(SMALL, target_tau=0.25))
    start = states_of(learner, "target_")
    learner.update(pad([an_episode(5, False)]))
    live, target = states_of(learner), states_of(learner, "target_")
    for name in live:
        torch.testing.assert_close(target[name], 0.75 * start[name] + 0.25 * live[name])


@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_updates_bring_the_loss_down(loss: str) -> None:
    learner = a_learner(dataclasses.replace(SMALL, loss=loss, learning_rate=1e-2, target_update_every=1000))
    batch = pad([an_episode(4, True, seed=seed) for seed in range(4)])
    first = learner.update(batch)
    for _ in range(60):
        last = learner.update(batch)
    assert last.loss < first.loss / 3
    assert last.td_error < first.td_error


def test_gradients_are_clipped() -> None:
    loose, tight = (a_learner(dataclasses.replace(SMALL, max_grad_norm=norm)) for norm in (1e9, 1e-3))
    batch = pad([an_episode(4, True)])
    assert loose.update(batch).grad_norm == tight.update(batch).grad_norm > 1e-3  # told before clipping
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in tight.parameters if p.grad is not None]))
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("td_lambda", [0.0, 0.6])
@pytest.mark.parametrize("corrected", [True, False])
def test_standardised_rewards_have_the_standardised_targets(gamma: float, td_lambda: float, corrected: bool) -> None:
    batch = pad([an_episode(4, True), an_episode(2, True, seed=1), an_episode(3, False, seed=2)])
    scale = ReturnScale(count=3, mean=5.0, squares=12.0)
    assert scale.deviation == 2.0
    values, taken = torch.randn(2, *batch.rewards.shape, 1, generator=torch.Generator().manual_seed(0))
    ends = batch.terminated, batch.filled
    horizon = gamma, td_lambda, None
    rewards = scale.standardised(batch.rewards, batch.terminated, gamma)
    standardised = td_targets(rewards, *ends, values, *horizon, taken if corrected else None)
    plain = td_targets(batch.rewards, *ends, 2 * values + 5, *horizon, 2 * taken + 5 if corrected else None)
    played = batch.filled.bool()
    torch.testing.assert_close(2 * standardised[played] + 5, plain[played])


def test_an_update_takes_the_scale() -> None:
    learner, batch = a_learner(), pad([an_episode(3, True)])
    scale = ReturnScale(count=3, mean=5.0, squares=12.0)
    rewards = scale.standardised(batch.rewards, batch.terminated, learner.config.gamma)
    assert learner.update(batch, scale) == a_learner().update(dataclasses.replace(batch, rewards=rewards))
    assert learner.update(batch, scale) != a_learner().update(batch)


def test_the_scale_is_that_of_returns_from_every_step() -> None:
    scale = ReturnScale()
    assert (scale.mean, scale.deviation) == (0.0, 1.0)
    scale.add(np.array([1.0, 0.0, 4.0], np.float32), gamma=0.5)  # 1 + 0 + 1, 0 + 2, 4
    assert (scale.mean, scale.deviation) == pytest.approx((8 / 3, (8 / 9) ** 0.5))
    scale.add(np.array([2.0], np.float32), gamma=0.5)
    assert (scale.count, scale.mean, scale.deviation) == pytest.approx((4, 2.5, 0.75**0.5))


@pytest.mark.parametrize("other", [100.0, np.nextafter(np.float32(100), np.float32(200))])
def test_returns_that_differ_by_rounding_have_no_unit(other: float) -> None:
    scale = ReturnScale()
    for reward in (100.0, other):
        scale.add(np.array([reward], np.float32), gamma=1.0)
    assert (scale.mean, scale.deviation) == (pytest.approx(100), 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stop_learning_and_change_nothing(bad: float) -> None:
    learner, batch = a_learner(), pad([an_episode(3, False)])
    learner.update(batch)
    before = learner.state_dict()
    spoiled = dataclasses.replace(batch, rewards=batch.rewards + bad)
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at update 2.* not finite is rewards"):
        learner.update(spoiled)
    after = learner.state_dict()
    assert all(torch.equal(before["network"][name], after["network"][name]) for name in before["network"])
    assert after["updates"] == 1


def test_a_gradient_that_is_not_finite_is_named() -> None:
    learner = a_learner()
    next(iter(learner.mixer.parameters())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"gradient norm is nan at update 1.*the gradient of mixer\.weights_1\.0\.weight"
    ):
        learner.update(pad([an_episode(3, False)]))
    assert all(torch.isfinite(parameter).all() for parameter in learner.parameters)
