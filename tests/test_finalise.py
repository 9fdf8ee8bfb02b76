"""From plans to one network: finalists are ranked fairly, the winner is distilled, and the test set is not read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from episodes import FAST, EnvMaker
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem
from prune_env.data import DataSplits, Split
from prune_env.finalise import Finaliser, accuracy, recalibrated
from prune_env.networks import create
from prune_env.training.distillation import DistillationConfig, Teacher

SHORT = DistillationConfig(epochs=2, min_steps=20, batch_size=64)
PLANS = [(20, 20, 40, 40, 80), (32, 10, 64, 20, 128), (20, 20, 40, 40, 80)]


class Forbidden(Split):
    """A test set that must not be read."""

    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"{name} of the test set was read")


@pytest.fixture
def env(trained: nn.Module, digits: DataSplits) -> FilterPruneEnv:
    """An environment whose test set must not be read."""
    config = EnvConfig(**FAST)
    problem = PruningProblem.create(trained, digits, config)
    hidden = replace(digits, test=Forbidden.__new__(Forbidden))
    object.__setattr__(hidden, "fingerprint", digits.fingerprint)  # it covers the test set
    return FilterPruneEnv(replace(problem, data=hidden), config)


@pytest.fixture
def finaliser(env: FilterPruneEnv) -> Callable[..., Finaliser]:
    """Return a function that makes a finaliser of the environment."""

    def make(distillation: DistillationConfig = SHORT, **settings: Any) -> Finaliser:
        return Finaliser(env, distillation, progress=False, **settings)

    return make


MakeFinaliser = Callable[..., Finaliser]


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in network.state_dict().values()])


class TestRank:
    def test_distinct_plans_are_ranked_by_accuracy_after_distillation(self, finaliser: MakeFinaliser) -> None:
        finalists = finaliser().rank(PLANS)
        assert sorted(finalist.plan for finalist in finalists) == sorted(set(PLANS))
        accuracies = [finalist.distilled_accuracy for finalist in finalists]
        assert accuracies == sorted(accuracies, reverse=True)
        assert all(finalist.distilled_accuracy > finalist.recalibrated_accuracy for finalist in finalists)

    def test_finalists_report_the_accuracies_of_their_networks(
        self, env: FilterPruneEnv, finaliser: MakeFinaliser
    ) -> None:
        data = env.problem.data
        (finalist,) = finaliser().rank(PLANS[:1])
        assert finalist.distilled_accuracy == accuracy(finalist.network, data, data.reward)
        assert finalist.recalibrated_accuracy == accuracy(recalibrated(env, finalist.plan), data, data.reward)
        assert {parameter.device.type for parameter in finalist.network.parameters()} == {"cpu"}

    def test_finished_finalists_are_read_from_their_checkpoints(
        self, finaliser: MakeFinaliser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finalists = finaliser(checkpoints=tmp_path).rank(PLANS)
        resumed = finaliser(checkpoints=tmp_path)
        monkeypatch.setattr(Teacher, "compute", lambda *_: pytest.fail("a finished finalist was trained again"))
        assert resumed.rank(PLANS[::-1]) == finalists

    def test_the_short_distillation_has_a_share_of_the_steps(
        self, finaliser: MakeFinaliser, batches: list[torch.Tensor]
    ) -> None:
        finaliser(replace(SHORT, epochs=4, min_steps=100), short_epochs=0.2).rank(PLANS[:1])
        assert len(batches) == 5

    def test_there_must_be_plans(self, finaliser: MakeFinaliser) -> None:
        with pytest.raises(ValueError, match="plans"):
            finaliser().rank([])


class TestDistil:
    def test_it_is_at_least_as_accurate_as_the_short_distillation(
        self, env: FilterPruneEnv, finaliser: MakeFinaliser
    ) -> None:
        (short,) = finaliser().rank(PLANS[:1])
        network = finaliser(replace(SHORT, epochs=8)).distil(PLANS[0])
        assert accuracy(network, env.problem.data, env.problem.data.reward) >= short.distilled_accuracy - 0.01

    def test_it_starts_with_the_original_weights_and_repeats(self, finaliser: MakeFinaliser) -> None:
        one, two = finaliser(), finaliser()
        two.rank(PLANS[:1])
        assert torch.equal(weights(one.distil(PLANS[0])), weights(two.distil(PLANS[0])))

    def test_a_finished_network_is_read_from_its_checkpoint(
        self, finaliser: MakeFinaliser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network = finaliser(checkpoints=tmp_path).distil(PLANS[0])
        resumed = finaliser(checkpoints=tmp_path)
        monkeypatch.setattr(Teacher, "compute", lambda *_: pytest.fail("a finished network was trained again"))
        assert torch.equal(weights(resumed.distil(PLANS[0])), weights(network))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The batches for which teachers have computed logits."""
    computed: list[torch.Tensor] = []
    compute = Teacher.compute

    def counting(teacher: Teacher, images: torch.Tensor) -> torch.Tensor:
        computed.append(images)
        return compute(teacher, images)

    monkeypatch.setattr(Teacher, "compute", counting)
    return computed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("short_epochs", value) for value in (0, -1, float("nan"), float("inf"), True, "1", None)],
        *[("checkpoints", value) for value in (3, "", True)],
        *[("device", value) for value in (3, None, "nowhere")],
        *[("distillation", value) for value in (None, {}, 4)],
        ("progress", 1),
    ],
)
def test_wrong_settings_are_refused_by_name(env: FilterPruneEnv, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Finaliser(env, **{name: value})


class TestTeacher:
    def test_its_logits_are_computed_once_for_all_networks(
        self, env: FilterPruneEnv, finaliser: MakeFinaliser, batches: list[torch.Tensor]
    ) -> None:
        """All networks are trained on the same batches."""
        brief = replace(SHORT, epochs=1, min_steps=0)
        epoch = len(env.problem.data.train) // brief.batch_size
        shared = finaliser(brief, short_epochs=0.5, teacher=Teacher(env.problem.model))
        finalists = shared.rank(PLANS)
        assert len(batches) == round(epoch / 2)
        shared.distil(PLANS[0])
        assert len(batches) == epoch
        assert finaliser(brief, short_epochs=0.5).rank(PLANS) == finalists
        assert len(batches) == epoch + round(epoch / 2), "without a shared teacher, a finaliser makes one of its own"

    def test_another_network_may_teach(self, env: FilterPruneEnv, finaliser: MakeFinaliser) -> None:
        taught = [
            finaliser(teacher=teacher).distil(PLANS[0])
            for teacher in (None, Teacher(env.problem.model), Teacher(recalibrated(env, PLANS[1])))
        ]
        assert torch.equal(weights(taught[0]), weights(taught[1]))
        assert not torch.equal(weights(taught[0]), weights(taught[2]))

    def test_a_teacher_of_other_classes_is_refused(self, finaliser: MakeFinaliser) -> None:
        with pytest.raises(ValueError, match=r"\(2, 7\).*\(2, 10\)"):
            finaliser(teacher=Teacher(create("small_cnn", 7, 1)))

    def test_a_network_is_not_a_teacher(self, env: FilterPruneEnv, finaliser: MakeFinaliser) -> None:
        with pytest.raises(TypeError, match=r"Teacher.*SmallCNN"):
            finaliser(teacher=env.problem.model)


def test_a_custom_metric_ranks_the_finalists(make_env: EnvMaker) -> None:
    def one_minus_error(network: nn.Module, split: Split) -> float:
        return 2.0 * float((network(split.images).argmax(1) == split.labels).float().mean())

    env = make_env(metric=one_minus_error)
    finalists = Finaliser(env, SHORT, progress=False).rank(PLANS)
    assert all(finalist.distilled_accuracy > 1 for finalist in finalists)
    data = env.problem.data
    for finalist in finalists:
        assert finalist.distilled_accuracy == accuracy(finalist.network, data, data.reward, one_minus_error)


def test_recalibrated_networks_have_the_original_weights(env: FilterPruneEnv) -> None:
    network, cut = recalibrated(env, PLANS[0]), env.problem.build(PLANS[0])
    for one, two in zip(network.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not all(torch.equal(one, two) for one, two in zip(network.buffers(), cut.buffers(), strict=True))
    assert not any(module.training for module in network.modules())
