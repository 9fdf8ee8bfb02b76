"""QMIX (Rashid et al. 2018, arXiv:1803.11485) for FilterPruneEnv in one file, with PyTorch only.

    python examples/qmix_single_file.py --tabulated           # accuracies are looked up: about 15 seconds
    python examples/qmix_single_file.py --network resnet20 --data cifar10 --target-macs 0.5

Written to be read and changed. The package `qmix_agent` adds recurrent agents, TD(lambda), checkpoints and more.
Shapes: B episodes, T rounds, N agents, A actions, F observation features, S state features, E width of the mixer.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
import tyro
from scores import print_scores
from torch import nn
from torch.nn import functional as F

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.command import one_line_errors
from prune_env.common.settings import Count, Fraction, Positive, Seed, Settings
from prune_env.game.arguments import ProblemArgs


@dataclass(frozen=True)
class Args(Settings):
    problem: Annotated[ProblemArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=ProblemArgs)
    """The network, its data, and where plans are evaluated."""
    target_macs: float = 0.3
    """Fraction of the original MACs that may stay."""
    episodes: Count = 300
    """Episodes to play; each ends with one plan."""
    seed: Seed = 0
    """Seed of weights, exploration, replay and random search."""
    hidden_size: Count = 64
    """Width of the agent network and of the hypernetworks."""
    mixing_embed: Count = 32
    """Width of the mixing network."""
    learning_rate: Positive = 1e-3
    """Learning rate of Adam."""
    gamma: Fraction = 0.99
    """Discount factor per round."""
    batch_size: Count = 32
    """Episodes in one update, and episodes played before the first update."""
    updates_per_episode: Count = 8
    """Updates after each episode."""
    target_tau: Fraction = 0.01
    """Fraction by which the target networks move towards the online networks at every update."""
    max_grad_norm: Positive = 10.0
    """Gradients with a larger norm are scaled down to it."""
    epsilon_end: Fraction = 0.05
    """Probability of a random action at the end of exploration; it starts at 1."""
    exploration_fraction: Positive = 0.5
    """Fraction of the episodes over which epsilon falls linearly."""


class AgentNetwork(nn.Module):
    """Action values of every agent. All agents share the weights; a one-hot identity distinguishes them."""

    def __init__(self, n_agents: int, n_features: int, n_actions: int, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("identity", torch.eye(n_agents))
        self.layers = nn.Sequential(
            nn.Linear(n_features + n_agents, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, n_actions),
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:  # [..., N, F] -> [..., N, A]
        identity = self.identity.expand(*observations.shape[:-1], -1)  # [..., N, N]
        return self.layers(torch.cat([observations, identity], -1))


class Mixer(nn.Module):
    """Mixes the agents' values into q_tot (section 4). Hypernetworks compute its weights from the state.

    The mixing weights are absolute values, so q_tot never falls when the value of an agent rises. The joint action with
    the highest q_tot therefore consists of the best action of each agent.
    """

    def __init__(self, n_agents: int, n_state: int, mixing_embed: int, hidden_size: int) -> None:
        super().__init__()

        def hypernetwork(outputs: int) -> nn.Module:
            return nn.Sequential(nn.Linear(n_state, hidden_size), nn.ReLU(), nn.Linear(hidden_size, outputs))

        self.shape = (n_agents, mixing_embed)
        self.weights_1, self.weights_2 = hypernetwork(n_agents * mixing_embed), hypernetwork(mixing_embed)
        self.bias_1, self.bias_2 = nn.Linear(n_state, mixing_embed), hypernetwork(1)

    def forward(self, values: torch.Tensor, states: torch.Tensor) -> torch.Tensor:  # [B, T, N], [B, T, S] -> [B, T]
        weights_1 = self.weights_1(states).abs().unflatten(-1, self.shape)  # [B, T, N, E]
        hidden = F.elu((values.unsqueeze(-2) @ weights_1).squeeze(-2) + self.bias_1(states))  # [B, T, E]
        return (hidden * self.weights_2(states).abs()).sum(-1) + self.bias_2(states).squeeze(-1)


def play_episode(
    env: FilterPruneEnv, network: AgentNetwork, epsilon: float, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Play one episode with epsilon-greedy legal actions.

    Returns:
        Its tensors, without the axis B. Observations, masks and states also have those after the last round: T+1.
    """
    episode: dict[str, list[torch.Tensor]] = defaultdict(list)
    observations, infos = env.reset()
    while True:
        masks = np.stack([info["action_mask"] for info in infos.values()]).astype(bool)  # [N, A]
        episode["observations"].append(torch.from_numpy(np.stack(list(observations.values()))))
        episode["masks"].append(torch.from_numpy(masks))
        episode["states"].append(torch.from_numpy(env.state()))
        agents = env.agents
        if not agents:
            return {name: torch.stack(tensors) for name, tensors in episode.items()}
        with torch.inference_mode():
            values = network(episode["observations"][-1])  # [N, A]
        greedy = values.masked_fill(~episode["masks"][-1], -torch.inf).argmax(-1).numpy()
        random = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        actions = np.where(rng.random(len(agents)) < epsilon, random, greedy)
        observations, rewards, terminated, _, infos = env.step(dict(zip(agents, actions.tolist(), strict=True)))
        episode["actions"].append(torch.from_numpy(actions))
        episode["rewards"].append(torch.tensor(rewards[agents[0]], dtype=torch.float32))  # the same for all agents
        episode["terminated"].append(torch.tensor(terminated[agents[0]], dtype=torch.float32))


def td_loss(
    online: tuple[AgentNetwork, Mixer], target: tuple[AgentNetwork, Mixer], batch: dict[str, torch.Tensor], gamma: float
) -> torch.Tensor:
    """Return the loss of q_tot to its one-step target (equations 6 and 7), with double Q-learning and Huber loss."""
    values = online[0](batch["observations"])  # [B, T+1, N, A]
    taken = values[:, :-1].gather(-1, batch["actions"].unsqueeze(-1)).squeeze(-1)  # [B, T, N]
    q_tot = online[1](taken, batch["states"][:, :-1])  # [B, T]
    with torch.no_grad():
        # The online network chooses the next actions, the target network evaluates them.
        best = values[:, 1:].masked_fill(~batch["masks"][:, 1:], -torch.inf).argmax(-1, keepdim=True)  # [B, T, N, 1]
        next_values = target[0](batch["observations"][:, 1:]).gather(-1, best).squeeze(-1)  # [B, T, N]
        next_q_tot = target[1](next_values, batch["states"][:, 1:])  # [B, T]
        goal = batch["rewards"] + gamma * (1 - batch["terminated"]) * next_q_tot
    return F.huber_loss(q_tot, goal)


def train(env: FilterPruneEnv, args: Args) -> None:
    """Play and learn. Afterwards `env.archive` holds every finished plan with its accuracy."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    n_agents, n_state = len(env.possible_agents), len(env.state_names)
    network = AgentNetwork(n_agents, len(env.observation_names), len(env.config.rates), args.hidden_size)
    online = (network, Mixer(n_agents, n_state, args.mixing_embed, args.hidden_size))
    target = copy.deepcopy(online)
    parameters, target_parameters = ([p for module in pair for p in module.parameters()] for pair in (online, target))
    optimizer = torch.optim.Adam(parameters, lr=args.learning_rate)
    replay: list[dict[str, torch.Tensor]] = []
    returns: list[float] = []  # from every round that was played
    for number in range(args.episodes):
        progress = number / (args.exploration_fraction * args.episodes)
        epsilon = max(args.epsilon_end, 1 + (args.epsilon_end - 1) * progress)
        replay.append(play_episode(env, network, epsilon, rng))
        discounted = 0.0
        for reward in reversed(replay[-1]["rewards"].tolist()):
            discounted = reward + args.gamma * discounted
            returns.append(discounted)
        if number + 1 < args.batch_size:
            continue
        # Returns of good plans differ little. Standardised, their differences count from the first update. The rewards
        # below are those whose returns are (return - mean) / std.
        mean, std = float(np.mean(returns)), max(float(np.std(returns)), 1e-6)
        for _ in range(args.updates_per_episode):
            chosen = rng.choice(len(replay), args.batch_size, replace=False)
            batch = {name: torch.stack([replay[row][name] for row in chosen]) for name in replay[0]}
            batch["rewards"] = (batch["rewards"] - mean * (1 - args.gamma * (1 - batch["terminated"]))) / std
            loss = td_loss(online, target, batch, args.gamma)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(target_parameters, parameters, strict=True):
                    slow.lerp_(fast, args.target_tau)
        if (number + 1) % 50 == 0:
            recent = np.mean([float(episode["rewards"].sum()) for episode in replay[-50:]])
            best = 100 * max(entry.accuracy for entry in env.archive)
            print(
                f"episode {number + 1:>5}   epsilon {epsilon:.2f}   loss {loss:.4f}   mean return of the last 50 "
                f"{recent:+.4f}   best accuracy {best:.2f} %"
            )


def main(args: Args) -> None:
    env = args.problem.make_env(EnvConfig(target_macs=args.target_macs))
    train(env, args)
    print_scores(env, "QMIX", args.seed)
    if args.problem.tabulated:
        print(f"{'optimum':<14} {len(env.evaluator.accuracies):>5} {100 * env.evaluator.optimum:>7.2f} %")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Args, description=__doc__))
