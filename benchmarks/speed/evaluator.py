"""Compare the time of an environment step with bare forward passes and with a straightforward implementation.

    python -m benchmarks.speed.evaluator                      # vgg16, resnet20, resnet56; some minutes
    python -m benchmarks.speed.evaluator --plans 20 --out runs/evaluator_speed

Every plan is new, and all implementations are timed on it in turn:
- env step: a step of the environment (masks, budget, weights, BatchNorm statistics, accuracy, observations, reward);
- bare: forward passes of the same cut network over the same images, folded, in bfloat16 and channels_last: as a plain
  module, with fused convolutions, and also with filter counts rounded up to multiples of 8, like the evaluator;
- obvious: deepcopy, torch-pruning, and statistics and accuracy in float32.

Weights and images are random, because speed does not depend on them. Writes results.json and speed.png.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from torch import nn
from tqdm import tqdm

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.device import check_device
from prune_env.common.figure_style import add_legend, new_figure, save_figure, style_axes
from prune_env.common.memory_format import channels_last
from prune_env.common.settings import Count, Settings
from prune_env.data import from_tensors
from prune_env.evaluation.engine.program import MULTIPLE, Program
from prune_env.evaluation.measurer import BATCH_SIZES
from prune_env.evaluation.resources import Resources
from prune_env.pruning import Plan
from prune_env.scoring.batchnorm import fold, folding_pairs, recalibrate

from ..make.zoo import check_names, make
from .surgery import prune_along

WAYS = ("env step", "bare, rounded", "bare, fused", "bare, module", "obvious")


@dataclass(frozen=True)
class Config(Settings):
    networks: tuple[str, ...] = ("vgg16", "resnet20", "resnet56")
    """Registered networks, networks of torchvision, or networks of timm as timm/NAME."""
    plans: Count = 12
    """Number of random plans that are timed on each network."""
    obvious_every: Count = 3
    """The straightforward implementation is timed once per this number of plans."""
    reward_images: Count = 1000
    """Number of images of an accuracy."""
    calibration_images: Count = 500
    """Number of images of BatchNorm statistics."""
    device: str = "cpu"
    """cpu or cuda."""
    out: Path = Path("runs/evaluator_speed")
    """Folder of results.json and speed.png."""


def main(config: Config) -> None:
    require_packages(["torch_pruning"], "the comparison", "benchmarks")
    require_packages(["matplotlib"], "the plot", "train")
    check_writable("out", config.out, folder=True)
    check_device(config.device)
    check_names(config.networks)
    config.out.mkdir(parents=True, exist_ok=True)
    peak = matmul_peak(torch.bfloat16, config.device)
    where = torch.cuda.get_device_name() if config.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{where}, bfloat16 matmul {peak / 1e9:.0f} GFLOP/s")
    results = {name: measure(name, config, peak) for name in config.networks}
    (config.out / "results.json").write_text(json.dumps({"peak": peak, "networks": results}, indent=1) + "\n")
    print(table(results))
    plot(results, config.out / "speed.png")


def measure(name: str, config: Config, peak: float) -> dict[str, Any]:
    """Return the seconds of each implementation over random plans, and median ratios.

    Args:
        name: Name of the network.
        config: Numbers of plans and images, and the device.
        peak: FLOP/s of `matmul_peak`.
    """
    model, _ = make(name)
    generator = torch.Generator().manual_seed(0)
    count = 2 * max(config.reward_images, config.calibration_images)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 10
    data = from_tensors(images, labels, images[:100], labels[:100], reward=(images, labels))
    settings = EnvConfig(
        rounds=1,
        target_macs=None,
        reward="amc",
        reward_images=config.reward_images,
        calibration_images=config.calibration_images,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights
        env = FilterPruneEnv.from_model(model, data, settings, resources=Resources(device=config.device))
    dtype = env.evaluator.task.dtype
    total = config.reward_images + config.calibration_images
    ready = data.normalise(images[:total]).to(config.device, dtype, memory_format=torch.channels_last)
    batches = ready.split(BATCH_SIZES[config.device])
    exact = data.normalise(images[:total]).contiguous().to(config.device)
    rounded, fused = (
        Program(
            env.problem.model,
            env.groups,
            data.example_input.to(config.device),
            dtype=dtype,
            layout=env.evaluator.task.layout,
            multiple=multiple,
        )
        for multiple in (MULTIPLE, 1)
    )
    pairs = folding_pairs(env.problem.model, data.example_input)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    macs = []
    for number in tqdm(range(config.plans + 1), desc=name):
        env.reset()
        actions = {
            agent: int(torch.randint(len(settings.rates), (), generator=generator)) for agent in env.possible_agents
        }
        step = timed(partial(env.step, actions))
        plan = env.plan
        for bare in (rounded, fused):
            bare.load(env.problem.ranking, plan)
        module = env.problem.build(plan)
        fold(module, pairs)
        channels_last(module.to(config.device, dtype))
        turns = [step] + [timed(partial(forward, net, batches)) for net in (rounded.network, fused.network, module)]
        if number % config.obvious_every == 0:
            turns.append(timed(partial(obvious, env, plan, exact, config.calibration_images)))
        if number:  # the first plan warms up
            macs.append(env.problem.cost.macs(plan))
            for way, value in zip(WAYS, turns, strict=False):
                seconds[way].append(value)
    steps, total_seconds = seconds["env step"], median(seconds["env step"])
    return {
        "seconds": seconds,
        "step_seconds": total_seconds,
        "ratios": {way: median(map(truediv, steps, seconds[way])) for way in WAYS[1:-1]},
        "obvious_ratio": median(seconds["obvious"]) / total_seconds,
        "share_of_peak": median(2 * m * total / s / peak for m, s in zip(macs, steps, strict=True)),
    }


def obvious(env: FilterPruneEnv, plan: Plan, images: torch.Tensor, calibration_images: int) -> None:
    """Evaluate a plan by deepcopy, torch-pruning (or `build` if torch-pruning fails) and float32 forward passes."""
    import torch_pruning as tp

    network, size = copy.deepcopy(env.problem.model), BATCH_SIZES[images.device.type]
    try:
        graph = tp.DependencyGraph().build_dependency(network, env.problem.data.example_input, verbose=False)
        prune_along(graph, network, env.groups, env.problem.ranking, plan)
        with torch.inference_mode():
            network(env.problem.data.example_input)  # on the CPU, because a wrong index makes a GPU unusable
    except Exception:  # ResNets with zero-padded shortcuts: torch-pruning leaves a network that does not run
        network = env.problem.build(plan)
    network.to(images.device)
    recalibrate(network, images[:calibration_images].split(size))
    forward(network.eval(), images[calibration_images:].split(size))


def forward(network: nn.Module, batches: Any) -> None:
    """Run a network on all batches."""
    with torch.inference_mode():
        for batch in batches:
            network(batch)


def timed(function: Callable[[], object]) -> float:
    """Return the seconds of a call, including its work on the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_peak(dtype: torch.dtype, device: str) -> float:
    """Return the highest FLOP/s of five square matrix products."""
    size = 8192 if device == "cuda" else 3072
    a, b = torch.randn(2, size, size).to(device, dtype)
    return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(5))


def table(results: dict[str, Any]) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        "| network | env step (ms) | step / bare rounded | / fused | / module | obvious / step | of bf16 peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        ratios = " | ".join(f"{ratio:.2f}" for ratio in row["ratios"].values())
        lines.append(
            f"| {name} | {1000 * row['step_seconds']:.0f} | {ratios} | {row['obvious_ratio']:.1f} "
            f"| {100 * row['share_of_peak']:.0f} % |"
        )
    return "\n".join(lines)


def plot(results: dict[str, Any], file: Path) -> None:
    """Plot milliseconds of each implementation on each network."""
    figure = new_figure(7, 3.5)
    axes = figure.subplots()
    style_axes(axes)
    width = 0.8 / len(WAYS)
    for place, way in enumerate(WAYS):
        heights = [1000 * median(row["seconds"][way]) for row in results.values()]
        bars = axes.bar([x + place * width for x in range(len(results))], heights, width, label=way)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks([x + 1.5 * width for x in range(len(results))], list(results))
    axes.set_yscale("log")
    axes.set_ylabel("ms for one plan")
    add_legend(axes)
    save_figure(figure, file)


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.speed.evaluator", description=__doc__))
