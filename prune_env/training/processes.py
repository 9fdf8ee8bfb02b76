"""The processes that train one network together, as torchrun starts them.

Every process takes an equal part of each batch. Losses, gradients and BatchNorm statistics are averaged over all of
them, so the result is that of one process with the whole batch, up to the order of sums. (Masks with pixels that do not
count are an exception: the loss is a mean over the pixels of each part.)

Letters: B images in a batch, C channels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Processes:
    """The processes of torch's default process group, seen from this one; without a group there is only this one."""

    rank: int = 0
    """Number of this process; process 0 writes files and shows progress."""
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Return those of the process group that the caller has made.

        Raises:
            ValueError: torchrun has started several processes, and they have no group.
        """
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        if (count := os.environ.get("WORLD_SIZE", "1")) != "1" and "TORCHELASTIC_RUN_ID" in os.environ:
            raise ValueError(
                f"torchrun has started {count} processes, each of which would train the whole network; call "
                "torch.distributed.init_process_group() first"
            )
        return cls()

    @contextmanager
    def warning_once(self) -> Iterator[None]:
        """Ignore warnings in the block, except in process 0, which gives the same ones."""
        with warnings.catch_warnings():
            if self.rank:
                warnings.simplefilter("ignore")
            yield

    def part(self, batch: int) -> slice:
        """Return which images of a batch this process takes.

        Raises:
            ValueError: The images cannot be divided evenly.
        """
        share, rest = divmod(batch, self.count)
        if rest:
            raise ValueError(
                f"a batch of {batch} images cannot be divided evenly among {self.count} processes; choose a multiple "
                "of that number as batch_size, which counts the images of all processes"
            )
        return slice(self.rank * share, (self.rank + 1) * share)

    def check_same(self, **values: object) -> None:
        """Check that all processes have the same values.

        Raises:
            ValueError: They differ; the message names the first one that does.
        """
        if self.count == 1:
            return
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, {name: repr(value) for name, value in values.items()})
        for name in values:
            if len({one[name] for one in found}) > 1:
                raise ValueError(
                    f"the {self.count} processes do not train together: {name} differs; start all with the same "
                    "arguments, and let all see the same checkpoint file"
                )

    def average(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes, which can be differentiated through."""
        mean: torch.Tensor = _Average.apply(tensor, self.count) if self.count > 1 else tensor
        return mean

    def average_number(self, number: float, device: torch.device) -> float:
        """Return the mean of a number over all processes; the device is one that the process group transfers from."""
        return number if self.count == 1 else float(self.average(torch.tensor(number, device=device)))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of parameters by their means over all processes, in one transfer."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.count == 1 or not gradients:
            return
        means = self.average(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, means.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


class SynchronisedBatchNorm(TorchFunctionMode):
    """Lets every BatchNorm in training mode use the statistics of all processes' images inside the block.

    torch.nn.SyncBatchNorm does so on GPUs only.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self._processes = processes

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch; instead of batch_norm in training mode, the one of all processes."""
        kwargs = kwargs or {}
        call = self._batch_norm if function is functional.batch_norm and kwargs.get("training") else function
        return call(*args, **kwargs)

    def _batch_norm(
        self,
        inputs: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        **others: Any,
    ) -> torch.Tensor:
        """Return normalised inputs [B, C, ...] and update the running statistics; see torch's batch_norm."""
        weight, bias, momentum, eps = (others[name] for name in ("weight", "bias", "momentum", "eps"))
        dims, shape = [0, *range(2, inputs.ndim)], (1, -1, *(1,) * (inputs.ndim - 2))
        values = inputs.float() if inputs.dtype in (torch.bfloat16, torch.float16) else inputs
        mean = self._processes.average(values.mean(dims))  # [C]
        centred = values - mean.view(shape)
        variance = self._processes.average(centred.square().mean(dims))  # [C]
        if running_mean is not None and running_var is not None:
            count = self._processes.count * inputs.numel() / inputs.shape[1]
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((variance * count / max(1, count - 1)).to(running_var), momentum)
        scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
        outputs: torch.Tensor = centred * scale.view(shape)
        return (outputs if bias is None else outputs + bias.view(shape)).to(inputs.dtype)


class _Average(torch.autograd.Function):
    """The mean over all processes; its derivative is the same mean of the derivatives."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, count: int) -> torch.Tensor:
        ctx.count = count
        return _mean(tensor, count)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _mean(gradient, ctx.count), None


def _mean(tensor: torch.Tensor, count: int) -> torch.Tensor:
    total = tensor.contiguous().clone()
    distributed.all_reduce(total)
    return total / count
