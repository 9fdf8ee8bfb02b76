"""The table of trained plans: what is published, answers of small tables, and refused questions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from prune_env import TrainedPlans
from prune_env.common.tensor_files import DamagedFileError


@pytest.fixture(scope="module")
def table() -> TrainedPlans:
    return TrainedPlans.load()


class TestPublished:
    def test_plans_are_distinct_and_meet_the_budget(self, table: TrainedPlans) -> None:
        assert len({tuple(plan) for plan in table.plans.tolist()}) == len(table.plans) >= 30
        assert ((table.target_macs - 0.01 <= table.macs_ratio) & (table.macs_ratio <= table.target_macs)).all()
        assert ((table.settings["problem"]["min_filters"] <= table.plans) & (table.plans <= table.full_plan)).all()
        assert (table.plans < table.full_plan).any(axis=1).all()

    def test_every_plan_was_trained_and_many_with_two_seeds(self, table: TrainedPlans) -> None:
        trained = table.trainings(epochs=2)
        assert (trained >= 1).all()
        assert np.count_nonzero(trained >= 2) >= 10
        assert (np.isfinite(table.test_accuracy) == np.isfinite(table.reward_accuracy)).all()
        assert ((table.test_accuracy > 0.5) | np.isnan(table.test_accuracy)).all()

    def test_every_signal_is_known_of_every_plan(self, table: TrainedPlans) -> None:
        assert {"accuracy", "cross_entropy", "finetuned_accuracy", "output_change"} <= set(table.signals)
        assert all(np.isfinite(values).all() for values in table.signals.values())
        assert set(table.lower_is_better) < set(table.signals)

    def test_longer_training_is_better(self, table: TrainedPlans) -> None:
        both = np.isfinite(table.test_accuracy[:, :, 0]).all(1)
        assert both.sum() >= 2
        assert (np.diff(table.test_accuracy[both, :, 0], axis=1) > 0).all()

    def test_signals_and_another_training_rank_the_plans(self, table: TrainedPlans) -> None:
        for name in ("accuracy", "output_change", "finetuned_accuracy"):
            assert table.rank_correlation(name, epochs=2).low > 0
        assert table.retraining(epochs=2).low > 0


def made(test: np.ndarray, **changes: Any) -> TrainedPlans:
    """Return a table with these test accuracies [P, E, S] after 1, 2, ... epochs."""
    count, lengths, seeds = test.shape
    values: dict[str, Any] = {
        "name": "made",
        "target_macs": 0.5,
        "groups": np.array(["conv"]),
        "full_plan": np.array([count]),
        "plans": np.arange(count)[:, None],
        "macs_ratio": np.full(count, 0.5),
        "source": np.full(count, "drawn"),
        "epochs": np.arange(1.0, lengths + 1),
        "seeds": np.arange(seeds),
        "reward_accuracy": test,
        "test_accuracy": test,
        "signals": {"accuracy": test[:, 0, 0], "loss": -test[:, 0, 0]},
        "lower_is_better": ["loss"],
        "settings": {},
    }
    return TrainedPlans(**values | changes)


class TestAnswers:
    def test_a_correlation_is_the_mean_over_seeds(self) -> None:
        rng = np.random.default_rng(0)
        test, scores = rng.random((20, 1, 2)), rng.random(20)
        expected = np.mean([kendalltau(scores, test[:, 0, seed]).statistic for seed in (0, 1)])
        assert made(test).rank_correlation(scores, 1).tau == pytest.approx(expected)
        expected = kendalltau(test[:, 0, 0], test[:, 0, 1]).statistic
        assert made(test).retraining(1).tau == pytest.approx(expected)

    def test_a_seed_that_some_plans_lack_does_not_count(self) -> None:
        rng = np.random.default_rng(0)
        test, scores = rng.random((20, 1, 2)), rng.random(20)
        test[10:, 0, 1] = np.nan
        found = made(test).rank_correlation(scores, 1)
        assert (found.tau, found.number) == (pytest.approx(kendalltau(scores, test[:, 0, 0]).statistic), 20)
        assert made(test).retraining(1).number == 10
        assert made(test).trainings(1).tolist() == [2] * 10 + [1] * 10
        both = made(test).subset(made(test).trainings(1) == 2)
        expected = np.mean([kendalltau(scores[:10], test[:10, 0, seed]).statistic for seed in (0, 1)])
        assert both.rank_correlation(scores[:10], 1).tau == pytest.approx(expected)

    def test_plans_without_a_score_do_not_count(self) -> None:
        test, scores = np.arange(12.0)[:, None, None], np.arange(12.0)
        scores[[2, 7]] = np.nan
        assert made(test).rank_correlation(scores, 1)[::3] == (1, 10)

    def test_signals_by_name_know_their_direction(self) -> None:
        table = made(np.random.default_rng(0).random((20, 1, 1)))
        assert table.rank_correlation("accuracy", 1).tau == table.rank_correlation("loss", 1).tau == 1
        assert table.rank_correlation(table.signals["loss"], 1).tau == -1

    def test_a_difference_is_that_of_the_correlations(self) -> None:
        rng = np.random.default_rng(0)
        table, scores = made(rng.random((20, 1, 1))), rng.random(20)
        expected = 1 - table.rank_correlation(scores, 1).tau
        assert table.rank_difference("accuracy", scores, 1).tau == pytest.approx(expected)
        assert table.rank_difference(scores, scores, 1)[:3] == (0, 0, 0)

    def test_a_length_that_no_plan_of_a_subset_has(self) -> None:
        test = np.arange(40.0).reshape(20, 2, 1)
        test[5:, 1] = np.nan
        rest = made(test).subset(made(test).trainings(2) == 0)
        assert rest.trainings(2).tolist() == [0] * 15
        for answer in (lambda: rest.rank_correlation("accuracy", 2), lambda: rest.retraining(2)):
            with pytest.raises(ValueError, match="15 plans, 0"):
                answer()

    def test_masked_scores_do_not_count(self) -> None:
        scores = np.ma.masked_array(np.arange(12.0), np.arange(12) == 3)
        assert made(np.arange(12.0)[:, None, None]).rank_correlation(scores, 1).number == 11

    def test_nothing_in_a_table_can_be_written_to(self, table: TrainedPlans) -> None:
        with pytest.raises(ValueError, match="read-only"):
            table.signals["accuracy"] *= -1  # type: ignore[index]
        with pytest.raises(ValueError, match="read-only"):
            table.test_accuracy[0] = 0
        mine = np.arange(20.0)
        copied = made(np.arange(20.0)[:, None, None], signals={"mine": mine}, lower_is_better=[])
        mine[0] = 7
        assert copied.signals["mine"][0] == 0


@pytest.mark.parametrize(
    ("scores", "epochs", "named"),
    [
        (torch.arange(20.0, requires_grad=True), 1, "20 plans"),
        ([{}] * 20, 1, "real numbers"),
        (np.arange(3.0), 1, "20 plans"),
        (np.ones((20, 2)), 1, "20 plans"),
        (np.arange(20.0), 7, "7 epochs"),
        (np.arange(20.0), 1 + 1e-12, "1.000000000001 epochs"),
        ("accurcy", 1, "accurcy"),
        (np.zeros(20), 1, "different"),
        (np.full(20, np.nan), 1, "NaN"),
    ],
)
def test_questions_without_an_answer_are_errors(scores: Any, epochs: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        made(np.arange(20.0)[:, None, None]).rank_correlation(scores, epochs)


@pytest.mark.parametrize("epochs", ["1", None, [1, 2]])
def test_a_length_is_a_number(epochs: Any) -> None:
    table = made(np.arange(20.0)[:, None, None])
    for answer in (table.trainings, table.retraining, lambda value: table.rank_correlation("accuracy", value)):
        with pytest.raises(TypeError, match="epochs"):
            answer(epochs)


def test_one_seed_tells_nothing_about_retraining() -> None:
    with pytest.raises(ValueError, match="1 epochs"):
        made(np.arange(20.0)[:, None, None]).retraining(1)


@pytest.mark.parametrize("chosen", [np.arange(3), np.arange(20), np.ones(3, bool), [0, 1]])
def test_a_subset_needs_an_answer_for_every_plan(chosen: Any) -> None:
    with pytest.raises(ValueError, match="20 plans"):
        made(np.arange(20.0)[:, None, None]).subset(chosen)


@pytest.mark.parametrize(
    ("name", "wrong", "named"),
    [
        ("plans", np.zeros((20, 5)), "plans"),
        ("macs_ratio", np.zeros(3), "macs_ratio"),
        ("test_accuracy", np.zeros((3, 5)), "test_accuracy"),
        ("full_plan", [[1]], "full_plan"),
        ("epochs", ["long"], "epochs"),
        ("signals", {"mine": np.zeros(3)}, "mine"),
        ("signals", {"mine": [None] * 20}, "lower_is_better"),
        ("lower_is_better", "loss", "lower_is_better"),
        ("lower_is_better", ["los"], "los"),
    ],
)
def test_fields_that_do_not_fit_are_errors(name: str, wrong: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        made(np.arange(20.0)[:, None, None], **{name: wrong})


@pytest.mark.parametrize("name", ["epochs", "seeds"])
def test_a_number_that_is_there_twice_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        made(np.zeros((20, 2, 2)), **{name: np.array([1, 1])})


class TestFiles:
    def test_a_table_survives_saving(self, table: TrainedPlans, tmp_path: Path) -> None:
        table.save(str(tmp_path / "copy.npz"))
        copy = TrainedPlans.load(str(tmp_path / "copy.npz"))
        for one in dataclasses.fields(TrainedPlans):
            np.testing.assert_equal(getattr(copy, one.name), getattr(table, one.name))

    @pytest.mark.parametrize("seed", range(40))
    def test_a_damaged_table_is_refused_or_the_same(self, seed: int, table: TrainedPlans, tmp_path: Path) -> None:
        rng, file = np.random.default_rng(seed), tmp_path / "table.npz"
        table.save(file)
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        try:
            found = TrainedPlans.load(file)
        except DamagedFileError:
            return
        for one in dataclasses.fields(TrainedPlans):
            np.testing.assert_equal(getattr(found, one.name), getattr(table, one.name))

    @pytest.mark.parametrize("content", [b"", b"no archive", "half", "other"])
    def test_a_file_that_is_no_table_is_refused(
        self, content: bytes | str, table: TrainedPlans, tmp_path: Path
    ) -> None:
        file = tmp_path / "table.npz"
        if content == "half":
            table.save(file)
            file.write_bytes(file.read_bytes()[:3000])
        elif content == "other":
            np.savez(file, plans=np.zeros(3))
        else:
            assert isinstance(content, bytes)
            file.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"table\.npz"):
            TrainedPlans.load(file)

    def test_a_missing_file_is_no_damaged_one(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            TrainedPlans.load(tmp_path / "none.npz")
        with pytest.raises(OSError, match="directory"):
            TrainedPlans.load(tmp_path)
