"""Muon for convolutions: momentum SGD whose update is made orthogonal, on weights that are kept at one norm.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: the update G of a weight matrix with the singular value
decomposition U S V^T is replaced by U V^T, so that every direction learns alike. torch.optim.Muon has it for matrices;
a convolution's weight [K, C, h, w] is one of K rows. In front of BatchNorm the length of a weight does not matter, but
for how far a step turns it: every step begins at sqrt(K), in place of weight decay.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..common.device import fast_dtype

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz iteration of the source: steep at 0, so that few steps do."""


class Muon(torch.optim.Optimizer):
    """For weights of layers that BatchNorm follows; biases and everything else need another optimizer.

    lr        length of a step, as a fraction of the weight's: both have a norm of about sqrt(K)
    momentum  of the gradients, with Nesterov's look ahead
    Raises ValueError for a parameter that is no weight of a layer: fewer than two dimensions.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.6) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if parameter.ndim < 2:
                raise ValueError(f"Muon takes weights of two dimensions or more, got shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient. Raises ValueError for a closure, which it has no use for."""
        if closure is not None:
            raise ValueError("Muon takes one step along gradients that are there; it calls no closure")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                average = state["momentum_buffer"].mul_(group["momentum"]).add_(weight.grad)
                ahead = weight.grad.add(average, alpha=group["momentum"])
                weight.mul_(len(weight) ** 0.5 / weight.norm().clamp_min(1e-7))
                turn = orthogonalised(ahead.flatten(1)).view_as(weight)
                if isinstance(group["lr"], torch.Tensor):  # in the memory of a recording
                    weight.sub_(turn.mul_(group["lr"]))
                else:
                    weight.sub_(turn, alpha=group["lr"])


def orthogonalised(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearly U V^T of a matrix U S V^T, [K, D]: singular values come to lie about 1, between 0.6 and 1.3.

    Newton-Schulz iteration in bfloat16 where that is fast, else in float32: emulated it takes 20 to 50 times as long.
    In the matrix's dtype again at the end.
    """
    a, b, c = QUINTIC
    x = matrix.to(fast_dtype(matrix.device))
    x = x / (x.norm() + 1e-7)
    wide = x if len(x) <= x.shape[1] else x.T
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide if len(x) <= x.shape[1] else wide.T).to(matrix.dtype)
