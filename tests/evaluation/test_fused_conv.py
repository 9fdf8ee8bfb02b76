"""Fused convolutions, and the values that BatchNorm statistics are estimated from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prune_env.evaluation.engine.fused_conv import FusedConv, sample


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found.float() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("size", [1, 5])
def test_fused_convolutions_equal_their_modules(
    monkeypatch: pytest.MonkeyPatch, onednn: bool, channels: int, size: int
) -> None:
    """Calibrating, and folded with the estimated statistics; with oneDNN and without; in either memory layout."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(6, channels, size, size, generator=generator) for _ in range(2))
    conv, norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels, momentum=1.0)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        for added, overwrites in ((None, False), (other, False), (other, True)):
            fused_conv = FusedConv(copy.deepcopy(conv), copy.deepcopy(norm), relu=True)
            fused_conv.overwrites = overwrites
            with torch.inference_mode():
                fused_conv.start_calibration(dtype)
                for training in (True, False):
                    expected = F.relu(norm.train(training)(conv(x)) + (0 if added is None else added))
                    given = [t.to(dtype, memory_format=torch.channels_last) for t in (x, added) if t is not None]
                    assert_same(fused_conv(*(tensor.clone() for tensor in given)), expected, tolerance)
                    fused_conv.end_calibration(dtype)


@pytest.mark.parametrize("shape", [(6, 2, 5, 3), (3, 2, 50, 4), (40, 2, 7, 7), (1, 2, 64, 2)])
@pytest.mark.parametrize("positions", [1, 60, 100, 10**9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sampled_values_are_whole_lines_from_all_over_every_image(
    shape: tuple[int, ...], positions: int, layout: torch.memory_format
) -> None:
    count, _, height, width = shape
    area = height * width
    y = torch.arange(torch.Size(shape).numel()).view(shape).contiguous(memory_format=layout)
    found = sample(y, positions)  # [N, 2]
    assert len(found) == len(found.unique(dim=0)), "no value is taken twice"
    assert len(found) >= min(positions, count * area)
    first = found[:, 0]
    assert torch.equal(found[:, 1] - first, torch.full_like(first, area)), (
        "all channels are taken at the same positions"
    )
    image, line = first // (2 * area), first % (2 * area) // width
    assert len(image.unique()) == count
    lines = min(height, -(-positions // (count * width)))
    assert len(found) == count * width * lines
    everywhere = line.unique()
    gaps = torch.diff(everywhere, prepend=torch.tensor([-1]), append=torch.tensor([height]))
    assert gaps.max() <= max(2, -(-2 * height // (count * lines))), "no part of the images is left out"
