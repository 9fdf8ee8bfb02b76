"""On a GPU: the same answers as on the CPU, from the same calls. Left out where there is none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits
from prune_env.device import exact_convolutions
from prune_env.evaluation.batchnorm import recalibrate
from prune_env.evaluation.program import Program
from prune_env.networks import create
from prune_env.networks.registry import image_size
from prune_env.pruning import build, find_groups
from prune_env.training.fit import FitConfig, fit, score
from qmix_agent import QMIX, QMIXConfig

pytestmark = pytest.mark.cuda
SMALL = EnvConfig(reward_images=300, calibration_images=300, prove=False)


def played(env: FilterPruneEnv, episodes: int) -> list[tuple[tuple[int, ...], float]]:
    rng = np.random.default_rng(0)
    for _ in range(episodes):
        _, infos = env.reset()
        while env.agents:
            *_, infos = env.step({a: int(rng.choice(np.flatnonzero(infos[a]["action_mask"]))) for a in env.agents})
    return [(entry.plan, entry.accuracy) for entry in env.archive]


@pytest.mark.parametrize("name", ["small_cnn", "vgg16", "resnet20", "alexnet"])
def test_the_program_computes_what_cut_networks_compute(name: str) -> None:
    model = create(name).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, *image_size(name), generator=generator)
    groups = find_groups(model, images[:2])
    ranking = {group.agent_id: torch.randperm(group.filters, generator=generator) for group in groups}
    program = Program(model, groups, images[:2], dtype=torch.float32, device="cuda")
    assert not program.refused
    for share in (1.0, 0.7, 0.4):
        plan = tuple(max(1, round(share * group.filters)) for group in groups)
        network = build(model, groups, ranking, plan)
        recalibrate(network, (images,))
        program.load(ranking, plan)
        with exact_convolutions("cuda"):
            program.recalibrate((images.cuda(),))
            with torch.inference_mode():
                expected, found = network(images), program.network(images.cuda()).cpu()
        assert (expected - found).abs().max() <= 5e-3 * expected.abs().max()  # kernels differ


def test_accuracies_are_those_of_the_cpu(trained: torch.nn.Module, digits: DataSplits) -> None:
    here, there = (played(FilterPruneEnv(trained, digits, SMALL, device=device), 15) for device in ("cpu", "cuda"))
    assert [plan for plan, _ in here] == [plan for plan, _ in there]
    differences = [abs(one[1] - other[1]) for one, other in zip(here, there, strict=True)]
    assert np.mean(differences) <= 0.01
    assert max(differences) <= 0.04


def test_equal_questions_get_equal_answers(trained: torch.nn.Module, digits: DataSplits) -> None:
    one, other = (played(FilterPruneEnv(trained, digits, SMALL, device="cuda"), 8) for _ in range(2))
    assert one == other
    workers = FilterPruneEnv(trained, digits, SMALL, device="cuda", evaluator="processes", workers=2)
    assert played(workers, 8) == one
    workers.close()


def test_networks_are_trained_and_handed_out(trained: torch.nn.Module, digits: DataSplits) -> None:
    env = FilterPruneEnv(trained, digits, SMALL, device="cuda")
    played(env, 1)
    small = env.pruned_model()
    assert {parameter.device.type for parameter in small.parameters()} == {"cpu"}
    before = score(copy.deepcopy(small), digits, digits.reward)
    better = fit(small, digits, FitConfig(epochs=3), device="cuda", progress=False)
    assert score(better.cpu(), digits, digits.reward) > before


def test_qmix_learns_there(trained: torch.nn.Module, digits: DataSplits) -> None:
    env = FilterPruneEnv(trained, digits, SMALL, device="cuda")
    agent = QMIX(env, QMIXConfig(learning_starts=4, batch_size=4), device="cuda").learn(12, progress=False)
    assert agent.learner.updates > 0
    assert {parameter.device.type for parameter in agent.learner.network.parameters()} == {"cuda"}
