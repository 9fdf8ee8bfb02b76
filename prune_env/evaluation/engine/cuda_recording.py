"""Measure plans on a GPU with a CUDA graph that is recorded once and replayed for every plan.

The shapes of a plan's own network would cost cuDNN more time than smaller layers save, and the kernels of a small
network end before the next ones are launched. On an H100, VGG-16 with 1,500 images spends 38 ms on the shapes of a new
plan and 9 ms on everything else, of which the GPU computes for 5 ms.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ...common.cuda_graphs import capture, forbid_synchronisation, side_stream
from ...common.device import exact_convolutions
from ...common.memory_format import in_layout, memory_format
from ...pruning.copies import shared_copy
from ...pruning.groups import Plan, PruningGroup
from ...pruning.surgery import build
from ...scoring.batchnorm import TOLERANCE, outputs_agree, randomise_batchnorms, recalibrate
from .masked import MaskedNetwork

logger = logging.getLogger(__name__)


class Recording:
    """Counts how many images the networks of plans classify correctly, with recalibrated BatchNorm."""

    def __init__(
        self,
        masked: MaskedNetwork,
        calibration: Sequence[torch.Tensor],
        batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Record the measurement.

        Args:
            masked: The network on the GPU.
            calibration: Batches [B, C, H, W] for BatchNorm, in the network's precision on the GPU.
            batches: Images [B, C, H, W], likewise, and their labels [B].

        Raises:
            RuntimeError: The forward pass waits for the GPU, so it cannot be recorded.
        """
        self._masked, self._calibration, self._batches = masked, calibration, batches
        device = batches[0][1].device
        self._correct = torch.zeros((), dtype=torch.long, device=device)
        with side_stream(device):
            self._count()  # lets libraries allocate their workspaces
        with side_stream(device), forbid_synchronisation():
            self._count()
        self._graph = torch.cuda.CUDAGraph()
        with capture(self._graph, device):
            self._count()

    def count_correct(self, plan: Plan) -> int:
        """Return how many images the network of a plan classifies correctly.

        Raises:
            ValueError: The plan does not fit the groups.
        """
        self._masked.load(plan)
        self._graph.replay()
        return int(self._correct)

    @torch.inference_mode()
    def _count(self) -> None:
        self._masked.apply()
        recalibrate(self._masked.network, self._calibration)
        self._correct.zero_()
        for images, labels in self._batches:
            self._correct += (self._masked.network(images).argmax(1) == labels).sum()


def recording(
    model: nn.Module,
    groups: Sequence[PruningGroup],
    ranking: Mapping[str, torch.Tensor],
    example_input: torch.Tensor,
    calibration: Sequence[torch.Tensor],
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> Recording | None:
    """Return a recording of a network, None if it cannot be recorded.

    First, masking is compared with cutting in float32.

    Args:
        model: The original network in float32 and eval mode.
        groups: Its pruning groups.
        ranking: Name of a group -> indices of its filters, the most important first.
        example_input: float32 [B, C, H, W], two images or more.
        calibration: Batches [B, C, H, W] for BatchNorm on the GPU.
        batches: Images [B, C, H, W] on the GPU, in the precision to use, and their labels [B].
    """
    device, dtype, layout = batches[0][0].device, batches[0][0].dtype, memory_format(model, example_input)
    try:
        reason = masking_fault(model, groups, example_input.to(device), layout)
        if reason is None:
            masked = MaskedNetwork(model, groups, ranking, dtype=dtype, device=device, layout=layout)
            return Recording(masked, calibration, batches)
    except torch.OutOfMemoryError:
        raise  # results must not depend on what else uses the GPU
    except RuntimeError as error:  # raised by torch for a network that waits for the GPU
        reason = str(error)
    logger.info("the evaluation of %s is not recorded: %s", type(model).__name__, reason)
    return None


@torch.inference_mode()
def masking_fault(
    model: nn.Module,
    groups: Sequence[PruningGroup],
    example: torch.Tensor,
    layout: torch.memory_format = torch.channels_last,
) -> str | None:
    """Return why this network cannot be masked, None if masked and cut networks agree for three plans.

    Args:
        model: The original network in float32 and eval mode.
        groups: Its pruning groups.
        example: float32 [B, C, H, W] on the device to use, two images or more.
        layout: Memory format of weights and images.
    """
    model = randomise_batchnorms(copy.deepcopy(shared_copy(model)).to(example.device)).eval()
    ranking = {group.name: torch.arange(group.filters).flip(0) for group in groups}
    images = in_layout(torch.cat((example, example.flip(-1), -example)), layout)
    masked = MaskedNetwork(model, groups, ranking, dtype=torch.float32, device=example.device, layout=layout)
    with exact_convolutions(example.device):
        for divisor in (1, 2, 3):
            plan = tuple(-(-group.filters // divisor) for group in groups)
            network = build(model, groups, ranking, plan)
            recalibrate(network, (images.clone(),))
            masked.load(plan)
            masked.apply()
            recalibrate(masked.network, (images.clone(),))
            if not outputs_agree(masked.network(images.clone()), network(images.clone()), 10 * TOLERANCE):
                return f"plan {plan} gives other outputs"
    return None
