"""From plans to one network, in the same way for every search method.

The best plans are scored on the whole reward split and get the same short distillation. The plan that is then best on
the reward split is distilled fully. Nothing here looks at the test set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from .common.device import check_device
from .common.expect import expect
from .common.fingerprints import weights_fingerprint
from .common.settings import Positive, Settings
from .game.env import FilterPruneEnv
from .pruning import Plan
from .scoring.metric import accuracy
from .training.distillation import DistillationConfig, Teacher, distil
from .training.fit import RunOptions


@dataclass(frozen=True)
class Finalist:
    """A plan and its accuracies on the whole reward split; with a custom metric, its values."""

    plan: Plan
    recalibrated_accuracy: float
    """With recalibrated BatchNorm, before any training."""
    distilled_accuracy: float
    """After the short distillation."""
    network: nn.Module = field(repr=False, compare=False)
    """After the short distillation, on the CPU."""


@dataclass(frozen=True)
class Finaliser(Settings):
    """Ranks the best plans of a search and distils the winner.

    Raises:
        TypeError: `teacher` is not a Teacher.
        ValueError: A field has a value that is not allowed, or `teacher` has other outputs than the network.

    Example:
        >>> finaliser = Finaliser(env, DistillationConfig(epochs=4))
        >>> finalists = finaliser.rank([entry.plan for entry in env.archive.best(4)])
        >>> network = finaliser.distil(finalists[0].plan)
    """

    env: FilterPruneEnv
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """Settings of the full distillation."""
    short_epochs: Positive = 1.0
    """Epochs of the finalists' distillation."""
    teacher: Teacher | None = None
    """By default the original network. Another one must have been trained on the same classes, with the same
    normalisation. Logits that a teacher has computed need not be computed again, so share one among finalisers."""
    checkpoints: Path | None = None
    """Folder in which an interrupted run finds the networks that it had finished."""
    device: torch.device | str = "cpu"
    progress: bool = True

    def __post_init__(self) -> None:
        kinds = (Teacher, type(None))
        expect(self.teacher, kinds, "a shared teacher must be a Teacher", "write Teacher(env.problem.model, device)")
        super().__post_init__()
        check_device(self.device)
        model = self.env.problem.model
        if self.teacher is None:
            object.__setattr__(self, "teacher", Teacher(model, self.device, precision=self.distillation.precision))
        elif self.teacher.fingerprint != weights_fingerprint(model):
            self.teacher.check_outputs(model, self.env.problem.data.example_input)

    def rank(self, plans: Sequence[Plan]) -> list[Finalist]:
        """Distil every plan's network briefly and return the finalists, best first.

        Raises:
            ValueError: There are no plans.
        """
        plans = list(dict.fromkeys(plans))
        if not plans:
            raise ValueError("there are no finished plans to rank; let some episodes end first")
        steps = round(self.distillation.min_steps * self.short_epochs / self.distillation.epochs)
        short = replace(self.distillation, epochs=self.short_epochs, min_steps=steps, select_best=False)
        finalists = []
        for number, plan in enumerate(plans, 1):
            network = recalibrated(self.env, plan)
            before = self._accuracy(network)
            title = f"finalist {number} of {len(plans)}"
            network = self._distilled(network, short, _file(self.checkpoints, "finalist", plan), title)
            finalists.append(Finalist(plan, before, self._accuracy(network), network))
        return sorted(finalists, key=lambda finalist: -finalist.distilled_accuracy)

    def distil(self, plan: Plan, title: str = "distillation") -> nn.Module:
        """Return the plan's network after full distillation of its original weights: the best epoch by reward split.

        Args:
            plan: The plan.
            title: Title of the progress bar.
        """
        checkpoint = _file(self.checkpoints, "distilled", plan)
        return self._distilled(recalibrated(self.env, plan), self.distillation, checkpoint, title)

    def _accuracy(self, network: nn.Module) -> float:
        problem = self.env.problem
        return accuracy(network, problem.data, problem.data.reward, problem.metric, self.device)

    def _distilled(
        self, network: nn.Module, config: DistillationConfig, checkpoint: Path | None, title: str
    ) -> nn.Module:
        problem = self.env.problem
        assert self.teacher is not None
        run = RunOptions(self.device, checkpoint, self.progress, title)
        return distil(network, self.teacher, problem.data, config, loss=problem.loss, metric=problem.metric, run=run)


def recalibrated(env: FilterPruneEnv, plan: Plan) -> nn.Module:
    """Return the plan's network with the original weights and recalibrated BatchNorm statistics, on the CPU."""
    network = env.problem.build(plan)
    env.evaluator.recalibrate(network)
    return network.cpu().eval()


def _file(folder: Path | None, stage: str, plan: Plan) -> Path | None:
    name = hashlib.blake2b(repr(plan).encode(), digest_size=8).hexdigest()  # plans of deep networks make long names
    return None if folder is None else folder / f"{stage}-{name}.pt"
