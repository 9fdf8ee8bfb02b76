"""Prune a network with QMIX: load, search, distil, report.

    python examples/train_qmix.py                                             # digits, under three minutes on 2 cores
    python examples/train_qmix.py --network vgg16 --data cifar10 --target-macs 0.4

Everything goes to runs/<name>/. Ctrl-C, or even kill -9, loses nothing but the episode at hand: --resume goes on.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tqdm import tqdm

from prune_env import EnvConfig, FilterPruneEnv, report, save_pruned
from prune_env.data import load
from prune_env.finalise import choose, distil_fully, recalibrated, reward_accuracy
from prune_env.networks.pretrained import normalised_for, pretrained
from prune_env.training.distillation import DistillationConfig
from prune_env.training.fit import correct
from qmix_agent import QMIX, QMIXConfig


@dataclass(frozen=True)
class Config:
    network: str = "small_cnn"
    """small_cnn, alexnet, vgg16, resnet20 or resnet56"""
    data: str = "digits"
    """digits, cifar10, cifar100, or a folder PATH/{train,test}/<class>/*"""
    weights: Path | None = None
    """trained weights; without them the network is trained once and cached"""
    name: str | None = None
    """of the folder under `out`; default: network, data and a number"""
    out: Path = Path("runs")
    resume: bool = False
    """go on with the run of this name, or with the latest of this network and data"""
    episodes: int = 300
    finalists: int = 4
    """best plans that get the short distillation"""
    short_epochs: float = 1.0
    seed: int = 0
    device: str = "cpu"
    env: EnvConfig = field(default_factory=EnvConfig)
    qmix: QMIXConfig = field(default_factory=QMIXConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
