"""The network that teaches pruned networks, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ..common.device import Precision
from ..common.settings import Settings
from ..data import DataSplits
from ..game.arguments import NETWORK_HELP
from ..networks.registry import Normalisation, list_networks
from ..pruning.problem import PruningProblem
from ..training.distillation import Teacher
from ..training.pretrained import check_names, network_normalisation, pretrained, with_network_normalisation


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
            ValueError: The teacher was trained with another normalisation of images than that of the problem, on other
                classes, or its weights do not fit.
        """
        if self.network is None:
            return Teacher(problem.model, device, precision=precision)
        data, constants = problem.data, self._constants(problem.data)
        if constants is not None and len(constants[0]) == len(data.mean) and constants != _normalisation(data):
            raise ValueError(
                f"teacher {self.network!r} was trained on images normalised with mean and std {constants}, but it gets "
                f"the same images as the pruned network, normalised with {_normalisation(data)}; choose another "
                "teacher, or train the network to prune with the teacher's constants"
            )
        teacher = Teacher(pretrained(self.network, data, self.weights, device=device), device, precision=precision)
        teacher.check_outputs(problem.model, data.example_input)
        return teacher

    def _constants(self, data: DataSplits) -> Normalisation | None:
        """Return mean and standard deviation that the teacher was or will be trained with, if they are known."""
        assert self.network is not None
        if self.weights is None and self.network in list_networks():  # trained here
            return _normalisation(with_network_normalisation(self.network, data))
        return network_normalisation(self.network)


def _normalisation(data: DataSplits) -> Normalisation:
    return tuple(data.mean), tuple(data.std)
