"""What the values of the actions taken should have been.

Shapes: B episodes, T steps, N agents, A actions, M learned values (1 for a team, N for iql).
"""

from __future__ import annotations

import torch
from torch.nn import functional


def greedy_values(
    live_q: torch.Tensor, target_q: torch.Tensor, action_masks: torch.Tensor, double_q: bool
) -> torch.Tensor:
    """The target network's value of each agent's best legal action, [..., N].

    With `double_q` the live network says which action is best (van Hasselt et al. 2016, arXiv:1509.06461, equation 4).
    Moments without any legal action (padding) give a finite value that nobody may use.

    live_q, target_q  [..., N, A]
    action_masks      bool [..., N, A]
    """
    judged = live_q if double_q else target_q
    # Infinity only ever meets argmax: the value itself is gathered from the unmasked, finite tensor.
    best = judged.masked_fill(~action_masks, -torch.inf).argmax(dim=-1, keepdim=True)
    return target_q.gather(-1, best).squeeze(-1)


def td_targets(
    rewards: torch.Tensor,
    terminated: torch.Tensor,
    filled: torch.Tensor,
    next_values: torch.Tensor,
    gamma: float,
    td_lambda: float,
    n_step: int | None = None,
    next_taken: torch.Tensor | None = None,
) -> torch.Tensor:
    """Truncated lambda-returns, [B, T, M] (Sutton and Barto 2018, equation 12.9); TD(lambda) where `n_step` is None.

    With horizon 1, G_t = r_t + gamma (1 - terminated_t) V_{t+1}, the one-step target. One horizon more is
    G_t = r_t + gamma (1 - terminated_t) (V_{t+1} + lambda (G_{t+1} - Q_{t+1})), with the last horizon's G_{t+1}. An
    episode's last step bootstraps from V alone, so that a truncated step counts on its true next moment and a
    terminated step's target is r. Padded steps are 0.

    Q_{t+1} is what the next step was expected to return. With the value of the action that was taken there, what
    comes back through an explored action is only what it taught: Q(lambda) with off-policy corrections (Harutyunyan et
    al. 2016, arXiv:1602.04951, for control). With V_{t+1} in its place, the recursion is (1 - lambda) V + lambda G
    (Sutton and Barto's 12.20): explored actions count as if they were the policy's (Peng and Williams 1996).

    rewards, terminated, filled  [B, T]
    next_values                  [B, T, M], V_{t+1} at index t
    n_step                       the horizon; None for the whole episode
    next_taken                   [B, T, M], Q_{t+1} at index t, anything in an episode's last step; None: V_{t+1}
    """
    steps = rewards.shape[1]
    horizon = 1 if td_lambda == 0 else min(n_step or steps, steps)
    rewards = (rewards * filled).unsqueeze(-1)  # [B, T, 1], as are the next two
    discounts = (gamma * (1 - terminated) * filled).unsqueeze(-1)
    goes_on = functional.pad(filled[:, 1:], (0, 1)).unsqueeze(-1) > 0  # another step follows
    expected = next_values if next_taken is None else next_taken
    targets = rewards + discounts * next_values
    for _ in range(horizon - 1):
        later = functional.pad(targets[:, 1:], (0, 0, 0, 1))  # G_{t+1} at index t
        surprise = (later - expected).masked_fill(~goes_on, 0.0)
        targets = rewards + discounts * (next_values + td_lambda * surprise)
    return targets
