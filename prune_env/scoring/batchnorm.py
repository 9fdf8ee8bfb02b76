"""Re-estimate BatchNorm statistics, and fold BatchNorm layers into the convolutions before them.

Recalibration follows EagleEye (Li et al., ECCV 2020): once filters are removed, the stored statistics describe inputs
that no longer exist. Statistics are averaged over all batches with equal weight.

Letters: N images, B images in a batch, C channels, H and W pixels.
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
"""Largest relative difference between two float32 computations of the same value."""


def even_batches(images: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Divide images [N, C, H, W] into batches of at most `size` images whose sizes differ by at most one.

    Recalibration averages over batches, so each image gets nearly the same weight.
    """
    return images.tensor_split(-(-len(images) // size))


def recalibrate(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace the running statistics of every BatchNorm by those of `batches` [B, C, H, W], in place."""
    with estimate_statistics(model) as has_batchnorm, torch.inference_mode():
        if has_batchnorm:
            for batch in batches:
                model(batch)


@contextmanager
def estimate_statistics(model: nn.Module) -> Iterator[bool]:
    """Let every BatchNorm estimate its running statistics from the batches that run inside the block.

    Only the BatchNorm layers are in training mode: dropout stays off. Modes and momenta are restored afterwards. All
    calls of a layer have equal weight, as with a momentum of None, but without that option's counter, whose value
    would have to be read from the GPU.

    Yields:
        Whether the model has a BatchNorm with running statistics.
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
    """Find the BatchNorm layers that can be folded into a convolution, by observing one forward pass.

    In each pair the BatchNorm takes exactly the tensor that the convolution returned, and both run once.

    Args:
        model: The network; it is not changed.
        example_input: Normalised images [B, C, H, W].

    Returns:
        Pairs of module paths (convolution, BatchNorm). Empty if folding all pairs would change the output.
    """
    model = randomise_batchnorms(copy.deepcopy(model).eval())
    producer: dict[int, str] = {}
    outputs: list[torch.Tensor] = []  # kept alive so that no id is used twice
    calls: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []

    def observe(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            calls[name] += 1
            if type(module) is nn.Conv2d:
                producer[id(output)] = name
                outputs.append(output)
            elif id(inputs[0]) in producer and module.running_mean is not None:
                pairs.append((producer[id(inputs[0])], name))

        return hook

    handles = [
        module.register_forward_hook(observe(name))
        for name, module in model.named_modules()
        if type(module) in (nn.Conv2d, nn.BatchNorm2d)
    ]
    with torch.inference_mode(), exact_convolutions(example_input.device):
        expected = model(example_input)
        for handle in handles:
            handle.remove()
        pairs = [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]
        fold(model, pairs)
        same = outputs_agree(model(example_input), expected)
    return pairs if same else []


def randomise_batchnorms(model: nn.Module) -> nn.Module:
    """Add noise to parameters and statistics of every BatchNorm, in place, and return the model.

    A new BatchNorm is nearly the identity, so an error in how it is treated would not show in the output.
    """
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


def outputs_agree(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    """Return whether two outputs [B, ...] are nearly equal.

    Args:
        found: An output.
        expected: The output that it is compared with.
        tolerance: Allowed difference, as a fraction of the largest value of each class or channel (dimension 1) of
            `expected`.
    """
    if found.shape != expected.shape or not torch.equal(found.isfinite(), expected.isfinite()):
        return False
    others = [dimension for dimension in range(expected.ndim) if dimension != 1]
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().amax(others, keepdim=True)
    gap = (found.nan_to_num(0.0, 0.0, 0.0) - expected.nan_to_num(0.0, 0.0, 0.0)).abs()
    return bool((gap <= tolerance * scale.clamp_min(1e-6 * float(scale.max()))).all())


def fold(model: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Fold BatchNorm layers into convolutions, in place; the result is only valid in eval mode.

    Args:
        model: The network.
        pairs: Pairs of module paths (convolution, BatchNorm), as `folding_pairs` returns them.
    """
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
