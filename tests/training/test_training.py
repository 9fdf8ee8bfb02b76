"""The training loop and distillation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prune_env.data import DataSplits
from prune_env.networks import create
from prune_env.pruning import build, find_groups, importance
from prune_env.scoring.metric import correct
from prune_env.training import fit as fit_module
from prune_env.training.distillation import DistillationConfig, Teacher, distill, distillation_loss
from prune_env.training.fit import FitConfig, fit

SHORT = FitConfig(epochs=2, batch_size=128, lr=0.05, ema_decay=0.9, seed=3)


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


@contextmanager
def dying_after_a_checkpoint() -> Iterator[None]:
    save = fit_module._save

    def save_then_die(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(fit_module, "_save", save_then_die)
        yield


@pytest.mark.usefixtures("untouched_rngs")
def test_same_seed_same_weights(digits: DataSplits) -> None:
    model = create("small_cnn", 10, 1)
    before = copy.deepcopy(model)
    first, second = (fit(model, digits, SHORT, progress=False) for _ in range(2))
    assert same(first, second)
    assert same(model, before), "the given model is not changed"
    assert not same(first, fit(model, digits, FitConfig(epochs=2, batch_size=128, seed=4), progress=False))
    assert not first.training


def test_it_learns(digits: DataSplits) -> None:
    model = create("small_cnn", 10, 1)
    trained = fit(model, digits, FitConfig(epochs=6, batch_size=64), progress=False)
    assert correct(model.eval(), digits, digits.reward) < 100
    assert correct(trained, digits, digits.reward) > 230  # of 300; numbers differ a little by machine


@pytest.mark.slow
@pytest.mark.parametrize("muon_lr", [0.0, 0.1])
@pytest.mark.parametrize("select_best", [False, True])
def test_a_killed_run_ends_like_an_undisturbed_one(
    digits: DataSplits, tmp_path: Path, select_best: bool, muon_lr: float
) -> None:
    model, file = create("small_cnn", 10, 1), tmp_path / "run.pt"
    config = dataclasses.replace(SHORT, muon_lr=muon_lr)
    expected = fit(model, digits, config, select_best=select_best, progress=False)
    with dying_after_a_checkpoint():
        fit(model, digits, config, select_best=select_best, checkpoint=file, progress=False)
    resumed = fit(model, digits, config, select_best=select_best, checkpoint=file, progress=False)
    assert same(expected, resumed)
    assert same(expected, fit(model, digits, config, select_best=select_best, checkpoint=file, progress=False))


@pytest.mark.usefixtures("untouched_rngs")
def test_dropout_follows_from_seed_and_epoch(digits: DataSplits, tmp_path: Path) -> None:
    """Whatever was drawn before, and across a kill."""
    model, file = nn.Sequential(create("small_cnn", 10, 1), nn.Dropout(0.3)), tmp_path / "run.pt"
    expected = fit(model, digits, SHORT, progress=False)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert same(expected, fit(model, digits, SHORT, progress=False))
    with dying_after_a_checkpoint():
        fit(model, digits, SHORT, checkpoint=file, progress=False)
    assert same(expected, fit(model, digits, SHORT, checkpoint=file, progress=False))


def test_of_equally_good_epochs_the_last_wins(digits: DataSplits) -> None:
    """A small reward split is soon full of right answers; training goes on to pay."""
    model = create("small_cnn", 10, 1)
    last = fit(model, digits, SHORT, progress=False)
    chosen = fit(model, digits, SHORT, select_best=True, metric=lambda *_: 0.5, progress=False)
    assert same(last, chosen)


def test_a_checkpoint_of_another_run_is_refused(digits: DataSplits, tmp_path: Path) -> None:
    model, file = create("small_cnn", 10, 1), tmp_path / "run.pt"
    fit(model, digits, SHORT, checkpoint=file, progress=False)
    with pytest.raises(ValueError, match="checkpoint of another run"):
        fit(model, digits, FitConfig(epochs=3, batch_size=128), checkpoint=file, progress=False)


def test_a_fraction_of_an_epoch(digits: DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    def count(logits: torch.Tensor, _images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return F.cross_entropy(logits.float(), labels)

    per_epoch = len(digits.train) // 64
    fit(create("small_cnn", 10, 1), digits, FitConfig(epochs=3 / per_epoch, batch_size=64), loss=count, progress=False)
    assert steps == 3


def test_statistics_are_those_of_the_averaged_weights(digits: DataSplits) -> None:
    """Averaging the statistics of moving weights gives those of no network."""
    trained = fit(create("small_cnn", 10, 1), digits, SHORT, progress=False)
    probe = copy.deepcopy(trained)
    seen: list[torch.Tensor] = []
    probe.features[0].register_forward_hook(lambda *args: seen.append(args[2]))
    images = digits.augmented(digits.train.images, torch.Generator().manual_seed(9))
    probe(images)
    means = seen[0].mean((0, 2, 3))
    assert torch.allclose(means, trained.features[1].running_mean, atol=0.05)


def test_a_loss_that_is_not_finite_stops(digits: DataSplits) -> None:
    def broken(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return logits.sum() * float("nan")

    with pytest.raises(FloatingPointError, match="the loss is nan at step 0"):
        fit(create("small_cnn", 10, 1), digits, SHORT, loss=broken, progress=False)


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"batch_size": 1}, {"lr": 0}, {"muon_lr": -1}, {"warmup": 1.0}, {"ema_decay": -0.1}]
)
def test_bad_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        FitConfig(**bad)  # type: ignore[arg-type]


class TestDistillation:
    def test_loss_by_hand(self) -> None:
        """Hinton et al. 2015, written out with plain sums."""
        teacher, temperature, alpha = nn.Linear(3, 4), 2.0, 0.7
        config = DistillationConfig(temperature=temperature, alpha=alpha)
        inputs = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 2.0]])
        student, labels = torch.tensor([[0.1, 0.2, -0.3, 0.0], [1.0, 0.0, -1.0, 2.0]]), torch.tensor([1, 3])
        exact = copy.deepcopy(teacher).to(torch.bfloat16) if _rounds() else teacher
        logits = exact(inputs.to(next(exact.parameters()).dtype)).float().detach()
        p, q = (logits / temperature).softmax(1), (student / temperature).softmax(1)
        soft = (p * (p.log() - q.log())).sum(1).mean() * temperature**2
        hard = -student.softmax(1).log()[torch.arange(2), labels].mean()
        value = distillation_loss(Teacher(_Frozen(teacher)), config)(student, inputs, labels)
        assert float(value) == pytest.approx(float(alpha * soft + (1 - alpha) * hard), rel=1e-4)

    def test_every_pruned_layer_moves(self, trained: nn.Module, digits: DataSplits) -> None:
        """Case 10: the optimizer holds the smaller network's own parameters."""
        groups = find_groups(trained, digits.example_input)
        ranking = importance.ranking(importance.scores("l1", trained, groups))
        student = build(trained, groups, ranking, tuple(group.filters // 2 for group in groups))
        steps = len(digits.train) // 128
        config = DistillationConfig(epochs=1 / steps, min_steps=0, batch_size=128, ema_decay=0.0)
        result = distill(student, trained, digits, config, select_best=False, progress=False)
        for (name, before), after in zip(student.named_parameters(), result.parameters(), strict=True):
            assert before.shape == after.shape
            assert not torch.equal(before, after), f"{name} did not move"

    def test_it_recovers_accuracy_and_leaves_the_teacher(self, trained: nn.Module, digits: DataSplits) -> None:
        before = copy.deepcopy(trained.state_dict())
        groups = find_groups(trained, digits.example_input)
        ranking = importance.ranking(importance.scores("l1", trained, groups))
        student = build(trained, groups, ranking, tuple(group.filters // 2 for group in groups))
        config = DistillationConfig(epochs=4, min_steps=100, batch_size=64)
        result = distill(student, trained, digits, config, progress=False)
        assert correct(result, digits, digits.reward) > correct(student, digits, digits.reward) + 30
        assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
        assert all(parameter.grad is None for parameter in trained.parameters())

    def test_a_checkpoint_of_another_teacher_or_loss_is_refused(
        self, trained: nn.Module, digits: DataSplits, tmp_path: Path
    ) -> None:
        other, file = create("small_cnn", 10, 1, seed=8).eval(), tmp_path / "run.pt"
        config = DistillationConfig(epochs=0.2, min_steps=1)
        distill(other, trained, digits, config, checkpoint=file, progress=False)
        for teacher, student, settings in (
            (other, other, config),
            (trained, trained, config),
            (trained, other, dataclasses.replace(config, temperature=9.0)),
            (trained, other, dataclasses.replace(config, alpha=0.0)),
        ):
            with pytest.raises(ValueError, match="checkpoint of another run"):
                distill(student, teacher, digits, settings, checkpoint=file, progress=False)
        with pytest.raises(ValueError, match="checkpoint of another run"):
            distill(other, trained, digits, config, select_best=False, checkpoint=file, progress=False)

    def test_bad_settings(self) -> None:
        with pytest.raises(ValueError, match="temperature"):
            DistillationConfig(temperature=0)
        with pytest.raises(ValueError, match="alpha"):
            DistillationConfig(alpha=1.5)


class TestTeacher:
    """What students of one seed share."""

    @pytest.fixture
    def computed(self, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
        """The batches that were really computed."""
        batches, compute = [], Teacher._compute

        def counting(teacher: Teacher, images: torch.Tensor) -> torch.Tensor:
            batches.append(images)
            return compute(teacher, images)

        monkeypatch.setattr(Teacher, "_compute", counting)
        return batches

    def test_students_end_as_with_a_teacher_of_their_own(
        self, trained: nn.Module, digits: DataSplits, computed: list[torch.Tensor]
    ) -> None:
        config = DistillationConfig(epochs=0.5, min_steps=0, batch_size=64)
        students = [create("small_cnn", 10, 1, seed=seed) for seed in (1, 2)]
        alone = [distill(student, trained, digits, config, progress=False) for student in students]
        steps, shared = len(computed) // 2, Teacher(trained)
        computed.clear()
        together = [distill(student, shared, digits, config, progress=False) for student in students]
        assert len(computed) == steps > 1, "the second student's batches were those of the first"
        assert all(map(same, together, alone))
        distill(students[0], shared, digits, dataclasses.replace(config, seed=1), progress=False)
        assert len(computed) == 2 * steps, "another seed has other batches"

    def test_a_full_memory_keeps_what_came_first(self, trained: nn.Module, computed: list[torch.Tensor]) -> None:
        first, second = torch.rand(2, 8, 1, 16, 16)
        teacher = Teacher(trained, memory=8 * 10 * 4)
        answers = [teacher(images) for images in (first, second, first, second)]
        assert [images is first for images in computed] == [True, False, False]
        assert torch.equal(answers[0], answers[2])
        assert torch.equal(answers[1], answers[3])

    def test_images_of_equal_bytes_and_another_shape_are_others(self, computed: list[torch.Tensor]) -> None:
        teacher = Teacher(nn.Flatten())
        assert teacher(torch.zeros(4, 1, 2, 2)).shape == (4, 4)
        assert teacher(torch.zeros(2, 1, 4, 2)).shape == (2, 8)

    def test_what_it_said_is_its_own(self) -> None:
        """Flatten's output is a view of the images, in whose place others come."""
        teacher, images = Teacher(nn.Flatten()), torch.zeros(2, 1, 2, 2)
        with torch.inference_mode():
            teacher(images)
        images += 1
        answer = teacher(torch.zeros(2, 1, 2, 2))
        assert answer.sum() == 0
        assert not answer.is_inference()

    def test_off_the_cpu_it_computes(self, trained: nn.Module, computed: list[torch.Tensor]) -> None:
        teacher, images = Teacher(trained, "meta"), torch.empty(2, 1, 16, 16, device="meta")
        assert teacher(images).shape == teacher(images).shape == (2, 10)
        assert len(computed) == 2

    @pytest.mark.parametrize("wrong", [None, "teacher.safetensors", torch.zeros(2)])
    def test_what_teaches_nothing_is_refused(self, trained: nn.Module, digits: DataSplits, wrong: object) -> None:
        with pytest.raises(
            TypeError, match=rf"teacher must be a network \(nn.Module\) or a Teacher, got {type(wrong).__name__}"
        ):
            distill(trained, wrong, digits, progress=False)  # type: ignore[arg-type]

    def test_one_of_another_device_is_refused(self, trained: nn.Module, digits: DataSplits) -> None:
        with pytest.raises(ValueError, match="teacher is on meta, the student is to learn on cpu"):
            distill(trained, Teacher(trained, "meta"), digits, progress=False)
        brief = DistillationConfig(epochs=0.01, min_steps=0)
        distill(trained, Teacher(trained, "cpu:0"), digits, brief, device="cpu", progress=False)  # the same device


class _Frozen(nn.Module):
    """Takes what a linear layer takes; the loss converts the teacher to channels_last, which needs nothing here."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def _rounds() -> bool:
    from prune_env.common.device import fast_dtype

    return fast_dtype() == torch.bfloat16


def test_what_is_frozen_in_part_stays_and_what_is_frozen_as_a_whole_learns(digits: DataSplits) -> None:
    model = create("small_cnn", 10, 1)
    first = model.features[0]
    first.requires_grad_(False)
    trained = fit(model, digits, SHORT, progress=False)
    assert torch.equal(trained.features[0].weight, first.weight)
    assert not torch.equal(trained.classifier.weight, model.classifier.weight)
    whole = fit(model.requires_grad_(False), digits, SHORT, progress=False)
    assert not torch.equal(whole.features[0].weight, first.weight)


class Strided(nn.Module):
    """Maps of one pixel in front of a convolution with a stride, as ResNet-18 has them on 16x16 images."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 8)
        self.second = nn.Conv2d(32, 64, 3, stride=stride, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def test_a_stride_on_maps_of_one_pixel_trains_the_same_every_time(digits: DataSplits) -> None:
    """In bfloat16 oneDNN leaves uninitialised memory in the weight's gradient."""
    model = Strided(2)
    trained = []
    for _ in range(4):
        junk = [torch.full((size,), float("nan")) for size in (1 << 14, 1 << 16, 1 << 18, 1 << 20) for _ in range(4)]
        del junk
        trained.append(fit(model, digits, dataclasses.replace(SHORT, epochs=1), progress=False))
    assert all(same(trained[0], other) for other in trained[1:])
    assert fit_module._bf16_is_broken(model, digits.example_input)
    assert not fit_module._bf16_is_broken(Strided(1), digits.example_input)
    assert not fit_module._bf16_is_broken(create("small_cnn", 10, 1), digits.example_input)
