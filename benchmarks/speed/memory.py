"""Measure peak memory against the number of images, kept in memory and streamed.

    python -m benchmarks.speed.memory                                     # 5,000, 10,000 and 20,000 images of 64 px
    python -m benchmarks.speed.memory --images 50000 200000 --ways streamed

Images of a data set are enlarged, get noise that makes them different, and are written as JPEG files. For every number
of images and every way, a new process loads the folder, measures the accuracies of some plans, and distils a pruned
network for one epoch. Appends the peak resident memory after each stage to memory.jsonl (Linux) and draws memory.png.
Rows that are in the file are not measured again.
"""

from __future__ import annotations

import os
import resource
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import tyro

from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.figure_style import BLUE, GREY, ORANGE, add_legend, new_figure, save_figure, style_axes
from prune_env.common.settings import Count, Settings, Whole
from prune_env.data import Reading, from_folder, load
from prune_env.evaluation.config import EvaluationConfig
from prune_env.evaluation.live import LiveEvaluator
from prune_env.networks import create
from prune_env.pruning.problem import PruningProblem
from prune_env.training.distillation import DistillationConfig, distil
from prune_env.training.fit import RunOptions

from ..compare import rows
from .photos import write_images

STAGES = ("loaded", "searched", "distilled")
WAYS = ("in memory", "streamed")


@dataclass(frozen=True)
class Config(Settings):
    images: tuple[Count, ...] = (5000, 10_000, 20_000)
    """Numbers of training images; there are a tenth as many test images."""
    size: Count = 64
    """Height and width of an image in pixels."""
    ways: tuple[Literal["in memory", "streamed"], ...] = WAYS
    """How images are held."""
    data: str = "cifar10"
    """Data set whose images are enlarged: digits, cifar10, cifar100, or an image folder."""
    network: str = "small_cnn"
    """Registered network that is pruned."""
    plans: Count = 5
    """Plans whose accuracies are measured."""
    workers: Whole = 2
    """Processes that read images."""
    out: Path = Path("runs/memory")
    """Folder of memory.jsonl and memory.png."""


def main(config: Config) -> None:
    require_packages(["matplotlib"], "the plot", "train")
    check_writable("out", config.out, folder=True)
    config.out.mkdir(parents=True, exist_ok=True)
    file = config.out / "memory.jsonl"
    settled = {name: getattr(config, name) for name in ("size", "network", "plans", "workers", "data")}

    def measured(**wanted: Any) -> list[dict[str, Any]]:
        return [row for row in rows.read_file(file) if row == {**row, **settled, **wanted}]

    for count in config.images:
        ways = [way for way in config.ways if not measured(images=count, way=way)]
        if not ways:
            continue
        with TemporaryDirectory(dir=config.out) as scratch:
            write_images(load(config.data), Path(scratch, "images"), count, config.size)
            for way in ways:
                row = {"images": count, "way": way, **settled, **in_new_process(config, Path(scratch), way)}
                rows.append(file, row)
                print(", ".join(f"{name} {value}" for name, value in row.items()))
    plot(measured(), config)


def in_new_process(config: Config, scratch: Path, way: str) -> dict[str, Any]:
    """Measure in a new process, whose peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, config, scratch, way).result()


def measure(config: Config, scratch: Path, way: str) -> dict[str, Any]:
    """Load, search and distil, and return the peak memory in MiB after each stage."""
    os.environ["PRUNE_ENV_CACHE"] = str(scratch / "cache")
    warnings.simplefilter("ignore")  # of an untrained network
    torch.set_num_threads(1)  # each thread keeps buffers, at some times more than at others
    create(config.network, 10, 3)(torch.zeros(1, 3, config.size, config.size))  # torch allocates its buffers
    peaks, start = {"start": peak()}, time.perf_counter()
    reading = Reading(stream=way == "streamed", workers=config.workers)
    data = from_folder(scratch / "images", reading=reading, name="images")
    kept = (len(data.train) + len(data.reward) + len(data.calibration) + len(data.test)) * 3 * config.size**2 / 2**20
    peaks["loaded"] = peak()
    model = create(config.network, len(data.classes), 3).eval()
    settings = EvaluationConfig()
    problem = PruningProblem.create(model, data, settings)
    evaluator, rng = LiveEvaluator(problem, settings), np.random.default_rng(0)
    plans = [tuple((1 + rng.integers(problem.full_plan)).tolist()) for _ in range(config.plans)]
    for plan in plans:
        evaluator.accuracy(plan)
    peaks["searched"] = peak()
    recipe = DistillationConfig(epochs=1, min_steps=0, batch_size=64, precision="fp32")
    distil(problem.build(plans[0]), model, data, recipe, run=RunOptions(progress=False))
    peaks["distilled"] = peak()
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    return {
        "kept_mib": round(kept, 1),
        **{f"{stage}_mib": round(value, 1) for stage, value in peaks.items()},
        "largest_worker_mib": round(children, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def peak() -> float:
    """Return the peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # in KiB on Linux


def plot(measured: list[dict[str, Any]], config: Config) -> None:
    """Plot the peak memory above that of the empty process against the number of images."""
    figure = new_figure(5.5, 3.2)
    axes = figure.subplots()
    style_axes(axes)
    for way, colour in zip(WAYS, (ORANGE, BLUE), strict=True):
        mine = sorted((row for row in measured if row["way"] == way), key=lambda row: row["images"])
        for stage, style in zip(STAGES, (":", "--", "-"), strict=True):
            heights = [row[f"{stage}_mib"] - row["start_mib"] for row in mine]
            counts = [row["images"] for row in mine]
            axes.plot(counts, heights, style, color=colour, marker="o", markersize=3, label=f"{way}, {stage}")
    kept = sorted({(row["images"], row["kept_mib"]) for row in measured})
    axes.plot([count for count, _ in kept], [size for _, size in kept], color=GREY, label="size of the images")
    axes.set_xlabel(f"training images of {config.size} pixels")
    axes.set_ylabel("peak memory of the process, MiB")
    axes.set_ylim(bottom=0)
    add_legend(axes)
    save_figure(figure, config.out / "memory.png")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.speed.memory", description=__doc__))
