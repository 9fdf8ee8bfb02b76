"""The problem arguments that all commands share."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import nn

from ..common.settings import Count, Whole
from ..data import DataError, DataSplits, Reading, load
from ..data.load import DATA_SETS
from ..data.normalisation import Name, check_pair
from ..deploy.model_library import library_of
from ..evaluation.resources import Resources
from ..networks import list_networks
from ..pruning.problem import PruningProblem
from ..training.pretrained import check_names, network_normalisation, pretrained, with_network_normalisation
from .config import EnvConfig
from .env import FilterPruneEnv
from .tabulated import make_tabulated_env
from .validation import check_rules

NETWORK_HELP = (
    f"Registered network ({', '.join(list_networks())}); FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, which makes one "
    "without arguments or is one; torchvision:NAME or timm:NAME."
)
NetworkName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NETWORK", help=NETWORK_HELP)]
"""The network as a positional argument of a command."""


@dataclass(frozen=True)
class ProblemArgs(Resources):
    """Network, data and weights by name, and where plans are evaluated.

    Raises:
        ValueError: A field has a value that is not allowed.
        OSError: The weights do not exist, or the cache cannot be written.
    """

    network: Annotated[str, tyro.conf.arg(help=NETWORK_HELP)] = "small_cnn"
    data: str = "digits"
    """digits, cifar10, cifar100, or a folder PATH/{train,test}/<class>/*. test may be called val; with both, val is the
    reward split."""
    size: Count | None = None
    """Resize and crop the images of a folder to this number of pixels per side; needed if they differ in size."""
    mean: Name | tuple[float, ...] | None = None
    """Mean of each image channel, for pixels from 0 to 1, that the network was trained with; or a name that stands for
    mean and std. By default that of the network, or else of the train split."""
    std: Name | tuple[float, ...] | None = None
    """Standard deviation of each image channel; or a name."""
    classes: Path | None = None
    """Text file with the names of all classes of the network, one per line in the order of its outputs; for a folder
    with some of them."""
    flip: bool | None = None
    """Whether training mirrors half of the images left to right; by default yes, except for digits. Choose False where
    left and right differ, as in text."""
    readers: Whole | None = None
    """Processes that read the images of a folder that does not fit into memory; 0 reads in the process itself."""
    weights: Path | None = None
    """File with trained weights. Without it a registered network is trained once and cached, a network of your own
    keeps the weights that it was made with, and torchvision and timm download theirs."""
    tabulated: bool = False
    """Use the tabulated problem, small_cnn on digits, whose accuracies are looked up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair(self.mean, self.std)
        check_names(self.network, self.weights)
        if self.readers is not None and self.data in DATA_SETS:
            raise ValueError(f"readers={self.readers} has no effect on {self.data!r}, which is in memory; leave it out")
        if self.size is not None and self.data in DATA_SETS:
            raise ValueError(
                f"size={self.size} has no effect on {self.data!r}, whose images have one size; leave it out"
            )
        defaults = {one.name: one.default for one in fields(ProblemArgs)}  # subclasses may lack some
        given = [name for name, default in defaults.items() if getattr(self, name) != default and name != "tabulated"]
        if self.tabulated and given:
            raise ValueError(
                f"the tabulated problem has its own network, data and accuracies; leave out {', '.join(given)}"
            )

    @property
    def title(self) -> str:
        """The network's name as a part of a file name: net-make for models/net.py:make."""
        return re.sub(r"(\.py)?[^\w.-]+", "-", Path(self.network).name)

    @property
    def base(self) -> str | None:
        """The name from which a saved network can be made again: a registered name or an import path, or None."""
        if self.network in list_networks():
            return self.network
        file = self.network.rpartition(":")[0]
        return None if file.endswith(".py") or library_of(self.network) else self.network

    def load_data(self) -> DataSplits:
        """Load the data, with the normalisation of the network.

        Raises:
            DataError: The data are missing or damaged.
        """
        classes = None if self.classes is None else _names(self.classes)
        options: dict[str, Any] = {"mean": self.mean, "std": self.std, "classes": classes}
        if self.size is not None:
            options["size"] = self.size
        if self.data not in DATA_SETS:
            options |= {"reading": Reading(workers=self.readers), "usual": network_normalisation(self.network)}
        data = load(self.data, **options)
        if self.flip is not None:
            data = replace(data, augmentation=replace(data.augmentation, flip=self.flip))
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
        return FilterPruneEnv(self.make_problem(config, data), config, resources=self)

    def make_problem(self, config: EnvConfig, data: DataSplits | None = None) -> PruningProblem:
        """Make the problem of an environment with these settings; see `make_env`."""
        check_rules(config, None, None)  # before a network is trained
        data = data or self.load_data()
        return PruningProblem.create(self.load_model(data), data, config)


def _names(file: Path) -> list[str]:
    """Return the lines of a text file, without empty ones at its end."""
    try:
        return file.read_text(encoding="utf-8-sig").rstrip().splitlines()  # editors of Windows start a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"classes {file} cannot be read as a text file with one name per line: {error}") from error
