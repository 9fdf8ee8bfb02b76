"""How accurate is a plan? Select its weights, recalibrate BatchNorm, fold, count.

A pure function of the plan: the images, the calibration crops and the filter ranking are fixed at construction.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ..data import DataSplits, Split
from ..device import channels_last, fast_dtype
from ..pruning import Plan, PruningGroup, build
from ..training.fit import state_digest
from . import units
from .batchnorm import fold, folding_pairs, near_equal, recalibrate
from .cache import PlanCache
from .metric import Metric, check_metric, measure, qualified_name
from .program import Program

VERSION = 1
"""To be raised with every change that gives other answers."""

BATCH = 250
RECALIBRATION_TOLERANCE = 0.003


class Evaluator:
    """Top-1 accuracy of plans on held-out images, or what a metric says of them, memoised by plan.

    model    the trained, unpruned network; never changed
    groups, ranking    what can go and in which order: `find_groups`, `importance.ranking`
    reward_images, calibration_images    class-balanced counts out of the two splits
    metric    in place of top-1 accuracy; called 'accuracy' everywhere
    cache     a file that keeps answers for later runs and for other processes, see `PlanCache`
    Works in bfloat16 where the hardware is fast at it and in float32 elsewhere, channels_last in both.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSplits,
        groups: Sequence[PruningGroup],
        ranking: Mapping[str, torch.Tensor],
        *,
        reward_images: int = 1000,
        calibration_images: int = 500,
        metric: Metric | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        cache: str | Path | None = None,
    ) -> None:
        check_metric(metric, data)
        if cache is not None and metric is not None:
            raise ValueError(
                f"cache {str(cache)!r} is for top-1 accuracy only: what metric {qualified_name(metric)} reads cannot "
                "be known from outside, so a stale answer might be given; leave one of the two out"
            )
        self.device = torch.device(device)
        self.dtype = fast_dtype(self.device)
        self.evaluations = 0
        self._model, self._groups, self._ranking = model, groups, ranking
        self._memo: dict[Plan, float] = {}
        split = data.reward.balanced(reward_images)
        self._split = Split(self._prepare(data.normalise(split.images)), split.labels.to(self.device))
        # Crops as in training: statistics of centred images are not those that the weights were trained under.
        generator = torch.Generator().manual_seed(seed)
        calibration = data.calibration.balanced(calibration_images)
        rows = torch.randperm(len(calibration), generator=generator)
        self.calibration = self._prepare(data.augmented(calibration.images[rows], generator))
        """The fixed crops, normalised, [N, C, H, W], on the device and in the precision that is run."""
        # A metric of the user's is given ordinary networks, which it may look into, and of which each is new.
        self._metric = metric
        self._pairs = folding_pairs(model, data.example_input) if metric else []
        self._program = (
            None if metric else Program(model, groups, data.example_input, dtype=self.dtype, device=self.device)
        )
        self.cache = None
        if cache is not None:
            settings = (reward_images, calibration_images, seed, self.device.type, str(self.dtype))
            self.cache = PlanCache(Path(cache), _fingerprint(model, data, groups, ranking, settings))
        full = tuple(group.filters for group in groups)
        stored = self._measured(full, fresh_statistics=False)
        self.original_accuracy = self.accuracy(full)
        """Of the unpruned network, measured like every plan's."""
        self._warn_if_recalibration_hurts(stored, metric)

    def accuracy(self, plan: Plan) -> float:
        """Fraction of the reward images that the pruned network gets right, or its metric, before any fine-tuning."""
        known = self._memo.get(plan)
        if known is None and self.cache is not None:
            known = self.cache.get(plan)
        if known is None:
            known = self._measured(plan)
            if self.cache is not None:
                self.cache.put(plan, known)
        self._memo[plan] = known
        return known

    def accuracy_of(self, network: nn.Module) -> float:
        """The same for a network that was cut out of the model, and trained since, maybe; it is not changed."""
        return self._measured(network)

    def recalibrate(self, network: nn.Module) -> None:
        """Estimates the network's BatchNorm statistics on the fixed calibration crops, in place and on `device`."""
        channels_last(network.to(self.device))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            recalibrate(network, near_equal(self.calibration, BATCH))

    def remember(self, plan: Plan, accuracy: float) -> None:
        """Takes a known answer, of a run that is resumed."""
        self._memo[plan] = accuracy

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self.device, self.dtype, memory_format=torch.channels_last)

    def _measured(self, what: Plan | nn.Module, fresh_statistics: bool = True) -> float:
        self.evaluations += fresh_statistics
        if self._program is None:
            return self._measured_by_metric(what, fresh_statistics)
        if isinstance(what, nn.Module):
            self._program.load_network(what)
        else:
            self._program.load(self._ranking, what)
        if fresh_statistics:
            self._program.recalibrate(near_equal(self.calibration, BATCH))
        return measure(_top1, self._program.network, self._split)

    def _measured_by_metric(self, what: Plan | nn.Module, fresh_statistics: bool) -> float:
        assert self._metric is not None
        if isinstance(what, nn.Module):
            network = copy.deepcopy(what)
        else:
            network = build(self._model, self._groups, self._ranking, what)
        if fresh_statistics:
            self.recalibrate(network)
        network.eval().to(self.device)
        fold(network, self._pairs)
        return measure(self._metric, channels_last(network.to(self.dtype)), self._split)

    def _warn_if_recalibration_hurts(self, stored: float, metric: Metric | None) -> None:
        known = self.original_accuracy
        loss, scale = stored - known, 1.0
        told = f"{100 * loss:.2f} points on the reward images ({100 * stored:.2f} % with stored statistics, "
        told += f"{100 * known:.2f} % without)"
        if metric is not None:  # accuracy's points are absolute, a metric has a scale of its own
            scale = abs(stored)
            told = f"{loss:.4g} of metric {qualified_name(metric)} on the reward images ({stored:.4g} with stored "
            told += f"statistics, {known:.4g} without)"
        if loss > (RECALIBRATION_TOLERANCE + 1 / len(self._split)) * scale:
            warnings.warn(
                f"BatchNorm recalibration costs the unpruned network {told}: the calibration split or the augmentation "
                "is not what the network was trained with",
                stacklevel=3,
            )


def _fingerprint(
    model: nn.Module,
    data: DataSplits,
    groups: Sequence[PruningGroup],
    ranking: Mapping[str, torch.Tensor],
    settings: Sequence[object],
) -> str:
    """A digest of all that an accuracy depends on, the arithmetic of library and processor included."""
    arithmetic = (VERSION, units.POSITIONS, BATCH, torch.__version__, torch.backends.cpu.get_cpu_capability())
    digest = hashlib.blake2b(f"{state_digest(model)} {data.digest} {settings} {arithmetic}".encode(), digest_size=16)
    # Two networks of equal weights can compute different things: what a forward does shows in what it returns.
    with torch.inference_mode():
        digest.update(model(data.example_input).numpy().tobytes())
    for group in groups:
        members = [(member.module, member.side, member.index.tolist()) for member in group.members]
        digest.update(f"{members} {ranking[group.agent_id].tolist()}".encode())
    return digest.hexdigest()


def _top1(network: nn.Module, split: Split) -> float:
    right = 0
    for images, labels in zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True):
        right += int((network(images).argmax(1) == labels).sum())
    return right / len(split)
