"""AMC's learner finds a ratio that pays, and least squares gives back what cutting took."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.compare.methods.amc import Agent, truncated_normal
from benchmarks.compare.methods.counted import Counted
from benchmarks.compare.methods.plans import from_keep_ratios
from benchmarks.compare.methods.reconstruction import Reconstruction
from benchmarks.compare.methods.seeding import own_generators
from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits

CPU = torch.device("cpu")
MakeEnv = Callable[..., FilterPruneEnv]


@pytest.mark.slow
def test_the_agent_finds_what_pays() -> None:
    """One step, and the best keep ratio is 0.2 or 0.8, depending on the observation."""
    rng = np.random.default_rng(0)
    with own_generators(0):
        agent = Agent(1)
        observations = rng.integers(2, size=(400, 1)).astype(np.float32)
        ratios = rng.random(400)
        returns = -((ratios - np.where(observations[:, 0] > 0, 0.8, 0.2)) ** 2)
        memory = [
            (seen, ratio, value, seen, True) for seen, ratio, value in zip(observations, ratios, returns, strict=True)
        ]
        for _ in range(1500):
            agent.update([memory[row] for row in rng.integers(len(memory), size=64)])
    assert agent.act(np.zeros(1, np.float32)) == pytest.approx(0.2, abs=0.1)
    assert agent.act(np.ones(1, np.float32)) == pytest.approx(0.8, abs=0.1)


def test_noise_stays_in_its_bounds() -> None:
    rng = np.random.default_rng(0)
    drawn = [truncated_normal(0.9, 0.5, rng) for _ in range(2000)]
    assert 0 <= min(drawn) < 0.1
    assert 0.95 < max(drawn) <= 1
    assert np.mean(drawn) == pytest.approx(0.614, abs=0.03)  # of the truncated distribution
    assert np.std([truncated_normal(0.5, 0.01, rng) for _ in range(2000)]) == pytest.approx(0.01, rel=0.1)


def test_what_others_can_say_is_not_lost(trained: torch.nn.Module, digits: DataSplits) -> None:
    """Half of the first layer's filters are copies of the others: without them, the next layer can do as well."""
    model = copy.deepcopy(trained)
    convolution, norm = model.features[0], model.features[1]
    with torch.no_grad():
        for tensor in (convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[16:] = tensor[:16]
    env = FilterPruneEnv.from_model(model, digits, EnvConfig(reward_images=100, calibration_images=200, prove=False))
    problem = dataclasses.replace(env.problem, ranking={**env.problem.ranking, "conv_0": torch.arange(32)})
    plan = (16, *env.problem.full_plan[1:])
    images = digits.normalise(digits.test.images)
    with torch.inference_mode():
        expected = problem.model(images)
        reconstructed = Reconstruction(problem, 0, CPU).network(plan).eval()(images)
        cut = problem.build(plan).eval()(images)
    assert (reconstructed - expected).abs().max() < 0.05 * expected.abs().max()
    assert (cut - expected).abs().max() > 0.5 * expected.abs().max()


@pytest.mark.parametrize("batches", [0, 2])
def test_reconstruction_helps_and_leaves_the_problem_alone(make_env: MakeEnv, batches: int) -> None:
    env = make_env(target_macs=0.3, finetune_batches=batches)
    before = {name: tensor.clone() for name, tensor in env.problem.model.state_dict().items()}
    plan = from_keep_ratios(env, [0.5] * 5)
    reconstruction = Reconstruction(env.problem, 0, CPU)
    network = reconstruction.network(plan)
    env.problem.model(torch.rand(8, *env.problem.data.image_shape))
    again = reconstruction.network(plan).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in network.state_dict().items()), "hooks are removed"
    assert env.evaluator.accuracy_of(network) > env.evaluator.accuracy(plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in env.problem.model.state_dict().items())
    shapes = [parameter.shape for parameter in env.problem.build(plan).parameters()]
    assert [parameter.shape for parameter in network.parameters()] == shapes


def test_the_counted_accuracy_is_that_of_the_given_network(make_env: MakeEnv) -> None:
    env, plans = make_env(), []

    def network_of(plan: tuple[int, ...]) -> torch.nn.Module:
        plans.append(plan)
        return env.problem.build(plan)

    plan = from_keep_ratios(env, [0.5] * 5)
    with Counted(env, 2, network_of) as counted:
        accuracy = counted.accuracy(plan)
    assert plans == [plan]
    assert accuracy == pytest.approx(env.evaluator.accuracy(plan), abs=0.04)
