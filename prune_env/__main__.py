"""The command line: python -m prune_env COMMAND ...

A command is a function that takes the parsed arguments; `_parser` lists the commands. Wrong input ends with one line
on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from . import data, export
from .files import cache_dir
from .networks.registry import NETWORKS, create, image_size
from .pruning import inspect
from .saving import import_base, load_pruned, read_record

IMAGES = 64
"""How many images an exported network is checked on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status."""
    try:
        parsed = _parser().parse_args(arguments)
        parsed.command(parsed)
    except (ValueError, OSError, ImportError) as error:  # a missing folder, a damaged file, a package
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> _Parser:
    parser = _Parser(prog="python -m prune_env", description="What can be done with pruned networks.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_export(commands)
    _add_inspect(commands)
    return parser


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="write a saved network as ONNX or as a torch.export program")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder with pruned.json and pruned.safetensors")
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/pruned.onnx or RUN/pruned.pt2")
    parser.add_argument(
        "--base", metavar="PACKAGE.MODULE:FUNCTION", help="makes the unpruned network, where the record names none"
    )
    parser.set_defaults(command=_export)


def _export(arguments: argparse.Namespace) -> None:
    write, suffix = {"onnx": (export.to_onnx, "onnx"), "torch": (export.to_torch_export, "pt2")}[arguments.format]
    network = load_pruned(arguments.run, _made_by(arguments.base) if arguments.base else None)
    images, what = check_images(read_record(arguments.run))
    out = arguments.out or arguments.run / f"pruned.{suffix}"
    difference = write(network, out, images)
    print(f"{out}: {out.stat().st_size / 1024:.1f} KiB, differs by at most {difference:.1g} of the output on {what}")


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="show what of a network can be pruned, what cannot, and why")
    parser.add_argument(
        "network",
        metavar="NETWORK",
        help=f"{', '.join(NETWORKS)}, or FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION that makes one without arguments",
    )
    parser.add_argument(
        "--shape", type=int, nargs=3, metavar=("C", "H", "W"), help="of one image; default: 3 and the network's size"
    )
    parser.add_argument("--no-proof", action="store_true", help="only trace")
    parser.set_defaults(command=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    spec = arguments.network
    if spec not in NETWORKS and ":" not in spec:
        raise ValueError(
            f"network {spec!r} is not registered; choose one of {', '.join(NETWORKS)}, or give FILE.py:FUNCTION or "
            "PACKAGE.MODULE:FUNCTION"
        )
    channels, *size = arguments.shape or (3, *image_size(spec))
    if min(channels, *size) < 1:
        raise ValueError(f"--shape takes three numbers of at least 1 (C H W), got {channels} {size[0]} {size[1]}")
    network = create(spec, in_channels=channels) if spec in NETWORKS else _made_by(spec)
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    print(inspect(network, images, prove=not arguments.no_proof))


def _made_by(path: str) -> nn.Module:
    """The network of package.module:function, or of file.py:function."""
    file, _, function = path.rpartition(":")
    if not file.endswith(".py"):
        return import_base(path)
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} does not exist")
    name = "prune_env_inspected"  # a name of its own: the file's may be that of an installed module
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file raises when it is run
        raise ValueError(f"{file} cannot be imported ({type(error).__name__}: {error})") from error
    if not hasattr(module, function.partition(".")[0]):
        raise ValueError(f"{file} has no {function!r}; name a function that makes the network without arguments")
    return import_base(f"{name}:{function}")


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
