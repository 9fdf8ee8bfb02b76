"""Read and append rows of JSON, one line per run, and identify the run of a row.

Files stay readable if the process that writes them is killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prune_env import EnvConfig
from prune_env.game.arguments import ProblemArgs
from prune_env.training.distillation import DistillationConfig

Row = dict[str, Any]

IDENTITY = ("problem", "target_macs", "max_plans", "finalisation", "method", "seed")
"""Entries that identify a run."""


def identity(row: Row) -> str:
    """Return a text that is equal for rows of the same run."""
    whole = row | settings(row)
    return canonical([whole[name] for name in IDENTITY])


def canonical(value: object) -> str:
    """Return JSON that is equal for 1 and 1.0, for tuples and lists, and for all orders of names."""
    return json.dumps(json.loads(json.dumps(value), parse_int=float), sort_keys=True)


def problem_of(args: ProblemArgs, config: EnvConfig) -> Row:
    """Return what identifies a problem. Files are identified by their names; `check_weights` compares the weights.

    Args:
        args: Network, data and weights.
        config: The game. Of a tabulated problem only those settings are kept that are not defaults.
    """
    row: Row = {"network": args.network, "data": Path(args.data).name, "tabulated": args.tabulated, "weights": None}
    row |= {name: file.name for name in ("weights", "classes") if (file := getattr(args, name)) is not None}
    row |= {name: value for name in ("size", "mean", "std", "flip") if (value := getattr(args, name)) is not None}
    defaults = asdict(EnvConfig())
    game = asdict(config).items()
    return row | {name: value for name, value in game if not args.tabulated or value != defaults[name]}


def with_defaults(problem: Row) -> Row:
    """Return the problem of a row. Settings that are newer than the row have their defaults.

    Rows without `round_to` or `linear` were measured when no count was rounded and linear layers were no agents.
    """
    return {"tabulated": False} | asdict(EnvConfig(round_to=1, linear=False)) | problem


def check_weights(found: Iterable[Row], now: str, weights: Path | None, out: Path) -> None:
    """Refuse to add rows to rows of the same problem with other weights: they would not compare.

    Args:
        found: Rows of the same problem.
        now: Fingerprint of the weights.
        weights: File of the weights; None for weights that were trained here.
        out: The folder of the rows, for the message.

    Raises:
        ValueError: A row has another fingerprint.
    """
    if others := {row["weights_fingerprint"] for row in found if "weights_fingerprint" in row} - {now}:
        source = weights or "a training of its own, which differs between machines"
        raise ValueError(
            f"{out} has rows of this network with other weights (fingerprint {', '.join(sorted(others))}) than now "
            f"({now}, from {source}); give another --out, or the same weights as --weights"
        )


def settings(row: Row) -> Row:
    """Return the problem and the finalisation of a row. Settings that are newer than the row have their defaults."""
    game = with_defaults(row["problem"])
    del game["target_macs"]  # a separate entry of the row, like the seed
    training = row["finalisation"]
    if training is not None:
        training = asdict(DistillationConfig()) | training
        del training["seed"]
    return {"problem": game, "finalisation": training}


def read(sources: Iterable[Path]) -> list[Row]:
    """Read the rows of benchmarks.compare.

    Args:
        sources: Files, and folders whose .jsonl files are read.

    Returns:
        One row per run; the first one if a run has several.

    Raises:
        FileNotFoundError: A source does not exist.
        ValueError: A line is not a row of benchmarks.compare.
    """
    rows: dict[str, Row] = {}
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist; give files or folders that benchmarks.compare wrote")
        for file in sorted(source.glob("*.jsonl")) if source.is_dir() else [source]:
            for number, line in enumerate(_lines(file), 1):
                try:
                    row = json.loads(line)
                    rows.setdefault(identity(row), row)
                except (ValueError, TypeError, KeyError) as error:
                    reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                    raise ValueError(
                        f"{file}, line {number} is not a row of benchmarks.compare ({reason}); give the folder that it "
                        "wrote to (its --out)"
                    ) from error
    return list(rows.values())


def read_file(file: Path) -> list[Row]:
    """Return the rows of one file of any benchmark, or no rows if the file does not exist yet."""
    return [json.loads(line) for line in _lines(file)] if file.is_file() else []


def append(file: Path, row: Row) -> None:
    """Append a row and close the file, so that a later kill does not damage it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(row) + "\n"
    unfinished = file.is_file() and file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
    if unfinished:  # a process was killed while it wrote; its run is repeated, so the partial line is removed
        file.write_bytes(file.read_bytes().rpartition(b"\n")[0] + b"\n")
    with file.open("a") as stream:
        stream.write(text)


def _lines(file: Path) -> list[str]:
    """Return the complete lines; a killed process may have left a partial last line."""
    return file.read_text().split("\n")[:-1]
