"""Known scores for every importance, and importances of users."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prune_env.data import DataSplits
from prune_env.pruning import find_groups, importance, register_importance
from prune_env.pruning.problem import ProblemConfig, PruningProblem

IMAGES = torch.zeros(2, 2, 4, 4)


class Net(nn.Module):
    """1x1 filters with given weights on two channels, an optional BatchNorm, and a linear head."""

    def __init__(self, weights: list[list[float]], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, len(weights), 1, bias=False), norm or nn.Identity()
        self.head = nn.Linear(len(weights), 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor(weights)[:, :, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def scored(name: str, model: nn.Module, **arguments: Any) -> list[float]:
    (score,) = importance.scores(name, model, find_groups(model, IMAGES), **arguments).values()
    return (score / score.sum()).tolist()


def test_l1_takes_absolute_values() -> None:
    """With signed weights the first filter would come last."""
    assert scored("l1", Net([[3, -4], [1, 1], [0, 1]])) == pytest.approx([0.7, 0.2, 0.1])


def test_l2() -> None:
    assert scored("l2", Net([[3, -4], [0, 4], [-1, 0]])) == pytest.approx([0.5, 0.4, 0.1])


def test_bn_scale_takes_absolute_values() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-0.6, 0.3, 0.1]))
    assert scored("bn_scale", Net([[1, 1], [2, 2], [3, 3]], norm)) == pytest.approx([0.6, 0.3, 0.1])


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d(3, affine=False)])
def test_bn_scale_needs_a_scale(norm: nn.Module | None) -> None:
    with pytest.raises(ValueError, match=r"bn_scale.*conv_0"):
        scored("bn_scale", Net([[1, 1], [2, 2], [3, 3]], norm))


def test_fpgm_is_the_distance_to_the_others() -> None:
    # Distances: (0, 0)-(3, 4) 5, (0, 0)-(0, 4) 4, (3, 4)-(0, 4) 3. The smallest norm is not the smallest score.
    assert scored("fpgm", Net([[0, 0], [3, 4], [0, 4]])) == pytest.approx([9 / 24, 8 / 24, 7 / 24])


def test_fpgm_of_many_filters_is_exact() -> None:
    weight = torch.randn(40, 9, generator=torch.Generator().manual_seed(0)) + 100
    expected = torch.stack([(weight - row).square().sum(1).sqrt().sum() for row in weight.double()])
    assert torch.allclose(importance.geometric_median(weight).double(), expected, rtol=1e-5)


def test_taylor_is_the_squared_product_of_weight_and_gradient() -> None:
    model = Net([[3, -4], [1, 1], [0, 1]])
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 2, 4, 4, generator=generator), torch.tensor([0, 1, 1, 0])) for _ in range(2)]
    expected = torch.zeros(3)
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels)
        (gradient,) = torch.autograd.grad(loss, [model.conv.weight])
        expected += (gradient * model.conv.weight.detach()).square().sum((1, 2, 3))
    assert scored("taylor", model, batches=batches) == pytest.approx((expected / expected.sum()).tolist(), rel=1e-4)


def test_taylor_does_not_change_the_model(make: Any) -> None:
    model, images = make("resnet20")
    model.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        importance.scores("taylor", model, find_groups(model, images), batches=[(images, torch.tensor([0, 1]))])
    assert model.training
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_taylor_needs_batches() -> None:
    with pytest.raises(ValueError, match="taylor"):
        scored("taylor", Net([[1, 1], [2, 1]]))


def test_random_follows_the_seed_and_no_global_state(make: Any) -> None:
    model, images = make("concat")
    groups = find_groups(model, images)
    state = torch.random.get_rng_state()
    first, again, other = (importance.scores("random", model, groups, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_0"], other["conv_0"])
    assert torch.equal(state, torch.random.get_rng_state())


def test_layers_of_a_group_weigh_the_same() -> None:
    """A layer with weights a hundred times as large does not dominate its group."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)
            self.head = nn.Linear(2, 2)
            with torch.no_grad():
                self.one.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 3.0]])[:, :, None, None])
                self.two.weight.copy_(100 * torch.tensor([[3.0, 0.0], [0.0, 2.0]])[:, :, None, None])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.one(x)
            return self.head((x + self.two(x)).mean((2, 3)))

    model = Residual()
    (score,) = importance.scores("l1", model, find_groups(model, IMAGES)).values()
    assert score.tolist() == pytest.approx([(0.5 + 1.2) / 2, (1.5 + 0.8) / 2])


def test_a_layer_of_zeros_is_finite() -> None:
    assert importance.scores("l1", m := Net([[0, 0], [0, 0]]), find_groups(m, IMAGES))["conv_0"].tolist() == [0, 0]


def test_ranking_is_stable() -> None:
    ranking = importance.ranking({"conv_0": torch.tensor([1.0, 2.0, 1.0, 2.0, 3.0])})
    assert ranking["conv_0"].tolist() == [4, 1, 3, 0, 2]
    assert importance.ranking({"conv_0": torch.ones(600)})["conv_0"].tolist() == list(range(600))


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="'l3'"):
        importance.scores("l3", nn.Identity(), [])


def test_weights_that_are_not_finite() -> None:
    model = Net([[1, 1], [1, 1]])
    groups = find_groups(model, IMAGES)
    model.conv.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"'l1'.*conv_0"):
        importance.scores("l1", model, groups)


@pytest.mark.parametrize("name", importance.IMPORTANCES)
def test_every_importance_scores_every_filter(make: Any, name: str) -> None:
    model, images = make("resnet20")
    groups = find_groups(model, images)
    scores = importance.scores(name, model, groups, batches=[(images, torch.tensor([0, 1]))])
    assert {name: tuple(score.shape) for name, score in scores.items()} == {g.name: (g.filters,) for g in groups}
    assert all(score.dtype == torch.float32 and (score >= 0).all() for score in scores.values())


def test_an_importance_of_the_user() -> None:
    @register_importance("largest_weight")
    def largest_weight(model: nn.Module, groups: Any, batches: Any, seed: int) -> Any:
        return importance.by_layer(groups, lambda path: importance.filter_weights(model, path).abs().amax(1))

    assert scored("largest_weight", Net([[3, -4], [1, 1], [0, 5]])) == pytest.approx([0.4, 0.1, 0.5])
    assert not importance.IMPORTANCES["largest_weight"].needs_batches
    register_importance("largest_weight")(largest_weight)  # again, as a notebook cell does
    with pytest.raises(ValueError, match="largest_weight"):
        register_importance("largest_weight")(lambda model, groups, batches, seed: {})


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"conv_0": torch.ones(2)},
        {"conv_0": torch.ones(3, 1)},
        {"conv_0": torch.tensor([1.0, float("inf"), 0.0])},
    ],
)
def test_wrong_scores_of_the_user_are_refused(result: Any) -> None:
    register_importance("mine")(lambda model, groups, batches, seed: result)
    with pytest.raises(ValueError, match=r"'mine'.*conv_0"):
        scored("mine", Net([[3, -4], [1, 1], [0, 5]]))


def test_an_importance_of_the_user_ranks_a_problem(trained: nn.Module, digits: DataSplits) -> None:
    seen = []

    @register_importance("first_filters", needs_batches=True)
    def first_filters(model: nn.Module, groups: Any, batches: Any, seed: int) -> Any:
        seen.extend(batches)
        return {group.name: -torch.arange(group.filters) for group in groups}

    config = ProblemConfig(importance="first_filters", calibration_images=150, prove=False)
    problem = PruningProblem.create(trained, digits, config)
    assert all(order.tolist() == list(range(len(order))) for order in problem.ranking.values())
    assert sum(len(images) for images, _ in seen) == 150
