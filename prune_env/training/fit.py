"""The training loop: one-cycle SGD with Nesterov momentum (or Muon), bfloat16 where it is fast, averaged weights.

Pretraining uses it with cross-entropy, distillation with a loss that also compares with a teacher. A killed run that
wrote a checkpoint resumes, and on the same machine the result is bit-identical: the order and augmentation of images in
an epoch, and the random numbers of dropout, depend only on (seed, epoch).

Letters: N images, B images in a batch, C channels, H and W pixels, K outputs.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..common.device import seeded, with_gradients
from ..common.expect import expect
from ..common.files import check_space
from ..common.fingerprints import function_fingerprint, weights_fingerprint
from ..common.memory_format import in_layout, memory_format
from ..common.progress import progress_bar
from ..common.tensor_files import DamagedFileError, load_state, save_state
from ..common.warn import warn
from ..data import DataSplits, check_data
from ..data.augmentation import Part
from ..data.objective import Loss, Metric, check_logits, check_loss, check_metric, cross_entropy
from ..scoring.batchnorm import even_batches, recalibrate
from ..scoring.metric import accuracy, eval_mode, images_at_once
from .config import FitConfig, RunOptions
from .optimizers import make_optimizers, one_cycle
from .processes import Processes
from .step import WORTH_RECORDING, Step
from .trainable import in_float32, not_finite, restore_frozen, trainable_copy, training_dtype

STATISTICS_IMAGES = 5000
"""Training images from which the BatchNorm statistics of a trained network are estimated."""
STATISTICS_BATCH = 250


@with_gradients
def fit(
    model: nn.Module,
    data: DataSplits,
    config: FitConfig | None = None,
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    run: RunOptions | None = None,
) -> nn.Module:
    """Train a copy of a network on the training split.

    The result has the averaged weights, with BatchNorm statistics that are estimated for these weights; averaged
    statistics would not fit the averaged weights. A network that returns several tensors in training mode (auxiliary
    heads) is trained through the first one; parameters that only affect the others keep their values.

    If the caller has made a process group (`torch.distributed.init_process_group`), its processes train the network
    together: all call this function with the same arguments except for the device, each takes an equal part of every
    batch, and all get the result. It is that of one process, up to the order of sums; only dropout drops other units.
    The loss must be a mean over images. Process 0 writes the checkpoint, which all must be able to read, and shows
    the progress.

    Args:
        model: The network, on any device; it is not changed. If all of it is frozen, all of its copy is trained, and
            frozen again in the end.
        data: The data set.
        config: How to train.
        loss: Trains the network instead of cross-entropy with label smoothing. Data without classes need one.
        metric: Selects the best epoch instead of top-1 accuracy or mean IoU, if `config.select_best` is set.
        run: Where and how to run; the result is resumed from `run.checkpoint` if that file exists. A damaged checkpoint
            is passed over with a warning: the training starts again.

    Returns:
        The trained network, in float32 and eval mode on the CPU.

    Raises:
        TypeError: `model`, `data` or `config` is of another type.
        ValueError: The checkpoint belongs to another run, data without classes lack a loss or metric, or
            `config.muon_lr` is set for a network without suitable convolutions, the network has no parameters, its
            output does not fit the masks, it cannot be trained in `config.precision`, or the processes have different
            arguments or cannot divide a batch.
        FloatingPointError: The loss or a weight is no longer finite.
        OSError: The checkpoint cannot be written, for example on a full disk.

    Example:
        >>> model = fit(create("small_cnn", 10, 1), load("digits"), FitConfig(epochs=10))
    """
    check_training(model, data, config, FitConfig)
    check_loss(loss, data)
    config, run = config or FitConfig(), run or RunOptions()
    if config.select_best:
        check_metric(metric, data)
    with (processes := Processes.current()).warning_once():
        training = _Training(model, data, config, run, loss, metric, processes)
        if run.checkpoint is not None:
            check_space(run.checkpoint.parent, training.checkpoint_bytes)
            if run.checkpoint.is_file():
                training.restore(run.checkpoint)
        training.check_processes()
        training.run()
        return training.result()


def check_training(model: nn.Module, data: DataSplits, config: FitConfig | None, kind: type[FitConfig]) -> None:
    """Check the types of a training's arguments.

    Args:
        model: Must be a network.
        data: Must be `DataSplits`.
        config: Must be a `kind` or None.
        kind: The config class.

    Raises:
        TypeError: An argument has another type.
    """
    expect(model, nn.Module, "the model to train must be a network (nn.Module)")
    check_data(data)
    expect(config, (kind, type(None)), f"config must be a {kind.__name__}", f"write {kind.__name__}(epochs=1)")


class _Training:
    """The state of one training run: model, averaged weights, optimizers, number of steps, and the best epoch."""

    def __init__(
        self,
        model: nn.Module,
        data: DataSplits,
        config: FitConfig,
        run: RunOptions,
        loss: Loss | None,
        metric: Metric | None,
        processes: Processes,
    ) -> None:
        self._data, self._config, self._options, self._metric = data, config, run, metric
        self._processes = processes
        self._device = torch.device(run.device)
        self._loss = loss or cross_entropy(config.label_smoothing)
        self._replay = loss is None if run.replay is None else run.replay
        example = data.example_input.to(self._device)
        self._original = model
        self._layout = memory_format(in_float32(copy.deepcopy(model)), example)
        example = in_layout(example, self._layout)
        self._model = trainable_copy(model, self._device, self._layout)
        if loss is None and data.has_masks:
            with eval_mode(self._model), torch.no_grad():
                check_logits(self._model(example), data)
        self._never_finite = set(not_finite(self._model))
        self._averaged = AveragedModel(self._model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self._optimizers = make_optimizers(self._model, config, example)
        self._dtype = training_dtype(self._model, example, config.precision)
        functions = [function for function in (loss, metric if config.select_best else None) if function is not None]
        self._identity = repr(
            (
                sorted(asdict(config).items()),
                data.fingerprint,
                weights_fingerprint(self._model),
                [function_fingerprint(function) for function in functions],
            )
        )
        """What the result depends on: a checkpoint with another identity is refused."""
        # Any two successive epochs show every image in both orientations (alternating flip, Jordan 2024), which is
        # better than random flips in short runs.
        generator = torch.Generator().manual_seed(config.seed)
        self._flipped_first = torch.rand(len(data.train), generator=generator) < 0.5  # [N]
        self._steps_per_epoch = max(1, len(data.train) // config.batch_size)
        self._steps = max(1, config.min_steps, round(config.epochs * self._steps_per_epoch))
        self._step = 0
        self._best_accuracy, self._best = -math.inf, self._model.state_dict()

    def run(self) -> None:
        """Train until the last step; after every epoch update the best weights and write the checkpoint."""
        options, first = self._options, self._processes.rank == 0
        replay = self._replay and self._steps - self._step >= WORTH_RECORDING
        take_step = Step(self._model, self._loss, self._optimizers, self._dtype, replay, self._processes)
        with progress_bar(
            total=self._steps,
            initial=self._step,
            desc=options.title,
            unit="step",
            disable=not (options.progress and first),
        ) as bar:
            while self._step < self._steps:
                self._train_epoch(take_step, bar)
                self._check_finite(self._model)  # a step's effect on the weights shows only in the next step's loss
                if self._config.select_best or self._step == self._steps:
                    self._update_best()
                if options.checkpoint is not None and first:
                    self.save(options.checkpoint)

    def check_processes(self) -> None:
        """Check that all processes are about to train the same, and that they can divide the batches.

        Raises:
            ValueError: They are not, or cannot.
        """
        self._processes.part(min(self._config.batch_size, len(self._data.train)))
        self._processes.check_same(training=self._identity, step=self._step, precision=self._dtype)

    def result(self) -> nn.Module:
        """Return the network with the best weights, in eval mode on the CPU."""
        self._model.load_state_dict(self._best)
        restore_frozen(self._model, self._original)
        return self._model.eval().cpu()

    def save(self, file: Path) -> None:
        """Write the checkpoint, completely or not at all."""
        save_state(
            file,
            {
                "run": self._identity,
                "step": self._step,
                "best_accuracy": self._best_accuracy,
                "best": self._best,
                "model": self._model.state_dict(),
                "averaged": self._averaged.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            },
        )

    @property
    def checkpoint_bytes(self) -> int:
        """About the size of the checkpoint: current, averaged and best weights, and momentum."""
        return 4 * sum(tensor.nbytes for tensor in self._model.state_dict().values())

    def restore(self, file: Path) -> None:
        """Continue from a checkpoint, or start again if it is damaged.

        Raises:
            ValueError: It belongs to another run.
        """
        try:
            state = load_state(file)
        except DamagedFileError as error:
            warn(f"{error}; {self._options.title} starts again")
            return
        if state.get("run") != self._identity:
            raise ValueError(
                f"{file} is the checkpoint of another run (settings, data, network, loss or metric differ); delete it "
                "to start again"
            )
        try:
            self._take_over(state)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{file} does not fit this training: {reason:.200}; delete it to start again") from error

    def _take_over(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self._best_accuracy, self._best = state["best_accuracy"], state["best"]
        self._model.load_state_dict(state["model"])
        self._averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            # Keep this run's settings, as the checkpoint may come from another device.
            optimizer.load_state_dict({**saved, "param_groups": optimizer.state_dict()["param_groups"]})
            for parameter, kept in optimizer.state.items():
                if wrong := [
                    name for name, value in kept.items() if getattr(value, "shape", ()) not in ((), parameter.shape)
                ]:
                    raise ValueError(f"{wrong[0]} of a parameter of shape {tuple(parameter.shape)} has another shape")

    def _train_epoch(self, take_step: Step, bar: Any) -> None:
        """Take the steps of one epoch, or those that remain."""
        config, epoch = self._config, self._step // self._steps_per_epoch
        seed = (config.seed * 1_000_003 + epoch) % 2**63
        generator = torch.Generator().manual_seed(seed)
        self._model.train()
        # Other seeds, so that dropout repeats neither the generator's numbers nor those of another process.
        with seeded(self._device, (seed ^ 1) + (self._processes.rank << 32)):
            order = _batches(len(self._data.train), config.batch_size, generator)[: self._steps - self._step]
            own = [rows[self._processes.part(len(rows))] for rows in order]
            for rows, batch in zip(order, self._data.train.read(own, seed), strict=True):
                images, labels = self._inputs(rows, batch, epoch, generator)
                take_step.set_learning_rates(one_cycle((self._step + 1) / (self._steps + 1), config.warmup))
                value = take_step(images, labels)
                if not torch.isfinite(value):
                    raise FloatingPointError(
                        f"{self._options.title}: the loss is {value.item()} at step {self._step}; lower lr "
                        f"({config.lr})"
                    )
                self._averaged.update_parameters(self._model)
                self._step += 1
                bar.update()
                if self._step % 20 == 0:
                    bar.set_postfix(loss=f"{value.item():.3f}", refresh=False)

    def _inputs(
        self, rows: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor], epoch: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return augmented, normalised images [B, C, H, W] and labels of this process's part of a batch.

        Args:
            rows: Rows of the whole batch in the training split.
            batch: Images and labels of the part.
            epoch: Number of the epoch.
            generator: Source of the random numbers of the whole batch.
        """
        part = len(rows), self._processes.part(len(rows))
        images, labels = (tensor.to(self._device, non_blocking=True) for tensor in batch)
        flipped = self._flipped_first[rows[part[1]]] ^ bool(epoch % 2)
        images, labels = self._data.training_batch(images, labels, generator, flipped, part)
        if self._config.cutout:
            images = _cut_out(images, self._config.cutout, generator, part)
        return in_layout(images, self._layout), labels

    def _check_finite(self, network: nn.Module) -> None:
        """Check that the weights and statistics of a network are finite after the latest step."""
        if broken := [name for name in not_finite(network) if name not in self._never_finite]:
            raise FloatingPointError(
                f"{self._options.title}: {broken[0]} is not finite after step {self._step - 1}; lower lr "
                f"({self._config.lr})"
            )

    def _update_best(self) -> None:
        """Keep the current weights if they are at least as accurate as the best ones so far."""
        weights = self._averaged.module if self._config.ema_decay else self._model
        candidate = _with_fresh_statistics(weights, self._data, self._device, self._layout)
        self._check_finite(candidate)
        score = 1.0
        if self._config.select_best:
            score = accuracy(candidate, self._data, self._data.reward, self._metric, self._device)
            # Where devices round differently, all processes must still choose the same epoch.
            score = self._processes.average_number(score, self._device)
        if score >= self._best_accuracy:
            self._best_accuracy, self._best = score, candidate.state_dict()


def _with_fresh_statistics(
    model: nn.Module, data: DataSplits, device: torch.device, layout: torch.memory_format
) -> nn.Module:
    """Return a copy with BatchNorm statistics of augmented training images."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    rows = data.train.balanced_rows(STATISTICS_IMAGES)
    size = images_at_once(data.train, STATISTICS_BATCH)
    order = even_batches(rows[torch.randperm(len(rows), generator=generator)], size)
    augmented = (data.augmented(images.to(device), generator) for images, _ in data.train.read(order))
    recalibrate(model, (in_layout(images, layout) for images in augmented))
    return model


def _batches(count: int, batch_size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Return the rows [B] of complete batches in random order; if there are too few, one batch of all rows."""
    order = torch.randperm(count, generator=generator)
    return [order[start : start + batch_size] for start in range(0, max(1, count - batch_size + 1), batch_size)]


def _cut_out(images: torch.Tensor, side: int, generator: torch.Generator, part: Part) -> torch.Tensor:
    """Set a random square of every normalised image [B, C, H, W] to 0, the mean; it may extend over the edge.

    See `Augmentation.__call__` for `part`.
    """
    height, width = images.shape[2:]
    size, own = part
    centre = torch.rand(2, size, 1, generator=generator)[:, own].to(images.device)
    top, left = centre[0] * height - side / 2, centre[1] * width - side / 2  # [B, 1]
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows, columns = (y >= top) & (y < top + side), (x >= left) & (x < left + side)  # [B, H], [B, W]
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)
