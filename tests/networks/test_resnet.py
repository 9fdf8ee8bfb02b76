"""ResNets and their zero-padded shortcuts."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from prune_env.networks.resnet import ZeroPadShortcut


def test_a_zero_padded_shortcut_equals_slicing_and_padding() -> None:
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    assert torch.equal(ZeroPadShortcut(16, 32)(x), expected)
