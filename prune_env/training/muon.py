"""Muon for convolutions: momentum SGD with orthogonalised updates, on weights of constant norm.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: the update G of a weight matrix, with the singular value
decomposition U S V^T, is replaced by U V^T, so that all directions learn at the same speed. torch.optim.Muon does this
for matrices; here the weight [K, C, h, w] of a convolution is treated as a matrix with K rows. The norm of a weight
before a BatchNorm has no effect except on how far a step turns the weight. Each step therefore first rescales the
weight to norm sqrt(K), instead of weight decay.

Letters: K filters, C channels, h and w kernel size, D = C h w.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..common.device import fast_dtype

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz iteration in the source; steep at 0, so that few steps are enough."""


class Muon(torch.optim.Optimizer):
    """Optimizer for weights of layers that a BatchNorm follows; all other parameters need another optimizer.

    Args:
        params: Weights of at least two dimensions.
        lr: Length of a step as a fraction of the weight's norm, which is about sqrt(K).
        momentum: Momentum of the gradients, with Nesterov's correction.

    Raises:
        ValueError: A parameter has fewer than two dimensions.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.6) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if parameter.ndim < 2:
                raise ValueError(f"Muon takes weights of at least two dimensions, got shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient.

        Raises:
            ValueError: A closure is given; Muon takes one step along the existing gradients.
        """
        if closure is not None:
            raise ValueError("Muon takes no closure: it takes one step along the existing gradients")
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
                turn = orthogonalise(ahead.flatten(1)).view_as(weight)
                if isinstance(group["lr"], torch.Tensor):  # a recorded step reads it from the GPU's memory
                    weight.sub_(turn.mul_(group["lr"]))
                else:
                    weight.sub_(turn, alpha=group["lr"])


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return approximately U V^T of a matrix U S V^T.

    Newton-Schulz iteration in bfloat16 where that is fast, and in float32 elsewhere, since emulated bfloat16 takes 20
    to 50 times as long.

    Args:
        matrix: A matrix [K, D].
        steps: Number of iterations.

    Returns:
        A matrix [K, D] in the type of `matrix`; its singular values are near 1, between 0.6 and 1.3.
    """
    a, b, c = QUINTIC
    x = matrix.to(fast_dtype(matrix.device))
    x = x / (x.norm() + 1e-7)
    wide = x if len(x) <= x.shape[1] else x.T
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide if len(x) <= x.shape[1] else wide.T).to(matrix.dtype)
