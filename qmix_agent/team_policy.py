"""Policies as files: what a team has learned, for teams of any size in any environment of the same kind.

Letters: N agents, O observation features, A actions, K imagined episodes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from .checkpoint import CheckpointError
from .config import QMIXConfig
from .learner import Learner
from .mixers import make_mixer
from .networks import AgentNetwork
from .padding import space_spec
from .planning import best_episode, epsilons_of
from .policy import EpsilonGreedyPolicy
from .rollout import EpisodeSettings, play_episodes
from .seeding import Stream, make_generator
from .team_env import TeamEnv
from .types import EnvSpec

FORMAT = "qmix_agent policy"
VERSION = 1
NETWORK_SETTINGS = (
    "mixer",
    "recurrent",
    "hidden_size",
    "layer_norm",
    "mixing_embed",
    "hypernet_hidden",
    "last_action",
    "parameter_sharing",
    "agent_id",
)
"""The fields of `QMIXConfig` that decide the networks."""
