"""Measure plans per second by number and kind of workers, and the time of a message to a worker.

    python -m benchmarks.speed.workers                              # resnet20, vgg16, processes; minutes on two cores
    python -m benchmarks.speed.workers --ray --device cuda --workers 1 2 4

All alternatives measure the same new plans in turn, one block of plans at a time. `here` is the process of the
environment with all its threads. Workers have one thread each, so that accuracies do not depend on their number. The
time of a message is that of a request to a worker that responds at once. With the time of a plan in one worker, it
gives a projection of how many machines one search can use. Weights and images are random, because speed does not depend
on them. Writes results.json and scaling.png.
"""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from tqdm import tqdm

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.device import check_device
from prune_env.common.figure_style import add_legend, new_figure, save_figure, style_axes
from prune_env.common.settings import Count, Settings
from prune_env.data import DataSplits, from_tensors
from prune_env.evaluation.measurer import Task
from prune_env.evaluation.pool import Backend, Pool
from prune_env.evaluation.resources import Resources
from prune_env.networks.registry import network_entry
from prune_env.pruning import Plan

from ..make.zoo import make

MACHINES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Config(Settings):
    networks: tuple[str, ...] = ("resnet20", "vgg16")
    """Registered networks."""
    workers: tuple[Count, ...] = (1, 2)
    """Numbers of workers to compare."""
    ray: bool = False
    """Also measure Ray actors."""
    device: str = "cpu"
    """cpu or cuda."""
    blocks: Count = 5
    """Number of timed blocks of plans."""
    plans: Count = 8
    """Number of plans in a block."""
    processors: Count = 16
    """Processors of each machine in the projection."""
    out: Path = Path("runs/scaling")
    """Folder of the results."""


def main(config: Config) -> None:
    require_packages(["matplotlib"], "the plot", "train")
    if config.ray:
        require_packages(["ray"], "ray", "ray")
    check_device(config.device)
    for name in config.networks:
        network_entry(name)
    check_writable("out", config.out, folder=True)
    config.out.mkdir(parents=True, exist_ok=True)
    if config.ray:
        import ray

        ray.init(num_cpus=sum(config.workers), log_to_driver=False)  # all pools exist at the same time
    results = {name: measure(name, config) for name in config.networks}
    (config.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results, config))
    plot(results, config)


def measure(name: str, config: Config) -> dict[str, Any]:
    """Return the median seconds of a plan by alternative, and the seconds of a message by kind of worker."""
    env = environment(name, config.device)
    kinds = ("processes", "ray") if config.ray else ("processes",)
    pools = {
        f"{count} {kind}": Pool(_backend(kind, count), env.evaluator.task) for kind in kinds for count in config.workers
    }
    ways = {f"here, {torch.get_num_threads()} threads": None, **pools}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    generator = torch.Generator().manual_seed(0)
    for number in tqdm(range(config.blocks + 1), desc=name):
        plans = [random_plan(env, generator) for _ in range(config.plans)]
        answers = []
        for way, pool in ways.items():
            start = time.perf_counter()
            if pool is None:
                answers.append([env.evaluator.accuracy(plan) for plan in plans])
            else:
                for plan in plans:
                    pool.submit(plan)
                answers.append([pool.result(plan) for plan in plans])
            if number:  # the first block warms up
                seconds[way].append((time.perf_counter() - start) / config.plans)
        assert all(answer == answers[1] for answer in answers[1:]), "workers must agree"
    messages = {kind: message_seconds(_backend(kind, 1), env.evaluator.task) for kind in kinds}
    for pool in pools.values():
        pool.close()
    return {"seconds_a_plan": {way: median(times) for way, times in seconds.items()}, "message_seconds": messages}


def message_seconds(backend: Backend, task: Task, count: int = 200) -> float:
    """Return the median seconds between sending a plan and receiving a result, for a plan that fails at once."""
    worker, times = backend.start(task), []
    for _ in range(count + 1):
        start = time.perf_counter()
        backend.send(worker, (0,) * len(task.groups))
        backend.receive([worker])
        times.append(time.perf_counter() - start)
    backend.stop([worker])
    return median(times[1:])  # the first includes the start of the worker


def environment(name: str, device: str) -> FilterPruneEnv:
    """Return an environment of a registered network with random weights, on random images."""
    model, _ = make(name)
    settings = EnvConfig(rounds=1, target_macs=None, reward="amc", prove=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights
        return FilterPruneEnv.from_model(model, random_data(2000), settings, resources=Resources(device=device))


def random_data(count: int) -> DataSplits:
    """Return random images of 32x32 pixels in ten classes."""
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(count) % 10
    return from_tensors(images, labels, images[:100], labels[:100], reward=(images, labels))


def random_plan(env: FilterPruneEnv, generator: torch.Generator) -> Plan:
    """Return a plan in which every group keeps a random share of its filters, between 55 % and all."""
    shares = 0.55 + 0.45 * torch.rand(len(env.groups), generator=generator)
    return tuple(max(1, round(group.filters * float(share))) for group, share in zip(env.groups, shares, strict=True))


def _backend(kind: Any, count: int) -> Backend:
    backend = Resources(backend=kind, workers=count).make_backend()
    assert backend is not None
    return backend


def table(results: dict[str, Any], config: Config) -> str:
    """Return the measurements, and the projection for many machines, as tables in Markdown."""
    lines = ["| network | way | plans/s |", "|---|---|---|"]
    for name, row in results.items():
        lines += [f"| {name} | {way} | {1 / seconds:.2f} |" for way, seconds in row["seconds_a_plan"].items()]
    lines += ["", f"Projected plans/s of machines with {config.processors} processors, one worker on each:", ""]
    lines += ["| network | message (ms) | " + " | ".join(map(str, MACHINES)) + " |", "|---" * (2 + len(MACHINES)) + "|"]
    for name, row in results.items():
        for kind, message in row["message_seconds"].items():
            cells = " | ".join(f"{rate:.0f}" for rate in projected(row, kind, config))
            lines.append(f"| {name}, {kind} | {1000 * message:.2f} | {cells} |")
    return "\n".join(lines)


def projected(row: dict[str, Any], kind: str, config: Config) -> list[float]:
    """Return plans per second by number of machines: the smaller of what workers measure and what one process sends."""
    measuring = row["seconds_a_plan"][f"1 {kind}"]
    return [min(machines * config.processors / measuring, 1 / row["message_seconds"][kind]) for machines in MACHINES]


def plot(results: dict[str, Any], config: Config) -> None:
    """Plot measured and projected plans per second."""
    figure = new_figure(7, 3.5)
    left, right = figure.subplots(1, 2)
    style_axes(left)
    style_axes(right)
    for number, (name, row) in enumerate(results.items()):
        rates = {way: 1 / seconds for way, seconds in row["seconds_a_plan"].items()}
        bars = left.bar([number + place / (len(rates) + 1) for place in range(len(rates))], rates.values(), 0.2)
        left.bar_label(bars, list(rates), fontsize=6, rotation=90, label_type="center")
        for kind in row["message_seconds"]:
            right.plot(MACHINES, projected(row, kind, config), marker=".", label=f"{name}, {kind}")
    left.set_xticks([number + 0.25 for number in range(len(results))], list(results))
    left.set_ylabel("plans/s, measured")
    right.set(xscale="log", yscale="log", xlabel=f"machines of {config.processors} processors", ylabel="projected")
    add_legend(right)
    save_figure(figure, config.out / "scaling.png")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.speed.workers", description=__doc__))
