"""BatchNorm statistics: estimating them anew, and folding them into the convolutions.

Recalibration as in EagleEye (Li et al., ECCV 2020): after filters are gone, the stored statistics describe inputs
that no longer exist. Statistics are averaged over all batches with equal weight.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..common.device import exact_convolutions

TOLERANCE = 1e-3
"""How far two float32 computations of one thing may be apart."""


def near_equal(images: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Batches of at most `size` images and nearly one length: all count alike in the average."""
    return images.tensor_split(-(-len(images) // size))


def recalibrate(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replaces the running statistics of every BatchNorm in `model` by those of `batches` [B, C, H, W]."""
    with estimating(model) as any_there, torch.inference_mode():
        if any_there:
            for batch in batches:
                model(batch)


@contextmanager
def estimating(model: nn.Module) -> Iterator[bool]:
    """Every BatchNorm takes the statistics of the batches that run inside; gives whether there is any.

    Only the BatchNorm layers run in training mode: dropout stays off. Every module's mode and momentum are restored.
    All calls of a layer count alike, as with a momentum of None, whose counter a GPU would have to be waited for.
    """
    calls: Counter[nn.Module] = Counter()

    def average(norm: nn.Module, _inputs: object) -> None:
        calls[norm] += 1
        norm.momentum = 1 / calls[norm]  # type: ignore[assignment]

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    handles = [norm.register_forward_pre_hook(average) for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        yield bool(norms)
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode


def folding_pairs(model: nn.Module, example_input: torch.Tensor) -> list[tuple[str, str]]:
    """Paths of every (convolution, BatchNorm) pair that one can fold, found by watching one forward pass.

    The BatchNorm takes the very tensor that the convolution returned, both run once, and folding all pairs leaves the
    output as it was, whatever the BatchNorms do; otherwise there are none.
    """
    model = stirred(copy.deepcopy(model).eval())
    producer: dict[int, str] = {}
    outputs: list[torch.Tensor] = []  # kept alive, so that no id is given twice
    calls: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            calls[name] += 1
            if type(module) is nn.Conv2d:
                producer[id(output)] = name
                outputs.append(output)
            elif id(inputs[0]) in producer and module.running_mean is not None:
                pairs.append((producer[id(inputs[0])], name))

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if type(module) in (nn.Conv2d, nn.BatchNorm2d)
    ]
    with torch.inference_mode(), exact_convolutions(example_input.device):
        expected = model(example_input)
        for handle in handles:
            handle.remove()
        pairs = [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]
        fold(model, pairs)
        same = agree(model(example_input), expected)
    return pairs if same else []


def stirred(model: nn.Module) -> nn.Module:
    """The model with noise on everything that its BatchNorms know, in place: a fresh one does nothing, and so shows no
    fault of what is done to it."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.bias, -0.5)):
                if tensor is not None:
                    noise = torch.rand(tensor.shape, generator=generator).to(tensor) + low
                    tensor.data = tensor * noise if low > 0 else tensor + noise
            if module.running_mean is not None:
                noise = torch.rand(module.running_mean.shape, generator=generator).to(module.running_mean) - 0.5
                module.running_mean = module.running_mean + noise
    return model


def agree(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two outputs [B, ...] are equal to a fraction of every column's largest value."""
    if found.shape != expected.shape or not torch.equal(found.isfinite(), expected.isfinite()):
        return False
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().amax(0, keepdim=True)
    gap = (found.nan_to_num(0.0, 0.0, 0.0) - expected.nan_to_num(0.0, 0.0, 0.0)).abs()
    return bool((gap <= tolerance * scale.clamp_min(1e-6 * float(scale.max()))).all())


def fold(model: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Folds, in place, every BatchNorm into its convolution. For eval mode: statistics become weights."""
    for conv_path, norm_path in pairs:
        conv, norm = model.get_submodule(conv_path), model.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, _, child = norm_path.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
