"""The evaluator that measures: each plan once, remembered in memory and on disk, here or by workers."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..common.device import DTYPES, Precision, failing_layer, fast_dtype
from ..common.expect import expect
from ..common.fingerprints import qualified_name, weights_fingerprint
from ..common.memory_format import in_layout, memory_format
from ..common.warn import warn
from ..data import TensorSplit
from ..data.objective import check_loss
from ..pruning import Plan
from ..pruning.problem import PruningProblem
from ..training.finetune import Finetuner
from ..training.trainable import learning_fingerprint
from .config import EvaluationConfig
from .engine import fused_conv
from .engine.masked import MaskedNetwork
from .measurer import Measurer, Task
from .plan_cache import PlanCache
from .pool import Pool
from .resources import Resources

VERSION = 3
"""Part of the cache's fingerprint. Increase it with every change that may change an accuracy."""
RECALIBRATION_TOLERANCE = 0.003
"""Warn if recalibration costs the original network more accuracy than this."""
GAIN_TOLERANCE = 0.05
"""Warn if recalibration gains the original network more accuracy than this: its input is not what it was trained on."""

logger = logging.getLogger(__name__)


class LiveEvaluator:
    """Measures top-1 accuracy of plans on held-out images, or the problem's metric.

    The images, the calibration crops and the filter ranking are fixed at construction, so the accuracy is a pure
    function of the plan. It is computed in `config.precision`: by default in bfloat16 where the hardware is fast at it
    and the network runs in it, else in float32.

    Args:
        problem: The network, data, groups and ranking.
        config: What accuracies depend on; an `EnvConfig` is one.
        resources: Device, workers and cache file.

    Raises:
        ValueError: Something is trained without a loss, a cache is combined with a custom function, or the network does
            not run in bfloat16 and `config.precision` is 'bf16'.
        WorkerError: The Ray cluster cannot be reached or has no room.
    """

    def __init__(
        self,
        problem: PruningProblem,
        config: EvaluationConfig | None = None,
        resources: Resources | None = None,
    ) -> None:
        expect(problem, PruningProblem, "problem must be a PruningProblem", "write PruningProblem.create(model, data)")
        expect(config, (EvaluationConfig, type(None)), "config must be an EvaluationConfig", "write EvaluationConfig()")
        expect(resources, (Resources, type(None)), "resources must be Resources", 'write Resources(device="cpu")')
        self.problem, self.config = problem, config or EvaluationConfig()
        resources = resources or Resources()
        if self.config.finetune_batches:
            check_loss(problem.loss, problem.data)
        _check_cache(problem, self.config, resources)
        backend = resources.make_backend()
        self.device = torch.device(resources.device)
        self.evaluations = 0
        """Plans and networks measured."""
        self.hits = 0
        """Accuracies taken from memory or from the cache."""
        self.memory: dict[Plan, float] = {}
        """Known accuracies."""
        self.task: Task
        """The images, and everything else that an accuracy depends on."""
        self.task, self._measurer, stored = _prepared(problem, self.config, self.device)
        self._pool = None if backend is None else Pool(backend, self.task)
        self._cache: PlanCache | None = None
        if resources.cache is not None:
            threads = torch.get_num_threads() if backend is None else backend.threads
            self._cache = PlanCache(Path(resources.cache), self._fingerprint(threads))
        self.original_accuracy = self.accuracy(problem.full_plan)
        """Accuracy of the original network, measured as for every plan."""
        self._compare_statistics(stored)

    def submit(self, plan: Plan) -> None:
        """Let workers, if there are any, start to measure a plan."""
        if self._pool is not None and self._known(plan) is None:
            self._pool.submit(plan)

    def accuracy(self, plan: Plan) -> float:
        """Return the fraction of reward images that the plan's network classifies correctly, or its metric.

        Raises:
            ValueError: The plan does not fit the groups.
            WorkerError: The measurement failed in a worker.
        """
        known = self._known(plan)
        if known is not None:
            self.hits += 1
            return known
        self.evaluations += 1
        result = self._measurer.accuracy(plan) if self._pool is None else self._pool.result(plan)
        self.memory[plan] = result
        if self._cache is not None:
            self._cache.put(plan, result)
        return result

    def accuracy_of(self, network: nn.Module) -> float:
        """Return the accuracy of an already pruned, possibly finetuned network. The network is not modified.

        With `finetune_batches` a copy of the network is finetuned first.
        """
        self.evaluations += 1
        return self._measurer.accuracy(network)

    def network(self, plan: Plan) -> nn.Module:
        """Return the plan's network as `accuracy` measures it, with recalibrated BatchNorm, on the device.

        With `finetune_batches` it is finetuned in this call. The weights are equal to the bit for the same number of
        threads; on a GPU they are equal up to the order of sums.
        """
        return self._measurer.network(plan)

    def recalibrate(self, network: nn.Module) -> None:
        """Re-estimate the network's BatchNorm statistics on the calibration crops, in place, on the device."""
        self._measurer.recalibrate(network)

    def remember(self, plan: Plan, accuracy: float) -> None:
        """Take over the accuracy of a plan from an earlier run."""
        self.memory[plan] = accuracy

    def close(self) -> None:
        """End the workers, which start again when a plan needs them. Log the number of evaluations and hits."""
        logger.info("%d plans measured, %d accuracies from memory or cache", self.evaluations, self.hits)
        if self._pool is not None:
            self._pool.close()

    def _known(self, plan: Plan) -> float | None:
        known = self.memory.get(plan)
        if known is None and self._cache is not None:
            known = self._cache.get(plan)
            if known is not None:
                self.memory[plan] = known
        return known

    def _fingerprint(self, threads: int) -> str:
        """Return a hash of everything that an accuracy depends on, including library and processor."""
        problem, task, config = self.problem, self.task, self.config
        settings: tuple[object, ...] = (config.reward_images, config.calibration_images, config.problem_seed)
        settings += (task.device.type, str(task.dtype), *self._measurer.settings, threads)
        if task.layout != torch.channels_last:
            settings += (str(task.layout),)
        if task.finetuner is not None:
            settings += (*task.finetuner.settings, learning_fingerprint(problem.model, task.example_input))
        arithmetic = (VERSION, fused_conv.POSITIONS, torch.__version__, torch.backends.cpu.get_cpu_capability())
        text = f"{weights_fingerprint(problem.model)} {problem.data.fingerprint} {settings} {arithmetic}"
        digest = hashlib.blake2b(text.encode(), digest_size=16)
        # Two networks with equal weights can compute different functions; their outputs differ then.
        with torch.inference_mode():
            digest.update(problem.model(in_layout(task.example_input, task.layout)).numpy().tobytes())
        for group in problem.groups:
            members = [(member.module, member.side, member.index.tolist()) for member in group.members]
            digest.update(f"{members} {problem.ranking[group.name].tolist()}".encode())
        return digest.hexdigest()

    def _compare_statistics(self, stored: float) -> None:
        """Warn if re-estimated statistics make the original network worse, or much better, than its own."""
        recalibrated, metric, data = self.original_accuracy, self.problem.metric, self.problem.data
        gain, scale = recalibrated - stored, 1.0
        change = f"{100 * abs(gain):.2f} points on the reward images ({100 * stored:.2f} % with stored statistics, "
        change += f"{100 * recalibrated:.2f} % without)"
        if metric is not None:  # points of accuracy are absolute; a metric has its own scale
            scale = max(abs(stored), abs(recalibrated))
            change = (
                f"{abs(gain):.4g} of metric {qualified_name(metric)} on the reward images ({stored:.4g} with stored "
            )
            change += f"statistics, {recalibrated:.4g} without)"
        one_image = 1 / len(self.task.split)
        if -gain > (RECALIBRATION_TOLERANCE + one_image) * scale:
            warn(
                f"BatchNorm recalibration costs the original network {change}: the calibration split or the "
                "augmentation is not what the network was trained with"
            )
        elif gain > (GAIN_TOLERANCE + one_image) * scale:
            warn(
                f"BatchNorm recalibration gains the original network {change}: its images were probably normalised "
                f"otherwise in training than by mean={_short(data.mean)}, std={_short(data.std)}; give mean "
                "and std of its training: numbers, 'imagenet', 'cifar10' or 'none' (--mean, --std on the command line)"
            )


def _short(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)


def _prepared(problem: PruningProblem, config: EvaluationConfig, device: torch.device) -> tuple[Task, Measurer, float]:
    """Return the task and its measurer in a precision that the network runs in, and the original's stored accuracy.

    Raises:
        ValueError: The network does not run in bfloat16, and `config.precision` is 'bf16'.
    """
    dtype = fast_dtype(device) if config.precision == "auto" else DTYPES[config.precision]
    task = _task(problem, config, device, dtype)
    try:
        measurer = Measurer(task)
        stored = measurer.test_original()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a forward pass may raise anything
        if dtype == torch.float32:
            raise
        failure = error
    else:
        return *_finetuned(task, measurer, problem, config, config.precision), stored
    exact = _task(problem, config, device, torch.float32)
    measurer = Measurer(exact)
    stored = measurer.test_original()  # raises the same error if it has nothing to do with the precision
    network = MaskedNetwork(problem.model, (), {}, dtype=dtype, device=device, layout=task.layout).network
    where = failing_layer(network, task.calibration[:2])
    lines = str(failure).splitlines() or [type(failure).__name__]
    reason = f"the network does not run in bfloat16{f', at {where}' if where else ''}: {lines[0]}"
    if config.precision == "bf16":
        raise ValueError(f"precision='bf16', but {reason}; set precision='auto' or 'fp32'") from failure
    warn(
        f"{reason}. Accuracies are measured in float32, which takes longer; precision='fp32' does so without this "
        "warning"
    )
    return *_finetuned(exact, measurer, problem, config, "fp32"), stored


def _finetuned(
    task: Task, measurer: Measurer, problem: PruningProblem, config: EvaluationConfig, precision: Precision
) -> tuple[Task, Measurer]:
    """Return a task with a finetuner, and its measurer, if `finetune_batches` is set."""
    if not config.finetune_batches:
        return task, measurer
    seed, device = config.problem_seed, task.device
    finetuner = Finetuner(problem, config.finetune_batches, seed=seed, device=device, precision=precision)
    task = replace(task, finetuner=finetuner)
    return task, Measurer(task)


def _task(problem: PruningProblem, config: EvaluationConfig, device: torch.device, dtype: torch.dtype) -> Task:
    """Prepare the images: normalised, on the device, in a precision, in a memory format that the network takes."""
    data = problem.data
    layout = memory_format(problem.model, data.example_input.to(device))

    def prepared(images: torch.Tensor) -> torch.Tensor:
        return in_layout(images.to(device, dtype), layout)

    split = data.reward.balanced(config.reward_images)
    return Task(
        model=problem.model,
        groups=problem.groups,
        ranking=dict(problem.ranking),
        example_input=data.example_input,
        calibration=prepared(problem.calibration_crops()),
        split=TensorSplit(prepared(data.normalise(split.images)), split.labels.to(device)),
        metric=problem.metric,
        device=device,
        dtype=dtype,
        layout=layout,
    )


def _check_cache(problem: PruningProblem, config: EvaluationConfig, resources: Resources) -> None:
    """Refuse a cache for accuracies that depend on a custom function."""
    for kind, function in (("metric", problem.metric), ("loss", problem.loss if config.finetune_batches else None)):
        if resources.cache is not None and function is not None:
            raise ValueError(
                f"cache {str(resources.cache)!r} cannot be used with a custom {kind}: {qualified_name(function)} may "
                "read values that no fingerprint covers, so the accuracy might be stale; leave one of the two out"
                + ("" if kind == "metric" else ", or set finetune_batches=0")
            )
