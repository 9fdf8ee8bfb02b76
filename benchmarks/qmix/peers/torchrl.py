"""TorchRL's QMIX: QMixerLoss, QMixer, MultiAgentMLP, EGreedyModule, PettingZooWrapper, TensorDictReplayBuffer.

Assembled as in its sota-implementations/multiagent/qmix_vdn.py. Its own choices: tanh, hypernetworks of one layer,
squared one-step TD error with the maximum of the target network, Adam, soft target updates (tau 0.005), gradient norm
of at most 40, replay of transitions. Two differences from that script: the learning rate is that of `qmix_agent`,
because 5e-5 suits the script's batches of 4096; and agents receive their identity, as in the other implementations.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import PettingZooWrapper
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule, MultiAgentMLP, QValueModule
from torchrl.modules.models.multiagent import QMixer
from torchrl.objectives import SoftUpdate, ValueEstimators
from torchrl.objectives.multiagent import QMixerLoss

from . import Env, Settings

LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 40.0
TAU = 0.005


class TorchRL:
    """Wraps TorchRL's classes. Its modules use torch's global generator, which `seed` seeds.

    Args:
        env: The game to train on.
        settings: Settings that all implementations share.
        seed: Seed of the global generator.
    """

    def __init__(self, env: Env, settings: Settings, seed: int) -> None:
        torch.manual_seed(seed)
        self._settings = settings
        self._env = wrap_env(env)
        (self._group,) = self._env.group_map
        agents, group = len(self._env.group_map[self._group]), self._group
        spec = self._env.full_action_spec_unbatched
        network = MultiAgentMLP(
            n_agent_inputs=self._env.observation_spec[group, "observation"].shape[-1] + agents,
            n_agent_outputs=spec[group, "action"].space.n,
            n_agents=agents,
            centralized=False,
            share_params=True,
            depth=2,
            num_cells=settings.hidden_size,
            activation_class=nn.Tanh,
        )
        masked = (group, "action_mask") in self._env.observation_spec.keys(True, True)
        mask = (group, "action_mask") if masked else None
        values = TensorDictModule(WithAgentId(network, agents), [(group, "observation")], [(group, "action_value")])
        choice = QValueModule(
            action_value_key=(group, "action_value"),
            action_mask_key=mask,
            out_keys=[(group, "action"), (group, "action_value"), (group, "chosen_action_value")],
            spec=spec,
            action_space=None,
        )
        self._greedy = TensorDictSequential(values, choice)
        self._explorer = EGreedyModule(
            eps_init=settings.epsilon_start,
            eps_end=settings.epsilon_end,
            annealing_num_steps=settings.epsilon_episodes * settings.steps,
            action_key=(group, "action"),
            action_mask_key=mask,
            spec=spec,
        )
        self._exploring = TensorDictSequential(self._greedy, self._explorer)
        mixer = TensorDictModule(
            QMixer(self._env.observation_spec["state"].shape, settings.mixing_embed, agents, torch.device("cpu")),
            in_keys=[(group, "chosen_action_value"), "state"],
            out_keys=["chosen_action_value"],
        )
        self._loss = QMixerLoss(self._greedy, mixer, delay_value=True, action_space="categorical")
        self._loss.set_keys(
            action_value=(group, "action_value"),
            local_value=(group, "chosen_action_value"),
            global_value="chosen_action_value",
            action=(group, "action"),
        )
        self._loss.make_value_estimator(ValueEstimators.TD0, gamma=settings.gamma)
        self._target = SoftUpdate(self._loss, eps=1 - TAU)
        self._optimizer = torch.optim.Adam(self._loss.parameters(), LEARNING_RATE)
        self._replay = TensorDictReplayBuffer(
            storage=LazyTensorStorage(settings.buffer_size * settings.steps),
            batch_size=settings.batch_size * settings.steps,
        )
        inputs: list[Any] = ["state", (group, "observation"), *([mask] if mask else [])]
        next_inputs = [("next", *(key if isinstance(key, tuple) else (key,))) for key in inputs]
        outcome = [("next", key) for key in ("done", "terminated", "reward")]
        self._stored_keys = [*inputs, *next_inputs, (group, "action"), *outcome]

    def collect(self, episodes: int) -> float:
        """Play with exploration, add the transitions to the replay buffer, and return the mean return."""
        returns = []
        for _ in range(episodes):
            with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
                played = self._env.rollout(self._settings.steps, self._exploring)
            reward = played["next", self._group, "reward"].mean(-2)  # equal for all agents
            played["next", "reward"] = reward
            self._replay.extend(played.select(*self._stored_keys))
            self._explorer.step(len(played))
            returns.append(float(reward.sum()))
        return sum(returns) / episodes

    def draw(self) -> TensorDict:
        """Draw a batch from the replay buffer."""
        return self._replay.sample()

    def step(self, batch: TensorDict) -> None:
        """Take one update."""
        self._loss(batch)["loss"].backward()
        nn.utils.clip_grad_norm_(self._loss.parameters(), MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._target.step()

    def evaluate(self, env: Env, episodes: int) -> float:
        """Return the mean return of greedy episodes."""
        wrapped, total = wrap_env(env), 0.0
        for _ in range(episodes):
            with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
                played = wrapped.rollout(self._settings.steps, self._greedy)
            total += float(played["next", self._group, "reward"].mean(-2).sum())
        return total / episodes


class WithAgentId(nn.Module):
    """Appends each agent's one-hot identity to its observation."""

    def __init__(self, network: nn.Module, agents: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("identity", torch.eye(agents))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Map observations [..., N, O] to action values [..., N, A]."""
        identity = self.identity.expand(*observations.shape[:-2], -1, -1)
        return self.network(torch.cat((observations, identity), -1))


def wrap_env(env: Env) -> PettingZooWrapper:
    """Wrap the game with all agents in one group and actions as indices."""
    agents = {"agents": list(env.possible_agents)}
    return PettingZooWrapper(env, return_state=True, group_map=agents, categorical_actions=True)
