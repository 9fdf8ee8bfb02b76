"""The problem arguments that all commands share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro
from torch import nn

from ..data import DataError, DataSplits, load
from ..data.normalisation import Name, check_pair
from ..evaluation.resources import Resources
from ..networks import list_networks
from ..training.pretrained import check_names, pretrained, with_network_normalisation
from .config import EnvConfig
from .env import FilterPruneEnv
from .tabulated import make_tabulated_env
from .validation import check_rules


@dataclass(frozen=True)
class ProblemArgs(Resources):
    """Network, data and weights by name, and where plans are evaluated.

    Raises:
        ValueError: A field has a value that is not allowed.
        OSError: The weights do not exist, or the cache cannot be written.
    """

    network: Annotated[str, tyro.conf.arg(help=f"Registered network: {', '.join(list_networks())}.")] = "small_cnn"
    data: str = "digits"
    """digits, cifar10, cifar100, or a folder PATH/{train,test}/<class>/*."""
    mean: Name | tuple[float, ...] | None = None
    """Mean of each image channel, for pixels from 0 to 1, that the network was trained with; or a name that stands for
    mean and std. By default that of the network, or else of the train split."""
    std: Name | tuple[float, ...] | None = None
    """Standard deviation of each image channel; or a name."""
    classes: Path | None = None
    """Text file with the names of all classes of the network, one per line in the order of its outputs; for a folder
    with some of them."""
    weights: Path | None = None
    """File with trained weights. Without it the network is trained once and cached."""
    tabulated: bool = False
    """Use the tabulated problem, small_cnn on digits, whose accuracies are looked up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair(self.mean, self.std)
        check_names(self.network, self.weights)
        given = [one.name for one in fields(self) if getattr(self, one.name) != one.default and one.name != "tabulated"]
        if self.tabulated and given:
            raise ValueError(
                f"the tabulated problem has its own network, data and accuracies; leave out {', '.join(given)}"
            )

    def load_data(self) -> DataSplits:
        """Load the data, with the normalisation of the network.

        Raises:
            DataError: The data are missing or damaged.
        """
        classes = None if self.classes is None else _names(self.classes)
        data = load(self.data, mean=self.mean, std=self.std, classes=classes)
        return with_network_normalisation(self.network, data)

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

        Raises:
            ValueError: A setting is not allowed, or was not tabulated.
        """
        if self.tabulated:
            defaults = asdict(EnvConfig())
            changed = {name: value for name, value in asdict(config).items() if value != defaults[name]}
            return make_tabulated_env(**changed)
        check_rules(config, None, None)  # before a network is trained
        data = data or self.load_data()
        return FilterPruneEnv.from_model(self.load_model(data), data, config, resources=self)


def _names(file: Path) -> list[str]:
    """Return the lines of a text file."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"classes {file} cannot be read as a text file with one name per line: {error}") from error
