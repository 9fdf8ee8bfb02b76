"""Muon: orthogonal updates on weights of constant norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prune_env.data import DataSplits
from prune_env.networks import create
from prune_env.scoring.metric import accuracy
from prune_env.training.fit import FitConfig, RunOptions, fit
from prune_env.training.muon import Muon, orthogonalise

QUIET = RunOptions(progress=False)


@pytest.mark.parametrize("shape", [(40, 40), (16, 90), (90, 16), (1, 20), (20, 1)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_singular_vectors_are_kept_and_singular_values_become_equal(shape: tuple[int, int], size: float) -> None:
    matrix = size * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrix)
    assert result.shape == matrix.shape
    assert result.dtype == matrix.dtype
    values = torch.linalg.svdvals(result)
    # In a square Gaussian matrix a few singular values stay small after five steps, as the source also shows.
    assert values.max() < 1.35
    assert values.median() > 0.6
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert F.cosine_similarity(result.flatten(), (u @ v).flatten(), dim=0) > 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_iteration_computes_in_the_fast_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the result shows which precision is used."""
    monkeypatch.setattr("prune_env.training.muon.fast_dtype", lambda _: dtype)
    matrix = torch.randn(24, 50, generator=torch.Generator().manual_seed(0))
    exact = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = exact @ exact.T
        exact = 3.4445 * exact - 4.7750 * gram @ exact + 2.0315 * gram @ gram @ exact
    error = (orthogonalise(matrix) - exact).abs().max().item()
    assert error < 1e-5 if dtype == torch.float32 else 1e-4 < error < 0.1


def test_the_first_step_by_hand() -> None:
    """The weight is rescaled to norm sqrt(K), and turned by lr towards the orthogonalised gradient."""
    weight = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    weight.grad = torch.tensor([[0.0, 5.0], [5.0, 0.0]])
    Muon([weight], lr=0.1).step()
    start = torch.tensor([[0.6, 0.0], [0.0, 0.8]]) * 2**0.5
    step = (start - weight.detach()) / 0.1
    assert torch.allclose(step.diagonal(), torch.zeros(2), atol=1e-3)
    assert 0.6 < step[0, 1] < 1.3
    assert torch.isclose(step[0, 1], step[1, 0])


def test_norms_are_constant_and_zero_weights_are_allowed() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(8, 3, 3, 3, generator=generator)), nn.Parameter(torch.zeros(4, 2, 1, 1))]
    optimizer = Muon([*weights, nn.Parameter(torch.ones(2, 2))], lr=0.05)  # the last one never has a gradient
    for _ in range(20):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    for weight in weights:
        assert weight.norm().item() == pytest.approx(len(weight) ** 0.5, rel=0.05)


def test_biases_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_a_network_without_suitable_convolutions_is_refused(digits: DataSplits) -> None:
    for model in (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())):
        with pytest.raises(ValueError, match=r"muon_lr=0\.1"):
            fit(model, digits, FitConfig(muon_lr=0.1), run=QUIET)


def test_a_convolution_without_batchnorm_keeps_its_own_norm(digits: DataSplits) -> None:
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 10, 4)]
    trained = fit(
        nn.Sequential(*layers, nn.Flatten()), digits, FitConfig(epochs=1, muon_lr=0.01, ema_decay=0), run=QUIET
    )
    assert trained[2].weight.norm().item() == pytest.approx(8**0.5, rel=0.02)
    assert trained[4].weight.norm().item() < 0.8 * 10**0.5


@pytest.mark.slow
def test_training_with_muon_trains_every_parameter(digits: DataSplits) -> None:
    model = create("small_cnn", 10, 1)
    trained = fit(model, digits, FitConfig(epochs=6, batch_size=64, muon_lr=0.1, ema_decay=0.9), run=QUIET)
    assert accuracy(trained, digits, digits.reward) > 0.77
    for (name, before), after in zip(model.named_parameters(), trained.parameters(), strict=True):
        assert not torch.equal(before, after), name
