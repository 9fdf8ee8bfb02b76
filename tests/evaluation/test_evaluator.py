"""The evaluator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prune_env.data import DataSplits
from prune_env.evaluation.evaluator import Evaluator, on_the_way
from prune_env.pruning import build, find_groups, importance
from prune_env.scoring.metric import accuracy


@pytest.fixture(scope="module")
def parts(trained: nn.Module, digits: DataSplits) -> tuple:
    groups = find_groups(trained, digits.example_input)
    return trained, digits, groups, importance.ranking(importance.scores("l1", trained, groups))


class TestEvaluator:
    def test_unpruned_accuracy_is_that_of_the_network(self, parts: tuple) -> None:
        model, data, *_ = parts
        evaluator = Evaluator(*parts, reward_images=300)
        assert evaluator.original_accuracy == pytest.approx(accuracy(model, data, data.reward), abs=0.015)

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
        stored = accuracy(build(model, groups, ranking, plan), data, data.reward)
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
