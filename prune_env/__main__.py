"""The command line: prune-env COMMAND ..., or python -m prune_env COMMAND ...

Every command is a dataclass of its options whose method `run` returns the exit status. Wrong input ends with one line
on stderr and exit status 2.
"""

from __future__ import annotations

import sys
from pathlib import Path

# ruff: noqa: E402  (the search path changes before other packages are imported)
# python -m puts the working folder first, where a file of a received folder would replace an installed package.
AS_PROGRAM = __name__ == "__main__" and not getattr(sys.flags, "safe_path", False)
if AS_PROGRAM:
    sys.path.pop(0)

import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import tyro

from . import data
from .commands.subcommands import Prune, Report, Search
from .common.command import check_writable, one_line_errors
from .common.files import cache_dir
from .common.settings import Settings
from .deploy import export
from .deploy.import_network import check_spec, import_network, working_folder
from .deploy.quantise import calibration_images, int8_file, quantise_onnx, require_quantiser
from .deploy.record import IMAGE_LIMIT, read_record
from .deploy.saved import load_pruned
from .game.arguments import NetworkName
from .networks.registry import create, image_size, list_networks
from .pruning import Cost, inspect
from .pruning.limits import LimitsConfig
from .pruning.patterns import LayersConfig

PROGRAM = "prune-env" if Path(sys.argv[0]).stem == "prune-env" else "python -m prune_env"
CHECK_IMAGES = 64
"""Number of images that an exported network is checked on."""
REMOTE = ("cifar10", "cifar100")
"""Data sets that are downloaded once."""


@dataclass(frozen=True)
class Inspect(LayersConfig, LimitsConfig):
    """Show what of a network can be pruned, what cannot, and why.

    The column 'difference' is the proof: the largest difference between the outputs of the network without some of
    these filters and of the original network with the same filters masked, as a fraction of the largest output. Filters
    are only pruned if it is at most 1e-4. The exit status is 1 if nothing can be pruned.
    """

    network: NetworkName = field(kw_only=True)
    shape: Annotated[tuple[int, int, int] | None, tyro.conf.arg(metavar="C H W")] = None
    """Shape of one image; 3 32 32 by default, and 3 8 8 for small_cnn."""
    proof: bool = True
    """Prove that pruning the filters equals masking them; without the proof it is much faster."""

    def run(self) -> int:
        """Print the inspection; return 0, or 1 if nothing can be pruned."""
        spec = self.network
        if spec not in list_networks():
            check_spec(spec)
        channels, height, width = self.shape or (3, *(image_size(spec) if spec in list_networks() else (32, 32)))
        if min(channels, height, width) < 1:
            raise ValueError(f"--shape takes three numbers of at least 1 (C H W), got {channels} {height} {width}")
        network = create(spec, in_channels=channels) if spec in list_networks() else import_network(spec)
        images = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
        inspection = inspect(
            network, images, prove=self.proof, exclude=self.exclude, only=self.only, linear=self.linear
        )
        if inspection.groups:
            limits = self.limits(inspection.groups)
            inspection = inspection.limited(limits, Cost(network, inspection.groups, images))
        print(inspection)
        if self.shape is None:
            print(f"\nFor images of {channels}x{height}x{width}; --shape C H W sets others.")
        return 0 if inspection.groups else 1


@dataclass(frozen=True)
class Export(Settings):
    """Write a saved network as ONNX or as a torch.export program."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder with pruned.json and pruned.safetensors."""
    format: Literal["onnx", "torch"] = "onnx"
    """Format of the file."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File to write; RUN/pruned.onnx or RUN/pruned.pt2 by default."""
    base: Annotated[str | None, tyro.conf.arg(metavar="PACKAGE.MODULE:FUNCTION")] = None
    """Makes the original network, or FILE.py:FUNCTION, torchvision:NAME or timm:NAME; needed where pruned.json names no
    network."""
    trust_base: Annotated[str | None, tyro.conf.arg(metavar="PACKAGE.MODULE:FUNCTION")] = None
    """The import path that pruned.json names, if you trust its code, which then runs. It is never imported from RUN."""
    quantise: bool = False
    """Also write the network in int8, beside the ONNX file: pruned-int8.onnx."""
    data: str | None = None
    """Data set of the run, whose calibration images --quantise needs: digits, cifar10, cifar100, or a folder
    PATH/{train,test}/<class>/*. By default the one that pruned.json names, if no download is needed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantise and self.format != "onnx":
            raise ValueError(f"--quantise makes ONNX files; leave out --format {self.format}")
        if self.data is not None and not self.quantise:
            raise ValueError(f"--data {self.data} is for --quantise only; add that, or leave out --data")

    def run(self) -> int:
        """Write the files and print sizes and precision; return 0."""
        write, suffix = {"onnx": (export.to_onnx, "onnx"), "torch": (export.to_torch_export, "pt2")}[self.format]
        out = self.out or self.folder / f"pruned.{suffix}"
        check_writable("out", out)
        record = read_record(self.folder)
        if self.quantise:
            require_quantiser()
            calibration = calibration_images(record_data(record, self.data))
        if self.base or self.trust_base:
            classes = record["network"]["num_classes"]
            base = import_network(self.base, classes) if self.base else None
            with working_folder():
                network = load_pruned(self.folder, base, trust_base=self.trust_base)
        else:
            network = load_pruned(self.folder)
        images, description = check_images(record, self.data)
        difference = write(network, out, images)
        size = out.stat().st_size / 1024
        print(f"{out}: {size:.1f} KiB, differs by at most {difference:.1g} of the output on {description}")
        if self.quantise:
            small = int8_file(out)
            difference = quantise_onnx(out, calibration, small)
            size = small.stat().st_size / 1024
            print(f"{small}: {size:.1f} KiB, differs by at most {difference:.1g} of the output on calibration images")
        return 0


Command = (
    Annotated[Prune, tyro.conf.subcommand("prune")]
    | Annotated[Search, tyro.conf.subcommand("search")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line; by default that of the process.

    Returns:
        The exit status; a mistake ends the process with 2, Ctrl-C with 130.
    """
    with one_line_errors():
        return _parse(arguments).run()


def _parse(arguments: Sequence[str] | None) -> Prune | Search | Report | Inspect | Export:
    """Return the command of a command line.

    Raises:
        ValueError: The command line is wrong.
    """
    shown = io.StringIO()
    try:
        with redirect_stderr(shown):
            command: Prune | Search | Report | Inspect | Export = tyro.cli(
                Command,
                args=arguments,
                prog=PROGRAM,
                description="Prune a network, from its inspection to the export of the pruned one.",
                config=(tyro.conf.OmitSubcommandPrefixes,),
            )
    except SystemExit as end:
        if end.code in (0, None):  # --help
            raise
        raise ValueError(f"{_first_paragraph(shown.getvalue())}; see {PROGRAM} --help") from None
    return command


def _first_paragraph(box: str) -> str:
    """Return the first paragraph in a framed text that tyro prints, without frame and title, as one line."""
    paragraph: list[str] = []
    for line in box.strip().splitlines()[1:]:  # the first line is the title
        text = line.strip(" │|")
        if text.strip(" ─-"):
            paragraph.append(text)
        elif paragraph:  # a rule or an empty line
            break
    text = " ".join(" ".join(paragraph).split()).rstrip(".")
    return re.sub(r"^Error parsing __tyro-dummy-inner__[\w.]*: ", "", text)


def check_images(record: Mapping[str, Any], source: str | None = None) -> tuple[torch.Tensor, str]:
    """Return images for the check of an exported network.

    Args:
        record: The record of the saved network.
        source: Name or folder of the data set; by default the name in the record, if no download is needed.

    Returns:
        Network input float32 [N, C, H, W], and a description of it. They are test images of the record's data set if
        that is available without a download, and noise otherwise.
    """
    name, shape = record["data"]["name"], tuple(record["data"]["image_shape"])
    with suppress(ValueError):  # a package is missing, the files are damaged, or it is another data set
        splits = record_data(record, source)
        return splits.normalise(splits.test.first(CHECK_IMAGES)), f"{CHECK_IMAGES} test images of {name}"
    count = min(CHECK_IMAGES, 2 * IMAGE_LIMIT // math.prod(shape))  # at least 2
    noise = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0))
    return noise, f"{count} images of noise, because data {name!r} is not available"


def record_data(record: Mapping[str, Any], source: str | None = None) -> data.DataSplits:
    """Load the data set of a saved network, normalised as the network expects.

    Args:
        record: The record of the saved network.
        source: Name or folder of the data set; by default the name in the record, if no download is needed.

    Raises:
        DataError: The data are missing, damaged, or of another shape than the network's.
    """
    name, shape = record["data"]["name"], tuple(record["data"]["image_shape"])
    if source is None and name != "digits" and not (name in REMOTE and (cache_dir() / name).is_dir()):
        raise data.DataError(f"data {name!r} is not available; give its name or folder: --data")
    source = name if source is None else source
    size = {} if source in ("digits", *REMOTE) or shape[1] != shape[2] else {"size": shape[1]}
    splits = data.load(source, **size)
    if splits.image_shape != shape:
        raise data.DataError(f"data {source!r} has images of shape {splits.image_shape} (C, H, W), the network {shape}")
    return splits.with_normalisation(record["normalisation"]["mean"], record["normalisation"]["std"])


if __name__ == "__main__":
    sys.exit(main())
