"""The network that teaches pruned networks, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ..common.device import Precision
from ..common.settings import Settings
from ..game.arguments import NETWORK_HELP
from ..pruning.problem import PruningProblem
from ..training.distillation import Teacher
from ..training.pretrained import check_names, network_normalisation, pretrained


@dataclass(frozen=True)
class TeacherArgs(Settings):
    """Another network than the original one that teaches, such as a larger one.

    Raises:
        ValueError: No network has this name, or there are weights without a network.
        FileNotFoundError: The weights file does not exist.
    """

    network: Annotated[str | None, tyro.conf.arg(help=f"By default the original network. {NETWORK_HELP}")] = None
    weights: Path | None = None
    """File with its trained weights. Without it, what `weights` says of the network to prune."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network is not None:
            check_names(self.network, self.weights)
        elif self.weights is not None:
            raise ValueError("teacher.weights needs the network that they belong to: give teacher.network, too")

    def load(
        self, problem: PruningProblem, device: torch.device | str = "cpu", precision: Precision = "auto"
    ) -> Teacher:
        """Return the teacher of a problem's pruned networks.

        Raises:
            ValueError: The teacher was trained with another normalisation of images than that of the problem, or its
                weights do not fit.
        """
        if self.network is None:
            return Teacher(problem.model, device, precision=precision)
        data = problem.data
        constants = network_normalisation(self.network)
        if constants not in (None, (tuple(data.mean), tuple(data.std))):
            raise ValueError(
                f"teacher {self.network!r} was trained on images normalised with mean and std {constants}, but it gets "
                f"the same images as the pruned network, normalised with {(tuple(data.mean), tuple(data.std))}; choose "
                "another teacher, or train the network to prune with the teacher's constants"
            )
        return Teacher(pretrained(self.network, data, self.weights, device=device), device, precision=precision)
