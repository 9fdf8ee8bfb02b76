"""The subcommands that need an agent: prune, search, report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..common.command import one_line_errors
from ..common.settings import Settings
from ..game.arguments import NetworkName, ProblemArgs
from .run import INTERRUPTED, SUMMARY, RunConfig, only_search, prune


@dataclass(frozen=True)
class NetworkArgs(ProblemArgs):
    """The same as `ProblemArgs`, with the network as a positional argument."""

    network: NetworkName = field(kw_only=True)


@dataclass(frozen=True)
class Prune(RunConfig):
    """Prune a network with QMIX: search, distil the best plans, and write network, ONNX file, plots and table.

    Layers are chosen by patterns on their paths, for instance --exclude conv1 'layer4.*'; `prune-env inspect` lists the
    layers. After Ctrl-C the same command with --resume continues.
    """

    problem: Annotated[NetworkArgs, tyro.conf.OmitArgPrefixes] = field(kw_only=True)
    """The network, its data, and where plans are evaluated."""

    def run(self) -> int:
        """Run, and return 0."""
        with one_line_errors(INTERRUPTED):
            prune(self)
        return 0


@dataclass(frozen=True)
class Search(Prune):
    """Only search: print the best plans and write all to plans.json.

    The options are those of `prune`, which continues from here with --resume.
    """

    def run(self) -> int:
        """Run, and return 0."""
        with one_line_errors(INTERRUPTED):
            only_search(self)
        return 0


@dataclass(frozen=True)
class Report(Settings):
    """Print the table of a finished run."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""

    def run(self) -> int:
        """Print the table, and return 0."""
        file = self.folder / SUMMARY
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; give the folder of a run that `prune` has finished")
        print(file.read_text(encoding="utf-8"), end="")
        return 0
