"""Distillation: its loss, what it trains, and teachers that students share."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prune_env.common.device import fast_dtype
from prune_env.common.fingerprints import function_fingerprint
from prune_env.data import DataSplits, TensorSplit
from prune_env.networks import create
from prune_env.pruning.problem import ProblemConfig, PruningProblem
from prune_env.scoring.metric import accuracy
from prune_env.training.distillation import CombinedLoss, DistillationConfig, DistillationLoss, Teacher, distil
from prune_env.training.fit import FitConfig, RunOptions

QUIET = RunOptions(progress=False)
LAST = DistillationConfig(epochs=0.2, min_steps=1, select_best=False)


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.fixture(scope="module")
def student(trained: nn.Module, digits: DataSplits) -> nn.Module:
    """The trained network with half of the filters of every group."""
    problem = PruningProblem.create(trained, digits, ProblemConfig(prove=False))
    return problem.build(tuple(filters // 2 for filters in problem.full_plan))


class Layer(nn.Module):
    """A network of one linear layer on vectors."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class TestLoss:
    def test_with_classes_by_hand(self) -> None:
        """Hinton et al. 2015, written out with plain sums."""
        layer, temperature, alpha = nn.Linear(3, 4), 2.0, 0.7
        config = DistillationConfig(temperature=temperature, alpha=alpha)
        inputs = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 2.0]])
        student, labels = torch.tensor([[0.1, 0.2, -0.3, 0.0], [1.0, 0.0, -1.0, 2.0]]), torch.tensor([1, 3])
        exact = copy.deepcopy(layer).to(fast_dtype())
        logits = exact(inputs.to(fast_dtype())).float().detach()
        p, q = (logits / temperature).softmax(1), (student / temperature).softmax(1)
        soft = (p * (p.log() - q.log())).sum(1).mean() * temperature**2
        hard = -student.softmax(1).log()[torch.arange(2), labels].mean()
        expected = pytest.approx(float(alpha * soft + (1 - alpha) * hard), rel=1e-4)
        combined = CombinedLoss(config)
        assert float(combined(logits, student, inputs, labels)) == expected
        assert float(DistillationLoss(Teacher(Layer(layer)), combined)(student, inputs, labels)) == expected

    def test_without_classes_by_hand(self) -> None:
        taught = torch.full((1, 2), 0.75)
        logits, images = torch.tensor([[1.0, -1.0]]), torch.ones(1, 1, 1, 1)
        config = DistillationConfig(alpha=0.75, temperature=7.0)
        loss = CombinedLoss(config, lambda *_: torch.tensor(8.0), classes=False)
        soft = ((1 - 0.75) ** 2 + (-1 - 0.75) ** 2) / 2
        assert float(loss(taught, logits, images, torch.zeros(1, 2))) == pytest.approx(0.75 * soft + 0.25 * 8.0)

    def test_a_users_loss_replaces_the_labels_term(self) -> None:
        generator = torch.Generator().manual_seed(0)
        taught, logits = torch.randn(2, 4, 3, generator=generator)
        images, labels = torch.zeros(4, 1, 1, 1), torch.arange(4) % 3
        config = DistillationConfig(alpha=0.5)
        plain = CombinedLoss(config)(taught, logits, images, labels)
        own = CombinedLoss(config, lambda *_: torch.tensor(10.0))(taught, logits, images, labels)
        hard = F.cross_entropy(logits, labels)
        assert float(own - plain) == pytest.approx(float(0.5 * (10 - hard)), rel=1e-5)

    def test_its_fingerprint_identifies_teacher_settings_and_label_loss(self, trained: nn.Module) -> None:
        config = DistillationConfig()
        teachers = Teacher(trained), Teacher(create("small_cnn", 10, 1, seed=8))
        losses = [
            DistillationLoss(teachers[0], CombinedLoss(config)),
            DistillationLoss(teachers[1], CombinedLoss(config)),
            DistillationLoss(teachers[0], CombinedLoss(dataclasses.replace(config, temperature=9.0))),
            DistillationLoss(teachers[0], CombinedLoss(dataclasses.replace(config, alpha=0.0))),
            DistillationLoss(teachers[0], CombinedLoss(config, lambda *_: torch.tensor(8.0))),
            DistillationLoss(teachers[0], CombinedLoss(config, lambda *_: torch.tensor(9.0))),
        ]
        assert len({function_fingerprint(loss) for loss in losses}) == len(losses)
        again = DistillationLoss(Teacher(trained), CombinedLoss(DistillationConfig()))
        assert function_fingerprint(again) == function_fingerprint(losses[0])


class TestDistill:
    def test_one_step_changes_every_parameter_of_the_small_network(
        self, trained: nn.Module, digits: DataSplits, student: nn.Module
    ) -> None:
        steps = len(digits.train) // 128
        config = DistillationConfig(epochs=1 / steps, min_steps=0, batch_size=128, ema_decay=0.0, select_best=False)
        result = distil(student, trained, digits, config, run=QUIET)
        for (name, before), after in zip(student.named_parameters(), result.parameters(), strict=True):
            assert before.shape == after.shape
            assert not torch.equal(before, after), f"{name} was not trained"

    def test_it_recovers_accuracy_and_does_not_change_the_teacher(
        self, trained: nn.Module, digits: DataSplits, student: nn.Module
    ) -> None:
        before = copy.deepcopy(trained.state_dict())
        config = DistillationConfig(epochs=4, min_steps=100, batch_size=64)
        result = distil(student, trained, digits, config, run=QUIET)
        assert accuracy(result, digits, digits.reward) > accuracy(student, digits, digits.reward) + 0.1
        assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
        assert all(parameter.grad is None for parameter in trained.parameters())

    def test_it_selects_the_best_epoch_unless_told_otherwise(self) -> None:
        assert DistillationConfig().select_best
        assert not FitConfig().select_best

    def test_a_checkpoint_of_another_run_is_refused(
        self, trained: nn.Module, digits: DataSplits, tmp_path: Path
    ) -> None:
        other, run = create("small_cnn", 10, 1, seed=8).eval(), RunOptions("cpu", tmp_path / "run.pt", progress=False)
        config = DistillationConfig(epochs=0.2, min_steps=1)
        expected = distil(other, trained, digits, config, run=run)
        assert same(expected, distil(other, trained, digits, config, run=run))
        for teacher, network, settings in (
            (other, other, config),
            (trained, trained, config),
            (trained, other, dataclasses.replace(config, temperature=9.0)),
            (trained, other, dataclasses.replace(config, alpha=0.0)),
            (trained, other, dataclasses.replace(config, select_best=False)),
        ):
            with pytest.raises(ValueError, match=r"run\.pt"):
                distil(network, teacher, digits, settings, run=run)
        with pytest.raises(ValueError, match=r"run\.pt"):
            distil(other, trained, digits, config, loss=lambda logits, images, labels: logits.sum() * 0, run=run)

    def test_bad_settings(self) -> None:
        with pytest.raises(ValueError, match=r"temperature .*\b0$"):
            DistillationConfig(temperature=0)
        with pytest.raises(ValueError, match=r"alpha .*1\.5$"):
            DistillationConfig(alpha=1.5)

    def test_targets_need_a_loss(self, trained: nn.Module, digits: DataSplits) -> None:
        targets = TensorSplit(digits.train.images, digits.train.labels.float())
        splits = dataclasses.replace(digits, classes=(), train=targets)
        with pytest.raises(ValueError, match="loss"):
            distil(trained, trained, splits, LAST, run=QUIET)

    @pytest.mark.parametrize("wrong", [None, "teacher.safetensors", torch.zeros(2)])
    def test_other_objects_are_no_teachers(self, trained: nn.Module, digits: DataSplits, wrong: object) -> None:
        with pytest.raises(TypeError, match=f"got {type(wrong).__name__}"):
            distil(trained, wrong, digits, LAST, run=QUIET)  # type: ignore[arg-type]

    def test_the_config_must_be_one_of_distillation(self, trained: nn.Module, digits: DataSplits) -> None:
        with pytest.raises(TypeError, match="DistillationConfig, got FitConfig"):
            distil(trained, trained, digits, FitConfig(epochs=1))  # type: ignore[arg-type]


class TestTeacher:
    """Students of one seed can share a teacher."""

    @pytest.fixture
    def computed(self) -> list[torch.Tensor]:
        """The batches that networks of `counted` have computed."""
        return []

    @pytest.fixture
    def counted(self, trained: nn.Module, computed: list[torch.Tensor]) -> nn.Module:
        """The trained network; its copies also write the batches that they compute into `computed`."""
        network = copy.deepcopy(trained)

        def observe(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if len(inputs[0]) > 2 or inputs[0].is_meta:  # a teacher first tries two images
                computed.append(inputs[0])

        network.register_forward_pre_hook(observe)
        return network

    def test_students_end_as_with_separate_teachers(
        self, counted: nn.Module, digits: DataSplits, computed: list[torch.Tensor]
    ) -> None:
        config = DistillationConfig(epochs=0.5, min_steps=0, batch_size=64)
        students = [create("small_cnn", 10, 1, seed=seed) for seed in (1, 2)]
        alone = [distil(student, counted, digits, config, run=QUIET) for student in students]
        steps, shared = len(computed) // 2, Teacher(counted)
        computed.clear()
        together = [distil(student, shared, digits, config, run=QUIET) for student in students]
        assert len(computed) == steps > 1, "the second student's batches were those of the first"
        assert all(map(same, together, alone))
        distil(students[0], shared, digits, dataclasses.replace(config, seed=1), run=QUIET)
        assert len(computed) == 2 * steps, "another seed has other batches"

    def test_a_full_memory_keeps_the_first_answers(self, counted: nn.Module, computed: list[torch.Tensor]) -> None:
        first, second = torch.zeros(8, 1, 16, 16), torch.ones(8, 1, 16, 16)
        teacher = Teacher(counted, memory=8 * 10 * 4)
        answers = [teacher(images) for images in (first, second, first, second)]
        assert [float(images.max()) for images in computed] == [0, 1, 1]
        assert torch.equal(answers[0], answers[2])
        assert torch.equal(answers[1], answers[3])

    def test_images_of_equal_bytes_and_another_shape_are_distinguished(self) -> None:
        teacher = Teacher(nn.Flatten())
        assert teacher(torch.zeros(4, 1, 2, 2)).shape == (4, 4)
        assert teacher(torch.zeros(2, 1, 4, 2)).shape == (2, 8)

    def test_answers_are_not_views_of_the_images(self) -> None:
        """The output of Flatten is a view of the images, whose memory the next batch overwrites."""
        teacher, images = Teacher(nn.Flatten()), torch.zeros(2, 1, 2, 2)
        with torch.inference_mode():
            teacher(images)
        images += 1
        answer = teacher(torch.zeros(2, 1, 2, 2))
        assert answer.sum() == 0
        assert not answer.is_inference()

    def test_other_devices_have_no_memory(self, counted: nn.Module, computed: list[torch.Tensor]) -> None:
        teacher, images = Teacher(counted, "meta"), torch.empty(2, 1, 16, 16, device="meta")
        assert teacher(images).shape == teacher(images).shape == (2, 10)
        assert len(computed) == 2

    def test_a_teacher_on_another_device_is_refused(self, trained: nn.Module, digits: DataSplits) -> None:
        with pytest.raises(ValueError, match=r"meta.* cpu"):
            distil(trained, Teacher(trained, "meta"), digits, LAST, run=QUIET)
        distil(trained, Teacher(trained, "cpu:0"), digits, LAST, run=QUIET)  # the same device by another name
