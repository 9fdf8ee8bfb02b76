"""Measure how fast QMIX learns and plays: `qmix_agent` ("ours") against PyMARL and TorchRL, in one run.

    python -m benchmarks.qmix.speed                                  # ours and TorchRL
    python -m benchmarks.qmix.speed --pymarl PATH --out runs/qmix_speed

The implementations take turns with the same number of threads at the same sizes: 13 agents, 16 observations, a state of
208, 10 actions, batches of 32 episodes of 8 steps (TorchRL: 256 transitions). Networks are 64 wide. Networks with a GRU
are compared with each other, and so are networks without.

Measures:
- update: one update on a given batch: loss, gradient, clipping, optimizer, target network;
- learn: the same, including drawing the batch from the replay buffer, as in training;
- play: steps of a game that itself costs no time, with exploration and storage of the episodes. One copy of the game
  and, where an implementation can step several copies in one process, 16 copies (one step of them counts as 16).

Results are medians over the repeats, and ratios are medians of the ratios within a repeat. The files in `peers/`
describe how each implementation is assembled; pymarl.py names the commit and how it runs on current torch. Writes
results.json.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from tqdm import trange

from prune_env.common.command import check_writable, one_line_errors
from prune_env.common.files import replacing
from prune_env.common.settings import Count, Settings

from .games import Idle
from .peers import Settings as PeerSettings
from .peers import available_peers, make_peer

COMPARED_WITH = {"PyMARL, GRU": "ours, GRU", "TorchRL, MLP": "ours, MLP"}
MEASURES = ("update", "learn", "play", "play, 16 copies")
COPIES = 16


@dataclass(frozen=True)
class Config(Settings):
    """Command line of the speed benchmark."""

    repeats: Count = 9
    """Repeats over which medians are taken."""
    updates: Count = 10
    """Updates of each implementation in a repeat, for each of the two measures."""
    episodes: Count = 10
    """Episodes that each implementation plays in a repeat."""
    threads: Count = 1
    """Threads of every implementation."""
    agents: Count = 13
    """Agents of the game."""
    observations: Count = 16
    """Observation features of each agent."""
    actions: Count = 10
    """Actions of each agent."""
    steps: Count = 8
    """Steps per episode."""
    pymarl: Path | None = None
    """Folder of a clone of oxwhirl/pymarl."""
    out: Path = Path("runs/qmix_speed")
    """Folder of the results."""


@dataclass(frozen=True)
class Workload:
    """A unit of work that is timed."""

    count: int
    """Updates or steps that one call makes."""
    run: Callable[[], Any]


def main(config: Config) -> None:
    """Measure all implementations, write results.json and print the table."""
    check_writable("out", config.out, folder=True)
    torch.set_num_threads(config.threads)
    rates = measure(config)
    rows = summarise(rates)
    result = {
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "config": {**dataclasses.asdict(config), "pymarl": str(config.pymarl), "out": str(config.out)},
        "rates": rates,
        "summary": rows,
    }
    with replacing(config.out / "results.json") as file:
        file.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


def measure(config: Config) -> dict[str, dict[str, list[float]]]:
    """Return updates or steps per second as rates[implementation][measure], one number per repeat."""
    settings = PeerSettings(steps=config.steps)
    workloads = {name: _workloads(name, settings, config) for name in available_peers(config.pymarl)}
    rates = {name: {measure: [] for measure in own} for name, own in workloads.items()}
    for repeat in trange(config.repeats + 1, desc="repeats"):
        for measure in MEASURES:
            for name, own in workloads.items():
                if measure in own:
                    start = time.perf_counter()
                    own[measure].run()
                    if repeat:  # the first one warms up
                        rates[name][measure].append(own[measure].count / (time.perf_counter() - start))
    return rates


def _workloads(name: str, settings: PeerSettings, config: Config) -> dict[str, Workload]:
    """Return what is timed of one implementation, by measure."""

    def game() -> Idle:
        return Idle(config.agents, config.observations, config.actions, config.steps)

    # The largest valid value, so that qmix_agent plays without learning.
    no_learning = {"learning_starts": settings.buffer_size} if name.startswith("ours") else {}
    peer = make_peer(name, game(), settings, 0, config.pymarl, **no_learning)
    peer.collect(2 * settings.batch_size)
    batch = peer.draw()

    def update() -> None:
        for _ in range(config.updates):
            peer.step(batch)

    def learn() -> None:
        for _ in range(config.updates):
            peer.step(peer.draw())

    steps = config.episodes * config.steps
    workloads = {
        "update": Workload(config.updates, update),
        "learn": Workload(config.updates, learn),
        "play": Workload(steps, lambda: peer.collect(config.episodes)),
    }
    if name.startswith("ours"):
        parallel = make_peer(name, game(), settings, 0, None, n_envs=COPIES, **no_learning)
        workloads["play, 16 copies"] = Workload(COPIES * steps, lambda: parallel.collect(COPIES * config.episodes))
    return workloads


def summarise(rates: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Return the median rates, and how many times faster ours is than each peer with the same kind of network."""
    rows: dict[str, dict[str, float]] = {}
    for name, measures in rates.items():
        rows[name] = {measure: median(values) for measure, values in measures.items()}
        for measure, values in measures.items():
            if name in COMPARED_WITH and measure in rates[COMPARED_WITH[name]]:
                ours = rates[COMPARED_WITH[name]][measure]
                rows[name][f"ours / {measure}"] = median(a / b for a, b in zip(ours, values, strict=True))
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table of updates or steps per second, with the ratio of ours to the peer in parentheses."""
    lines = [f"| per second | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, row in rows.items():
        cells = []
        for measure in MEASURES:
            cell = f"{row[measure]:,.0f}" if measure in row else ""
            if f"ours / {measure}" in row:
                cell += f" (ours {row[f'ours / {measure}']:.1f} x)"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.qmix.speed", description=__doc__))
