"""Temporal-difference targets.

Shapes: B episodes, T steps, N agents, A actions, M learned values (1 for a team, N for iql).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from .config import QMIXConfig


def greedy_values(
    online_q: torch.Tensor, target_q: torch.Tensor, action_masks: torch.Tensor, double_q: bool
) -> torch.Tensor:
    """Return the target network's value of each agent's best legal action.

    Args:
        online_q: Action values of the online network, [..., N, A].
        target_q: Action values of the target network, [..., N, A].
        action_masks: Legal actions, bool [..., N, A].
        double_q: Select the best action by `online_q` instead of `target_q` (van Hasselt et al. 2016, arXiv:1509.06461,
            equation 4).

    Returns:
        Values, [..., N]. Where no action is legal, as in padding, they are finite but meaningless.
    """
    selecting_q = online_q if double_q else target_q
    # Only argmax sees infinities: the value itself is gathered from the unmasked, finite tensor.
    best = selecting_q.masked_fill(~action_masks, -torch.inf).argmax(dim=-1, keepdim=True)
    return target_q.gather(-1, best).squeeze(-1)


def td_targets(
    rewards: torch.Tensor,
    terminated: torch.Tensor,
    filled: torch.Tensor,
    next_values: torch.Tensor,
    config: QMIXConfig,
    next_taken: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return truncated lambda-returns (Sutton and Barto 2018, equation 12.9); TD(lambda) where `n_step` is None.

    With horizon 1, G_t = r_t + gamma (1 - terminated_t) V_{t+1} is the one-step target. Each further step of the
    horizon computes G_t = r_t + gamma (1 - terminated_t) (V_{t+1} + lambda (G_{t+1} - Q_{t+1})) from the G_{t+1} of the
    previous horizon. The last step of an episode bootstraps from V alone: the target of a terminated step is r, and a
    truncated step bootstraps from the observation after it.

    Q_{t+1} is the expected return of the next step. If it is the value of the action taken there, exploration does not
    bias the target: Q(lambda) with off-policy corrections (Harutyunyan et al. 2016, arXiv:1602.04951, for control).
    If it is V_{t+1}, the bracket becomes (1 - lambda) V + lambda G (Sutton and Barto, equation 12.20), and explored
    actions count as if they were greedy (Peng and Williams 1996).

    Args:
        rewards: Rewards, [B, T].
        terminated: 1 for terminated steps, otherwise 0, [B, T].
        filled: 1 for played steps and 0 for padding, [B, T].
        next_values: V_{t+1} at index t, [B, T, M].
        config: Provides gamma, td_lambda and n_step.
        next_taken: Q_{t+1} at index t, [B, T, M]; the entries of an episode's last step are ignored. None uses V_{t+1}.

    Returns:
        Targets, [B, T, M]; 0 for padded steps.
    """
    steps = rewards.shape[1]
    horizon = 1 if config.td_lambda == 0 else min(config.n_step or steps, steps)
    rewards = (rewards * filled).unsqueeze(-1)  # [B, T, 1]
    discounts = (config.gamma * (1 - terminated) * filled).unsqueeze(-1)  # [B, T, 1]
    has_next_step = functional.pad(filled[:, 1:], (0, 1)).unsqueeze(-1) > 0  # [B, T, 1]
    expected = next_values if next_taken is None else next_taken
    targets = rewards + discounts * next_values
    for _ in range(horizon - 1):
        next_targets = functional.pad(targets[:, 1:], (0, 0, 0, 1))  # G_{t+1} at index t
        error = (next_targets - expected).masked_fill(~has_next_step, 0.0)
        targets = rewards + discounts * (next_values + config.td_lambda * error)
    return targets
