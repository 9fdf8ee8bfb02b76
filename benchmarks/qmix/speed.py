"""How fast does QMIX learn and play? Ours against PyMARL and TorchRL, in one run.

    python -m benchmarks.qmix.speed                                  # ours and TorchRL
    python -m benchmarks.qmix.speed --pymarl PATH --out runs/qmix_speed

All take turns, with the same number of threads, at the same sizes: 13 agents, 16 observations, a state of 208, 10
actions, batches of 32 episodes of 8 steps (TorchRL: 256 transitions). Networks are 64 wide; those with a GRU are
compared with each other, and those without.

update    one step of the learner on a batch that is given: loss, gradient, clipping, optimizer, target network
learn     the same with drawing the batch from the replay: what one update of a training run takes
play      steps of a game that costs no time, exploring, episodes put into the replay; one copy of the game, and where
          an implementation has vectorised collection in one process, 16 (a step of 16 copies counts 16)

Figures are medians over the repeats, ratios medians of the ratios within a repeat. `peers/` says how each is
put together; its pymarl.py says which commit, and how it runs on today's torch. Writes results.json.
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

from prune_env.common.files import replacing

from .games import Idle
from .peers import Settings, available, make

AGAINST = {"PyMARL, GRU": "ours, GRU", "TorchRL, MLP": "ours, MLP"}
MEASURES = ("update", "learn", "play", "play, 16 copies")
COPIES = 16


@dataclass(frozen=True)
class Config:
    repeats: int = 9
    """turns; medians are told"""
    updates: int = 10
    """of each implementation in a repeat, for each of the two measures"""
    episodes: int = 10
    """played by each in a repeat"""
    threads: int = 1
    """of every implementation"""
    agents: int = 13
    """of the game"""
    observations: int = 16
    """features that an agent sees"""
    actions: int = 10
    """of every agent"""
    steps: int = 8
    """of an episode"""
    pymarl: Path | None = None
    """a clone of oxwhirl/pymarl"""
    out: Path = Path("runs/qmix_speed")
    """where results go"""


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    rates = measure(config)
    rows = summary(rates)
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
    """Updates and steps per second: rates[implementation][measure], one number a repeat."""
    settings = Settings(steps=config.steps)
    ways_of = {name: _ways(name, settings, config) for name in available(config.pymarl)}
    rates = {name: {measure: [] for measure in ways} for name, ways in ways_of.items()}
    for repeat in trange(config.repeats + 1, desc="repeats"):
        for measure in MEASURES:
            for name, ways in ways_of.items():
                if measure in ways:
                    count, run = ways[measure]
                    start = time.perf_counter()
                    run()
                    if repeat:  # the first one warms up
                        rates[name][measure].append(count / (time.perf_counter() - start))
    return rates


def _ways(name: str, settings: Settings, config: Config) -> dict[str, tuple[int, Callable[[], Any]]]:
    """What is measured of one implementation: how much a call does, and the call."""

    def game() -> Idle:
        return Idle(config.agents, config.observations, config.actions, config.steps)

    # As many as the replay holds: ours then plays without learning.
    never = {"learning_starts": settings.buffer_size} if name.startswith("ours") else {}
    peer = make(name, game(), settings, 0, config.pymarl, **never)
    peer.collect(2 * settings.batch_size)
    batch = peer.draw()

    def update() -> None:
        for _ in range(config.updates):
            peer.step(batch)

    def learn() -> None:
        for _ in range(config.updates):
            peer.step(peer.draw())

    steps = config.episodes * config.steps
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "update": (config.updates, update),
        "learn": (config.updates, learn),
        "play": (steps, lambda: peer.collect(config.episodes)),
    }
    if name.startswith("ours"):
        many = make(name, game(), settings, 0, None, n_envs=COPIES, **never)
        ways["play, 16 copies"] = (COPIES * steps, lambda: many.collect(COPIES * config.episodes))
    return ways


def summary(rates: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Medians, and of how many times ours is as fast as the peer with the same kind of network."""
    rows: dict[str, dict[str, float]] = {}
    for name, measures in rates.items():
        rows[name] = {measure: median(values) for measure, values in measures.items()}
        for measure, values in measures.items():
            if name in AGAINST and measure in rates[AGAINST[name]]:
                ours = rates[AGAINST[name]][measure]
                rows[name][f"ours / {measure}"] = median(a / b for a, b in zip(ours, values, strict=True))
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown: updates or steps a second; in parentheses how many times as fast ours is."""
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
    main(tyro.cli(Config, prog="python -m benchmarks.qmix.speed", description=__doc__))
