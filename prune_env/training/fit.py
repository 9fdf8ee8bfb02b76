"""The training loop: one-cycle SGD with Nesterov momentum (or Muon), bf16 where it is fast, weights averaged.

Pretraining uses it with cross-entropy, distillation with a loss that also asks a teacher. A run with a checkpoint
file goes on where it was killed and ends with the same weights: the order and augmentation of an epoch follow from
(seed, epoch) alone, and so does what dropout and the like draw.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ..common.device import channels_last, fast_dtype, seeded, with_gradients
from ..common.expect import expect
from ..common.files import replacing
from ..common.fingerprints import function_fingerprint, weights_fingerprint
from ..data import DataSplits, check_data
from ..data.objective import Loss, Metric, check_loss, check_metric
from ..scoring.batchnorm import folding_pairs, near_equal, recalibrate
from ..scoring.metric import evaluating, score
from .muon import Muon
from .step import WORTH_RECORDING, Step, first_tensor


@dataclass(frozen=True)
class FitConfig:
    """How to train."""

    epochs: float = 20
    """Passes over the training split; a fraction ends within a pass."""
    min_steps: int = 0
    """Optimizer steps at least, whatever `epochs` says: a small data set's epochs are short."""
    batch_size: int = 128
    """Images in a step."""
    lr: float = 0.1
    """Peak learning rate of the one-cycle schedule (Smith & Topin 2019), linear up and down."""
    warmup: float = 0.2
    """Share of the steps that go up."""
    muon_lr: float = 0.0
    """Peak learning rate of Muon, for all convolutions before a BatchNorm but the first; 0: SGD for all."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """On weights of convolutions and linear layers; never on biases and BatchNorm."""
    label_smoothing: float = 0.1
    """Share of the target that goes to all classes alike."""
    ema_decay: float = 0.998
    """Per step, of the averaged weights that are returned; 0 returns the last weights."""
    cutout: int = 0
    """Side in pixels of a random grey square in every image (DeVries & Taylor 2017); 0 for none."""
    seed: int = 0
    """Of the order of images and their augmentation."""

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_size < 2 or self.lr <= 0 or self.muon_lr < 0:
            raise ValueError(
                f"training needs epochs > 0, batch_size >= 2, lr > 0 and muon_lr >= 0; got epochs={self.epochs}, "
                f"batch_size={self.batch_size}, lr={self.lr}, muon_lr={self.muon_lr}"
            )
        if not 0 <= self.warmup < 1 or not 0 <= self.ema_decay < 1:
            raise ValueError(f"warmup and ema_decay lie in [0, 1), got {self.warmup} and {self.ema_decay}")


@with_gradients
def fit(
    model: nn.Module,
    data: DataSplits,
    config: FitConfig | None = None,
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    recipe: str = "",
    select_best: bool = False,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    replay: bool | None = None,
    progress: bool = True,
    title: str = "training",
) -> nn.Module:
    """Trains a copy of `model` on the training split and returns it in eval mode, on the CPU.

    The result holds the averaged weights, with BatchNorm statistics estimated for these weights: averaging the
    statistics of weights that moved gives those of no network. With `select_best` the epoch with the highest accuracy
    on the reward split wins, the last of equal ones; without it the last. A network that returns several tensors in
    training mode (auxiliary heads) is trained through the first; the others' own parameters stay as they are.

    loss        default: cross-entropy with label smoothing; labels without classes need one
    metric      what `select_best` goes by, in place of accuracy
    recipe      what `loss` depends on, in words, if its code does not say it: what makes a checkpoint that of one run
    checkpoint  written after every epoch; an existing one of the same run is resumed
    replay      on a GPU, record the step and replay it: up to three times as fast for a small network. Not for a
                network or a loss whose Python code does something else from step to step; None: not with a `loss`
    Raises FloatingPointError when the loss is no longer finite, TypeError for what is no network, data or config, and
    ValueError for a checkpoint of another run, for labels without classes that lack a loss or a metric, and for a
    muon_lr that has no convolution to work on.
    """
    check_training(model, data, config, FitConfig)
    config = config or FitConfig()
    device = torch.device(device)
    check_loss(loss, data)
    if loss is not None:
        recipe = recipe or function_fingerprint(loss)
    if select_best:
        check_metric(metric, data)
        recipe += f" by {function_fingerprint(metric)}" if metric else ""
    replay = loss is None if replay is None else replay
    loss = loss or cross_entropy(config.label_smoothing)
    model = trainable(model, device)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    # Momentum is kept in new buffers, for the parameters of this very copy.
    example = data.example_input.to(device)
    optimizers = optimizers_of(model, config, example)
    steps_per_epoch = max(1, len(data.train) // config.batch_size)
    steps = max(1, config.min_steps, round(config.epochs * steps_per_epoch))
    step, best = 0, (-math.inf, model.state_dict())
    run = repr((sorted(asdict(config).items()), data.fingerprint, weights_fingerprint(model), select_best, recipe))
    if checkpoint is not None and checkpoint.is_file():
        step, best = _restore(checkpoint, run, model, averaged, optimizers)
    dtype = training_dtype(model, example)
    # Every image is seen both ways in any two epochs (alternating flip, Jordan 2024): better than chance in short runs.
    first_flip = torch.rand(len(data.train), generator=torch.Generator().manual_seed(config.seed)) < 0.5

    take_step = Step(model, loss, optimizers, device, dtype, replay and steps - step >= WORTH_RECORDING)
    bar = tqdm(total=steps, initial=step, desc=title, unit="step", disable=not progress, mininterval=1)
    while step < steps:
        epoch = step // steps_per_epoch
        generator = torch.Generator().manual_seed(_mix(config.seed, epoch))
        model.train()
        with seeded(device, _mix(config.seed, epoch) ^ 1):  # not the draws of order and augmentation again
            for rows in _batches(len(data.train), config.batch_size, generator):
                if step == steps:
                    break
                images, labels = data.train.images[rows].to(device), data.train.labels[rows].to(device)
                images = data.augmented(images, generator, first_flip[rows] ^ bool(epoch % 2))
                if config.cutout:
                    images = _cut_out(images, config.cutout, generator)
                take_step.set_learning_rates(one_cycle((step + 1) / (steps + 1), config.warmup))
                value = take_step(images, labels)
                if not torch.isfinite(value):
                    raise FloatingPointError(
                        f"{title}: the loss is {value.item()} at step {step}; lower lr ({config.lr})"
                    )
                averaged.update_parameters(model)
                step += 1
                bar.update()
                if step % 20 == 0:
                    bar.set_postfix(loss=f"{value.item():.3f}", refresh=False)
        if select_best or step == steps:
            candidate = _finished(averaged if config.ema_decay else model, data, device)
            accuracy = score(candidate, data, data.reward, metric, device) if select_best else 1.0
            if accuracy >= best[0]:
                best = (accuracy, candidate.state_dict())
        if checkpoint is not None:
            _save(checkpoint, run, model, averaged, optimizers, step, best)
    bar.close()
    model.load_state_dict(best[1])
    model.zero_grad(set_to_none=True)
    return model.eval().cpu()


def check_training(model: nn.Module, data: DataSplits, config: FitConfig | None, kind: type[FitConfig]) -> None:
    """Raises TypeError for what can be no training's model, data or settings."""
    expect(model, nn.Module, "what is trained must be a network (nn.Module)")
    check_data(data)
    expect(config, (kind, type(None)), f"config must be a {kind.__name__}", f"write {kind.__name__}(epochs=1)")


def trainable(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy on the device; if all of it was frozen, as for inference, nothing of the copy is."""
    model = channels_last(copy.deepcopy(model).to(device))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.requires_grad_(True)
    return model


def training_dtype(model: nn.Module, example_input: torch.Tensor) -> torch.dtype:
    """What autocast computes in where this network is trained: the device's fast precision, if its gradients work."""
    dtype = fast_dtype(example_input.device)
    broken = dtype == torch.bfloat16 and _bf16_is_broken(model, example_input)
    return torch.float32 if broken else dtype


def learning_fingerprint(model: nn.Module, example_input: torch.Tensor) -> str:
    """A fingerprint of how a network learns, beside its weights: which layers do, and what it computes meanwhile.

    Dropout shows in the latter. To three digits, as sums of more threads come in another order.
    """
    network = trainable(model, torch.device("cpu")).train()
    with torch.no_grad(), seeded("cpu", 0):
        output = first_tensor(network(example_input)).flatten()
    rounded = (1000 * output / output.abs().max().clamp(min=1e-12)).round().tolist()
    flags = [parameter.requires_grad for parameter in network.parameters()]
    return hashlib.blake2b(f"{flags} {rounded}".encode(), digest_size=16).hexdigest()


def _finished(averaged: nn.Module, data: DataSplits, device: torch.device, images: int = 5000) -> nn.Module:
    """A copy of the weights with BatchNorm statistics of the training split, as training sees it."""
    model: nn.Module = copy.deepcopy(averaged.module if isinstance(averaged, AveragedModel) else averaged)
    split = data.train.balanced(images)
    generator = torch.Generator().manual_seed(0)
    chunks = near_equal(split.images[torch.randperm(len(split), generator=generator)], 250)
    recalibrate(model, (data.augmented(chunk.to(device), generator) for chunk in chunks))
    return model


def cross_entropy(label_smoothing: float) -> Loss:
    def loss(logits: torch.Tensor, _images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    return loss


def one_cycle(progress: float, warmup: float) -> float:
    """Share of the peak learning rate at `progress` in (0, 1)."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)


def _bf16_is_broken(model: nn.Module, example_input: torch.Tensor) -> bool:
    """Whether a convolution with a stride is given maps of a single pixel and a wider kernel.

    oneDNN's bfloat16 gradient of such a weight holds uninitialised memory where the kernel sees padding alone (torch
    2.14): noise at every run, sometimes not a number.
    """
    found = []

    def look(module: _ConvNd, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs and inputs[0].shape[2:].numel() == 1 and max(module.kernel_size) > 1 and max(module.stride) > 1:
            found.append(module)

    handles = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, _ConvNd)]
    try:
        with evaluating(model), torch.inference_mode():
            model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    return bool(found)


def optimizers_of(
    model: nn.Module, config: FitConfig, example_input: torch.Tensor
) -> dict[torch.optim.Optimizer, float]:
    """Fresh optimizers of the model's parameters, and the peak learning rate of each."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    turned: list[torch.Tensor] = []
    if config.muon_lr:
        normalised = [model.get_parameter(f"{conv}.weight") for conv, _ in folding_pairs(model, example_input)]
        turned = [weight for weight in normalised[1:] if weight.requires_grad]
        if not turned:
            raise ValueError(
                f"muon_lr={config.muon_lr} is for convolutions that a BatchNorm follows, and this network has no two "
                "of them that learn; set it to 0"
            )
    of_muon = {id(weight) for weight in turned}
    rest = [parameter for parameter in parameters if id(parameter) not in of_muon]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = True if example_input.device.type == "cuda" else None  # takes a learning rate from the GPU's memory
    sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=fused)
    return {sgd: config.lr} | ({Muon(turned, config.muon_lr): config.muon_lr} if turned else {})


def _batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Rows [B] of whole batches in a fresh random order; fewer rows than one batch are one batch."""
    order = torch.randperm(count, generator=generator)
    for start in range(0, max(1, count - batch_size + 1), batch_size):
        yield order[start : start + batch_size]


def _cut_out(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """Normalised images [B, C, H, W] with a square set to 0, the mean; it may hang over the edge."""
    batch, _, height, width = images.shape
    centre = torch.rand(2, batch, 1, generator=generator).to(images.device)
    top, left = centre[0] * height - side / 2, centre[1] * width - side / 2  # [B, 1]
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows, columns = (y >= top) & (y < top + side), (x >= left) & (x < left + side)  # [B, H], [B, W]
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)


def _mix(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63


def _save(
    file: Path,
    run: str,
    model: nn.Module,
    averaged: AveragedModel,
    optimizers: Iterable[torch.optim.Optimizer],
    step: int,
    best: tuple[float, dict[str, torch.Tensor]],
) -> None:
    with replacing(file) as temporary:
        torch.save(
            {
                "run": run,
                "step": step,
                "best_accuracy": best[0],
                "best": best[1],
                "model": model.state_dict(),
                "averaged": averaged.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            },
            temporary,
        )


def _restore(
    file: Path,
    run: str,
    model: nn.Module,
    averaged: AveragedModel,
    optimizers: Iterable[torch.optim.Optimizer],
) -> tuple[int, tuple[float, dict[str, torch.Tensor]]]:
    state = torch.load(file, map_location="cpu", weights_only=True)
    if state["run"] != run:
        raise ValueError(
            f"{file} is the checkpoint of another run (config, data or network differ); delete it to start anew"
        )
    model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        # Settings are this run's: a checkpoint may come from another device.
        optimizer.load_state_dict({**saved, "param_groups": optimizer.state_dict()["param_groups"]})
    return state["step"], (state["best_accuracy"], state["best"])
