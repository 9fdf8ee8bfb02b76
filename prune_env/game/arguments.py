"""The problem arguments that all commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..common.settings import Settings
from ..data import DataSplits, load
from ..evaluation.resources import BackendName, Resources
from ..training.pretrained import check_names, pretrained, with_network_normalisation
from .config import EnvConfig
from .env import FilterPruneEnv
from .validation import check_rules


@dataclass(frozen=True)
class ProblemArgs(Settings):
    """Network, data and weights by name, and where plans are evaluated.

    Raises:
        ValueError: A field has a value that is not allowed.
        OSError: The weights do not exist, or the cache cannot be written.
    """

    network: str = "small_cnn"
    """Registered network: small_cnn (for digits), alexnet, vgg16, resnet20 or resnet56."""
    data: str = "digits"
    """digits, cifar10, cifar100, or a folder PATH/{train,test}/<class>/*."""
    weights: Path | None = None
    """File with trained weights. Without it the network is trained once and cached."""
    device: str = "cpu"
    """Device of all networks, by torch's name: cpu, cuda, cuda:1."""
    backend: BackendName = "local"
    """Where plans are evaluated: in this process, in processes (one per processor), or by ray (see RAY_ADDRESS)."""
    cache: Path | None = None
    """SQLite file that keeps accuracies for later runs on the same problem."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.network, self.weights)
        _ = self.resources  # checks device and cache

    @property
    def resources(self) -> Resources:
        """Where plans are evaluated."""
        return Resources(device=self.device, backend=self.backend, cache=self.cache)

    def load_data(self) -> DataSplits:
        """Load the data, with the normalisation of the network.

        Raises:
            DataError: The data are missing or damaged.
        """
        return with_network_normalisation(self.network, load(self.data))

    def load_model(self, data: DataSplits) -> nn.Module:
        """Load or train the network.

        Raises:
            ValueError: Network, data and weights do not fit together.
        """
        return pretrained(self.network, data, self.weights, device=self.device)

    def make_env(self, config: EnvConfig, data: DataSplits | None = None) -> FilterPruneEnv:
        """Make the environment.

        Args:
            config: Settings of the game.
            data: What `load_data` returned, if it is loaded already.
        """
        check_rules(config, None, None)  # before a network is trained
        data = data or self.load_data()
        return FilterPruneEnv.from_model(self.load_model(data), data, config, resources=self.resources)
