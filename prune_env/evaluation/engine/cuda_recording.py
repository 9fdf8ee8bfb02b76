"""On a GPU: the measurement of a plan, recorded once as a CUDA graph and replayed for every other one.

A plan's own shapes cost cuDNN more than smaller layers save, and a small network's kernels end before the next ones are
launched. Measured on an H100, VGG-16 on 1,500 images: 38 ms for the shapes of a new plan, 9 for everything else, of
which the GPU computes for 5.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ...common.cuda_graphs import capture, forbid_synchronisation, side_stream
from ...common.device import exact_convolutions
from ...pruning.copies import twin
from ...pruning.groups import Plan, PruningGroup
from ...pruning.surgery import build
from ...scoring.batchnorm import TOLERANCE, outputs_agree, randomise_batchnorms, recalibrate
from .masked import MaskedNetwork

logger = logging.getLogger(__name__)


class Recording:
    """How many images the networks of plans get right, with recalibrated BatchNorm.

    calibration  batches [B, C, H, W], in the network's precision on the GPU
    batches      images [B, C, H, W], likewise, and their labels [B]
    Raises RuntimeError where the network waits for the GPU in its forward pass: that cannot be recorded.
    """

    def __init__(
        self,
        silenced: MaskedNetwork,
        calibration: Sequence[torch.Tensor],
        batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        self._silenced, self._calibration, self._batches = silenced, calibration, batches
        device = batches[0][1].device
        self._right = torch.zeros((), dtype=torch.long, device=device)
        with side_stream(device):
            self._count()  # libraries then have their workspaces
        with side_stream(device), forbid_synchronisation():
            self._count()
        self._graph = torch.cuda.CUDAGraph()
        with capture(self._graph, device):
            self._count()

    def right(self, plan: Plan) -> int:
        """Images that the plan's network gets right. Raises ValueError for a plan that does not fit."""
        self._silenced.load(plan)
        self._graph.replay()
        return int(self._right)

    @torch.inference_mode()
    def _count(self) -> None:
        self._silenced.silence()
        recalibrate(self._silenced.network, self._calibration)
        self._right.zero_()
        for images, labels in self._batches:
            self._right += (self._silenced.network(images).argmax(1) == labels).sum()


def recording(
    model: nn.Module,
    groups: Sequence[PruningGroup],
    ranking: Mapping[str, torch.Tensor],
    example_input: torch.Tensor,
    calibration: Sequence[torch.Tensor],
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> Recording | None:
    """A recording of the model, in eval mode and float32, for images on the GPU; None where it cannot be had.

    Before, silencing is compared with cutting, in float32 on `example_input` [B, C, H, W], two images or more.
    """
    device, dtype = batches[0][0].device, batches[0][0].dtype
    try:
        reason = silencing_fault(model, groups, example_input.to(device))
        if reason is None:
            return Recording(MaskedNetwork(model, groups, ranking, dtype=dtype, device=device), calibration, batches)
    except torch.OutOfMemoryError:
        raise  # answers must not depend on who else uses the GPU
    except RuntimeError as error:  # what torch says of a network that waits
        reason = str(error)
    logger.info("the evaluation of %s is not recorded: %s", type(model).__name__, reason)
    return None


@torch.inference_mode()
def silencing_fault(model: nn.Module, groups: Sequence[PruningGroup], example: torch.Tensor) -> str | None:
    """What speaks against silencing this model's filters: a plan whose silenced network is not the cut one."""
    model = randomise_batchnorms(copy.deepcopy(twin(model)).to(example.device)).eval()
    ranking = {group.name: torch.arange(group.filters).flip(0) for group in groups}
    images = torch.cat((example, example.flip(-1), -example)).to(memory_format=torch.channels_last)
    silenced = MaskedNetwork(model, groups, ranking, dtype=torch.float32, device=example.device)
    with exact_convolutions(example.device):
        for divisor in (1, 2, 3):
            plan = tuple(-(-group.filters // divisor) for group in groups)
            network = build(model, groups, ranking, plan)
            recalibrate(network, (images.clone(),))
            silenced.load(plan)
            silenced.silence()
            recalibrate(silenced.network, (images.clone(),))
            if not outputs_agree(silenced.network(images.clone()), network(images.clone()), 10 * TOLERANCE):
                return f"plan {plan} gives other outputs"
    return None
