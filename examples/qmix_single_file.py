"""QMIX (Rashid et al. 2018, arXiv:1803.11485) for FilterPruneEnv in one file, with PyTorch only.

    python examples/qmix_single_file.py                       # the tabulated problem: about 15 seconds
    python examples/qmix_single_file.py --network resnet20 --data cifar10 --target-macs 0.5

Written to be read and changed. The package `qmix_agent` adds recurrent agents, TD(lambda), checkpoints and more.
Shapes: B episodes, T rounds, N agents, A actions, F observation features, S state features, E width of the mixer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn import functional as F

from prune_env import FilterPruneEnv, make_env, make_tabulated_env
from prune_env.common.command import one_line_errors
from prune_env.common.settings import Count, Fraction, Positive, Seed, Settings


@dataclass(frozen=True)
class Args(Settings):
    network: str | None = None
    """Registered network to prune; None for the tabulated problem, whose best plan is known."""
    data: str = "digits"
    """Data of the network: digits, cifar10, cifar100, or a folder PATH/{train,test}/<class>/*."""
    weights: Path | None = None
    """File with trained weights. Without it the network is trained once and cached."""
    target_macs: float = 0.3
    """Fraction of the MACs that may stay. The tabulated problem has 0.5, 0.3 and 0.2."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network is None and (self.data, self.weights) != ("digits", None):
            raise ValueError("the tabulated problem has its own data and weights; to use others, give --network")


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


def make_replay(env: FilterPruneEnv, episodes: int) -> dict[str, torch.Tensor]:
    """Return zeros for so many episodes. Observations, masks and states also have those after the last round, T+1."""
    rounds, agents, actions = env.config.rounds, len(env.possible_agents), len(env.config.rates)
    return {
        "observations": torch.zeros(episodes, rounds + 1, agents, len(env.observation_names)),
        "masks": torch.zeros(episodes, rounds + 1, agents, actions, dtype=torch.bool),
        "states": torch.zeros(episodes, rounds + 1, len(env.state_names)),
        "actions": torch.zeros(episodes, rounds, agents, dtype=torch.int64),
        "rewards": torch.zeros(episodes, rounds),
        "terminated": torch.zeros(episodes, rounds),
        "played": torch.zeros(episodes, rounds),  # stays 0 for the rounds of an episode that ends early
    }


def play_episode(
    env: FilterPruneEnv,
    network: AgentNetwork,
    epsilon: float,
    rng: np.random.Generator,
    episode: dict[str, torch.Tensor],
) -> None:
    """Play one episode with epsilon-greedy legal actions, and write it to `episode`: tensors without the axis B."""
    observations, infos = env.reset()
    for step in range(env.config.rounds + 1):
        masks = np.stack([info["action_mask"] for info in infos.values()]).astype(bool)  # [N, A]
        episode["observations"][step] = torch.from_numpy(np.stack(list(observations.values())))
        episode["masks"][step] = torch.from_numpy(masks)
        episode["states"][step] = torch.from_numpy(env.state())
        agents = env.agents
        if not agents:
            break
        with torch.inference_mode():
            values = network(episode["observations"][step])  # [N, A]
        greedy = values.masked_fill(~episode["masks"][step], -torch.inf).argmax(-1).numpy()
        random = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        actions = np.where(rng.random(len(agents)) < epsilon, random, greedy)
        observations, rewards, terminated, _, infos = env.step(dict(zip(agents, actions.tolist(), strict=True)))
        episode["actions"][step] = torch.from_numpy(actions)
        episode["rewards"][step] = rewards[agents[0]]  # all agents get the same reward
        episode["terminated"][step] = float(terminated[agents[0]])
        episode["played"][step] = 1


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
    losses = F.huber_loss(q_tot, goal, reduction="none")
    return (losses * batch["played"]).sum() / batch["played"].sum()


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
    replay = make_replay(env, args.episodes)
    returns: list[float] = []  # from every round that was played
    for number in range(args.episodes):
        progress = number / (args.exploration_fraction * args.episodes)
        epsilon = max(args.epsilon_end, 1 + (args.epsilon_end - 1) * progress)
        episode = {name: tensor[number] for name, tensor in replay.items()}  # views into the replay
        play_episode(env, network, epsilon, rng, episode)
        discounted = 0.0
        for reward in reversed(episode["rewards"][episode["played"] > 0].tolist()):
            discounted = reward + args.gamma * discounted
            returns.append(discounted)
        if number + 1 < args.batch_size:
            continue
        # Returns of good plans differ little. Standardised, their differences count from the first update. The rewards
        # below are those whose returns are (return - mean) / std.
        mean, std = float(np.mean(returns)), max(float(np.std(returns)), 1e-6)
        for _ in range(args.updates_per_episode):
            rows = torch.from_numpy(rng.choice(number + 1, args.batch_size, replace=False))
            batch = {name: tensor[rows] for name, tensor in replay.items()}
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
            recent = float(replay["rewards"][number - 49 : number + 1].sum(1).mean())
            best = 100 * max(entry.accuracy for entry in env.archive)
            print(
                f"episode {number + 1:>5}   epsilon {epsilon:.2f}   loss {loss:.4f}   mean return of the last 50 "
                f"{recent:+.4f}   best accuracy {best:.2f} %"
            )


def random_search(env: FilterPruneEnv, plans: int, seed: int) -> FilterPruneEnv:
    """Return another environment of the same game, in which random legal actions have found so many plans."""
    env, rng = FilterPruneEnv(env.problem, env.config, evaluator=env.evaluator), np.random.default_rng(seed)
    while len(env.archive) < plans:
        _, infos = env.reset()
        while env.agents:
            legal = {agent: np.flatnonzero(infos[agent]["action_mask"]) for agent in env.agents}
            *_, infos = env.step({agent: int(rng.choice(actions)) for agent, actions in legal.items()})
    return env


def main(args: Args) -> None:
    if args.network is None:
        env = make_tabulated_env(target_macs=args.target_macs)
    else:
        env = make_env(args.network, args.data, args.weights, target_macs=args.target_macs)
    train(env, args)
    uniform = env.budget.uniform()
    print(f"\n{'search':<8} {'plans':>5} {'accuracy':>10}   best plan")
    for name, played in (("QMIX", env), ("random", random_search(env, len(env.archive), args.seed))):
        best = played.archive.best()[0]
        print(f"{name:<8} {len(played.archive):>5} {100 * best.accuracy:>8.2f} %   {best.plan}")
    print(f"{'uniform':<8} {1:>5} {100 * env.evaluator.accuracy(uniform):>8.2f} %   {uniform}")
    if (optimum := getattr(env.evaluator, "optimum", None)) is not None:
        print(f"{'optimum':<8} {len(env.evaluator.accuracies):>5} {100 * optimum:>8.2f} %")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Args, description=__doc__))
