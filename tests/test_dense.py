"""Networks with logits for every pixel, or with maps as outputs: from the training to the saved network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem, all_outputs, load_pruned, one_output, save_pruned
from prune_env.data import IGNORED, Augmentation, DataSplits, from_tensors
from prune_env.export import to_onnx, to_torch_export
from prune_env.finalise import Finaliser, accuracy
from prune_env.pruning.inspection import inspect
from prune_env.training.config import FitConfig, RunOptions
from prune_env.training.distillation import CombinedLoss, DistillationConfig, distil
from prune_env.training.fit import fit

QUIET = RunOptions(progress=False)
SHORT = DistillationConfig(epochs=1, min_steps=4, batch_size=32)
SMALL = {"target_macs": 0.5, "reward_images": 40, "calibration_images": 40}


def squares(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy images with a bright and a dark square, and the masks: background, bright, dark."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 12, 12, dtype=torch.long)
    for mask, (row, column) in zip(masks, torch.randint(4, (count, 2), generator=generator).tolist(), strict=True):
        mask[row : row + 4, column : column + 4] = 1
        mask[row + 5 : row + 9, column + 4 : column + 8] = 2
    noise = torch.randint(-30, 31, masks.shape, generator=generator)
    return (128 + noise + 60 * (masks == 1) - 60 * (masks == 2)).to(torch.uint8)[:, None], masks


@pytest.fixture(scope="module")
def data() -> DataSplits:
    images, masks = squares(300, 0)
    masks[:, 0] = IGNORED
    return from_tensors(images, masks, *squares(60, 1), augmentation=Augmentation(pad=1))


class Segmenter(nn.Module):
    """A small U-Net that returns its logits and those of an auxiliary head in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(12, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU())
        self.up = nn.ConvTranspose2d(20, 8, 2, stride=2)
        self.head = nn.Conv2d(20, 3, 1)
        self.aux = nn.Sequential(nn.Conv2d(20, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        full = self.down(images)
        half = self.middle(F.max_pool2d(full, 2))
        return {"out": self.head(torch.cat((self.up(half).relu(), full), 1)), "aux": self.aux(half)}


@pytest.fixture(scope="module")
def segmenter(data: DataSplits) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = one_output(Segmenter(), "out")
    return fit(model, data, FitConfig(epochs=10, batch_size=32, lr=0.1, ema_decay=0.9), run=QUIET)


@pytest.fixture(scope="module")
def env(segmenter: nn.Module, data: DataSplits) -> FilterPruneEnv:
    return FilterPruneEnv.from_model(segmenter, data, EnvConfig(**SMALL))


class TestSegmentation:
    def test_it_is_trained_and_measured_by_the_mean_iou(self, segmenter: nn.Module, data: DataSplits) -> None:
        assert accuracy(segmenter, data, data.test) > 0.9
        assert set(all_outputs(segmenter)(data.example_input)) == {"out", "aux"}

    def test_all_outputs_are_proven(self, env: FilterPruneEnv, segmenter: nn.Module) -> None:
        layers = {layer for group in env.problem.groups for layer in group.layers}
        assert layers == {"down.0", "middle.0", "up", "aux.0"}
        assert inspect(all_outputs(segmenter), env.problem.data.example_input).groups[0].layers == ("down.0",)

    def test_a_plan_is_measured_distilled_and_saved(
        self, env: FilterPruneEnv, segmenter: nn.Module, data: DataSplits, tmp_path: Path
    ) -> None:
        assert env.evaluator.original_accuracy == pytest.approx(
            accuracy(segmenter, data, data.reward.balanced(40)), abs=0.05
        )
        plan = env.least_change.plan(0.5)
        env.play(plan)
        network = Finaliser(env, SHORT, progress=False).distil(plan)
        assert accuracy(network, data, data.test) > 0.8
        mine = all_outputs(network)
        assert type(mine) is Segmenter
        assert torch.equal(mine(data.example_input)["out"], network(data.example_input))
        assert mine(data.example_input)["aux"].shape == (2, 3, 6, 6)

        save_pruned(tmp_path, network, plan, env.problem, base=segmenter)
        loaded = load_pruned(tmp_path, base_model=Segmenter)
        assert torch.allclose(loaded(data.example_input)["aux"], mine(data.example_input)["aux"], atol=1e-4)
        chosen = load_pruned(tmp_path, base_model=segmenter)
        assert torch.allclose(chosen(data.example_input), network(data.example_input), atol=1e-4)

    @pytest.mark.slow
    def test_the_chosen_output_is_exported(self, env: FilterPruneEnv, data: DataSplits, tmp_path: Path) -> None:
        network = env.problem.build(env.least_change.plan(0.5))
        images = data.normalise(data.test.first(4))
        assert to_onnx(network, tmp_path / "a.onnx", images) < 1e-4
        assert to_torch_export(network, tmp_path / "a.pt2", images) < 1e-6

    def test_the_fast_evaluation_is_that_of_the_network(self, env: FilterPruneEnv) -> None:
        split = env.problem.data.reward.balanced(40)
        for plan in (env.problem.full_plan, tuple(count // 2 for count in env.problem.full_plan)):
            network = env.evaluator.network(plan).float().cpu()
            found, expected = env.evaluator.accuracy(plan), accuracy(network, env.problem.data, split)
            assert found == pytest.approx(expected, abs=0.02)

    def test_settings_that_train_and_rank_work(self, segmenter: nn.Module, data: DataSplits) -> None:
        for settings in ({"finetune_batches": 2}, {"importance": "taylor"}):
            changed = FilterPruneEnv.from_model(segmenter, data, EnvConfig(**SMALL, **settings))  # type: ignore[arg-type]
            assert 0.2 < changed.evaluator.accuracy(changed.least_change.plan(0.5)) <= 1

    def test_the_cache_remembers_it(self, segmenter: nn.Module, data: DataSplits, tmp_path: Path) -> None:
        from prune_env.evaluation.resources import Resources

        resources = Resources(cache=tmp_path / "cache.sqlite")
        one, two = (
            FilterPruneEnv.from_model(segmenter, data, EnvConfig(**SMALL), resources=resources).evaluator
            for _ in range(2)
        )
        assert (one.original_accuracy, one.evaluations) == (two.original_accuracy, two.evaluations + 1)


class Wrong(nn.Module):
    """Returns logits of some shape, or several of them."""

    def __init__(self, classes: int, pack: Any = lambda logits: logits, size: int = 12) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, classes, 1)
        self.pack, self.size = pack, size

    def forward(self, images: torch.Tensor) -> Any:
        return self.pack(F.adaptive_avg_pool2d(self.second(self.first(images)), self.size))


class TestMistakes:
    @pytest.mark.parametrize(
        ("network", "named"),
        [
            (Wrong(3, size=6), r"\(2, 3, 6, 6\).*12x12"),
            (Wrong(3, lambda logits: logits.mean((2, 3))), r"\(2, 3\).*12x12"),
            (Wrong(2), r"\(2, 2, 12, 12\).* 3 classes"),
            (Wrong(3, lambda logits: {"out": logits, "aux": logits}), "dict with 'out', 'aux'.*one_output"),
            (Wrong(3, lambda logits: (logits, logits)), "tuple of 2.*one_output"),
            (one_output(Wrong(3, lambda logits: {"out": logits}), "logits"), "no output 'logits'.*'out'"),
        ],
    )
    def test_outputs_that_do_not_fit_the_masks(self, network: nn.Module, named: str, data: DataSplits) -> None:
        with pytest.raises(ValueError, match=named):
            PruningProblem.create(network, data)

    @pytest.mark.parametrize(
        ("network", "named"),
        [(Wrong(3, size=6), r"\(2, 3, 6, 6\).*12x12"), (Wrong(2), r"\(2, 2, 12, 12\).* 3 classes")],
    )
    def test_a_network_that_cannot_learn_the_masks(self, network: nn.Module, named: str, data: DataSplits) -> None:
        with pytest.raises(ValueError, match=named):
            fit(network, data, FitConfig(epochs=1, batch_size=32), run=QUIET)


class TestLosses:
    def test_the_teachers_term_is_a_mean_over_pixels(self) -> None:
        generator = torch.Generator().manual_seed(0)
        teacher, student = torch.randn(2, 4, 3, 5, 2, generator=generator)
        masks = torch.randint(3, (4, 5, 2), generator=generator)
        combined = CombinedLoss(DistillationConfig())
        as_images = [logits.permute(0, 2, 3, 1).reshape(-1, 3) for logits in (teacher, student)]
        expected = combined(*as_images, torch.zeros(0), masks.flatten())
        assert torch.allclose(combined(teacher, student, torch.zeros(0), masks), expected)

    def test_ignored_pixels_do_not_count(self, data: DataSplits) -> None:
        from prune_env.data.objective import cross_entropy

        logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        masks = torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
        masks[0], part = IGNORED, masks[1:]
        expected = F.cross_entropy(logits[1:], part, label_smoothing=0.1)
        assert torch.allclose(cross_entropy(0.1)(logits, logits, masks), expected)
        assert cross_entropy(0.0)(logits, logits, torch.full_like(masks, IGNORED)) == 0


def test_a_backbone_is_pruned_by_its_maps(data: DataSplits) -> None:
    """No classes: the targets are what the original network answers, all maps in one vector."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU())
            self.two = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU())
            self.sides = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(12, 4, 1)])

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            one = self.one(images)
            return {"0": self.sides[0](one), "1": self.sides[1](self.two(one))}

    def together(maps: Any) -> torch.Tensor:
        return torch.cat([one.flatten(1) for one in maps.values()], 1)

    def similarity(network: nn.Module, split: Any) -> float:
        gap = sum(float((network(images) - labels).square().sum()) for images, labels in split.batches(20))
        return 1 - gap / float(split.labels.square().sum())

    def error(outputs: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(outputs, labels)

    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = one_output(Backbone(), together)
    images = [(squares(count, seed)[0].float() - 128) / 60 for count, seed in ((80, 2), (40, 3))]
    with torch.no_grad():
        pairs = [part for batch in images for part in (batch, model(batch))]
    targets = from_tensors(*pairs)
    env = FilterPruneEnv.from_model(model, targets, EnvConfig(**SMALL), metric=similarity, loss=error)
    assert env.evaluator.original_accuracy == pytest.approx(1, abs=1e-3)
    plan = env.least_change.plan(0.5)
    network = env.problem.build(plan)
    config = DistillationConfig(epochs=1, min_steps=60, lr=0.002, batch_size=24)
    taught = distil(network, model, targets, config, loss=error, metric=similarity, run=QUIET)
    before, after = (accuracy(one, targets, targets.test, similarity) for one in (network, taught))
    assert before < after <= 1
    assert [*all_outputs(taught)(images[1])] == ["0", "1"]


def test_targets_may_be_maps() -> None:
    """Depth, for example: float32 [N, 1, H, W]."""
    images, masks = squares(60, 0)
    data = from_tensors(images, masks[:, None] / 2, images[:20] + 1, masks[:20, None] / 2)
    assert data.train.labels.shape == (54, 1, 12, 12)
    assert not data.has_masks
    assert not data.classes
