"""A small configuration, random episodes, and comparisons of agents, for the tests of qmix_agent."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from games import Archiving, Ragged

from qmix_agent import QMIX, Episode, QMIXConfig
from qmix_agent.learner import Learner
from qmix_agent.team_env import TeamEnv
from qmix_agent.types import Proposal

SMALL = QMIXConfig(
    hidden_size=8,
    mixing_embed=4,
    hypernet_hidden=8,
    batch_size=4,
    learning_starts=4,
    updates_per_episode=2,
    target_update_every=5,
    epsilon_episodes=8,
    eval_every=5,
    eval_episodes=2,
)
SPEC = TeamEnv(Ragged()).spec
"""3 agents, 3 observation features, 5 actions, 4 state features."""


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without the wall clock."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weights(agent: QMIX) -> bytes:
    """Return all live weights, for exact comparison."""
    return b"".join(parameter.detach().numpy().tobytes() for parameter in agent.learner.parameters)


def archived_lengths(agent: QMIX, n_envs: int = 1) -> list[list[int]]:
    """Return the lasting state of the agent's first environments, which must be Archiving games."""
    envs = [one.env for one in agent.trainer.envs.take(n_envs)]
    return [env.lengths for env in envs if isinstance(env, Archiving)]


def equal_episodes(one: Episode, two: Episode) -> bool:
    """Whether two episodes are exactly equal."""
    return all(
        np.array_equal(getattr(one, field.name), getattr(two, field.name)) for field in dataclasses.fields(Episode)
    )


def a_learner(proposal: Proposal | None = None, **settings: Any) -> Learner:
    """Return a learner of SMALL, with some settings changed, for episodes of Ragged, which may propose actions."""
    spec = dataclasses.replace(SPEC, proposal=proposal)
    return Learner(spec, dataclasses.replace(SMALL, **settings), seed=1, device="cpu")


def an_episode(length: int, terminated: bool, seed: int = 0) -> Episode:
    """Return an episode of random numbers in the shapes of Ragged."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 2, (length + 1, 3, 5)).astype(bool)
    masks[..., 0] = True
    masks[:, 0, 3:] = masks[:, 2, 1:] = False
    ends = np.zeros(length, dtype=bool)
    ends[-1] = terminated
    return Episode(
        observations=rng.normal(size=(length + 1, 3, 3)).astype(np.float32),
        states=rng.normal(size=(length + 1, 4)).astype(np.float32),
        action_masks=masks,
        present=np.ones((length + 1, 3), dtype=bool),
        actions=np.zeros((length, 3), dtype=np.int64),
        rewards=rng.normal(size=length).astype(np.float32),
        terminated=ends,
    )
