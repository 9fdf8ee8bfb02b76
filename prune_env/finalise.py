"""From plans to a network, the same way for every search method.

The best plans are scored on the whole reward split and given the same short distillation; the one that is then best
on the reward split is distilled fully. Nothing here looks at the test set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from .common.expect import expect
from .common.fingerprints import weights_fingerprint
from .data import DataSplits, Split
from .data.objective import Metric
from .game.env import FilterPruneEnv
from .pruning import Plan, build
from .scoring import metric as scoring
from .training.distillation import DistillationConfig, Teacher, distill
from .training.fit import RunOptions


@dataclass(frozen=True)
class Finalist:
    """A plan and its accuracies on the whole reward split: with recalibrated BatchNorm, and after the short
    distillation. With a metric of the environment, they are what it says."""

    plan: Plan
    recalibrated_accuracy: float
    distilled_accuracy: float
    network: nn.Module = field(repr=False, compare=False)
    """After the short distillation, on the CPU."""


def choose(
    env: FilterPruneEnv,
    plans: Sequence[Plan],
    distillation: DistillationConfig,
    *,
    short_epochs: float = 1.0,
    teacher: Teacher | None = None,
    checkpoints: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[Finalist]:
    """Scores every plan after the same short distillation, the best first.

    teacher      one of the environment's network that other calls share; what it has said need not be computed again
    checkpoints  a folder in which a killed run finds the networks that it had finished
    Raises ValueError if there are no plans, and for a teacher of another network or on another device;
    TypeError for one that is no Teacher.
    """
    plans = list(dict.fromkeys(plans))
    if not plans:
        raise ValueError("there are no finished plans to choose from; let some episodes end")
    steps = round(distillation.min_steps * short_epochs / distillation.epochs)
    short = replace(distillation, epochs=short_epochs, min_steps=steps, select_best=False)
    teacher = _checked(teacher, env.model) or Teacher(env.model, device)
    finalists = []
    for number, plan in enumerate(plans, 1):
        network = recalibrated(env, plan)
        before = accuracy(network, env.data, env.data.reward, device, env.metric)
        network = distill(
            network,
            teacher,
            env.data,
            short,
            loss=env.loss,
            run=RunOptions(
                device, _file(checkpoints, "finalist", plan), progress, title=f"finalist {number} of {len(plans)}"
            ),
        )
        after = accuracy(network, env.data, env.data.reward, device, env.metric)
        finalists.append(Finalist(plan, before, after, network))
    return sorted(finalists, key=lambda finalist: -finalist.distilled_accuracy)


def distil_fully(
    env: FilterPruneEnv,
    plan: Plan,
    distillation: DistillationConfig,
    *,
    teacher: Teacher | None = None,
    checkpoints: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    title: str = "distillation",
) -> nn.Module:
    """The plan's network after the full distillation of its original weights; the best epoch on the reward split.

    For `teacher` and `checkpoints`, see `choose`.
    """
    return distill(
        recalibrated(env, plan),
        _checked(teacher, env.model) or env.model,
        env.data,
        distillation,
        loss=env.loss,
        metric=env.metric,
        run=RunOptions(device, _file(checkpoints, "distilled", plan), progress, title),
    )


def recalibrated(env: FilterPruneEnv, plan: Plan) -> nn.Module:
    """The plan's network with the original weights and fresh BatchNorm statistics."""
    network = build(env.model, env.groups, env.ranking, plan)
    env.evaluator.recalibrate(network)
    return network.cpu().eval()


def accuracy(
    network: nn.Module,
    data: DataSplits,
    split: Split,
    device: torch.device | str = "cpu",
    metric: Metric | None = None,
) -> float:
    """Fraction of a split that the network gets right, or what `metric` says of it, in float32.

    Give `env.metric` for the environment's own measure. The network ends on the CPU.
    """
    result = scoring.accuracy(network.to(device), data, split, metric, device)
    network.cpu()
    return result


def _checked(teacher: Teacher | None, model: nn.Module) -> Teacher | None:
    expect(teacher, (Teacher, type(None)), "a teacher to share must be a Teacher", "give Teacher(env.model, device)")
    if teacher is not None and teacher.fingerprint != (found := weights_fingerprint(model)):
        raise ValueError(
            f"the teacher is another network (fingerprint {teacher.fingerprint}) than the environment's ({found}); "
            "give Teacher(env.model, device)"
        )
    return teacher


def _file(folder: Path | None, stage: str, plan: Plan) -> Path | None:
    name = hashlib.blake2b(repr(plan).encode(), digest_size=8).hexdigest()  # deep networks' plans make long names
    return None if folder is None else folder / f"{stage}-{name}.pt"
