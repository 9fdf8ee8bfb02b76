"""A metric, a loss and a network of one's own, from the environment to the distilled network."""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from structures import KINDS, random_network
from torch import nn
from torch.nn import functional as F

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.fingerprints import function_fingerprint, qualified_name
from prune_env.data import DataSplits, Split, from_tensors
from prune_env.evaluation import evaluator as evaluator_module
from prune_env.finalise import accuracy, choose, distil_fully
from prune_env.networks import create
from prune_env.scoring.latency import latency
from prune_env.scoring.metric import score
from prune_env.training.distillation import DistillationConfig, Teacher, distill, distillation_loss
from prune_env.training.fit import FitConfig, fit
from prune_env.training.step import first_tensor

SHORT = DistillationConfig(epochs=2, min_steps=20, batch_size=64)
SETTINGS = {"reward_images": 100, "calibration_images": 200, "prove": False}


def every_label(model: nn.Module, split: Split) -> float:
    """Fraction of the images of which every label is right."""
    return float(((model(split.images) > 0) == (split.labels > 0.5)).all(1).float().mean())


def explained(model: nn.Module, split: Split) -> float:
    """R^2 of a regression; below 0 for what is worse than the mean."""
    outputs = model(split.images)[:, 0]
    return float(1 - (outputs - split.labels).square().mean() / split.labels.var(unbiased=False))


def by_label(logits: torch.Tensor, _images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels)


def squared(logits: torch.Tensor, _images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(logits[:, 0], labels)


def with_targets(digits: DataSplits, targets: Callable[[torch.Tensor], torch.Tensor]) -> DataSplits:
    parts = {
        part: (s.images, targets(s.labels)) for part in ("train", "reward", "test") if (s := getattr(digits, part))
    }
    images = {part: (digits.normalise(images), labels) for part, (images, labels) in parts.items()}
    return from_tensors(*images["train"], *images["test"], reward=images["reward"], name="targets")


@pytest.fixture(scope="module")
def several(digits: DataSplits) -> DataSplits:
    """Two labels an image: whether the digit is even, and whether it is at least five."""
    return with_targets(digits, lambda labels: torch.stack([labels % 2 == 0, labels >= 5], 1).float())


@pytest.fixture(scope="module")
def value(digits: DataSplits) -> DataSplits:
    """A regression of the digit's value."""
    return with_targets(digits, lambda labels: labels.float() / 9)


def with_head(trained: nn.Module, outputs: int, data: DataSplits, loss: Any) -> nn.Module:
    model = copy.deepcopy(trained)
    model.classifier = nn.Linear(128, outputs)
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    return fit(model, data, FitConfig(epochs=6, batch_size=64, lr=0.02, ema_decay=0.9), loss=loss, progress=False)


@pytest.fixture(scope="module")
def multi(trained: nn.Module, several: DataSplits) -> nn.Module:
    return with_head(trained, 2, several, by_label)


@pytest.fixture(scope="module")
def regressor(trained: nn.Module, value: DataSplits) -> nn.Module:
    return with_head(trained, 1, value, squared)


def play(env: FilterPruneEnv, action: int = 3) -> dict[str, Any]:
    """One episode; the last infos."""
    _, infos = env.reset()
    while env.agents:
        *_, infos = env.step(dict.fromkeys(env.agents, action))
    return infos


class TestEndToEnd:
    def test_several_labels_an_image(self, multi: nn.Module, several: DataSplits) -> None:
        config = EnvConfig(**SETTINGS, target_macs=0.15)  # type: ignore[arg-type]
        env = FilterPruneEnv.from_model(multi, several, config, metric=every_label, loss=by_label)
        assert env.evaluator.original_accuracy > 0.8
        assert score(multi, several, several.reward, every_label) > 0.8
        infos = play(env)
        plan = env.archive.best(1)[0].plan
        assert infos["conv_0"]["accuracy"] == env.archive.best(1)[0].accuracy == env.evaluator.accuracy(plan)
        (finalist,) = choose(env, [plan], SHORT, progress=False)
        assert finalist.distilled_accuracy > finalist.recalibrated_accuracy + 0.1
        network = distil_fully(env, plan, SHORT, progress=False)
        final = accuracy(network, several, several.reward, metric=env.metric)
        assert final >= finalist.distilled_accuracy - 0.03
        with torch.inference_mode():
            outputs = network(several.normalise(several.reward.images))
        assert final == pytest.approx(float(((outputs > 0) == (several.reward.labels > 0.5)).all(1).float().mean()))

    def test_a_regression_with_recovery(self, regressor: nn.Module, value: DataSplits) -> None:
        settings = SETTINGS | {"round_finetune_batches": 3, "every_round": True}
        env = FilterPruneEnv.from_model(regressor, value, EnvConfig(**settings), metric=explained, loss=squared)  # type: ignore[arg-type]
        assert 0.6 < env.evaluator.original_accuracy < 1
        _, infos = env.reset()
        assert infos["conv_0"]["accuracy"] == env.evaluator.original_accuracy
        _, rewards, _, _, infos = env.step(dict.fromkeys(env.agents, 9))
        change = infos["conv_0"]["accuracy"] / env.evaluator.original_accuracy - 1
        assert rewards["conv_0"] == pytest.approx(change)

    def test_a_regression_that_is_trained_before_it_is_measured(self, regressor: nn.Module, value: DataSplits) -> None:
        accuracies = []
        for batches in (0, 8):
            config = EnvConfig(**SETTINGS, finetune_batches=batches)  # type: ignore[arg-type]
            env = FilterPruneEnv.from_model(regressor, value, config, metric=explained, loss=squared)
            play(env)
            accuracies.append(env.archive.best(1)[0].accuracy)
            network = env.pruned_model()
        assert accuracies[1] > accuracies[0]
        split = value.reward.balanced(env.config.reward_images)
        with torch.no_grad():
            found = explained(network, Split(value.normalise(split.images), split.labels))
        assert found == pytest.approx(accuracies[1], abs=0.02)

    def test_a_metric_of_a_classifier(self, trained: nn.Module, digits: DataSplits) -> None:
        """Labels are class numbers; only what counts as good is another thing."""

        def top2(model: nn.Module, split: Split) -> torch.Tensor:
            return (model(split.images).topk(2).indices == split.labels[:, None]).any(1).float().mean()

        config = EnvConfig(**SETTINGS)  # type: ignore[arg-type]
        first = FilterPruneEnv.from_model(trained, digits, config)
        second = FilterPruneEnv.from_model(trained, digits, config, metric=top2)  # type: ignore[arg-type]
        play(first), play(second)
        assert second.archive.best(1)[0].accuracy > first.archive.best(1)[0].accuracy


class TestMetric:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_what_it_is_given(
        self, dtype: torch.dtype, trained: nn.Module, digits: DataSplits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluator_module, "fast_dtype", lambda _: dtype)
        seen: list[tuple[nn.Module, Split]] = []

        def metric(model: nn.Module, split: Split) -> float:
            assert not model.training
            assert torch.is_inference_mode_enabled()
            assert split.images.dtype == next(model.parameters()).dtype == dtype
            assert model(split.images[:7]).dtype == torch.float32
            seen.append((model, split))
            return 0.5

        env = FilterPruneEnv.from_model(trained, digits, EnvConfig(**SETTINGS), metric=metric)  # type: ignore[arg-type]
        assert env.evaluator.original_accuracy == 0.5
        model, split = seen[-1]
        expected = digits.reward.balanced(100)
        assert torch.equal(split.labels, expected.labels)
        assert torch.equal(split.images, digits.normalise(expected.images).to(dtype))
        assert not model._forward_hooks

    def test_scores_leave_the_model_as_it_was(self, digits: DataSplits) -> None:
        model = create("small_cnn", 10, 1).train()
        model.features[1].eval()
        modes = [module.training for module in model.modules()]

        def fails(model: nn.Module, split: Split) -> float:
            raise RuntimeError("mine")

        assert score(model, digits, digits.reward, lambda model, split: len(split)) == 300
        with pytest.raises(RuntimeError, match="mine"):
            score(model, digits, digits.reward, fails)
        assert [module.training for module in model.modules()] == modes
        assert not model._forward_hooks

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (None, r"metric .*fixed must return one number, it returned None"),
            (torch.ones(2), r"metric .*fixed must return one number, it returned tensor"),
            (float("nan"), r"metric .*fixed must return a finite number, it returned nan"),
            (float("inf"), r"metric .*fixed must return a finite number, it returned inf"),
            (0.0, r"metric .*fixed is 0.0 for the unpruned network; it must be above 0"),
            (-0.2, r"metric .*fixed is -0.2 for the unpruned network; it must be above 0"),
        ],
    )
    def test_bad_values(self, result: Any, message: str, trained: nn.Module, digits: DataSplits) -> None:
        def fixed(model: nn.Module, split: Split) -> Any:
            return result

        with pytest.raises(ValueError, match=message):
            FilterPruneEnv.from_model(trained, digits, EnvConfig(**SETTINGS), metric=fixed)  # type: ignore[arg-type]

    def test_amc_needs_an_error(self, trained: nn.Module, digits: DataSplits) -> None:
        config = EnvConfig(**SETTINGS, reward="amc")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"is 20\.0 for the unpruned network; reward 'amc'"):
            FilterPruneEnv.from_model(trained, digits, config, metric=lambda model, split: 20.0)
        FilterPruneEnv.from_model(trained, digits, config, metric=lambda model, split: 1.0)

    def test_a_recalibration_that_hurts_is_told_in_the_metrics_own_scale(
        self, trained: nn.Module, digits: DataSplits
    ) -> None:
        values = iter([40.0, 30.0])
        with pytest.warns(UserWarning, match=r"costs the unpruned network 10 of metric .*<lambda> .*\(40 with stored"):
            FilterPruneEnv.from_model(trained, digits, EnvConfig(**SETTINGS), metric=lambda model, split: next(values))  # type: ignore[arg-type]

    def test_the_problem_knows_metric_and_loss(self, trained: nn.Module, digits: DataSplits) -> None:
        def half(model: nn.Module, split: Split) -> float:
            return 0.5

        def third(model: nn.Module, split: Split) -> float:
            return 0.5

        config = EnvConfig(**SETTINGS)  # type: ignore[arg-type]
        choices: list[dict[str, Any]] = [{}, {"metric": half}, {"metric": third}, {"loss": by_label}]
        problems = {FilterPruneEnv.from_model(trained, digits, config, **choice).problem for choice in choices}
        assert len(problems) == 4

    def test_names(self) -> None:
        class Scorer:
            def __call__(self, model: nn.Module, split: Split) -> float:
                return 1.0

        assert qualified_name(every_label).endswith("test_own_problem.every_label")
        assert qualified_name(functools.partial(every_label)) == qualified_name(every_label)
        assert qualified_name(Scorer()).endswith("Scorer")

    def test_functions_of_one_name_are_told_apart(self) -> None:
        """A run must not go on with another metric or loss."""

        def scaled(model: nn.Module, split: Split, factor: float) -> float:
            return factor

        one, other = (lambda model, split: 1.0), (lambda model, split: 2.0)
        functions = [one, other, functools.partial(scaled, factor=1.0), functools.partial(scaled, factor=2.0)]
        assert len({function_fingerprint(function) for function in functions}) == 4
        assert function_fingerprint(one) == function_fingerprint(one)

    def test_the_best_epoch_is_the_metrics(self, digits: DataSplits) -> None:
        """Values fall, and are below -1: the first epoch wins."""
        calls = []

        def falling(model: nn.Module, split: Split) -> float:
            assert len(split) == len(digits.reward)
            calls.append(copy.deepcopy(model.state_dict()))
            return -5.0 - len(calls)

        settings = FitConfig(epochs=3, batch_size=256, lr=0.01)
        result = fit(
            create("small_cnn", 10, 1), digits, settings, metric=falling, select_best=True, progress=False
        ).state_dict()
        assert len(calls) == 3
        assert all(torch.equal(result[name], tensor) for name, tensor in calls[0].items())
        assert not torch.equal(result["classifier.weight"], calls[1]["classifier.weight"])

    def test_a_checkpoint_of_another_metric_is_refused(self, digits: DataSplits, tmp_path: Path) -> None:
        model, settings = create("small_cnn", 10, 1), FitConfig(epochs=1, batch_size=256)
        common: dict[str, Any] = {"select_best": True, "checkpoint": tmp_path / "run.pt", "progress": False}
        fit(model, digits, settings, **common)
        with pytest.raises(ValueError, match="checkpoint of another run"):
            fit(model, digits, settings, metric=every_label, **common)

    def test_labels_without_classes_need_one(self, multi: nn.Module, several: DataSplits) -> None:
        for attempt in (
            lambda: FilterPruneEnv.from_model(multi, several, EnvConfig(**SETTINGS)),  # type: ignore[arg-type]
            lambda: score(multi, several, several.reward),
            lambda: fit(multi, several, loss=by_label, select_best=True, progress=False),
        ):
            with pytest.raises(ValueError, match=r"floating-point targets, .* give a metric"):
                attempt()

    def test_it_is_given_ordinary_networks(self, trained: nn.Module, digits: DataSplits) -> None:
        """It may count parameters, call parts, differentiate, and even spoil the network: the next one is new."""
        seen: list[int] = []

        def curious(model: nn.Module, split: Split) -> float:
            with torch.inference_mode(False), torch.enable_grad():
                images = split.images[:2].clone().requires_grad_()
                model(images).sum().backward()
                assert images.grad is not None
            model.features(split.images[:2])
            seen.append(sum(parameter.numel() for parameter in model.parameters()))
            right = float((model(split.images).argmax(1) == split.labels).float().mean())
            with torch.no_grad():
                for parameter in model.train().parameters():
                    parameter.zero_()
            return right

        env = FilterPruneEnv.from_model(trained, digits, EnvConfig(**SETTINGS), metric=curious)  # type: ignore[arg-type]
        first = env.evaluator.original_accuracy
        half = tuple(count // 2 for count in env.problem.full_plan)
        assert first > 0.8
        assert env.evaluator.accuracy(half) > 0.3
        assert seen[-1] < 0.4 * seen[0]
        assert (
            FilterPruneEnv.from_model(
                trained, digits, EnvConfig(**SETTINGS), metric=curious
            ).evaluator.original_accuracy
            == first
        )  # type: ignore[arg-type]


class TestLoss:
    def test_labels_without_classes_need_one(self, multi: nn.Module, several: DataSplits) -> None:
        between = EnvConfig(**SETTINGS, round_finetune_batches=1)  # type: ignore[arg-type]
        before = EnvConfig(**SETTINGS, finetune_batches=1)  # type: ignore[arg-type]
        for attempt in (
            lambda: fit(multi, several, progress=False),
            lambda: distill(multi, multi, several, select_best=False, progress=False),
            lambda: FilterPruneEnv.from_model(multi, several, between, metric=every_label),
            lambda: FilterPruneEnv.from_model(multi, several, before, metric=every_label),
        ):
            with pytest.raises(ValueError, match=r"floating-point targets, .* give a loss\(logits, images, labels\)"):
                attempt()

    def test_taylor_needs_classes(self, multi: nn.Module, several: DataSplits) -> None:
        config = EnvConfig(**SETTINGS, importance="taylor")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="importance 'taylor' differentiates the cross-entropy"):
            FilterPruneEnv.from_model(multi, several, config, metric=every_label)

    def test_distillation_by_hand(self) -> None:
        teacher = nn.Conv2d(1, 2, 1).requires_grad_(False)
        nn.init.constant_(teacher.weight, 0.5)
        nn.init.constant_(teacher.bias, 0.25)
        logits, images = torch.tensor([[1.0, -1.0]]), torch.ones(1, 1, 1, 1)
        network = nn.Sequential(teacher, nn.Flatten())
        config = DistillationConfig(alpha=0.75, temperature=7.0)
        loss = distillation_loss(Teacher(network), config, lambda *_: torch.tensor(8.0), classes=False)
        taught = 0.75  # of both outputs
        soft = ((1 - taught) ** 2 + (-1 - taught) ** 2) / 2
        assert float(loss(logits, images, torch.zeros(1, 2))) == pytest.approx(0.75 * soft + 0.25 * 8.0)

    def test_a_classifiers_own_loss_takes_the_labels_part(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(1, 3))
        logits, images, labels = torch.randn(4, 3), torch.randn(4, 1, 1, 1), torch.arange(4) % 3
        config = DistillationConfig(alpha=0.5)
        plain = distillation_loss(Teacher(network), config)(logits, images, labels)
        own = distillation_loss(Teacher(network), config, lambda *_: torch.tensor(10.0))
        hard = F.cross_entropy(logits, labels)
        assert float(own(logits, images, labels) - plain) == pytest.approx(float(0.5 * (10 - hard)), rel=1e-5)

    def test_a_checkpoint_of_another_loss_is_refused(
        self, multi: nn.Module, several: DataSplits, tmp_path: Path
    ) -> None:
        config = DistillationConfig(epochs=0.2, min_steps=1)
        common: dict[str, Any] = {"select_best": False, "checkpoint": tmp_path / "run.pt", "progress": False}
        distill(multi, multi, several, config, loss=by_label, **common)
        with pytest.raises(ValueError, match="checkpoint of another run"):
            distill(multi, multi, several, config, loss=squared, **common)


Outputs = namedtuple("Outputs", ["logits", "aux"])


class Auxiliary(nn.Module):
    """Like GoogLeNet: a second head in training mode."""

    def __init__(self, network: nn.Module, pack: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.pack = network, pack
        self.aux = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> Any:
        logits = self.network(images)
        return self.pack(logits, self.aux(images.flatten(1))) if self.training else logits


class TestAuxiliaryHeads:
    @pytest.mark.parametrize("pack", [Outputs, lambda *both: both, lambda *both: list(both)])
    def test_the_first_output_is_trained(self, digits: DataSplits, pack: Callable[..., Any]) -> None:
        plain = create("small_cnn", 10, 1)
        settings = FitConfig(epochs=1, batch_size=128, lr=0.05)
        model = Auxiliary(copy.deepcopy(plain), pack)
        result = fit(model, digits, settings, progress=False)
        expected = fit(plain, digits, settings, progress=False)
        for name, tensor in expected.state_dict().items():
            assert torch.allclose(result.network.state_dict()[name], tensor, atol=1e-4), name
        assert torch.equal(result.aux.weight, model.aux.weight)

    @pytest.mark.parametrize("output", [{"logits": torch.zeros(1)}, (), [None], None])
    def test_other_outputs_are_refused(self, output: Any) -> None:
        with pytest.raises(TypeError, match="must return a tensor of logits"):
            first_tensor(output)

    def test_it_is_pruned(self, trained: nn.Module, digits: DataSplits) -> None:
        model = Auxiliary(copy.deepcopy(trained), Outputs).train()
        env = FilterPruneEnv.from_model(model, digits, EnvConfig(**SETTINGS))  # type: ignore[arg-type]
        infos = play(env)
        assert infos["conv_0"]["macs_ratio"] <= 0.5
        assert distil_fully(env, env.plan, SHORT, progress=False).network.features[0].out_channels == env.plan[0]
        assert model.training


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class TestAnyNetwork:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("training", [False, True])
    def test_the_users_model_stays_as_it_is(
        self, trained: nn.Module, digits: DataSplits, device: str, dtype: torch.dtype, training: bool
    ) -> None:
        model = copy.deepcopy(trained).to(device, dtype).train(training)
        model.features[0].requires_grad_(False)
        calls = []
        handle = model.features[3].register_forward_hook(lambda *_: calls.append(1))
        model.features[3].weight.grad = torch.ones_like(model.features[3].weight)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        parameters = [(id(parameter), parameter.requires_grad) for parameter in model.parameters()]

        env = FilterPruneEnv.from_model(model, digits, EnvConfig(**SETTINGS))  # type: ignore[arg-type]
        assert env.evaluator.original_accuracy > 0.85
        play(env)
        pruned = env.pruned_model()
        distil_fully(env, env.plan, SHORT, progress=False)

        assert not calls, "the user's hooks are not called by ours"
        assert len(model.features[3]._forward_hooks) == 1
        assert not env.problem.model.features[3]._forward_hooks
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == before[name].dtype
            assert tensor.device.type == device
            assert torch.equal(tensor, before[name])
        assert [(id(parameter), parameter.requires_grad) for parameter in model.parameters()] == parameters
        assert all(module.training == training for module in model.modules())
        assert bool((model.features[3].weight.grad == 1).all())
        assert {parameter.dtype for parameter in pruned.parameters()} == {torch.float32}
        handle.remove()

    def test_what_cannot_be_copied_is_told(self, trained: nn.Module, digits: DataSplits) -> None:
        from torch.nn.utils import prune

        model = copy.deepcopy(trained)
        prune.l1_unstructured(model.features[0], "weight", amount=0.5)
        with pytest.raises(ValueError, match="made permanent first"):
            FilterPruneEnv.from_model(model, digits)

    @pytest.mark.parametrize("kind", sorted(KINDS))
    def test_every_structure_is_played_and_distilled(self, kind: str) -> None:
        """Not found and proven alone: evaluated, trained, and timed, too."""
        model, _ = random_network(["Plain", kind, "Plain"], "mean", 0)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (100, 3, 8, 8), generator=generator, dtype=torch.uint8)
        data = from_tensors(images, torch.arange(100) % 5, images[:20], torch.arange(20) % 5)
        config = EnvConfig(target_macs=0.9, reward_images=20, calibration_images=20, min_filters=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what is protected, of random weights, of targets
            env = FilterPruneEnv.from_model(model, data, config)
        play(env)
        network = distil_fully(env, env.plan, dataclasses.replace(SHORT, min_steps=1, epochs=1), progress=False)
        assert network(data.normalise(data.test.images)).shape == (20, 5)
        assert latency(network, (3, 8, 8), 2, warmup=1, seconds=0.01, min_runs=1).median_ms > 0
