"""The change of the outputs without a filter, against changes that are measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prune_env.data import DataSplits
from prune_env.pruning import PruningGroup, find_groups, importance
from prune_env.pruning.output_change import accumulated, output_changes
from prune_env.pruning.problem import PruningProblem

STEP = 1e-3


def measured(model: nn.Module, groups: list[PruningGroup], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Shrink what readers read of one filter after another, and measure the slope of the outputs."""
    with torch.no_grad():
        original = model(images)
        variance = (original - original.mean(0)).square().sum()
        result = {}
        for group in groups:
            changes = torch.zeros(group.filters)
            for number in range(group.filters):
                readers = [member for member in group.members if member.side == "in"]
                before = {member.module: model.get_submodule(member.module).weight.clone() for member in readers}
                for member in readers:
                    model.get_submodule(member.module).weight[:, member.index[number]] *= 1 - STEP
                changes[number] = ((model(images) - original) / STEP).square().sum() / variance
                for path, weight in before.items():
                    model.get_submodule(path).weight.copy_(weight)
            result[group.name] = changes
    return result


class Linear(nn.Module):
    """Two convolutions and a head without activations; the first one is called twice if `twice`."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
        self.twice = twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        x = x + self.two(x) if self.twice else self.two(x)
        x = self.two(x) if self.twice else x
        return self.head(x.mean((2, 3)))


def images_of(count: int, *shape: int) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("twice", [False, True])
def test_the_slope_of_the_outputs_is_that_of_smaller_inputs(twice: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Linear(twice).double()
    images = images_of(2000, 2, 2, 2).double()
    groups = find_groups(model, images[:2])
    assert groups
    found = output_changes(model, groups, images.split(500))
    for name, expected in measured(model, groups, images).items():
        assert found[name].float().numpy() == pytest.approx(expected.numpy(), rel=0.15), name


@pytest.mark.parametrize("name", ["concat", "dense", "depthwise", "gated", "flatten"])
def test_every_kind_of_connection(make: Any, name: str) -> None:
    model, example = make(name)
    model.double().eval()
    images = images_of(400, *example.shape[1:]).double()
    groups = find_groups(model, images[:2])
    found = output_changes(model, groups, images.split(100))
    for group, expected in measured(model, groups, images).items():
        assert float(found[group].sum()) == pytest.approx(float(expected.sum()), rel=0.3), group


def test_the_scale_of_the_outputs_does_not_matter() -> None:
    model, images = Linear(), images_of(50, 2, 4, 4)
    groups = find_groups(model, images[:2])
    before = output_changes(model, groups, [images])
    with torch.no_grad():
        model.head.weight.mul_(10)
        model.head.bias.add_(5)
    after = output_changes(model, groups, [images])
    for name, expected in before.items():
        assert after[name].numpy() == pytest.approx(expected.numpy(), rel=1e-3)


def test_labels_do_not_matter() -> None:
    model, images = Linear(), images_of(50, 2, 4, 4)
    groups = find_groups(model, images[:2])
    right, wrong = (
        importance.scores("output_change", model, groups, batches=[(images, torch.full((50,), label))])
        for label in (0, 3)
    )
    assert all(torch.equal(right[name], wrong[name]) for name in right)


def test_the_network_and_the_global_random_state_do_not_change() -> None:
    model, images = Linear().train(), images_of(50, 2, 4, 4)
    groups = find_groups(model, images[:2])
    state, random = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        first, again = (output_changes(model, groups, [images]) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) and first[name].any() for name in first)
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


class Opaque(torch.autograd.Function):
    """A function without backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


def overwritten(x: torch.Tensor) -> torch.Tensor:
    return x.sigmoid().mul_(2)


@pytest.mark.parametrize("last", [torch.Tensor.detach, Opaque.apply, overwritten])
def test_outputs_without_a_gradient_change_by_zero_with_a_warning(last: Any) -> None:
    class Undifferentiable(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return last(super().forward(x))

    model, images = Undifferentiable(), images_of(50, 2, 4, 4)
    groups = find_groups(model, images[:2])
    with pytest.warns(UserWarning, match="one"):
        changes = output_changes(model, groups, [images])
    assert not any(changes[group.name].any() for group in groups)


def test_layers_behind_the_last_gradient_are_named_and_the_others_count() -> None:
    class Frozen(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                x = self.two(self.one(x))
            return self.head(x.clone().mean((2, 3)))

    model, images = Frozen(), images_of(50, 2, 4, 4)
    groups = find_groups(model, images[:2])
    with pytest.warns(UserWarning, match="layers one is unknown"):
        changes = output_changes(model, groups, [images])
    assert [bool(changes[group.name].any()) for group in groups] == [False, True]


def test_checkpoints_run_with_gates_again() -> None:
    class Checkpointed(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    model, images = Linear(), images_of(50, 2, 4, 4)
    again = Checkpointed()
    again.load_state_dict(model.state_dict())
    groups = find_groups(model, images[:2])
    expected, found = (output_changes(one, groups, [images]) for one in (model, again))
    for name, change in expected.items():
        assert found[name].numpy() == pytest.approx(change.numpy(), rel=1e-6)


def test_the_fewer_filters_are_left_the_more_each_counts() -> None:
    found = accumulated(torch.tensor([4.0, 1.0, 2.0, 0.0]), torch.tensor([0, 2, 1, 3]))
    assert found == pytest.approx(np.cumsum([0, 0 / 1, 1 / 0.75, 2 / 0.5, 4 / 0.25]))


def test_a_group_of_unknown_change_counts_like_the_others(digits: DataSplits) -> None:
    class Half(nn.Module):
        """The gradient does not reach what the second convolution reads."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
            self.three, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.two(self.one(x)).detach()
            return self.head(self.three(x).mean((2, 3)))

    problem = PruningProblem.create(Half(), digits)
    with pytest.warns(UserWarning, match="layers one"):
        curves = problem.output_changes
    assert all((np.diff(curve) > 0).all() for curve in curves)


def test_a_problem_has_a_curve_for_every_group(trained: nn.Module, digits: DataSplits) -> None:
    problem = PruningProblem.create(trained, digits)
    assert [len(curve) for curve in problem.output_changes] == [group.filters + 1 for group in problem.groups]
    assert all((np.diff(curve) >= 0).all() and curve[0] == 0 for curve in problem.output_changes)
