"""Policies as files: what a team has learned, for teams of any size in environments of the same kind.

Letters: O observation features, A actions.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from .checkpoint import CheckpointError
from .config import QMIXConfig, check_count
from .files import write_beside
from .learner import Learner
from .mixers import make_mixer
from .networks import AgentNetwork
from .planning import epsilons_of, final_values
from .policy import EpsilonGreedyPolicy
from .rollout import EpisodeSettings, play_episodes
from .seeding import Stream, make_generator
from .team_env import NAMES, TeamEnv, proposal_of
from .types import EnvSpec, Proposal, SpaceSpec

FORMAT = "qmix_agent policy"
VERSION = 2
NETWORK_SETTINGS = (
    "mixer",
    "recurrent",
    "hidden_size",
    "layer_norm",
    "last_action",
    "prior",
    "mixing_embed",
    "hypernet_hidden",
)
"""The fields of `QMIXConfig` that decide the networks."""


@dataclass(frozen=True)
class Interface:
    """What an agent observes and does. A policy plays every environment whose agents all have its interface."""

    observations: tuple[str, ...]
    """Names of the O observation features; numbers where the environment names none."""
    actions: tuple[str, ...]
    """Names of the A actions; numbers where the environment names none."""
    proposal: Proposal | None = None
    """What the environment proposes; None if it does not."""

    @classmethod
    def of(cls, env: ParallelEnv[str, Any, Any]) -> Interface:
        """Return the interface that all agents of an environment have.

        The attributes `observation_names` and `action_names` of the environment name features and actions.

        Raises:
            ValueError: The agents differ, or their spaces are not Box and Discrete.
        """
        pairs = [(env.observation_space(agent), env.action_space(agent)) for agent in env.possible_agents]
        shapes = {(observation.shape, action.n) for observation, action in pairs if _plain(observation, action)}
        if len(shapes) != 1 or not all(_plain(*pair) for pair in pairs):
            raise ValueError(
                f"{type(env).__name__} cannot share a policy with other environments: all agents need equal Box "
                "observations and equal Discrete actions"
            )
        shape, n_actions = shapes.pop()
        numbers = tuple(map(str, range(int(np.prod(shape))))), tuple(map(str, range(n_actions)))
        names = []
        for attribute, count in zip(NAMES, numbers, strict=True):
            own = tuple(getattr(env, attribute, count))
            names.append(own if len(own) == len(count) else count)
        observations, actions = names
        return cls(observations, actions, proposal_of(env))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Interface:
        """Return the interface that `dataclasses.asdict` turned into `fields`."""
        proposal = Proposal.from_dict(fields["proposal"])
        if proposal is not None:
            counts = len(fields["observations"]), len(fields["actions"])
            if not 0 <= proposal.feature < counts[0] or len(proposal.amounts) != counts[1]:
                raise ValueError("a proposal of other observations or actions")
        return cls(tuple(fields["observations"]), tuple(fields["actions"]), proposal)

    def require_equal(self, env: ParallelEnv[str, Any, Any]) -> None:
        """Raise ValueError that names the first difference unless the agents of an environment have this interface."""
        other = Interface.of(env)
        for kind in ("actions", "observations"):
            mine, theirs = getattr(self, kind), getattr(other, kind)
            if mine != theirs:
                raise ValueError(
                    f"the policy does not fit {type(env).__name__}: its {kind} are {', '.join(mine)}; those of the "
                    f"environment are {', '.join(theirs)}. Make the environment with the settings "
                    "that the policy was learned with"
                )
        if self.proposal != other.proposal:
            raise ValueError(
                f"the policy does not fit {type(env).__name__}: it was learned with the action_proposal "
                f"{self.proposal}; that of the environment is {other.proposal}"
            )


class TeamPolicy:
    """The networks of a team without agent ids. They propose plans for teams of any size.

    Args:
        network: The agent network.
        mixer: The mixer, which values joint actions.
        config: The settings that the networks were made with.
        interface: What an agent observes and does.

    Example:
        >>> QMIX(suite, QMIXConfig(mixer="pooled", agent_id=False)).learn(1000).save_policy("pruner.safetensors")
        >>> plan = TeamPolicy.load("pruner.safetensors").plan(env, target_macs=0.5)
    """

    def __init__(self, network: AgentNetwork, mixer: nn.Module, config: QMIXConfig, interface: Interface) -> None:
        self.network, self.mixer, self.config, self.interface = network, mixer, config, interface

    @classmethod
    def of(cls, learner: Learner, interface: Interface) -> TeamPolicy:
        """Return a copy of what a learner has learned.

        Raises:
            ValueError: The learner's networks only serve the team that they learned with; the message names the
                setting.
        """
        _check_any_team(learner.config)
        network, mixer = copy.deepcopy((learner.network, learner.mixer))
        return cls(network.cpu().requires_grad_(False), mixer.cpu().requires_grad_(False), learner.config, interface)

    def plan(
        self, env: ParallelEnv[str, Any, Any], *, imagined_episodes: int = 1, seed: int = 0, **options: Any
    ) -> tuple[int, ...]:
        """Return the plan that the policy ends an episode with. Nothing is evaluated.

        Args:
            env: An environment with a method `imagine`, such as `FilterPruneEnv`; see `qmix_agent.planning`.
            imagined_episodes: 1 for the greedy episode. Otherwise so many are played with some exploration, and the
                plan of the one with the highest Q_tot is returned.
            seed: Seed of the exploration.
            **options: Options for the environment's reset, such as target_macs=0.4. What is left out is as in the
                environment's current episode.

        Raises:
            ValueError: The environment does not fit the policy.
        """
        self.interface.require_equal(env)
        check_count("imagined_episodes", imagined_episodes)
        team = TeamEnv(env, _spec(env, self.interface))
        games = [team.imagine() for _ in range(imagined_episodes)]
        options = team.episode_options | options  # equal for all, so that their values compare
        epsilons = [0.0, *epsilons_of(imagined_episodes - 1)]
        rngs = make_generator(seed, Stream.PLANNING).spawn(imagined_episodes)
        settings = [EpisodeSettings(seed, epsilon, rng, options) for epsilon, rng in zip(epsilons, rngs, strict=True)]
        device = next(self.network.parameters()).device
        played = play_episodes(games, EpsilonGreedyPolicy(self.network, device), settings)
        values = final_values(self.network, self.mixer, [one.episode for one in played])
        plan: tuple[int, ...] = games[int(values.argmax())].env.plan
        return plan

    def save(self, path: str | Path) -> Path:
        """Write the policy to one safetensors file, whole or not at all, and return its path.

        Raises:
            OSError: The file cannot be written.
        """
        path = Path(path)
        weights = {name: tensor.contiguous() for name, tensor in self._state().items()}
        description = {
            "format": FORMAT,
            "version": VERSION,
            "settings": {name: getattr(self.config, name) for name in NETWORK_SETTINGS},
            "interface": dataclasses.asdict(self.interface),
        }
        text = json.dumps(description)
        content = save(weights, {"policy": text, "digest": _digest(text, weights)})
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(write_beside(path, lambda file: file.write(content), "an earlier file is unchanged"), path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> TeamPolicy:
        """Read a policy that `save` wrote, on the CPU.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: The file is damaged, or holds no policy of this version. It is a ValueError.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no policy at {path}; write one with QMIX.save_policy")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                description = json.loads(metadata["policy"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            _check_version(path, description)
            if metadata["digest"] != _digest(metadata["policy"], weights):
                raise ValueError("wrong digest")
            if not all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights.values()):
                raise ValueError("weights that are not finite float32")
            interface = Interface.from_dict(description["interface"])
            config = QMIXConfig(**description["settings"], agent_id=False)
            with torch.device("meta"):  # sizes are compared before anything is allocated
                spec = _team_spec(("agent",), (0,), interface)
                policy = cls(AgentNetwork(spec, config), make_mixer(spec, config), config, interface)
            policy._load_state(weights)
        except CheckpointError:
            raise
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"cannot read {path}: it is damaged, or not a {FORMAT}; write it again") from error
        return policy

    def initialise(self, learner: Learner) -> None:
        """Give a new learner the weights of the policy.

        Raises:
            ValueError: The learner's networks are made with other settings.
        """
        _check_any_team(learner.config)
        for name in NETWORK_SETTINGS:
            if (expected := getattr(self.config, name)) != (given := getattr(learner.config, name)):
                raise ValueError(f"{name} is {given!r}, but the policy was learned with {expected!r}; set it to that")
        for network, mixer in (
            (learner.network, learner.mixer),
            (learner.target_network, learner.target_mixer),
        ):
            network.load_state_dict(self.network.state_dict())
            mixer.load_state_dict(self.mixer.state_dict())

    def _state(self) -> dict[str, torch.Tensor]:
        modules = {"network": self.network, "mixer": self.mixer}
        return {f"{part}.{name}": one for part, module in modules.items() for name, one in module.state_dict().items()}

    def _load_state(self, weights: Mapping[str, torch.Tensor]) -> None:
        if set(weights) != set(self._state()):
            raise ValueError("wrong names of tensors")
        for part, module in (("network", self.network), ("mixer", self.mixer)):
            own = {name.removeprefix(f"{part}."): one for name, one in weights.items() if name.startswith(f"{part}.")}
            module.load_state_dict(own, assign=True)
            module.requires_grad_(False)


def _check_any_team(config: QMIXConfig) -> None:
    """Raise ValueError if networks of these settings serve one team only."""
    for name, allowed in (("agent_id", (False,)), ("parameter_sharing", (True,)), ("mixer", ("pooled", "vdn", "iql"))):
        if (value := getattr(config, name)) not in allowed:
            raise ValueError(
                f"{name} is {value!r}: such networks serve one team only, and a policy serves any; set {name} to "
                f"{' or '.join(map(repr, allowed))}"
            )


def _plain(observation: spaces.Space, action: spaces.Space) -> bool:
    return isinstance(observation, spaces.Box) and isinstance(action, spaces.Discrete)


def _spec(env: ParallelEnv[str, Any, Any], interface: Interface) -> EnvSpec:
    """Return the specification of an environment with this interface. The policy's networks need no state."""
    agents = tuple(env.possible_agents)
    starts = tuple(int(env.action_space(agent).start) for agent in agents)
    return _team_spec(agents, starts, interface)


def _team_spec(agents: tuple[str, ...], starts: tuple[int, ...], interface: Interface) -> EnvSpec:
    n_observation, n_actions, count = len(interface.observations), len(interface.actions), len(agents)
    space = SpaceSpec("Box", (n_observation,), n_observation)
    n_state = count * n_observation
    return EnvSpec(agents, (space,) * count, (n_actions,) * count, starts, n_state, False, interface.proposal)


def _check_version(path: Path, description: Mapping[str, Any]) -> None:
    if description["format"] != FORMAT:
        raise ValueError("wrong format")
    if description["version"] != VERSION:
        raise CheckpointError(
            f"{path} has policy version {description['version']}, but this release reads version {VERSION}; load it "
            "with the release that wrote it"
        )


def _digest(description: str, weights: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of the description and of names, shapes and values of the weights."""
    digest = hashlib.blake2b(description.encode(), digest_size=16)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
