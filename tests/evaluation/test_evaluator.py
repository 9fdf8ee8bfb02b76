"""BatchNorm recalibration and folding, and the evaluator."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prune_env.data import DataSplits
from prune_env.evaluation.evaluator import Evaluator, on_the_way
from prune_env.networks import NETWORKS, create
from prune_env.networks.registry import image_size
from prune_env.pruning import build, find_groups, importance
from prune_env.scoring.batchnorm import fold, folding_pairs, recalibrate
from prune_env.scoring.metric import correct


def shaken(model: nn.Module) -> nn.Module:
    """BatchNorms as after training: no statistic and no shift is trivial."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2, generator=generator)
    return model.eval()


def test_recalibrated_statistics_are_the_means_over_all_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=0.3).train()
    model = nn.Sequential(norm, nn.Dropout(0.5)).eval()
    batches = [torch.randn(8, 3, 4, 4, generator=generator) * (index + 1) for index in range(3)]
    recalibrate(model, batches)
    assert torch.allclose(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0), atol=1e-5)
    assert norm.momentum == 0.3
    assert not any(module.training for module in model.modules())


def test_all_calls_of_a_layer_count_alike() -> None:
    """As by torch's own cumulative average, to the bit."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(3)
    model, batches = nn.Sequential(norm, nn.ReLU(), norm), [torch.randn(8, 3, 4, 4, generator=generator) for _ in "123"]
    expected = copy.deepcopy(model).train()
    expected[0].momentum = None
    for batch in batches:
        expected(batch)
    recalibrate(model.eval(), batches)
    assert torch.equal(norm.running_mean, expected[0].running_mean)
    assert torch.equal(norm.running_var, expected[0].running_var)
    assert norm.momentum == 0.1
    assert not norm._forward_pre_hooks


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_nothing(name: str) -> None:
    model = shaken(create(name))
    images = torch.randn(2, 3, *image_size(name), generator=torch.Generator().manual_seed(2))
    pairs = folding_pairs(model, images)
    assert len(pairs) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    folded = copy.deepcopy(model)
    fold(folded, pairs)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        assert torch.allclose(folded(images), model(images), rtol=1e-3, atol=1e-4)


def test_layers_registered_in_another_order_are_folded_rightly() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_b, self.bn_a = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.conv_a, self.bn_b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn_b(self.conv_b(self.bn_a(self.conv_a(x)).relu())).mean((2, 3))

    model = shaken(Crossed())
    assert folding_pairs(model, torch.randn(2, 3, 5, 5)) == [("conv_a", "bn_a"), ("conv_b", "bn_b")]


def test_a_convolution_that_is_read_elsewhere_is_not_folded() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return (self.bn(y) + y).mean((2, 3))

    assert folding_pairs(shaken(Forked()), torch.randn(2, 3, 5, 5)) == []


@pytest.fixture(scope="module")
def parts(trained: nn.Module, digits: DataSplits) -> tuple:
    groups = find_groups(trained, digits.example_input)
    return trained, digits, groups, importance.ranking(importance.scores("l1", trained, groups))


class TestEvaluator:
    def test_unpruned_accuracy_is_that_of_the_network(self, parts: tuple) -> None:
        model, data, *_ = parts
        evaluator = Evaluator(*parts, reward_images=300)
        assert evaluator.original_accuracy == pytest.approx(correct(model, data, data.reward) / 300, abs=0.015)

    def test_answers_are_memoised_and_pure(self, parts: tuple) -> None:
        first, second = Evaluator(*parts), Evaluator(*parts)
        plans = [(20, 20, 40, 40, 80), (32, 10, 64, 20, 128)]
        answers = [first.accuracy(plan) for plan in plans]
        evaluations = first.evaluations
        assert [first.accuracy(plan) for plan in plans] == answers
        assert first.evaluations == evaluations
        assert [second.accuracy(plan) for plan in reversed(plans)] == answers[::-1]

    @pytest.mark.usefixtures("untouched_rngs")
    def test_random_states_are_left_alone(self, parts: tuple) -> None:
        Evaluator(*parts).accuracy((16, 16, 32, 32, 64))

    def test_fast_and_exact_precision_agree(self, parts: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
        plans = [(20, 20, 40, 40, 80), (28, 30, 30, 44, 100)]
        monkeypatch.setattr("prune_env.evaluation.evaluator.fast_dtype", lambda _: torch.bfloat16)
        fast = Evaluator(*parts)
        monkeypatch.setattr("prune_env.evaluation.evaluator.fast_dtype", lambda _: torch.float32)
        exact = Evaluator(*parts)
        for plan in plans:
            assert fast.accuracy(plan) == pytest.approx(exact.accuracy(plan), abs=0.015)

    def test_recalibration_pays(self, parts: tuple) -> None:
        """A cut network's stored statistics describe inputs that no longer exist."""
        model, data, groups, ranking = parts
        plan = (16, 16, 32, 32, 64)
        stored = correct(build(model, groups, ranking, plan), data, data.reward) / len(data.reward)
        assert Evaluator(*parts).accuracy(plan) > stored + 0.05

    @pytest.mark.parametrize("measure_at", [1.0, 0.5])
    def test_a_wrong_plan_is_refused(self, parts: tuple, measure_at: float) -> None:
        evaluator = Evaluator(*parts, measure_at=measure_at)
        for wrong in (0, 129, 16.5, -1):
            with pytest.raises(ValueError, match=rf"1 to 128 filters, the plan says {wrong}"):
                evaluator.accuracy((16, 16, 32, 32, wrong))
        with pytest.raises(ValueError, match="each of the 5 groups, got 2"):
            evaluator.accuracy((16, 16))

    @pytest.mark.parametrize("batches", [0, 2])
    def test_a_plan_may_be_measured_on_the_way_to_it(self, parts: tuple, batches: int) -> None:
        model, _, groups, ranking = parts
        plan, midway = (8, 16, 4, 64, 2), (16, 23, 16, 64, 16)  # of 32, 32, 64, 64 and 128 filters
        settings = {"finetune_batches": batches}
        half, usual = Evaluator(*parts, measure_at=0.5, **settings), Evaluator(*parts, **settings)
        assert half.measured(plan) == midway
        assert usual.measured(plan) == plan
        half.submit(plan)
        assert half.accuracy(plan) == usual.accuracy(midway) != usual.accuracy(plan)
        assert half.original_accuracy == usual.original_accuracy
        wanted = build(model, groups, ranking, plan)
        assert [p.shape for p in half.network(plan).parameters()] == [p.shape for p in wanted.parameters()]
        other = Evaluator(*parts, measure_at=0.5, **settings)
        other.remember(plan, 0.25)
        assert other.accuracy(plan) == 0.25
        assert half.accuracy_of(wanted) == usual.accuracy_of(wanted), "a network of the caller's is what it is"


FULL = (32, 32, 64, 64, 128)


@given(
    kept=st.tuples(*(st.integers(1, filters) for filters in FULL)),
    more=st.tuples(*(st.integers(0, 100) for _ in FULL)),
    at=st.floats(0.01, 1),
    nearer=st.floats(0, 1),
)
def test_the_way_leads_from_the_whole_network_to_the_plan(
    kept: tuple[int, ...], more: tuple[int, ...], at: float, nearer: float
) -> None:
    larger = tuple(min(n, k + m) for n, k, m in zip(FULL, kept, more, strict=True))
    found, late = on_the_way(FULL, kept, at), on_the_way(FULL, kept, at + (1 - at) * nearer)
    assert on_the_way(FULL, kept, 0) == on_the_way(FULL, FULL, at) == FULL
    assert on_the_way(FULL, kept, 1) == kept
    for n, k, between, nearly, above in zip(FULL, kept, found, late, on_the_way(FULL, larger, at), strict=True):
        assert k <= nearly <= between <= n, "cutting on, no filter comes back"
        assert between <= above, "of two plans the larger stays the larger"
