"""The command line: python -m prune_env COMMAND ...

A command is a function that takes the parsed arguments and returns the exit status; `_parser` lists the commands.
Wrong input ends with one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from . import data
from .common.files import cache_dir
from .deploy import export
from .deploy.import_network import from_file, imported
from .deploy.saved import load_pruned, read_record
from .networks.registry import create, image_size, list_networks
from .pruning import inspect

IMAGES = 64
"""How many images an exported network is checked on."""
DIFFERENCE = (
    "The column 'difference' is the proof: the largest difference between the outputs of the network without some of "
    "these filters and of the whole network with the same filters switched off, as a fraction of the largest output. "
    "Above 1e-4 the filters stay. Exit status 1 where nothing can be pruned."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status."""
    try:
        parsed = _parser().parse_args(arguments)
        status: int = parsed.command(parsed)
    except (ValueError, OSError, ImportError) as error:  # a missing folder, a damaged file, a package
        print("error:", *str(error).split(), file=sys.stderr)  # libraries' messages have lines
        return 2
    except KeyboardInterrupt:
        return 130
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m prune_env", description="Look into a network before it is pruned, and export a pruned one."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_export(commands)
    _add_inspect(commands)
    return parser


def _add_export(commands: Any) -> None:
    what = "write a saved network as ONNX or as a torch.export program"
    parser = commands.add_parser("export", help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder with pruned.json and pruned.safetensors")
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="of the file; default: onnx")
    parser.add_argument("--out", type=Path, metavar="FILE", help="to write; default: RUN/pruned.onnx or .pt2")
    parser.add_argument(
        "--base",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="makes the unpruned network, or FILE.py:FUNCTION; needed where pruned.json names no network",
    )
    parser.set_defaults(command=_export)


def _export(arguments: argparse.Namespace) -> int:
    write, suffix = {"onnx": (export.to_onnx, "onnx"), "torch": (export.to_torch_export, "pt2")}[arguments.format]
    network = load_pruned(arguments.run, _made_by(arguments.base) if arguments.base else None)
    images, what = check_images(read_record(arguments.run))
    out = arguments.out or arguments.run / f"pruned.{suffix}"
    difference = write(network, out, images)
    print(f"{out}: {out.stat().st_size / 1024:.1f} KiB, differs by at most {difference:.1g} of the output on {what}")
    return 0


def _add_inspect(commands: Any) -> None:
    what = "show what of a network can be pruned, what cannot, and why"
    parser = commands.add_parser("inspect", help=what, description=f"{what[0].upper()}{what[1:]}. {DIFFERENCE}")
    parser.add_argument(
        "network",
        metavar="NETWORK",
        help=f"{', '.join(list_networks())}, or FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION that makes one without "
        "arguments or is one",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        metavar=("C", "H", "W"),
        help="of one image; default: 3 32 32, small_cnn 3 8 8",
    )
    parser.add_argument("--no-proof", action="store_true", help="only trace: much faster, and no differences")
    parser.set_defaults(command=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    spec = arguments.network
    if spec not in list_networks() and ":" not in spec and not spec.endswith(".py"):
        raise ValueError(
            f"network {spec!r} is not registered; choose one of {', '.join(list_networks())}, or give FILE.py:FUNCTION "
            "or PACKAGE.MODULE:FUNCTION"
        )
    channels, *size = arguments.shape or (3, *(image_size(spec) if spec in list_networks() else (32, 32)))
    if min(channels, *size) < 1:
        raise ValueError(f"--shape takes three numbers of at least 1 (C H W), got {channels} {size[0]} {size[1]}")
    network = create(spec, in_channels=channels) if spec in list_networks() else _made_by(spec)
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    found = inspect(network, images, prove=not arguments.no_proof)
    print(found)
    return 0 if found.groups else 1


def _made_by(path: str) -> nn.Module:
    """The network of package.module:function, or of file.py:function."""
    file, _, function = (path, "", "") if path.endswith(".py") else path.rpartition(":")
    return from_file(file, function) if file.endswith(".py") else imported(path)


def check_images(record: Mapping[str, Any]) -> tuple[torch.Tensor, str]:
    """Network input float32 [N, C, H, W], and in words what it is.

    Test images of the data set that the record names, if it is at hand without a download; noise otherwise.
    """
    name, shape = record["data"]["name"], tuple(record["data"]["image_shape"])
    if name == "digits" or (name in ("cifar10", "cifar100") and (cache_dir() / name).is_dir()):
        try:
            splits = data.load(name).with_normalisation(**record["normalisation"])
        except data.DataError:  # a package is missing, or the files are damaged
            pass
        else:
            if splits.image_shape == shape:
                return splits.normalise(splits.test.images[:IMAGES]), f"{IMAGES} test images of {name}"
    noise = torch.randn((IMAGES, *shape), generator=torch.Generator().manual_seed(0))
    return noise, f"{IMAGES} images of noise, as data {name!r} is not at hand"


if __name__ == "__main__":
    sys.exit(main())
