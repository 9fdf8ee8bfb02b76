"""On a GPU: the same calls give the same results as on the CPU. Deselected where there is no GPU."""

from __future__ import annotations

import copy
import pickle
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
import torch
from episodes import play_together
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common import cuda_graphs
from prune_env.common.device import exact_convolutions
from prune_env.data import DataSplits, from_tensors
from prune_env.evaluation import measurer
from prune_env.evaluation.engine.cuda_recording import Recording, recording
from prune_env.evaluation.engine.program import Program
from prune_env.evaluation.resources import Resources
from prune_env.networks import create
from prune_env.networks.registry import image_size
from prune_env.pruning import Plan, build, find_groups
from prune_env.scoring.batchnorm import recalibrate
from prune_env.scoring.metric import accuracy
from prune_env.training.fit import FitConfig, RunOptions, fit
from qmix_agent import QMIX, QMIXConfig

pytestmark = pytest.mark.cuda
CONFIG = EnvConfig(reward_images=300, calibration_images=300, prove=False)


def on_gpu(model: nn.Module, data: DataSplits, config: EnvConfig = CONFIG) -> FilterPruneEnv:
    return FilterPruneEnv.from_model(model, data, config, resources=Resources(device="cuda"))


def accuracies(env: FilterPruneEnv, episodes: int) -> list[tuple[Plan, float]]:
    """Play random episodes and return plan and accuracy of every archived entry."""
    play_together(env, episodes)
    return [(entry.plan, entry.accuracy) for entry in env.archive]


@pytest.mark.parametrize("name", ["small_cnn", "vgg16", "resnet20", "alexnet"])
def test_the_program_computes_what_cut_networks_compute(name: str) -> None:
    model = create(name).eval()
    generator = torch.Generator().manual_seed(0)
    # So few images that the statistics are taken from all positions.
    images = torch.randn(8, 3, *image_size(name), generator=generator)
    groups = find_groups(model, images[:2])
    ranking = {group.name: torch.randperm(group.filters, generator=generator) for group in groups}
    program = Program(model, groups, images[:2].cuda(), dtype=torch.float32)
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
        assert (expected - found).abs().max() <= 5e-3 * expected.abs().max()  # the kernels differ


def test_accuracies_are_those_of_the_cpu(trained: nn.Module, digits: DataSplits) -> None:
    here, there = (
        accuracies(FilterPruneEnv.from_model(trained, digits, CONFIG, resources=Resources(device=device)), 15)
        for device in ("cpu", "cuda")
    )
    assert [plan for plan, _ in here] == [plan for plan, _ in there]
    differences = [abs(one[1] - other[1]) for one, other in zip(here, there, strict=True)]
    assert np.mean(differences) <= 0.01
    assert max(differences) <= 0.04


def test_finetuned_plans_have_the_accuracies_of_the_cpu(trained: nn.Module, digits: DataSplits) -> None:
    config = replace(CONFIG, finetune_batches=8)
    here, there, again = (
        FilterPruneEnv.from_model(trained, digits, config, resources=Resources(device=device))
        for device in ("cpu", "cuda", "cuda")
    )
    for share in (0.7, 0.4, 0.3):
        plan = tuple(int(share * count) for count in here.problem.full_plan)
        measured = there.evaluator.accuracy(plan)
        assert again.evaluator.accuracy(plan) == pytest.approx(measured, abs=0.01)  # the order of sums varies
        assert measured == pytest.approx(here.evaluator.accuracy(plan), abs=0.04)
    untuned = on_gpu(trained, digits)
    assert measured > untuned.evaluator.accuracy(plan) + 0.05


@pytest.mark.parametrize("name", ["small_cnn", "vgg16", "resnet20", "alexnet"])
def test_recordings_count_as_cut_networks_do(name: str) -> None:
    model = create(name).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(300, 3, *image_size(name), generator=generator).cuda()
    groups = find_groups(model, images[:2].cpu())
    ranking = {group.name: torch.randperm(group.filters, generator=generator) for group in groups}
    plans = [tuple(max(1, round(share * group.filters)) for group in groups) for share in (1.0, 0.7, 0.4, 1.0)]
    networks = [build(model, groups, ranking, plan).cuda() for plan in plans]
    with exact_convolutions("cuda"), torch.inference_mode():
        for network in networks:
            recalibrate(network, (images[:100], images[100:200]))
        labels = networks[1](images).argmax(1)  # so one plan is always right, and others are sometimes right
        expected = [int((network(images).argmax(1) == labels).sum()) for network in networks]
        batches = [(images[:200], labels[:200]), (images[200:], labels[200:])]
        recorded = recording(model, groups, ranking, images[:2].cpu(), (images[:100], images[100:200]), batches)
        assert recorded is not None
        found = [recorded.count_correct(plan) for plan in plans]
    assert found == pytest.approx(expected, abs=3)  # the kernels differ
    assert found[0] == found[3]
    assert len(set(expected)) > 1


class Waiting(nn.Module):
    """A network whose forward pass reads a number from the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 10)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.conv(x).relu()).relu()
        return self.head((y if y.sum().item() > 0 else -y).mean((2, 3)))


def test_a_network_that_cannot_be_recorded_is_measured_without_a_recording(caplog: pytest.LogCaptureFixture) -> None:
    images = torch.randint(0, 256, (400, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    splits = from_tensors(images, torch.arange(400) % 10, images[:50], torch.arange(50) % 10)
    caplog.set_level("INFO")
    env = on_gpu(Waiting().eval(), splits, EnvConfig(prove=False, target_macs=None, reward="amc"))
    assert "not recorded" in caplog.text
    assert len(accuracies(env, 2)) == 2
    caplog.clear()
    dropping = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 10)
    )
    other = on_gpu(dropping.eval(), splits, EnvConfig(prove=False))
    assert "not recorded" not in caplog.text, "the failed recording broke later ones"
    fit(dropping, splits, FitConfig(epochs=10, batch_size=20), run=RunOptions("cuda", progress=False))
    assert len(accuracies(other, 2)) == 2


def test_copied_environments_make_recordings_of_their_own(
    trained: nn.Module, digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings, make = [], measurer.make_recording

    def spied(task: measurer.Task, batch_size: int) -> Recording | None:
        recordings.append(make(task, batch_size))
        return recordings[-1]

    monkeypatch.setattr(measurer, "make_recording", spied)
    env = on_gpu(trained, digits)
    (plan, measured), *_ = accuracies(env, 3)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        other.evaluator.memory.clear()
        assert other.evaluator.accuracy(plan) == measured
    assert len(set(recordings)) == 3
    assert None not in recordings


def test_a_plan_and_its_network_have_nearly_the_same_accuracy(trained: nn.Module, digits: DataSplits) -> None:
    env = on_gpu(trained, digits)
    for plan, measured in accuracies(env, 5):
        assert env.evaluator.accuracy_of(env.problem.build(plan)) == pytest.approx(measured, abs=0.02)


@pytest.mark.parametrize("name", ["small_cnn", "alexnet", "resnet20"])
@pytest.mark.parametrize("muon_lr", [0.0, 0.05])
def test_replayed_steps_train_as_ordinary_steps(name: str, muon_lr: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, graphs = torch.Generator().manual_seed(0), []
    images = torch.randint(0, 256, (600, 3, *image_size(name)), dtype=torch.uint8, generator=generator)
    labels = torch.arange(600) % 10
    splits = from_tensors(images[:500], labels[:500], images[500:], labels[500:])
    # Few steps, because rounding errors grow with each step, most of all with Muon.
    config = FitConfig(epochs=4, batch_size=50, lr=0.05, muon_lr=muon_lr)

    def counting(graph: torch.cuda.CUDAGraph, device: torch.device) -> AbstractContextManager[None]:
        graphs.append(graph)
        return cuda_graphs.capture(graph, device)

    monkeypatch.setattr("prune_env.training.step.capture", counting)
    results = []
    for number, replay in enumerate((True, True, False)):
        model = fit(create(name), splits, config, run=RunOptions("cuda", progress=False, replay=replay))
        results.append(torch.cat([tensor.flatten().float() for tensor in model.state_dict().values()]))
        assert len(graphs) == min(2, number + 1)
    start = torch.cat([tensor.flatten().float() for tensor in create(name).state_dict().values()])
    assert torch.equal(results[0], results[1])
    assert (results[0] - results[2]).norm() <= 0.05 * (results[2] - start).norm()


def test_a_loss_that_waits_for_the_gpu_trains_without_a_recording() -> None:
    images = torch.randint(0, 256, (200, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    splits = from_tensors(images, torch.arange(200) % 10, images[:50], torch.arange(50) % 10)

    def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = nn.functional.cross_entropy(logits, labels)
        return value * (1.0 if value.item() > 0 else -1.0)

    one, other = (
        fit(
            create("small_cnn"),
            splits,
            FitConfig(epochs=5, batch_size=20),
            loss=loss,
            run=RunOptions("cuda", replay=replay),
        )
        for replay in (True, False)
    )
    for name, tensor in one.state_dict().items():
        assert torch.allclose(tensor, other.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_equal_environments_and_workers_measure_the_same_accuracies(trained: nn.Module, digits: DataSplits) -> None:
    one, other = (accuracies(on_gpu(trained, digits), 8) for _ in range(2))
    assert one == other
    workers = FilterPruneEnv.from_model(
        trained, digits, CONFIG, resources=Resources(device="cuda", backend="processes", workers=2)
    )
    assert accuracies(workers, 8) == one
    workers.close()


def test_pruned_networks_are_returned_on_the_cpu_and_can_be_trained(trained: nn.Module, digits: DataSplits) -> None:
    env = on_gpu(trained, digits)
    accuracies(env, 1)
    small = env.pruned_model()
    assert {parameter.device.type for parameter in small.parameters()} == {"cpu"}
    before = accuracy(copy.deepcopy(small), digits, digits.reward)
    better = fit(small, digits, FitConfig(epochs=3), run=RunOptions("cuda", progress=False))
    assert accuracy(better.cpu(), digits, digits.reward) > before


def test_qmix_learns_on_the_gpu(trained: nn.Module, digits: DataSplits) -> None:
    env = on_gpu(trained, digits)
    agent = QMIX(env, QMIXConfig(learning_starts=4, batch_size=4), device="cuda").learn(12, progress=False)
    assert agent.learner.updates > 0
    assert {parameter.device.type for parameter in agent.learner.network.parameters()} == {"cuda"}
