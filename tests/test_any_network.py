"""Networks of all kinds, from inspection to the distilled network; the user's own network never changes."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from episodes import FAST, last_info, play
from structures import KINDS, random_network
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits, from_tensors
from prune_env.finalise import Finaliser
from prune_env.networks import create
from prune_env.scoring.latency import TimingConfig, latency
from prune_env.training.config import FitConfig, RunOptions
from prune_env.training.distillation import DistillationConfig
from prune_env.training.fit import fit

SHORT = DistillationConfig(epochs=2, min_steps=20, batch_size=64)
QUIET = RunOptions(progress=False)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

Outputs = namedtuple("Outputs", ["logits", "aux"])


class Auxiliary(nn.Module):
    """A network that returns a second output in training mode, as GoogLeNet does."""

    def __init__(self, network: nn.Module, pack: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.pack = network, pack
        self.aux = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> Any:
        logits = self.network(images)
        return self.pack(logits, self.aux(images.flatten(1))) if self.training else logits


class TestAuxiliaryOutputs:
    @pytest.mark.parametrize("pack", [Outputs, lambda *both: both, lambda *both: list(both)])
    def test_the_first_output_is_trained(self, digits: DataSplits, pack: Callable[..., Any]) -> None:
        plain = create("small_cnn", 10, 1)
        settings = FitConfig(epochs=1, batch_size=128, lr=0.05)
        model = Auxiliary(copy.deepcopy(plain), pack)
        result = fit(model, digits, settings, run=QUIET)
        expected = fit(plain, digits, settings, run=QUIET)
        for name, tensor in expected.state_dict().items():
            assert torch.allclose(result.network.state_dict()[name], tensor, atol=1e-4), name
        assert torch.equal(result.aux.weight, model.aux.weight)

    def test_the_network_is_pruned_and_distilled(self, trained: nn.Module, digits: DataSplits) -> None:
        model = Auxiliary(copy.deepcopy(trained), Outputs).train()
        env = FilterPruneEnv.from_model(model, digits, EnvConfig(**FAST))
        assert last_info(play(env))["macs_ratio"] <= 0.5
        distilled = Finaliser(env, SHORT, progress=False).distil(env.plan)
        assert distilled.network.features[0].out_channels == env.plan[0]
        assert model.training


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_the_users_network_does_not_change(
    trained: nn.Module, digits: DataSplits, device: str, dtype: torch.dtype, training: bool
) -> None:
    model = copy.deepcopy(trained).to(device, dtype).train(training)
    model.features[0].requires_grad_(False)
    model.features[3].weight.grad = torch.ones_like(model.features[3].weight)
    before = pickle.dumps(model)
    parameters = [id(parameter) for parameter in model.parameters()]
    calls = []
    model.features[3].register_forward_hook(lambda *_: calls.append(1))

    env = FilterPruneEnv.from_model(model, digits, EnvConfig(**FAST))
    assert env.evaluator.original_accuracy > 0.85
    play(env)
    pruned = env.pruned_model()
    Finaliser(env, SHORT, progress=False).distil(env.plan)

    assert calls == [1], "hooks run once, in the check that they change nothing"
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.float32}
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert all(module.training == training for module in model.modules())
    model.eval()(digits.normalise(digits.test.images[:2]).to(device, dtype))
    assert len(calls) == 2, "the user's hook is still there"
    assert bool((model.features[3].weight.grad == 1).all())
    unchanged = pickle.loads(before)
    for (name, one), two in zip(model.named_parameters(), unchanged.parameters(), strict=True):
        assert (one.dtype, one.device, one.requires_grad) == (two.dtype, two.device, two.requires_grad), name
        assert torch.equal(one, two), name
    for (name, one), two in zip(model.named_buffers(), unchanged.buffers(), strict=True):
        assert torch.equal(one, two), name


def test_the_users_network_keeps_its_mode(trained: nn.Module, digits: DataSplits) -> None:
    model = copy.deepcopy(trained).train()
    model.features[1].eval()
    modes = [module.training for module in model.modules()]
    play(FilterPruneEnv.from_model(model, digits, EnvConfig(**FAST)))
    assert [module.training for module in model.modules()] == modes


def test_a_network_that_cannot_be_copied_is_refused(trained: nn.Module, digits: DataSplits) -> None:
    from torch.nn.utils import prune

    model = copy.deepcopy(trained)
    prune.l1_unstructured(model.features[0], "weight", amount=0.5)
    with pytest.raises(ValueError, match=r"permanent"):
        FilterPruneEnv.from_model(model, digits)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_structure_is_evaluated_distilled_and_timed(kind: str) -> None:
    model, _ = random_network(["Plain", kind, "Plain"], "mean", 0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (100, 3, 8, 8), generator=generator, dtype=torch.uint8)
    data = from_tensors(images, torch.arange(100) % 5, images[:20], torch.arange(20) % 5)
    config = EnvConfig(target_macs=0.9, reward_images=20, calibration_images=20, min_filters=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about protected layers, and about recalibration
        env = FilterPruneEnv.from_model(model, data, config)
    play(env, policy="3")
    distillation = replace(SHORT, min_steps=1, epochs=1)
    network = Finaliser(env, distillation, progress=False).distil(env.plan)
    assert network(data.normalise(data.test.images)).shape == (20, 5)
    assert latency(network, (3, 8, 8), 2, TimingConfig(warmup=1, seconds=0.01, min_runs=1)).median_ms > 0
