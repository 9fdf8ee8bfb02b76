"""How accurate is a plan? Asked once, remembered in memory and on disk, and computed here or by workers.

A pure function of the plan: the images, the calibration crops and the filter ranking are fixed at construction.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..common.device import fast_dtype
from ..common.fingerprints import qualified_name, weights_fingerprint
from ..data import DataSplits, Split
from ..data.objective import Loss, Metric, check_metric
from ..pruning import Plan, PruningGroup
from ..pruning.surgery import check_plan
from ..training.finetune import Finetuner
from ..training.trainable import learning_fingerprint
from .engine import fused_conv as units
from .measurer import Measurer, Task
from .plan_cache import PlanCache
from .racing import Race
from .workers import Backend, Pool

VERSION = 2
"""To be raised with every change that gives other answers."""

RECALIBRATION_TOLERANCE = 0.003

logger = logging.getLogger(__name__)


class Evaluator:
    """Top-1 accuracy of plans on held-out images, or what a metric says of them, memoised by plan.

    model    the trained, unpruned network; never changed
    groups, ranking    what can go and in which order: `find_groups`, `importance.ranking`
    reward_images, calibration_images    class-balanced counts out of the two splits
    metric    in place of top-1 accuracy; called 'accuracy' everywhere
    measure_at    how far on the way to a plan its network is measured: see `on_the_way`
    finetune_batches    of distillation, which pruned networks get before they are measured; `loss`: in place of
              cross-entropy there
    cache     a file that keeps answers for later runs and for other processes, see `PlanCache`
    workers   where plans are measured, in place of this process: see `workers.py`
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
        measure_at: float = 1.0,
        finetune_batches: int = 0,
        loss: Loss | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        cache: str | Path | None = None,
        workers: Backend | None = None,
    ) -> None:
        check_metric(metric, data)
        for kind, function in (("metric", metric), ("loss", loss if finetune_batches else None)):
            if cache is not None and function is not None:
                raise ValueError(
                    f"cache {str(cache)!r} cannot be used with a {kind} of your own: what {qualified_name(function)} "
                    "reads cannot be known from outside, so a stale answer might be given; leave one of the two out"
                    + ("" if kind == "metric" else ", or set finetune_batches=0")
                )
        device, dtype = torch.device(device), fast_dtype(torch.device(device))
        self.evaluations, self.hits = 0, 0
        """Plans and networks measured, and questions that were answered from memory or disk."""
        self._memo: dict[Plan, float] = {}
        generator = torch.Generator().manual_seed(seed)
        # Crops as in training: statistics of centred images are not those that the weights were trained under.
        calibration = data.calibration.balanced(calibration_images)
        rows = torch.randperm(len(calibration), generator=generator)
        crops = data.augmented(calibration.images[rows], generator)
        split = data.reward.balanced(reward_images)
        if metric is None:  # a race needs a random order
            rows = torch.randperm(len(split), generator=generator)
            split = Split(split.images[rows], split.labels[rows])

        def prepared(images: torch.Tensor) -> torch.Tensor:
            return images.to(device, dtype, memory_format=torch.channels_last)

        split = Split(prepared(data.normalise(split.images)), split.labels.to(device))
        groups, ranking = tuple(groups), dict(ranking)
        tuning = None
        if finetune_batches:
            problem: Any = SimpleNamespace(model=model, data=data, loss=loss)
            tuning = Finetuner(problem, finetune_batches, seed=seed, device=device)
        self.task = Task(
            model, groups, ranking, data.example_input, prepared(crops), split, metric, device, dtype, tuning
        )
        self._measurer = Measurer(self.task)
        self._pool = Pool(workers, self.task) if workers is not None else None
        self.cache = None
        if cache is not None:
            threads = torch.get_num_threads() if workers is None else workers.threads
            images = (reward_images, calibration_images, seed)
            learning = () if tuning is None else (*tuning.settings, learning_fingerprint(model, data.example_input))
            settings = (*images, device.type, str(dtype), *self._measurer.settings, threads, *learning)
            self.cache = PlanCache(Path(cache), _fingerprint(model, data, groups, ranking, settings))
        self._measure_at = measure_at
        self._full = full = tuple(group.filters for group in groups)
        stored = self._measurer.accuracy(full, fresh_statistics=False)
        self.original_accuracy = self.accuracy(full)
        """Of the unpruned network, measured like every plan's."""
        self._warn_if_recalibration_hurts(stored, metric)

    @property
    def recorded(self) -> bool:
        """Whether plans are measured by a recording, which counts all images whatever a race says."""
        return self._measurer.recorded

    def measured(self, plan: Plan) -> Plan:
        """The plan that is cut where the accuracy of this one is asked for: itself, or one `on_the_way` to it."""
        if self._measure_at == 1:
            return plan
        check_plan(self.task.groups, plan)  # what is wrong with it would show less, or elsewhere, afterwards
        return on_the_way(self._full, plan, self._measure_at)

    def submit(self, plan: Plan, race: Race | None = None) -> None:
        """Says that `accuracy` will be asked for this plan soon: workers, if there are any, begin with it."""
        plan = self.measured(plan)
        if self._pool is not None and self._known(plan) is None:
            self._pool.submit(plan, race)

    def accuracy(self, plan: Plan, race: Race | None = None) -> float:
        """Fraction of the reward images that the pruned network gets right, or its metric, where it is `measured`.

        race   lets a count end early; its answer is remembered, but not kept on disk. Not with a metric
        """
        plan = self.measured(plan)
        known = self._known(plan)
        if known is not None:
            self.hits += 1
            return known
        self.evaluations += 1
        measure = self._measurer.accuracy if self._pool is None else self._pool.result
        answer = measure(plan, race)
        self._memo[plan] = answer
        if self.cache is not None and (race is None or answer >= race.threshold):
            self.cache.put(plan, answer)
        return answer

    def accuracy_of(self, network: nn.Module) -> float:
        """The same for a network as it is, which was cut out of the model, and trained since, maybe; it is not changed.

        With `finetune_batches` a copy of it is trained first, whatever was cut.
        """
        self.evaluations += 1
        return self._measurer.accuracy(network)

    def network(self, plan: Plan) -> nn.Module:
        """The plan's own, with recalibrated BatchNorm statistics, on the device: what `accuracy` measures, unless
        `measure_at` has it measure another.

        With `finetune_batches` it is trained anew: the same weights to the bit where as many threads work, and on a GPU
        as far as its sums come in the same order.
        """
        return self._measurer.network(plan)

    def recalibrate(self, network: nn.Module) -> None:
        """Estimates the network's BatchNorm statistics on the fixed calibration crops, in place and on the device."""
        self._measurer.recalibrate(network)

    def remember(self, plan: Plan, accuracy: float) -> None:
        """Takes a known answer, of a run that is resumed."""
        self._memo[self.measured(plan)] = accuracy

    def close(self) -> None:
        """Ends the workers; they start again when a plan needs them. Logs how often memory and cache had the answer."""
        logger.info("%d plans measured, %d questions answered from memory or cache", self.evaluations, self.hits)
        if self._pool is not None:
            self._pool.close()

    def _known(self, plan: Plan) -> float | None:
        known = self._memo.get(plan)
        if known is None and self.cache is not None:
            known = self.cache.get(plan)
            if known is not None:
                self._memo[plan] = known
        return known

    def _warn_if_recalibration_hurts(self, stored: float, metric: Metric | None) -> None:
        known = self.original_accuracy
        loss, scale = stored - known, 1.0
        told = f"{100 * loss:.2f} points on the reward images ({100 * stored:.2f} % with stored statistics, "
        told += f"{100 * known:.2f} % without)"
        if metric is not None:  # accuracy's points are absolute, a metric has a scale of its own
            scale = abs(stored)
            told = f"{loss:.4g} of metric {qualified_name(metric)} on the reward images ({stored:.4g} with stored "
            told += f"statistics, {known:.4g} without)"
        if loss > (RECALIBRATION_TOLERANCE + 1 / len(self.task.split)) * scale:
            warnings.warn(
                f"BatchNorm recalibration costs the unpruned network {told}: the calibration split or the augmentation "
                "is not what the network was trained with",
                stacklevel=3,
            )


def on_the_way(full: Plan, plan: Plan, fraction: float) -> Plan:
    """Where a cut from `full` to `plan` has come after a fraction of the way, 0 to 1, in ratios.

    Of n filters, of which the plan keeps k, n^(1 - fraction) k^fraction stay, rounded.
    """
    return tuple(round(n * (k / n) ** fraction) for n, k in zip(full, plan, strict=True))


def _fingerprint(
    model: nn.Module,
    data: DataSplits,
    groups: Sequence[PruningGroup],
    ranking: Mapping[str, torch.Tensor],
    settings: Sequence[object],
) -> str:
    """A digest of all that an accuracy depends on, the arithmetic of library and processor included."""
    arithmetic = (VERSION, units.POSITIONS, torch.__version__, torch.backends.cpu.get_cpu_capability())
    digest = hashlib.blake2b(
        f"{weights_fingerprint(model)} {data.fingerprint} {settings} {arithmetic}".encode(), digest_size=16
    )
    # Two networks of equal weights can compute different things: what a forward does shows in what it returns.
    with torch.inference_mode():
        digest.update(model(data.example_input).numpy().tobytes())
    for group in groups:
        members = [(member.module, member.side, member.index.tolist()) for member in group.members]
        digest.update(f"{members} {ranking[group.name].tolist()}".encode())
    return digest.hexdigest()
