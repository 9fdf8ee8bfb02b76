"""AMC: DDPG chooses a continuous keep ratio for one layer after another (He et al. 2018, arXiv:1802.03494).

This is an independent implementation. It follows the paper in the bound that keeps the budget in reach (algorithm 1, in
`LayerByLayer`), the final reward for every transition of an episode, the moving baseline, no discount (equation 5),
noise from a normal distribution truncated to [0, 1], two hidden layers of 300 units, batches of 64, a target rate of
0.01, and warm-up for a quarter of the episodes. It follows the authors' released search script in what the paper does
not specify: learning rates, one update per transition, a memory of 100 episodes, noise that shrinks by 0.95 per
episode, and keep ratios of at least 0.2. It differs in the observation, which is that of the environment and contains
the paper's features of a layer. The reward is linear in the accuracy, like theirs. Letters: B batch, F features.
"""

from __future__ import annotations

import copy
from collections import deque

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from prune_env import FilterPruneEnv
from prune_env.single_agent import LayerByLayer

from .counted import Counted
from .reconstruction import Reconstruction
from .result import SearchResult
from .seeding import own_generators

HIDDEN, BATCH, MEMORY = 300, 64, 100
LEARNING_RATES = {"actor": 1e-4, "critic": 1e-3}
TARGET_RATE = 0.01
NOISE, NOISE_DECAY = 0.5, 0.95
WARM_UP = 0.25
BASELINE_RATE = 0.5
FEWEST = 0.2

Transition = tuple[np.ndarray, float, float, np.ndarray, bool]
"""Observation [F], keep ratio, return of the episode, next observation [F], whether the episode has ended."""


class Agent:
    """Actor, critic, their target networks, and the baseline."""

    def __init__(self, features: int) -> None:
        self.networks = {"actor": _network(features, nn.Sigmoid()), "critic": _network(features + 1, nn.Identity())}
        self.targets = copy.deepcopy(self.networks)
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), LEARNING_RATES[name])
            for name, network in self.networks.items()
        }
        self.baseline: float | None = None

    @torch.inference_mode()
    def act(self, observation: np.ndarray) -> float:
        """Return a keep ratio in [0, 1]."""
        return self.networks["actor"](torch.from_numpy(observation)).item()

    def update(self, batch: list[Transition]) -> None:
        """Update each network once, then the target networks."""
        observations, nexts = (torch.from_numpy(np.stack([row[at] for row in batch])) for at in (0, 3))  # [B, F]
        actions, returns, over = (torch.tensor([[float(row[at])] for row in batch]) for at in (1, 2, 4))  # [B, 1]
        average = returns.mean().item()
        self.baseline = average if self.baseline is None else self.baseline + BASELINE_RATE * (average - self.baseline)
        with torch.no_grad():
            ahead = self.targets["critic"](torch.cat([nexts, self.targets["actor"](nexts)], 1))
            wanted = returns - self.baseline + (1 - over) * ahead
        self._step("critic", F.mse_loss(self.networks["critic"](torch.cat([observations, actions], 1)), wanted))
        chosen = torch.cat([observations, self.networks["actor"](observations)], 1)
        self._step("actor", -self.networks["critic"](chosen).mean())
        for name, network in self.networks.items():
            for slow, fast in zip(self.targets[name].parameters(), network.parameters(), strict=True):
                slow.data.lerp_(fast.data, TARGET_RATE)

    def _step(self, name: str, loss: torch.Tensor) -> None:
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()


def search(env: FilterPruneEnv, max_plans: int, seed: int, reconstruct: bool = False) -> SearchResult:
    """Search with AMC.

    Args:
        env: The environment.
        max_plans: Number of distinct plans that may be evaluated.
        seed: Seed of weights, exploration and replay.
        reconstruct: Evaluate networks whose weights were fitted by least squares after cutting; see `reconstruction`.
    """
    rng = np.random.default_rng(seed)
    network_of = Reconstruction(env.problem, seed, env.evaluator.device).network if reconstruct else None
    with Counted(env, max_plans, network_of) as counted, own_generators(seed):
        view = LayerByLayer(counted.env)
        agent = Agent(view.observation_space.shape[0])
        memory: deque[Transition] = deque(maxlen=MEMORY * len(env.groups))
        warm_up, episode = int(WARM_UP * max_plans), 0
        while True:
            noise = NOISE * NOISE_DECAY ** max(0, episode - warm_up)
            observation, _ = view.reset()
            steps, ends = [], False
            while not ends:
                wanted = rng.random() if episode < warm_up else truncated_normal(agent.act(observation), noise, rng)
                then, reward, ends, _, info = view.step(np.array([max(FEWEST, wanted)], np.float32))
                steps.append((observation, info["keep_ratio"], then, ends))
                observation = then
            memory.extend((before, kept, reward, after, over) for before, kept, after, over in steps)
            if episode >= warm_up:
                for _ in steps:
                    rows = rng.integers(len(memory), size=BATCH)
                    agent.update([memory[row] for row in rows])
            episode += 1
    return counted.result()


def _network(inputs: int, end: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), end
    )


def truncated_normal(mean: float, deviation: float, rng: np.random.Generator) -> float:
    """Draw from a normal distribution until the value is in [0, 1]; few draws are needed if the mean is in [0, 1]."""
    while True:
        value = rng.normal(mean, deviation)
        if 0 <= value <= 1:
            return float(value)
